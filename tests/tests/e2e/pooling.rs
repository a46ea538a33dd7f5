//! What pooling does for and to a session: sharing, waiting, what is cleaned up, and that nothing of a session is
//! left for the next.

use std::collections::HashSet;
use std::sync::Mutex;
use std::time::Duration;

use helios_tests::raw::{message, query};
use helios_tests::{Cluster, Config, eventually};
use postgres::error::SqlState;
use postgres::{Client, NoTls};

const PID: &str = "select pg_backend_pid()";

fn pid(client: &mut Client) -> i32 {
    client.query_one(PID, &[]).unwrap().get(0)
}

fn code(error: &postgres::Error) -> &str {
    error.code().map_or("none", SqlState::code)
}

fn show(client: &mut Client, setting: &str) -> String {
    let rows = client.simple_query(&format!("show {setting}")).unwrap();
    let row = rows.iter().find_map(|m| match m {
        postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    });
    row.unwrap()
}

#[test]
fn transaction_mode_shares_few_servers_among_many_clients() {
    let proxy = Config { pool: 4, ..Config::primary_only(Cluster::shared()) }.start().ready();
    let pids = Mutex::new(HashSet::new());
    // Logins that come together each try their password on a connection of their own, which may push out others.
    let all_in = std::sync::Barrier::new(24);
    std::thread::scope(|s| {
        for _ in 0..24 {
            s.spawn(|| {
                let mut client = proxy.connect("app");
                all_in.wait();
                for _ in 0..20 {
                    let found = pid(&mut client);
                    pids.lock().unwrap().insert(found);
                }
            });
        }
    });
    let count = pids.into_inner().unwrap().len();
    assert!((1..=4).contains(&count), "{count} servers");
}

#[test]
fn a_transaction_keeps_its_server() {
    let proxy = Config { pool: 4, ..Config::primary_only(Cluster::shared()) }.start().ready();
    std::thread::scope(|s| {
        for _ in 0..8 {
            s.spawn(|| {
                let mut client = proxy.connect("app");
                for _ in 0..10 {
                    let mut transaction = client.transaction().unwrap();
                    let mut pid = || transaction.query_one(PID, &[]).unwrap().get::<_, i32>(0);
                    let first = pid();
                    assert!((0..5).all(|_| pid() == first));
                    transaction.commit().unwrap();
                }
            });
        }
    });
}

#[test]
fn session_mode_keeps_one_server_until_the_client_leaves() {
    let config =
        Config { mode: "session", pool: 2, acquire_timeout: 1, ..Config::primary_only(Cluster::shared()) };
    let proxy = config.start().ready();
    let (mut a, mut b) = (proxy.connect("app"), proxy.connect("app"));
    let (pid_a, pid_b) = (pid(&mut a), pid(&mut b));
    assert_ne!(pid_a, pid_b);
    for _ in 0..10 {
        assert_eq!((pid(&mut a), pid(&mut b)), (pid_a, pid_b));
    }
    // A third finds no server: at its login or at its first statement, whichever needs one.
    let third = proxy.config("app").connect(NoTls).and_then(|mut c| c.query_one(PID, &[]));
    assert_eq!(code(&third.expect_err("both servers are taken")), "53300");
    drop(a);
    let login = || proxy.config("app").connect(NoTls).and_then(|mut c| c.query_one(PID, &[]));
    eventually(Duration::from_secs(10), "the third gets the first one's server", || login().is_ok());
}

#[test]
fn statement_mode_refuses_transaction_blocks_and_lives_on() {
    let proxy = Config { mode: "statement", ..Config::primary_only(Cluster::shared()) }.start().ready();
    let mut client = proxy.connect("app");
    for sql in ["begin", "BEGIN READ ONLY", "start transaction", "/* x */ begin", "select 1; begin; select 2"]
    {
        assert_eq!(code(&client.batch_execute(sql).expect_err(sql)), "0A000", "{sql}");
        assert_eq!(client.query_one("select 7", &[]).unwrap().get::<_, i32>(0), 7);
    }
    assert_eq!(code(&client.execute("begin", &[]).expect_err("extended")), "0A000");
    assert_eq!(client.query_one("select 8", &[]).unwrap().get::<_, i32>(0), 8);
}

#[test]
fn a_transaction_that_its_client_abandons_is_rolled_back() {
    let cluster = Cluster::shared();
    cluster.execute(
        "create table abandoned (id int primary key, n int); grant all on abandoned to public; \
                     insert into abandoned values (1, 0)",
    );
    for failed in [false, true] {
        let proxy = Config { pool: 3, ..Config::primary_only(cluster) }.start().ready();
        let (mut raw, _) = proxy.raw("app");
        raw.query("begin");
        raw.query("update abandoned set n = n + 1 where id = 1");
        if failed {
            raw.query("select 1/0");
        }
        drop(raw);
        let mut other = cluster.primary().connect("app");
        other.batch_execute("set lock_timeout = '10s'").unwrap();
        let row = other.query_one("update abandoned set n = n where id = 1 returning n", &[]).unwrap();
        assert_eq!(row.get::<_, i32>(0), 0, "rolled back, not committed");
        assert!(proxy.connect("app").query_one("select 1", &[]).is_ok());
    }
}

#[test]
fn waiting_too_long_for_a_server_fails_the_statement_not_the_session() {
    let config = Config { pool: 1, acquire_timeout: 1, ..Config::primary_only(Cluster::shared()) };
    let proxy = config.start().ready();
    let (mut holder, _) = proxy.raw("app");
    let (mut waiter, _) = proxy.raw("app");
    holder.query("begin");
    let answer = waiter.query("select 1");
    assert_eq!(answer.iter().map(|m| m.tag).collect::<Vec<_>>(), b"EZ");
    assert_eq!(answer[0].sqlstate(), "53300");
    assert!(answer[0].error().1.contains("connection acquire timeout"), "{:?}", answer[0].error());
    // A whole batch is dropped up to its Sync: one error, one ReadyForQuery.
    let parse = |sql: &str| message(b'P', format!("\0{sql}\0\0\0").as_bytes());
    let (bind, execute) = (message(b'B', &[0; 8]), message(b'E', &[0; 5]));
    let one = [parse("select 1"), bind, execute].concat();
    waiter.send(&[one.clone(), one, message(b'S', b"")].concat());
    let answer = waiter.until_ready(1);
    assert_eq!(answer.iter().map(|m| m.tag).collect::<Vec<_>>(), b"EZ");
    holder.query("commit");
    let answer = waiter.query("select 5");
    assert_eq!(answer[1].fields(), ["5"]);
}

#[test]
fn dead_idle_servers_are_replaced_without_an_error() {
    let cluster = Cluster::shared();
    cluster.execute("create database dead_idle");
    let proxy = Config { pool: 5, ..Config::primary_only(cluster) }.start().ready();
    let connect = || proxy.config("app").dbname("dead_idle").connect(NoTls).unwrap();
    let mut clients: Vec<Client> = (0..5).map(|_| connect()).collect();
    for _ in 0..3 {
        // Five at once in transactions: five servers, idle afterwards.
        clients.iter_mut().for_each(|c| c.batch_execute("begin; select 1").unwrap());
        clients.iter_mut().for_each(|c| c.batch_execute("commit").unwrap());
        let sql =
            "select count(pg_terminate_backend(pid, 5000)) from pg_stat_activity where datname = 'dead_idle'";
        let ended: i64 = cluster.primary().superuser().query_one(sql, &[]).unwrap().get(0);
        assert_eq!(ended, 5);
        for i in 0..100 {
            let rows = clients[i % 5].query_typed("select 1", &[]).unwrap();
            assert_eq!(rows[0].get::<_, i32>(0), 1);
        }
    }
}

#[test]
fn settings_belong_to_the_session_that_made_them() {
    let proxy = Config { pool: 3, ..Config::primary_only(Cluster::shared()) }.start().ready();
    let mut plain = proxy.connect("app");
    let names = ["datestyle", "search_path", "statement_timeout", "application_name", "timezone"];
    let defaults: Vec<String> = names.iter().map(|n| show(&mut plain, n)).collect();
    let mut setter = proxy.connect("app");
    let changed = ["German, DMY", "pg_catalog", "12345ms", "setter", "Asia/Tokyo"];
    for (name, value) in names.iter().zip(["German", "pg_catalog", "12345", "setter", "Asia/Tokyo"]) {
        setter.batch_execute(&format!("set {name} = '{value}'")).unwrap();
    }
    for _ in 0..10 {
        for ((name, default), value) in names.iter().zip(&defaults).zip(changed) {
            assert_eq!(&show(&mut plain, name), default);
            assert_eq!(&show(&mut proxy.connect("app"), name), default);
            assert_eq!(show(&mut setter, name), value);
        }
    }
}

#[test]
fn nothing_of_a_session_is_left_for_the_next() {
    let cluster = Cluster::shared();
    cluster.execute("create role other_role; grant other_role to app");
    for mode in ["session", "transaction"] {
        let proxy = Config { mode, pool: 1, ..Config::primary_only(cluster) }.start().ready();
        let traces = [
            ("create temp table leftover (i int)", "select * from leftover", "42P01"),
            ("set app.tenant_id = 'A'", "show app.tenant_id", "42704"),
            ("prepare leftover as select 1", "execute leftover", "26000"),
            ("begin; prepare leftover as select 1", "execute leftover", "26000"),
            ("begin; declare leftover cursor with hold for select 1; commit", "fetch leftover", "34000"),
        ];
        for (leave, look, want) in traces {
            proxy.connect("app").batch_execute(leave).unwrap();
            let error = proxy.connect("app").batch_execute(look).expect_err(look);
            assert_eq!(code(&error), want, "{mode}: {leave}");
        }
        proxy.connect("app").batch_execute("set role other_role").unwrap();
        let row = proxy.connect("app").query_one("select current_user::text", &[]).unwrap();
        assert_eq!(row.get::<_, &str>(0), "app", "{mode}");
        proxy.connect("app").batch_execute("select pg_advisory_lock(4711)").unwrap();
        let mut direct = cluster.primary().connect("app");
        eventually(Duration::from_secs(10), "the advisory lock is free", || {
            direct.query_one("select pg_try_advisory_lock(4711)", &[]).unwrap().get(0)
        });
    }
}

#[test]
fn a_client_that_vanishes_inside_a_message_harms_nobody() {
    let proxy = Config { pool: 2, ..Config::primary_only(Cluster::shared()) }.start().ready();
    for cut in [1, 3, 5, 20] {
        for open in [false, true] {
            let (mut raw, _) = proxy.raw("app");
            if open {
                raw.query("begin");
            }
            raw.send(&query("select repeat('x', 100), 'foreign'")[..cut]);
        }
    }
    let mut client = proxy.connect("app");
    for i in 0..50 {
        assert_eq!(client.query_one("select $1::int", &[&i]).unwrap().get::<_, i32>(0), i);
    }
}

#[test]
fn named_statements_work_in_every_mode() {
    for mode in ["session", "transaction", "statement"] {
        let proxy = Config { mode, pool: 3, ..Config::primary_only(Cluster::shared()) }.start().ready();
        std::thread::scope(|s| {
            for thread in 0..3 {
                let mut client = proxy.connect("app");
                s.spawn(move || {
                    let add = client.prepare("select $1::int + 1").unwrap();
                    let text = client.prepare("select 'a' || $1::text").unwrap();
                    for i in 0..30 {
                        let n = i * 3 + thread;
                        assert_eq!(client.query_one(&add, &[&n]).unwrap().get::<_, i32>(0), n + 1);
                        let row = client.query_one(&text, &[&n.to_string()]).unwrap();
                        assert_eq!(row.get::<_, &str>(0), format!("a{n}"));
                    }
                });
            }
        });
    }
}
