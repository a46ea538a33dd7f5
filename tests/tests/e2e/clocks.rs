//! Wall clocks that jump (fault F31): a data plane and a control plane whose clocks are an hour or ten years apart, and move
//! under load, by Debian's libfaketime. Nothing that serves looks at a wall clock. Never touches this machine's own clock.

use std::path::PathBuf;
use std::time::Duration;

use helios_tests::controlplane::{directory, sections, token};
use helios_tests::{Cluster, Config, ControlPlane, Load, Proxy, Role, eventually, free_port};

const LONG: Duration = Duration::from_secs(30);
const CLIENTS: usize = 4;
const HOUR: i64 = 3_600;
const TEN_YEARS: i64 = 3_653 * 24 * HOUR;

/// The wall clock of one process; monotonic clocks and the times of files stay as they are.
struct Clock {
    file: PathBuf,
    variables: Vec<(&'static str, String)>,
}

impl Clock {
    /// A clock that is right so far.
    fn new(name: &str) -> Self {
        let library = "/usr/lib/*/faketime/libfaketimeMT.so.1";
        let found = std::process::Command::new("sh").args(["-c", &format!("ls {library}")]).output().unwrap();
        let library = String::from_utf8(found.stdout).unwrap().trim().to_owned();
        assert!(!library.is_empty(), "no libfaketime (tools/setup installs it)");
        let file = std::env::temp_dir().join(format!("helios-clock-{}-{name}", std::process::id()));
        let clock = Self {
            variables: vec![
                ("LD_PRELOAD", library),
                ("FAKETIME_TIMESTAMP_FILE", file.to_str().unwrap().to_owned()),
                ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
                ("FAKETIME_CACHE_DURATION", "1".to_owned()),
                ("NO_FAKE_STAT", "1".to_owned()),
            ],
            file,
        };
        clock.set(0);
        clock
    }

    /// From now on it is this many seconds ahead. The process looks once a second.
    fn set(&self, ahead: i64) {
        let new = self.file.with_extension("new");
        std::fs::write(&new, format!("{ahead:+}\n")).unwrap();
        std::fs::rename(&new, &self.file).unwrap();
    }

    fn variables(&self) -> Vec<(&str, &str)> {
        self.variables.iter().map(|(name, value)| (*name, value.as_str())).collect()
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.file);
    }
}

/// The year that a process believes it is, by its last line of a log.
fn year(log: &[String]) -> i64 {
    log.last().and_then(|line| line.get(..4)?.parse().ok()).expect("a line with a time")
}

#[test]
fn clocks_that_jump_or_are_years_apart_cost_nothing_and_decide_nothing() {
    let cluster = Cluster::start(&[Role::Standby, Role::Replica]);
    Load::prepare(&cluster);
    let (discovery, store, state) = (free_port(), directory("store"), directory("state"));
    let (here, there) = (Clock::new("data-plane"), Clock::new("control-plane"));
    let text = Config::new(&cluster).text() + &sections(&store, discovery);
    let plane = ControlPlane::start_with(&text, &there.variables());
    let dataplane = format!(
        "listen_address = \"127.0.0.1:0\"\nadmin_address = \"127.0.0.1:0\"\n[control_plane]\n\
         endpoints = [\"127.0.0.1:{discovery}\"]\nname = \"dp-1\"\nstate_dir = \"{state}\"\ntoken = \"{}\"\n",
        token("dataplane")
    );
    let proxy = Proxy::start_with(&dataplane, &here.variables()).ready();
    let gauge = |name: &str| proxy.metrics().sum(&format!("heliosproxy_{name}"), &[]);
    let (epoch, now) = (gauge("topology_epoch"), year(&proxy.log()));
    let load = Load::start(CLIENTS, &[&proxy]);
    load.go_on(20);
    for (ahead, years) in [(HOUR, 0), (-HOUR, 0), (TEN_YEARS, 10), (-TEN_YEARS, -10), (0, 0)] {
        here.set(ahead);
        there.set(-ahead);
        std::thread::sleep(Duration::from_secs(2));
        load.go_on(200);
        // A change is made, acknowledged, kept, and told of with the new time.
        for drained in [true, false] {
            let order = helios_proto::wire::v1::SetNodeRequest {
                name: "replica-1".to_owned(),
                drained: Some(drained),
                wait: Some(helios_proto::wire::v1::Wait { timeout_ms: 10_000 }),
                ..Default::default()
            };
            let reply = plane.operator("operator").call(async |client| client.set_node(order).await).unwrap();
            assert_eq!((reply.dataplanes, reply.acknowledged), (1, 1), "{ahead}: {reply:?}");
        }
        proxy.reload();
        eventually(LONG, "the data plane's clock has jumped", || {
            (year(&proxy.log()) - now - years).abs() <= 1
        });
        assert_eq!((gauge("control_connected"), gauge("autonomous")), (Some(1.0), Some(0.0)), "{ahead}");
    }
    load.go_on(20);
    assert_eq!(gauge("topology_epoch"), epoch, "no failover");
    assert_eq!(proxy.logged("control plane connected").len(), 1, "the stream has not broken");
    let outcome = load.finish();
    outcome.check(cluster.primary());
    outcome.nothing_failed();
    let _ = std::fs::remove_dir_all(store);
    let _ = std::fs::remove_dir_all(state);
}
