//! t
use helios_tests::Cluster;
#[test]
fn x() { let c = Cluster::shared(); for n in &c.nodes { println!("{} {}", n.name, n.port); } }
