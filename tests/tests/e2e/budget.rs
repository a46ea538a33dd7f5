//! Connection budgets: however many data planes there are and whatever becomes of them, PostgreSQL never has more of their
//! connections than the node's budget. Counted in `pg_stat_activity`, by a role that only clients of the proxies use.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::time::Duration;

use helios_tests::cluster::password;
use helios_tests::controlplane::{directory, sections, token};
use helios_tests::guard::signal;
use helios_tests::{Cluster, Config, ControlPlane, Heliosctl, Proxy, eventually, free_port};
use postgres::{Client, NoTls};

const LONG: Duration = Duration::from_secs(40);
const BUDGET: i64 = 12;
/// Clients of each proxy: more than its pool has connections.
const CLIENTS: usize = 12;
const ROLE: &str = "clear";

/// Clients of one proxy, of which some work.
struct Load<'a> {
    proxy: &'a Proxy,
    working: AtomicUsize,
    done: AtomicUsize,
}

impl<'a> Load<'a> {
    fn new(proxy: &'a Proxy) -> Self {
        Self { proxy, working: AtomicUsize::new(0), done: AtomicUsize::new(0) }
    }

    fn work(&self, clients: usize) {
        self.working.store(clients, Ordering::Relaxed);
    }

    /// One client, until stopped. A proxy that dies is no error here.
    fn run(&self, number: usize, stop: &AtomicBool) {
        let mut client: Option<Client> = None;
        while !stop.load(Ordering::Relaxed) {
            if number >= self.working.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(20));
                continue;
            }
            let connected = client.take().or_else(|| self.proxy.config(ROLE).connect(NoTls).ok());
            match connected {
                Some(mut one) => {
                    if one.batch_execute("select pg_sleep(0.02)").is_ok() {
                        self.done.fetch_add(1, Ordering::Relaxed);
                        client = Some(one);
                    }
                }
                None => std::thread::sleep(Duration::from_millis(100)),
            }
        }
    }

    fn go_on(&self) {
        let before = self.done.load(Ordering::Relaxed);
        eventually(LONG, "clients are served", || self.done.load(Ordering::Relaxed) > before + 50);
    }
}

/// Ends clients however the test ends: also those of a proxy that stands still.
struct Stop<'a>(&'a AtomicBool, Mutex<Vec<u32>>);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
        signal("KILL", &self.1.lock().unwrap());
    }
}

fn granted(proxy: &Proxy) -> f64 {
    proxy.metrics().sum("heliosproxy_budget_granted", &[("node", "primary")]).unwrap_or(0.0)
}

fn dataplane(name: &str, discovery: u16) -> Proxy {
    let token = token("dataplane");
    Proxy::start(&format!(
        "listen_address = \"127.0.0.1:0\"\nadmin_address = \"127.0.0.1:0\"\nworkers = 1\n[control_plane]\n\
         endpoints = [\"127.0.0.1:{discovery}\"]\nname = \"{name}\"\ntoken = \"{token}\"\n"
    ))
    .ready()
}

/// Counts connections of the role until stopped: the most there were, and how often it looked.
fn watch(mut superuser: Client, stop: &AtomicBool, most: &AtomicI64, looks: &AtomicUsize) {
    while !stop.load(Ordering::Relaxed) {
        let sql = format!("select count(*) from pg_stat_activity where usename = '{ROLE}'");
        let count: i64 = superuser.query_one(&sql, &[]).unwrap().get(0);
        most.fetch_max(count, Ordering::Relaxed);
        looks.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn a_fleet_never_holds_more_than_the_budget_and_the_busy_one_gets_most_of_it() {
    let cluster = Cluster::start(&[]);
    let discovery = free_port();
    let config = Config { acquire_timeout: 30, ..Config::primary_only(&cluster) };
    let config = config.user(ROLE, &format!("password = \"{}\"", password(ROLE)));
    let text = config.text() + &format!("max_connections = {BUDGET}\n");
    let plane = ControlPlane::start(&(text + &sections(&directory("store"), discovery))).ready();
    let proxies = ["a", "b", "c"].map(|name| dataplane(name, discovery));
    let loads = proxies.each_ref().map(Load::new);
    let late = std::sync::OnceLock::new();
    let (stop, most, looks) = (AtomicBool::new(false), AtomicI64::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let stopping = Stop(&stop, Mutex::new(proxies.iter().map(|proxy| proxy.pid).collect()));
        let superuser = cluster.primary().superuser();
        scope.spawn(|| watch(superuser, &stop, &most, &looks));
        for (load, number) in loads.iter().flat_map(|load| (0..CLIENTS).map(move |number| (load, number))) {
            let stop = &stop;
            scope.spawn(move || load.run(number, stop));
        }
        let ([a, b, c], [to_a, to_b, to_c]) = (&proxies, &loads);
        let within = || {
            let most = most.load(Ordering::Relaxed);
            assert!(most <= BUDGET, "{most} connections");
        };

        // All want all.
        [to_a, to_b, to_c].into_iter().for_each(|load| load.work(CLIENTS));
        eventually(LONG, "everybody has a part", || proxies.iter().all(|proxy| granted(proxy) >= 3.0));
        [to_a, to_b, to_c].into_iter().for_each(Load::go_on);
        within();

        // One stands still for longer than its lease, another rests: the third gets what can be had.
        signal("STOP", &[c.pid]);
        let frozen = std::time::Instant::now();
        to_b.work(0);
        eventually(LONG, "what rests is given to who works", || granted(a) >= 5.0 && granted(b) <= 1.0);
        eventually(LONG, "the lease ends", || frozen.elapsed() > Duration::from_secs(12));
        to_c.work(1);
        signal("CONT", &[c.pid]);
        eventually(LONG, "what it held is given to who works", || granted(a) >= 8.0);
        to_c.go_on();
        within();

        // The work moves.
        to_a.work(0);
        to_b.work(CLIENTS);
        eventually(LONG, "the share follows the work", || granted(b) >= 7.0 && granted(a) <= 1.0);
        within();

        // One dies, another comes.
        signal("KILL", &[a.pid]);
        let late: &Proxy = late.get_or_init(|| dataplane("d", discovery));
        stopping.1.lock().unwrap().push(late.pid);
        let load = Load::new(late);
        let ending = AtomicBool::new(false);
        std::thread::scope(|inner| {
            let end = Stop(&ending, Mutex::default());
            for number in 0..CLIENTS {
                let (load, ending) = (&load, &ending);
                inner.spawn(move || load.run(number, ending));
            }
            load.work(CLIENTS);
            eventually(LONG, "the new one has a part", || granted(late) >= 3.0);
            load.go_on();
            drop(end);
        });
        within();

        let ctl = Heliosctl::at(plane.management).role("viewer");
        let shown = ctl.run(&["node", "list", "-o", "wide"]).out;
        assert!(shown.contains("/12"), "{shown}");
        let free = plane.metric("heliosproxy_cp_budget_free", &[("node", "primary")]);
        assert!(free.is_some_and(|free| (0.0..=12.0).contains(&free)), "{free:?}");
    });
    let (most, looks) = (most.into_inner(), looks.into_inner());
    assert!((8..=BUDGET).contains(&most) && looks > 50, "{most} connections at most in {looks} looks");
}

#[test]
fn a_standalone_proxy_keeps_within_the_budget() {
    let cluster = Cluster::shared();
    let text =
        Config { acquire_timeout: 30, ..Config::primary_only(cluster) }.text() + "max_connections = 2\n";
    let proxy = Proxy::start(&text).ready();
    let load = Load::new(&proxy);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stopping = Stop(&stop, Mutex::default());
        for number in 0..6 {
            let (load, stop) = (&load, &stop);
            scope.spawn(move || load.run(number, stop));
        }
        load.work(6);
        load.go_on();
        let pools = proxy.metrics().sum("heliosproxy_pool_connections_total", &[("node", "primary")]);
        assert!(pools.is_some_and(|open| open <= 2.0), "{pools:?}");
        assert!(granted(&proxy) == 2.0);
    });
}
