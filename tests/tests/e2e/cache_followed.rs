//! `invalidation = "logical"`: writes that never pass a proxy are heard of from the primary's logical replication stream.
//! Answers live for an hour here, so that what shows sooner was heard. Each test has a cluster of its own. Never measures
//! time.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use helios_tests::cluster::password;
use helios_tests::{Cluster, Config, Heliosctl, Proxy, Redis, Role, eventually, free_port};
use postgres::Client;

use super::cache::{LONG, READ, SCHEMA, behind, is_hit, metric, never, proxy, value, warm};

fn cluster(roles: &[Role]) -> Cluster {
    let cluster = Cluster::start(roles);
    cluster.nodes.iter().for_each(|node| node.restart_with("alter system set wal_level = logical"));
    cluster.execute(SCHEMA);
    cluster.execute(&format!("create role listener login replication password '{}'", password("listener")));
    cluster.execute("create publication heliosproxy for all tables");
    cluster
}

fn settings() -> String {
    let password = password("listener");
    format!(
        "ttl_secs = 3600\ninvalidation = \"logical\"\nreplication_user = \"listener\"\n\
         replication_password = \"{password}\"\n"
    )
}

fn followed(proxy: &Proxy) -> bool {
    proxy.metrics().sum("heliosproxy_cache_followed", &[]).unwrap_or(0.0) >= 1.0
}

/// Shows this in the end, and from then on nothing else.
#[track_caller]
fn shows(client: &mut Client, sql: &str, expected: &str) {
    eventually(LONG, &format!("{sql} shows {expected}"), || value(client, sql) == expected);
    for _ in 0..3 {
        assert_eq!(value(client, sql), expected, "{sql}: and stays so");
    }
}

#[test]
fn what_others_write_shows_and_what_they_roll_back_does_not_disturb() {
    let cluster = cluster(&[]);
    cluster.execute(
        "create table parts (id int, n int) partition by range (id); \
         create table part_1 partition of parts for values from (0) to (10); \
         create table base (n int); create table derived () inherits (base); \
         create unlogged table fleeting (n int); insert into fleeting values (0); \
         insert into parts values (1, 0); insert into derived values (0); \
         alter table part_1 replica identity full; alter table derived replica identity full; \
         grant all on parts, part_1, base, derived, fleeting to public",
    );
    let proxy = proxy(&cluster, &settings());
    let mut client = proxy.connect("app");
    warm(&proxy, &mut client, READ);
    assert!(followed(&proxy));
    for (round, write) in [
        "update items set n = n + 1 where id = 1",
        "begin; insert into others values (9, 9); update items set n = n + 1 where id = 1; delete from others where id = 9; commit",
        "do $$ begin update items set n = n + 1 where id = 1; exception when others then raise; end $$",
        "begin; savepoint s; update items set n = 99; rollback to s; update items set n = n + 1 where id = 1; commit",
        "set synchronous_commit = off; update items set n = n + 1 where id = 1",
        "begin; truncate items; insert into items values (1, 6), (2, 0); commit",
    ]
    .iter()
    .enumerate()
    {
        warm(&proxy, &mut client, READ);
        behind(&cluster, write);
        shows(&mut client, READ, &(round + 1).to_string());
    }
    behind(&cluster, "copy items from program 'echo 5,7' with csv");
    shows(&mut client, "select count(*) from items", "3");
    // What is read through another table.
    for (sql, write) in [
        ("select n from parts where id = 1", "update part_1 set n = 1"),
        ("select n from base", "update derived set n = 1"),
        ("select n from part_1", "update parts set n = 1"),
    ] {
        warm(&proxy, &mut client, sql);
        behind(&cluster, write);
        shows(&mut client, sql, "1");
    }
    // What did not happen, and what happened elsewhere.
    warm(&proxy, &mut client, READ);
    behind(&cluster, "begin; update items set n = 77; rollback");
    behind(&cluster, "update parts set n = 2");
    shows(&mut client, "select n from parts where id = 1", "2");
    assert!(is_hit(&proxy, &mut client, READ), "nothing of it concerns this one");
    // What the stream does not tell of is not kept.
    never(&proxy, &mut client, "select n from fleeting");
    cluster.execute("alter publication heliosproxy set (publish = 'insert, update, delete')");
    eventually(LONG, "nothing is kept", || !is_hit(&proxy, &mut client, READ));
    cluster.execute("alter publication heliosproxy set (publish = 'insert, update, delete, truncate')");
    warm(&proxy, &mut client, READ);
    assert!(proxy.logged(&password("listener")).is_empty(), "the password is in no log");
}

#[test]
fn only_tables_of_the_publication_are_kept() {
    let cluster = cluster(&[]);
    cluster.execute("drop publication heliosproxy; create publication few for table others");
    let proxy = proxy(&cluster, &format!("{}publication = \"few\"\n", settings()));
    let mut client = proxy.connect("app");
    never(&proxy, &mut client, READ);
    cluster.execute("alter publication few add table items");
    warm(&proxy, &mut client, READ);
    behind(&cluster, "update items set n = 5 where id = 1");
    shows(&mut client, READ, "5");
    cluster.execute("alter publication few drop table items");
    eventually(LONG, "it is kept no more", || !is_hit(&proxy, &mut client, READ));
    never(&proxy, &mut client, READ);
}

#[test]
fn without_the_stream_nothing_is_answered_and_the_reason_is_logged_once() {
    let cluster = Cluster::start(&[]);
    cluster.execute(SCHEMA);
    cluster.execute(&format!("create role listener login password '{}'", password("listener")));
    cluster.execute("create publication heliosproxy for all tables");
    let port = free_port();
    let management = format!("[management]\nlisten_address = \"127.0.0.1:{port}\"\n");
    let proxy = proxy(&cluster, &(settings() + &management));
    let ctl = Heliosctl::at(SocketAddr::from(([127, 0, 0, 1], port)));
    let state = |word: &str| {
        eventually(LONG, word, || ctl.run(&["cache", "stats"]).code(0).out.contains(word));
    };
    let mut client = proxy.connect("app");
    let none = |client: &mut Client| {
        for _ in 0..5 {
            assert!(!is_hit(&proxy, client, READ));
        }
    };
    none(&mut client);
    let _ = proxy.said("the logical replication stream is not followed");
    none(&mut client);
    state("no stream");
    // No REPLICATION, then too little WAL, then all is well.
    cluster.execute("alter role listener replication");
    none(&mut client);
    cluster.primary().restart_with("alter system set wal_level = logical");
    let mut client = proxy.connect("app");
    warm(&proxy, &mut client, READ);
    state("alone");
    assert_eq!(proxy.logged("stream is not followed").len(), 1, "once");
    assert!(!proxy.logged("stream is followed").is_empty());
    // The stream is cut off and cannot begin again, while somebody writes.
    cluster.execute("alter role listener nologin");
    warm(&proxy, &mut client, READ);
    let cut =
        "select pg_terminate_backend(pid) from pg_stat_replication where application_name = 'helios-cache'";
    cluster.execute(cut);
    eventually(LONG, "it is noticed", || !followed(&proxy));
    behind(&cluster, "update items set n = 5 where id = 1");
    assert_eq!(value(&mut client, READ), "5");
    none(&mut client);
    cluster.execute("alter role listener login");
    warm(&proxy, &mut client, READ);
    behind(&cluster, "update items set n = 6 where id = 1");
    shows(&mut client, READ, "6");
    // Its slot ends with it.
    let slots = "select count(*) from pg_replication_slots";
    let count = |sql: &str| cluster.primary().superuser().query_one(sql, &[]).unwrap().get::<_, i64>(0);
    assert_eq!(count(slots), 1);
    drop((client, proxy));
    eventually(LONG, "the slot is gone", || count(slots) == 0);
}

#[test]
fn the_new_primary_s_stream_is_followed_after_a_failover() {
    let cluster = cluster(&[Role::Standby]);
    let text = Config::new(&cluster).text() + &format!("\n[cache]\nenabled = true\n{}", settings());
    let proxy = Proxy::start(&text).ready();
    let mut client = proxy.connect("app");
    warm(&proxy, &mut client, READ);
    behind(&cluster, "update items set n = 1 where id = 1");
    shows(&mut client, READ, "1");
    let standby = cluster.node("standby");
    standby.catch_up(cluster.primary());
    cluster.primary().kill();
    standby.promote();
    eventually(LONG, "it takes writes", || {
        proxy
            .config("app")
            .connect(postgres::NoTls)
            .is_ok_and(|mut c| c.batch_execute("update items set n = 2 where id = 1").is_ok())
    });
    let mut client = proxy.connect("app");
    warm(&proxy, &mut client, READ);
    standby.superuser().batch_execute("update items set n = 3 where id = 1").unwrap();
    shows(&mut client, READ, "3");
}

#[test]
fn a_fleet_hears_it_once_and_nobody_resurrects_what_was_before() {
    let cluster = cluster(&[]);
    let redis = Redis::start();
    let more = format!("{}redis_url = \"{}\"\n", settings(), redis.url());
    let (first, second) = (proxy(&cluster, &more), proxy(&cluster, &more));
    let (mut here, mut there) = (first.connect("app"), second.connect("app"));
    for round in 1..20 {
        warm(&first, &mut here, READ);
        warm(&second, &mut there, READ);
        behind(&cluster, &format!("update items set n = {round} where id = 1"));
        shows(&mut here, READ, &round.to_string());
        shows(&mut there, READ, &round.to_string());
    }
    // Each write is one word of the fleet's, not one of each data plane.
    let words = || -> u64 {
        let said = redis.ask("GET helios:writes").unwrap();
        said.lines().find_map(|line| line.trim().parse().ok()).unwrap()
    };
    warm(&first, &mut here, READ);
    let before = words();
    for round in 0..10 {
        behind(&cluster, &format!("update items set n = 100 + {round} where id = 1"));
        shows(&mut here, READ, &(100 + round).to_string());
        shows(&mut there, READ, &(100 + round).to_string());
    }
    // A few are said again, where a commit was told before it could be seen.
    let said = words() - before;
    assert!((10..15).contains(&said), "{said}");
    // One that comes later does not know what was before.
    drop((there, second));
    behind(&cluster, "update items set n = 500 where id = 1");
    shows(&mut here, READ, "500");
    let second = proxy(&cluster, &more);
    let mut there = second.connect("app");
    shows(&mut there, READ, "500");
    warm(&second, &mut there, READ);
}

#[test]
fn readers_see_time_go_forward_only_while_others_write_at_the_source() {
    let cluster = cluster(&[]);
    let proxy = proxy(&cluster, &settings());
    let mut client = proxy.connect("app");
    warm(&proxy, &mut client, READ);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut reader = proxy.connect("app");
                let mut last = 0;
                while !done.load(Ordering::SeqCst) {
                    let now: i32 = value(&mut reader, READ).parse().unwrap();
                    assert!(now >= last, "{now} after {last}");
                    last = now;
                }
            });
        }
        let mut writer = cluster.primary().superuser();
        for round in 1..=300 {
            writer.batch_execute(&format!("update items set n = {round} where id = 1")).unwrap();
            std::thread::sleep(Duration::from_millis(3));
        }
        eventually(LONG, "the last one shows", || value(&mut client, READ) == "300");
        done.store(true, Ordering::SeqCst);
    });
    assert!(metric(&proxy, "invalidations_total") >= 10.0);
    assert!(super::cache::hits(&proxy) > 300.0, "most of it was answered from the cache");
}

#[test]
fn a_cache_is_nothing_that_a_commit_or_the_disk_of_the_server_waits_for() {
    let cluster = cluster(&[]);
    cluster.execute("create database other");
    let proxy = proxy(&cluster, &settings());
    let mut client = proxy.connect("app");
    warm(&proxy, &mut client, READ);
    // Another database writes: the slot of this one follows.
    let mut other = cluster.primary().superuser_of("other");
    other
        .batch_execute(
            "create table w (t text); insert into w select repeat('x', 1000) from generate_series(1, 1000)",
        )
        .unwrap();
    let position = "select pg_current_wal_lsn()::text";
    let written: String = other.query_one(position, &[]).unwrap().get(0);
    let behind =
        format!("select count(*) from pg_replication_slots where confirmed_flush_lsn < '{written}'::pg_lsn");
    let count = |sql: &str| cluster.primary().superuser().query_one(sql, &[]).unwrap().get::<_, i64>(0);
    eventually(LONG, "no slot keeps it", || count(&behind) == 0);
    assert!(followed(&proxy));
    // Any standby is waited for: this is none.
    cluster.execute("alter system set synchronous_standby_names = '*'");
    cluster.execute("select pg_reload_conf()");
    let _ = proxy.said("synchronous_standby_names has *");
    eventually(LONG, "it is gone", || count("select count(*) from pg_stat_replication") == 0);
    assert!(!followed(&proxy));
    cluster.primary().superuser().batch_execute("alter system reset synchronous_standby_names").unwrap();
    cluster.execute("select pg_reload_conf()");
    warm(&proxy, &mut client, READ);
}

#[test]
fn a_publication_that_is_missing_or_has_another_name_is_not_followed() {
    let cluster = cluster(&[]);
    cluster
        .execute("alter publication heliosproxy rename to \"Few\"; create publication few for table others");
    let proxy = proxy(&cluster, &format!("{}publication = \"Few\"\n", settings()));
    let mut client = proxy.connect("app");
    warm(&proxy, &mut client, READ);
    behind(&cluster, "update items set n = 5 where id = 1");
    shows(&mut client, READ, "5");
    let missing = super::cache::proxy(&cluster, &settings());
    let mut client = missing.connect("app");
    let _ = missing.said("there is no publication \"heliosproxy\"");
    for n in 0..20 {
        behind(&cluster, &format!("update items set n = {n} where id = 1"));
        assert_eq!(value(&mut client, READ), n.to_string());
    }
    assert!(!followed(&missing));
    assert_eq!(missing.logged("stream is not followed").len(), 1, "once");
    // One that tells of partitions as their root tells nothing of a TRUNCATE of one of them.
    cluster.execute("create publication heliosproxy for all tables with (publish_via_partition_root = true)");
    eventually(LONG, "it is followed", || followed(&missing));
    for _ in 0..5 {
        assert!(!is_hit(&missing, &mut client, READ));
    }
}

#[test]
fn a_stream_that_cannot_begin_says_what_it_waits_for() {
    let cluster = cluster(&[]);
    let mut open = cluster.primary().superuser();
    open.batch_execute("begin; insert into others values (50, 0)").unwrap();
    let proxy = proxy(&cluster, &settings());
    let mut client = proxy.connect("app");
    let _ = value(&mut client, READ);
    let _ = proxy.said("waits for open transactions to end");
    assert!(!followed(&proxy));
    open.batch_execute("commit").unwrap();
    warm(&proxy, &mut client, READ);
    assert_eq!(value(&mut client, "select count(*) from others where id = 50"), "1");
}
