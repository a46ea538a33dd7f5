//! Who gets in: every kind of password that a backend asks for, entries of `[[users]]`, and who does not.

use helios_tests::cluster::password;
use helios_tests::controlplane::{directory, sections, token};
use helios_tests::raw::{Message, Next, PATIENCE, startup};
use helios_tests::{Cluster, Config, ControlPlane, Proxy, Raw, eventually, free_port};

fn refusal(port: u16, user: &str, password: &str) -> Message {
    let mut raw = Raw::connect(port);
    raw.send(&startup(0x0003_0000, &[("user", user), ("database", "postgres")]));
    raw.finish_login(user, password).expect_err("the login is refused")
}

/// The first authentication request that a role gets.
fn asked(proxy: &Proxy, user: &str) -> u32 {
    let mut raw = Raw::connect(proxy.port());
    raw.send(&startup(0x0003_0000, &[("user", user), ("database", "postgres")]));
    let Next::Message(message) = raw.next(PATIENCE) else { panic!("no answer") };
    assert_eq!(message.tag, b'R');
    u32::from_be_bytes(message.body[..4].try_into().unwrap())
}

#[test]
fn every_kind_of_backend_password_logs_in() {
    let cluster = Cluster::shared();
    for mode in ["session", "transaction", "statement"] {
        let proxy = Config { mode, ..Config::new(cluster) }.start().ready();
        for role in ["app", "md5user", "clear", "trusty"] {
            for round in 0..3 {
                let row = proxy.connect(role).query_one("select current_user::text", &[]).unwrap();
                assert_eq!(row.get::<_, &str>(0), role, "{mode}, round {round}");
            }
        }
    }
}

#[test]
fn a_wrong_password_is_refused_every_time_although_the_pool_is_warm() {
    let mut config = Config::primary_only(Cluster::shared());
    config.more += "\n[limits]\nfailed_login_delay_secs = 0\n";
    let proxy = config.start().ready();
    for _ in 0..5 {
        proxy.connect("app").batch_execute("select 1").unwrap();
    }
    let (port, wrong) = (proxy.port(), ["app-secre", "app-secret ", "App-secret", "clear-secret", "x"]);
    std::thread::scope(|s| {
        for thread in 0..4 {
            s.spawn(move || {
                for i in 0..250 {
                    let refused = refusal(port, "app", wrong[(thread + i) % wrong.len()]);
                    assert_eq!(refused.sqlstate(), "28P01");
                    let (severity, message) = refused.error();
                    assert_eq!(severity, "FATAL");
                    assert_eq!(message, "password authentication failed for user \"app\"");
                }
            });
        }
    });
    proxy.connect("app").batch_execute("select 1").unwrap();
}

#[test]
fn failures_are_answered_late_and_who_has_the_password_is_let_in() {
    let mut config = Config::primary_only(Cluster::shared());
    // Longer than any login may take: the delay is none of its time.
    config.more += "\n[limits]\nfailed_login_delay_secs = 3600\nlogin_timeout_secs = 5\n";
    let proxy = config.start().ready();
    let mut attempts = Vec::new();
    for _ in 0..12 {
        let mut raw = Raw::connect(proxy.port());
        raw.send(&startup(0x0003_0000, &[("user", "app"), ("database", "postgres")]));
        attempts.push(std::thread::spawn(move || raw.finish_login("app", "wrong").is_err()));
    }
    let refused = || proxy.metrics().sum("heliosproxy_logins_refused_total", &[]);
    eventually(PATIENCE, "all were found wrong", || refused() == Some(12.0));
    assert!(attempts.iter().any(|attempt| !attempt.is_finished()), "the twelfth waits for 25.6 s");
    proxy.connect("app").batch_execute("select 1").unwrap();
    // Which ends the count.
    assert_eq!(refusal(proxy.port(), "app", "wrong").sqlstate(), "28P01");
}

#[test]
fn an_unknown_user_is_told_the_same_as_one_with_a_wrong_password() {
    let proxy = Config::primary_only(Cluster::shared()).start().ready();
    let told = |user: &str| {
        let refused = refusal(proxy.port(), user, "wrong");
        let (severity, message) = refused.error();
        (refused.sqlstate(), severity, message.replace(user, "USER"))
    };
    let first = told("app");
    assert_eq!((first.0.as_str(), first.1.as_str()), ("28P01", "FATAL"));
    for user in ["nobody", "clear", "md5user", "app"] {
        assert_eq!(told(user), first, "{user}");
    }
}

#[test]
fn the_clear_password_is_asked_once_then_scram() {
    let proxy = Config::primary_only(Cluster::shared()).start().ready();
    assert_eq!(asked(&proxy, "app"), 3, "clear text, this being loopback");
    proxy.connect("app").batch_execute("select 1").unwrap();
    assert_eq!(asked(&proxy, "app"), 10, "SASL");
    proxy.connect("app").batch_execute("select 1").unwrap();
}

#[test]
fn listed_users_log_in_by_scram_from_the_start() {
    let cluster = Cluster::shared();
    let row = cluster
        .primary()
        .superuser()
        .query_one("select rolpassword from pg_authid where rolname = 'app'", &[]);
    let verifier: String = row.unwrap().get(0);
    let secrets = [format!("password = \"{}\"", password("app")), format!("scram_verifier = \"{verifier}\"")];
    for secret in secrets {
        let proxy = Config::primary_only(cluster).user("app", &secret).start().ready();
        assert_eq!(asked(&proxy, "app"), 10, "SASL");
        for _ in 0..3 {
            proxy.connect("app").batch_execute("select 1").unwrap();
            assert_eq!(refusal(proxy.port(), "app", "wrong").sqlstate(), "28P01");
        }
    }
}

#[test]
fn a_listed_password_serves_backends_that_want_it_in_clear_or_md5() {
    let mut config = Config::primary_only(Cluster::shared());
    for role in ["clear", "md5user"] {
        config = config.user(role, &format!("password = \"{}\"", password(role)));
    }
    let proxy = config.start().ready();
    for role in ["clear", "md5user"] {
        assert_eq!(asked(&proxy, role), 10, "SASL");
        proxy.connect(role).batch_execute("select 1").unwrap();
        assert_eq!(refusal(proxy.port(), role, "wrong").sqlstate(), "28P01");
    }
}

#[test]
fn a_missing_database_is_told_after_the_password_only() {
    let proxy = Config::primary_only(Cluster::shared()).start().ready();
    let try_login = |password: &str| {
        let mut raw = Raw::connect(proxy.port());
        raw.send(&startup(0x0003_0000, &[("user", "app"), ("database", "nosuchdb")]));
        raw.finish_login("app", password).expect_err("no such database").sqlstate()
    };
    assert_eq!(try_login("wrong"), "28P01");
    assert_eq!(try_login(&password("app")), "3D000");
}

#[test]
fn a_login_waits_for_a_server_that_can_judge_it() {
    let cluster = Cluster::start(&[]);
    let primary = cluster.primary();
    primary.stop("fast");
    let mut config = Config::primary_only(&cluster);
    config.more += "\n[limits]\nlogin_timeout_secs = 4\n";
    let secret = format!("password = \"{}\"", password("md5user"));
    let proxy = config.user("md5user", &secret).start();
    // In vain: told before the login timeout would cut it, whoever checks the password.
    for role in ["app", "md5user"] {
        let error = proxy.config(role).connect(postgres::NoTls).err().expect("no server");
        assert_eq!(error.code().expect("told").code(), "57P03", "{role}");
    }
    let waiting = proxy.config("app").connect_timeout(std::time::Duration::from_secs(60)).clone();
    let accepted = || proxy.metrics().sum("heliosproxy_client_connections_total", &[]).unwrap();
    let before = accepted();
    let login = std::thread::spawn(move || waiting.connect(postgres::NoTls));
    eventually(PATIENCE, "a client has come", || accepted() > before);
    primary.start();
    login.join().unwrap().expect("it was let in").batch_execute("select 1").unwrap();
}

#[test]
fn a_login_waits_for_the_first_snapshot() {
    let (discovery, store) = (free_port(), directory("store"));
    let dataplane = format!(
        "listen_address = \"127.0.0.1:0\"\nadmin_address = \"127.0.0.1:0\"\n[control_plane]\n\
         endpoints = [\"127.0.0.1:{discovery}\"]\ntoken = \"{}\"\n",
        token("dataplane")
    );
    let proxy = Proxy::start(&dataplane);
    let waiting = proxy.config("app");
    let accepted = || proxy.metrics().sum("heliosproxy_client_connections_total", &[]);
    let login = std::thread::spawn(move || waiting.connect(postgres::NoTls));
    eventually(PATIENCE, "a client has come", || accepted() == Some(1.0));
    let text = Config::primary_only(Cluster::shared()).text() + &sections(&store, discovery);
    let _plane = ControlPlane::start(&text);
    login.join().unwrap().expect("it was let in").batch_execute("select 1").unwrap();
    let _ = std::fs::remove_dir_all(&store);
}

#[test]
fn passwords_reach_no_log() {
    let proxy = Config::new(Cluster::shared()).user("clear", "password = \"clear-secret\"").start().ready();
    for role in ["app", "md5user", "clear"] {
        proxy.connect(role).batch_execute("select 1").unwrap();
        let _ = refusal(proxy.port(), role, "planted-wrong-secret");
    }
    assert_eq!(proxy.logged("-secret"), Vec::<String>::new());
}

#[test]
fn a_client_that_has_proved_nothing_holds_no_place_of_the_pool() {
    let proxy = Config { pool: 1, acquire_timeout: 1, ..Config::primary_only(Cluster::shared()) };
    let proxy = proxy.start().ready();
    let mut client = proxy.connect("app");
    let asked: Vec<Raw> = (0..3)
        .map(|_| {
            let mut raw = Raw::connect(proxy.port());
            raw.send(&startup(0x0003_0000, &[("user", "nobody"), ("database", "postgres")]));
            let first = raw.next(PATIENCE);
            assert!(matches!(&first, Next::Message(m) if m.body == [0, 0, 0, 3]), "{first:?}");
            raw
        })
        .collect();
    for i in 0..5 {
        assert_eq!(client.query_one("select $1::int", &[&i]).unwrap().get::<_, i32>(0), i);
    }
    drop(asked);
}

/// A way to look verifiers up that shows nothing else, for the role `looker`.
const LOOK_UP: &str = "create role looker login password 'looker-secret'; create schema helios; \
    create function helios.role(name text) returns table (rolname text, verifier text) language sql stable security definer \
    set search_path = pg_catalog as 'select rolname::text, rolpassword from pg_authid where rolname = name and rolcanlogin \
    and (rolvaliduntil is null or rolvaliduntil > now())'; \
    revoke all on function helios.role(text) from public; grant usage on schema helios to looker; \
    grant execute on function helios.role(text) to looker";

const QUERY: &str = "\n[auth]\nauth_query = \"select rolname, verifier from helios.role($1)\"\nauth_user = \"looker\"\n\
    auth_password = \"looker-secret\"\n";

#[test]
fn roles_are_looked_up() {
    let cluster = Cluster::start(&[helios_tests::Role::Standby]);
    cluster.execute(LOOK_UP);
    cluster.execute("create role \"o'brien \"\"x\" login password 'quoted'; create role late login password 'late-secret' valid until '2020-01-01'");
    let mut config = Config::new(&cluster);
    config.more += QUERY;
    let proxy = config.start().ready();
    let logs_in = |user: &str, password: &str| {
        let config = proxy.config(user).password(password).clone();
        config
            .connect(postgres::NoTls)
            .map(|mut client| client.query_one("select current_user::text", &[]).unwrap().get::<_, String>(0))
    };
    for (user, kind) in [("app", 10), ("md5user", 5), ("nobody", 10), ("late", 10), ("clear", 10)] {
        assert_eq!(asked(&proxy, user), kind, "{user}");
    }
    for user in ["app", "md5user"] {
        assert_eq!(logs_in(user, &password(user)).unwrap(), user);
        assert_eq!(refusal(proxy.port(), user, "wrong").sqlstate(), "28P01");
    }
    assert_eq!(logs_in("o'brien \"x", "quoted").unwrap(), "o'brien \"x");
    for user in ["nobody", "late"] {
        let refused = refusal(proxy.port(), user, &password(user));
        let words = format!("password authentication failed for user \"{user}\"");
        assert_eq!((refused.sqlstate().as_str(), refused.error().1), ("28P01", words));
    }
    // A changed password counts at once, and so does a role that may not log in any more.
    let held = proxy.connect("app");
    cluster.execute("alter role app password 'app-secret-2'");
    assert_eq!(refusal(proxy.port(), "app", "app-secret").sqlstate(), "28P01");
    assert_eq!(logs_in("app", "app-secret-2").unwrap(), "app");
    cluster.execute("alter role app nologin");
    assert_eq!(refusal(proxy.port(), "app", "app-secret-2").sqlstate(), "28P01");
    cluster.execute("alter role app login");
    drop(held);
    // Without the primary a standby knows as well.
    cluster.node("standby").catch_up(cluster.primary());
    cluster.primary().stop("immediate");
    let mut raw = Raw::connect(proxy.port());
    raw.send(&startup(0x0003_0000, &[("user", "app"), ("database", "postgres")]));
    let refused = raw.finish_login("app", "wrong").expect_err("the standby was asked");
    assert_eq!(refused.sqlstate(), "28P01");
    let log = proxy.log().join("\n");
    for secret in ["looker-secret", "app-secret", "SCRAM-SHA-256$"] {
        assert!(!log.contains(secret), "{secret}");
    }
}

#[test]
fn a_look_up_that_fails_lets_nobody_in_and_says_why() {
    let mut config = Config::primary_only(Cluster::shared());
    config.more += &QUERY.replace("looker-secret", "wrong").replace("looker", "app");
    let proxy = config.start().ready();
    assert_eq!(refusal(proxy.port(), "app", "app-secret").sqlstate(), "57P03");
    eventually(PATIENCE, "the reason is logged", || !proxy.logged("could not look a role up").is_empty());
    let mut config = Config::primary_only(Cluster::shared());
    config.more += &QUERY.replace("looker", "app").replace("helios.role", "nowhere.role");
    let proxy = config.start().ready();
    assert_eq!(refusal(proxy.port(), "app", "app-secret").sqlstate(), "57P03");
    eventually(PATIENCE, "the reason is logged", || {
        !proxy.logged("schema \"nowhere\" does not exist").is_empty()
    });
}

#[test]
fn rules_say_who_may_try() {
    let mut config = Config::primary_only(Cluster::shared());
    config.more += "\n[[hba]]\nusers = [\"md5user\"]\nmethod = \"reject\"\n[[hba]]\ndatabases = [\"postgres\"]\n\
        address = \"127.0.0.0/8\"\nmethod = \"auto\"\n[[hba]]\naddress = \"10.0.0.0/8\"\nmethod = \"auto\"\n";
    let proxy = config.start().ready();
    proxy.connect("app").batch_execute("select 1").unwrap();
    let told = |user: &str, database: &str| {
        let mut raw = Raw::connect(proxy.port());
        raw.send(&startup(0x0003_0000, &[("user", user), ("database", database)]));
        let refused = raw.finish_login(user, &password(user)).expect_err("refused");
        (refused.sqlstate(), refused.error().1)
    };
    let (code, text) = told("md5user", "postgres");
    assert_eq!(code, "28000");
    assert_eq!(
        text,
        "[[hba]] rejects connection for host \"127.0.0.1\", user \"md5user\", database \"postgres\", no encryption"
    );
    let (code, text) = told("app", "template1");
    assert_eq!(code, "28000");
    assert_eq!(
        text,
        "no [[hba]] entry for host \"127.0.0.1\", user \"app\", database \"template1\", no encryption"
    );
}
