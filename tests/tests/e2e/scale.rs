//! Many idle clients.

use helios_tests::cluster::password;
use helios_tests::{Cluster, Config, Raw, raise_file_limit};

const CLIENTS: usize = 5_000;
/// Resident memory that 5,000 idle clients may cost, base included.
const LIMIT_KIB: u64 = 110 * 1024;

#[test]
fn five_thousand_idle_clients_fit_into_110_mib() {
    raise_file_limit();
    let secret = format!("password = \"{}\"", password("app"));
    let config = Config { pool: 10, ..Config::primary_only(Cluster::shared()) };
    let proxy = config.user("app", &secret).start().ready();
    let mut clients: Vec<Raw> = std::thread::scope(|s| {
        let open = || (0..CLIENTS / 4).map(|_| proxy.raw("app").0).collect::<Vec<_>>();
        let threads: Vec<_> = (0..4).map(|_| s.spawn(open)).collect();
        threads.into_iter().flat_map(|t| t.join().unwrap()).collect()
    });
    assert_eq!(clients.len(), CLIENTS);
    // All have been at work once: what an idle client keeps is counted, not what it never had.
    for client in &mut clients {
        assert_eq!(client.query("select 7")[1].fields(), ["7"]);
    }
    let rss = proxy.rss_kib();
    assert!(rss < LIMIT_KIB, "{rss} KiB");
    for client in clients.iter_mut().step_by(100) {
        assert_eq!(client.query("select 8")[1].fields(), ["8"]);
    }
}
