//! Names of nodes (fault F32): a name that moves to another address, that is gone, whose resolver hangs. The proxy runs in
//! a network of its own with its own /etc/hosts and resolver. Needs root; says so loudly where namespaces cannot be made.
//! Times are printed, never asserted.

use std::time::{Duration, Instant};

use helios_tests::{Cluster, Config, Load, Net, Proxy, Role, eventually};

const LONG: Duration = Duration::from_secs(60);
const CLIENTS: usize = 4;
/// Addresses of the host.
const OLD: u8 = 10;
const NEW: u8 = 11;
const NAME: &str = "db.helios.test";

struct Site {
    net: Net,
    cluster: Cluster,
    proxy: Proxy,
}

impl Site {
    /// A primary that every address of the host reaches, and a proxy that knows it by name.
    fn new(test: &str) -> Option<Self> {
        let net = match Net::new(&[OLD, NEW]) {
            Ok(net) => net,
            Err(why) => {
                eprintln!("SKIPPED {test}: no network namespaces here: {why}");
                return None;
            }
        };
        let cluster = Cluster::start(&[Role::Replica]);
        Load::prepare(&cluster);
        cluster.primary().restart_with("alter system set listen_addresses = '*'");
        let secret = format!("password = \"{}\"", helios_tests::cluster::password("app"));
        let inside = net.inside();
        let listen = format!("listen_address = \"{inside}:0\"\nadmin_address = \"{inside}:0\"\n");
        let text = Config::primary_only(&cluster).user("app", &secret).text();
        let text = text.replace("host = \"127.0.0.1\"", &format!("host = \"{NAME}\""));
        let text =
            text.replace("listen_address = \"127.0.0.1:0\"\nadmin_address = \"127.0.0.1:0\"\n", &listen);
        net.names(Some(&[(NAME, net.at(OLD))]));
        let proxy = Proxy::start_in(&net, &text).ready();
        Some(Self { net, cluster, proxy })
    }

    /// The addresses of the host that connections of clients come in at.
    fn reached(&self) -> Vec<String> {
        let output = std::process::Command::new("ss")
            .args(["-Htn", "state", "established", &format!("sport = :{}", self.cluster.primary().port)])
            .output()
            .expect("ss (iproute2; tools/setup installs it)");
        let lines = String::from_utf8(output.stdout).unwrap();
        let here = lines.lines().filter_map(|line| line.split_whitespace().nth(2));
        let mut found: Vec<String> = here
            .filter_map(|at| Some(at.rsplit_once(':')?.0.to_owned()))
            .filter(|at| at.starts_with("10."))
            .collect();
        found.sort();
        found.dedup();
        found
    }

    fn only(&self, host: u8) -> bool {
        self.reached() == [self.net.at(host).to_string()]
    }
}

#[test]
fn a_name_that_moves_is_followed_and_one_that_is_lost_keeps_its_last_address() {
    let Some(site) = Site::new("names that move") else { return };
    let Site { net, cluster, proxy } = &site;
    let load = Load::start(CLIENTS, &[proxy]);
    load.go_on(50);
    assert!(site.only(OLD), "{:?}", site.reached());

    net.names(Some(&[(NAME, net.at(NEW))]));
    let moved = Instant::now();
    eventually(LONG, "everything is at the new address", || site.only(NEW));
    println!("a name that moves: everything at the new address after {:?}", moved.elapsed());
    let _ = proxy.said("host has a new address");
    load.go_on(50);

    // Nobody knows it any more: new connections are made where it was.
    net.names(Some(&[]));
    let _ = proxy.said("name is not found");
    let before = connections(proxy);
    let mut clients: Vec<postgres::Client> = (0..2 * CLIENTS).map(|_| proxy.connect("app")).collect();
    for client in &mut clients {
        client.batch_execute("begin; select 1").unwrap();
    }
    assert!(connections(proxy) > before, "new ones were made");
    drop(clients);
    load.go_on(50);

    // The resolver does not answer, for as long as the test lasts.
    net.names(None);
    std::thread::sleep(Duration::from_secs(2));
    let hangs = Instant::now();
    let mut client = proxy.connect("app");
    client.batch_execute("select 1").unwrap();
    load.go_on(50);
    println!("a resolver that hangs: a login and 50 requests of each client took {:?}", hangs.elapsed());
    assert_eq!(proxy.get("/health/ready").status, 200);

    net.names(Some(&[(NAME, net.at(OLD))]));
    eventually(LONG * 2, "it is found again, and moved back", || site.only(OLD));
    let _ = proxy.said("name is found again");
    load.go_on(50);
    let outcome = load.finish();
    outcome.check(cluster.primary());
    outcome.nothing_failed();
}

/// Server connections that the proxy has open.
fn connections(proxy: &Proxy) -> f64 {
    proxy.metrics().sum("heliosproxy_pool_connections_total", &[]).unwrap_or_default()
}
