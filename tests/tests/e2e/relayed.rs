//! Clients on other machines without TLS: the server judges their logins, and each session has that one connection. The
//! other machine is an address of this one that is not loopback's, in a network made for it; needs root, and says so.

use helios_tests::cluster::password;
use helios_tests::raw::{Next, PATIENCE, startup};
use helios_tests::{Cluster, Config, Net, Proxy, Raw, Role, eventually};
use postgres::error::SqlState;
use postgres::{Client, NoTls};
use std::time::Duration;

const LONG: Duration = Duration::from_secs(60);

/// A proxy that listens for others.
struct Site {
    proxy: Proxy,
    _net: Net,
}

impl Site {
    /// `None`: this machine has no namespaces, and the test says that it was not run.
    fn new(config: &Config) -> Option<Self> {
        let net = match Net::new(&[1]) {
            Ok(net) => net,
            Err(why) => {
                eprintln!("SKIPPED: no network namespaces here: {why}");
                return None;
            }
        };
        let text = config.text().replacen("127.0.0.1:0", &format!("{}:0", net.at(1)), 1);
        Some(Self { proxy: Proxy::start(&text).ready(), _net: net })
    }

    fn config(&self, role: &str) -> postgres::Config {
        let mut config = postgres::Config::new();
        config.host(&self.proxy.address.ip().to_string()).port(self.proxy.port());
        config.user(role).password(password(role)).dbname("postgres").application_name("afar");
        config
    }

    fn connect(&self, role: &str) -> Client {
        self.config(role).connect(NoTls).unwrap_or_else(|e| panic!("{e:?}: {:#?}", self.proxy.tail()))
    }

    fn refused(&self, role: &str, password: &str) -> (String, String) {
        let error = self.config(role).password(password).connect(NoTls).err().expect("refused");
        let told = error.as_db_error().unwrap_or_else(|| panic!("{error:?}"));
        (told.code().code().to_owned(), told.message().to_owned())
    }

    fn relayed(&self) -> Option<f64> {
        self.proxy.metrics().sum("heliosproxy_logins_relayed_total", &[])
    }
}

fn pid(client: &mut Client) -> i32 {
    client.query_one("select pg_backend_pid()", &[]).unwrap().get(0)
}

#[test]
fn the_server_judges_and_the_session_has_one_connection() {
    let cluster = Cluster::shared();
    let Some(site) = Site::new(&Config { mode: "transaction", ..Config::new(cluster) }) else { return };
    for role in ["app", "md5user"] {
        let mut client = site.connect(role);
        let row = client.query_one("select current_user::text, current_setting('application_name')", &[]);
        let row = row.unwrap();
        assert_eq!((row.get::<_, &str>(0), row.get::<_, &str>(1)), (role, "afar"));
        // All that a session of one's own has.
        let server = pid(&mut client);
        client.batch_execute("create temp table mine (i int); set statement_timeout = '77s'").unwrap();
        let mut transaction = client.transaction().unwrap();
        transaction.execute("insert into mine values (1)", &[]).unwrap();
        transaction.commit().unwrap();
        assert_eq!(client.query_one("select count(*) from mine", &[]).unwrap().get::<_, i64>(0), 1);
        assert_eq!(pid(&mut client), server);
        let failed = client.batch_execute("select 1 / 0").unwrap_err();
        assert_eq!(failed.code(), Some(&SqlState::DIVISION_BY_ZERO));
        assert_eq!(pid(&mut client), server);
        // Nobody gets it afterwards.
        drop(client);
        let mut superuser = cluster.primary().superuser();
        let there = "select count(*) from pg_stat_activity where pid = $1";
        eventually(LONG, "its connection is closed", || {
            superuser.query_one(there, &[&server]).unwrap().get::<_, i64>(0) == 0
        });
    }
    assert_eq!(site.relayed(), Some(2.0));
    let _ = site.proxy.said("a login was passed on to the server");
    assert_eq!(site.proxy.logged("a login was passed on to the server").len(), 1, "told once");
    assert_eq!(site.proxy.logged("-secret"), Vec::<String>::new());
}

#[test]
fn who_proves_nothing_stays_outside() {
    let Some(site) = Site::new(&Config::primary_only(Cluster::shared())) else { return };
    site.connect("app").batch_execute("select 1").unwrap();
    for _ in 0..5 {
        let words = "password authentication failed for user \"app\"";
        assert_eq!(site.refused("app", "wrong"), ("28P01".to_owned(), words.to_owned()));
    }
    let words = "password authentication failed for user \"nobody\"";
    assert_eq!(site.refused("nobody", "x"), ("28P01".to_owned(), words.to_owned()));
    // A password that everybody on the way could read is not asked for, and a role without one is not for them.
    let (code, words) = site.refused("clear", &password("clear"));
    assert_eq!(code, "28000");
    assert!(words.contains("unencrypted remote connection"), "{words}");
    let (code, words) = site.refused("trusty", "");
    assert_eq!(code, "28000");
    assert!(words.contains("proves nothing to the server"), "{words}");
    assert_eq!(site.relayed(), Some(1.0));
    // Nothing that was refused holds a connection of the server.
    eventually(LONG, "every place is free", || {
        site.proxy.metrics().sum("heliosproxy_pool_connections_active", &[]) == Some(0.0)
    });
}

#[test]
fn logins_under_way_leave_room_for_others() {
    let secret = format!("password = \"{}\"", password("md5user"));
    let mut config = Config { pool: 6, acquire_timeout: 2, ..Config::primary_only(Cluster::shared()) };
    config.more += "\n[limits]\nlogin_timeout_secs = 4\n";
    let Some(site) = Site::new(&config.user("md5user", &secret)) else { return };
    let mut silent: Vec<Raw> = (0..8)
        .map(|_| {
            let mut raw = Raw::connect_to(site.proxy.address);
            raw.send(&startup(0x0003_0000, &[("user", "app"), ("database", "postgres")]));
            raw
        })
        .collect();
    // More than there are places, and yet there is one for who needs no server to be known.
    for _ in 0..3 {
        site.connect("md5user").batch_execute("select 1").unwrap();
    }
    let (mut asked, mut told) = (0, 0);
    for raw in &mut silent {
        match raw.next(PATIENCE) {
            Next::Message(message) if message.tag == b'R' => asked += 1,
            Next::Message(message) if message.sqlstate() == "53300" => told += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(asked >= 2 && told >= 1 && asked + told == 8, "{asked} were asked, {told} told why not");
}

#[test]
fn without_a_primary_nobody_is_passed_on() {
    let cluster = Cluster::start(&[Role::Standby]);
    let mut config = Config { balancer: "slow_start_secs = 0", ..Config::new(&cluster) };
    config.more += "\n[limits]\nlogin_timeout_secs = 2\n";
    let Some(site) = Site::new(&config) else { return };
    site.connect("app").batch_execute("select 1").unwrap();
    cluster.primary().stop("fast");
    eventually(LONG, "the primary is seen to be down", || {
        site.proxy.metrics().sum("heliosproxy_node_healthy", &[("node", "primary")]) == Some(0.0)
    });
    let (code, words) = site.refused("app", &password("app"));
    assert_eq!((code.as_str(), words.contains("to check the login")), ("57P03", true), "{words}");
}

#[test]
fn a_session_ends_with_its_server_and_a_cancel_reaches_it() {
    let cluster = Cluster::shared();
    let Some(site) = Site::new(&Config { mode: "transaction", ..Config::primary_only(cluster) }) else {
        return;
    };
    let mut client = site.connect("app");
    let cancel = client.cancel_token();
    let waits = std::thread::spawn(move || (client.batch_execute("select pg_sleep(300)"), client));
    let mut superuser = cluster.primary().superuser();
    let mine = "select pid from pg_stat_activity where application_name = 'afar' and state = $1";
    eventually(LONG, "it sleeps", || !superuser.query(mine, &[&"active"]).unwrap().is_empty());
    cancel.cancel_query(NoTls).unwrap();
    let (cancelled, mut client) = waits.join().unwrap();
    assert_eq!(cancelled.unwrap_err().code(), Some(&SqlState::QUERY_CANCELED));
    // The server goes: between two statements, and before the first one.
    let before = site.connect("app");
    let gone = [pid(&mut client)].to_vec();
    let terminate =
        "select pg_terminate_backend(pid, 10000) from pg_stat_activity where application_name = 'afar'";
    superuser.batch_execute(terminate).unwrap();
    for mut client in [client, before] {
        assert!(client.batch_execute("select 1").is_err());
        eventually(LONG, "the session is over", || {
            client.batch_execute("select 1").expect_err("it has no server");
            client.is_closed()
        });
    }
    let mut again = site.connect("app");
    assert!(!gone.contains(&pid(&mut again)));
}

#[test]
fn who_has_shown_what_proves_the_role_shares_connections() {
    let cluster = Cluster::shared();
    let secret = format!("password = \"{}\"", password("app"));
    let Some(site) = Site::new(&Config::primary_only(cluster).user("app", &secret)) else { return };
    let server = pid(&mut site.connect("app"));
    assert_eq!(pid(&mut site.connect("app")), server, "one connection after the other");
    assert_eq!(site.relayed(), Some(0.0));
}
