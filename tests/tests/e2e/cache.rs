//! The result cache: what is kept, what is not, and every way in which an answer could be a wrong one. A hit is a hit only if
//! it shows what the table no longer holds: rows are changed behind the proxy's back to see it. Each test has a cluster of
//! its own. Never measures time.

use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::Duration;

use helios_tests::cluster::password;
use helios_tests::{Cluster, Config, Proxy, Redis, Role, eventually};
use postgres::Client;

pub(super) const LONG: Duration = Duration::from_secs(60);
pub(super) const READ: &str = "select n from items where id = 1";

pub(super) const SCHEMA: &str = "create table items (id int primary key, n int); insert into items values (1, 0), (2, 0); \
    create table others (id int primary key, n int); insert into others values (1, 0); \
    grant all on items, others to public";

fn start(more: &str) -> (Cluster, Proxy) {
    let cluster = Cluster::start(&[]);
    cluster.execute(SCHEMA);
    let proxy = proxy(&cluster, more);
    (cluster, proxy)
}

pub(super) fn proxy(cluster: &Cluster, more: &str) -> Proxy {
    let text = Config::primary_only(cluster).text() + &format!("\n[cache]\nenabled = true\n{more}");
    Proxy::start(&text).ready()
}

pub(super) fn metric(proxy: &Proxy, name: &str) -> f64 {
    proxy.metrics().sum(&format!("heliosproxy_cache_{name}"), &[]).unwrap()
}

pub(super) fn hits(proxy: &Proxy) -> f64 {
    metric(proxy, "hits_total")
}

/// The one value that a text reads, in a Query message.
pub(super) fn value(client: &mut Client, sql: &str) -> String {
    let messages = client.simple_query(sql).unwrap();
    let row = messages.iter().find_map(|m| match m {
        postgres::SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or("NULL").to_owned()),
        _ => None,
    });
    row.unwrap_or_default()
}

/// Whether this text is answered from the cache now.
pub(super) fn is_hit(proxy: &Proxy, client: &mut Client, sql: &str) -> bool {
    let before = hits(proxy);
    let _ = value(client, sql);
    hits(proxy) > before
}

/// The catalog has been looked at, and a text is kept from then on.
#[track_caller]
pub(super) fn warm(proxy: &Proxy, client: &mut Client, sql: &str) {
    eventually(LONG, &format!("kept: {sql}"), || is_hit(proxy, client, sql));
}

/// The cache works, and still does not keep this.
#[track_caller]
pub(super) fn never(proxy: &Proxy, client: &mut Client, sql: &str) {
    warm(proxy, client, "select id from others");
    for _ in 0..3 {
        assert!(!is_hit(proxy, client, sql), "{sql}");
    }
    assert!(is_hit(proxy, client, "select id from others"), "the cache works: {sql}");
}

/// Changes rows so that no proxy sees it.
pub(super) fn behind(cluster: &Cluster, sql: &str) {
    cluster.execute(sql);
}

#[test]
fn a_read_is_answered_again_until_its_table_is_written_through_the_proxy() {
    let (cluster, proxy) = start("ttl_secs = 3600\n");
    cluster.execute("alter table items owner to app");
    let (mut reader, mut writer) = (proxy.connect("app"), proxy.connect("app"));
    warm(&proxy, &mut reader, READ);
    behind(&cluster, "update items set n = 7 where id = 1");
    assert_eq!(value(&mut reader, READ), "0", "it comes from the cache");
    // Another table.
    writer.batch_execute("update others set n = 1").unwrap();
    assert_eq!(value(&mut reader, READ), "0");
    // Another row of the table: whoever reads next sees all of it.
    writer.batch_execute("update items set n = 1 where id = 2").unwrap();
    assert_eq!((value(&mut reader, READ), value(&mut writer, READ)), ("7".to_owned(), "7".to_owned()));
    for write in [
        "insert into items values (3, 0)",
        "delete from items where id = 3",
        "begin; update items set n = n where id = 2; commit",
        "with w as (update items set n = n where id = 2 returning 1) select count(*) from w",
        "merge into items using others on items.id = others.id when matched then update set n = items.n",
        "do $$ begin update items set n = n; end $$",
        "truncate others",
        "create index on items (n)",
    ] {
        warm(&proxy, &mut reader, READ);
        behind(&cluster, "update items set n = n + 1 where id = 1");
        let new: i32 = value(&mut cluster.primary().superuser(), READ).parse().unwrap();
        assert_eq!(value(&mut reader, READ), (new - 1).to_string(), "kept before: {write}");
        writer.batch_execute(write).unwrap();
        assert_eq!(value(&mut reader, READ), new.to_string(), "{write}");
    }
    // COPY, and what was prepared earlier.
    let prepared = writer.prepare("update items set n = n where id = $1").unwrap();
    warm(&proxy, &mut reader, READ);
    behind(&cluster, "update items set n = 1000 where id = 1");
    writer.execute(&prepared, &[&2]).unwrap();
    assert_eq!(value(&mut reader, READ), "1000");
    warm(&proxy, &mut reader, READ);
    behind(&cluster, "update items set n = 1001 where id = 1");
    let mut copy = writer.copy_in("copy items from stdin").unwrap();
    std::io::Write::write_all(&mut copy, b"9\t9\n").unwrap();
    copy.finish().unwrap();
    assert_eq!(value(&mut reader, READ), "1001");
    assert!(metric(&proxy, "fills_total") > 10.0 && metric(&proxy, "entries") >= 1.0);
    assert_eq!(metric(&proxy, "up"), 1.0);
}

#[test]
fn nobody_who_was_told_of_a_write_reads_what_was_before() {
    let (_cluster, proxy) = start("");
    let mut client = proxy.connect("app");
    warm(&proxy, &mut client, READ);
    let (told, stop) = (AtomicI32::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for i in 0..4 {
            let (mut reader, told, stop) = (proxy.connect("app"), &told, &stop);
            scope.spawn(move || {
                let prepared = reader.prepare("select n from items where id = $1").unwrap();
                while !stop.load(Ordering::SeqCst) {
                    let least = told.load(Ordering::SeqCst);
                    let read: i32 = match i % 2 {
                        0 => value(&mut reader, READ).parse().unwrap(),
                        _ => reader.query_one(&prepared, &[&1]).unwrap().get(0),
                    };
                    assert!(read >= least, "read {read} after {least} was acknowledged");
                }
            });
        }
        let mut writer = proxy.connect("app");
        for n in 1..=400 {
            match n % 3 {
                0 => writer.batch_execute(&format!("update items set n = {n} where id = 1")).unwrap(),
                1 => {
                    writer.execute("update items set n = $1 where id = 1", &[&n]).unwrap();
                }
                _ => {
                    let mut transaction = writer.transaction().unwrap();
                    transaction.execute("update items set n = $1 where id = 1", &[&n]).unwrap();
                    let own: i32 = transaction.query_one(READ, &[]).unwrap().get(0);
                    assert_eq!(own, n, "its own transaction");
                    transaction.commit().unwrap();
                }
            }
            told.store(n, Ordering::SeqCst);
            assert_eq!(value(&mut writer, READ), n.to_string(), "its own write");
        }
        stop.store(true, Ordering::SeqCst);
    });
    assert!(hits(&proxy) > 100.0, "{} hits", hits(&proxy));
}

#[test]
fn what_a_replica_says_is_not_kept() {
    let cluster = Cluster::start(&[Role::Replica]);
    cluster.execute(SCHEMA);
    let replica = cluster.node("replica-1");
    replica.catch_up(cluster.primary());
    let config = Config { balancer: "slow_start_secs = 0", ..Config::new(&cluster) };
    let proxy = Proxy::start(&(config.text() + "\n[cache]\nenabled = true\nttl_secs = 3600\n")).ready();
    let mut client = proxy.connect("app");
    warm(&proxy, &mut client, "select id from others");
    replica.superuser().batch_execute("select pg_wal_replay_pause()").unwrap();
    client.batch_execute("update items set n = 1 where id = 1").unwrap();
    let old = format!("/* helios:route=standby */ {READ}");
    for _ in 0..3 {
        assert_eq!(value(&mut client, &old), "0", "it goes where it is told to");
        assert_eq!(value(&mut client, READ), "1");
    }
    assert!(is_hit(&proxy, &mut client, READ), "what the primary says is kept");
    assert!(!is_hit(&proxy, &mut client, &old));
}

#[test]
fn a_rollback_shows_nothing_and_a_transaction_is_never_answered_from_outside() {
    let (cluster, proxy) = start("ttl_secs = 3600\n");
    let (mut reader, mut writer) = (proxy.connect("app"), proxy.connect("app"));
    warm(&proxy, &mut reader, READ);
    writer.batch_execute("begin; update items set n = 5 where id = 1").unwrap();
    assert_eq!(value(&mut reader, READ), "0");
    assert_eq!(value(&mut writer, READ), "5");
    writer.batch_execute("rollback").unwrap();
    assert_eq!((value(&mut reader, READ), value(&mut writer, READ)), ("0".to_owned(), "0".to_owned()));
    // A snapshot of its own.
    warm(&proxy, &mut reader, READ);
    writer.batch_execute("begin isolation level repeatable read; select 1 from others").unwrap();
    behind(&cluster, "update items set n = 6 where id = 1");
    reader.batch_execute("update items set n = n where id = 2").unwrap();
    assert_eq!(value(&mut reader, READ), "6");
    assert_eq!(value(&mut writer, READ), "0", "its own snapshot");
    writer.batch_execute("commit").unwrap();
    assert_eq!(value(&mut writer, READ), "6");
}

#[test]
fn answers_belong_to_their_user_role_settings_parameters_and_formats() {
    let (cluster, proxy) = start("ttl_secs = 3600\n");
    cluster.execute(
        "create schema a; create schema b; create table a.t (x int); create table b.t (x int); \
         insert into a.t values (1); insert into b.t values (2); grant usage on schema a, b to public; \
         grant select on a.t, b.t to public; create table private (x int); insert into private values (42); \
         grant select on private to app; create table times (at timestamptz); \
         insert into times values ('2026-01-01 00:00+00'); grant select on times to public; \
         create table owned (who text); insert into owned values ('app'), ('clear'); grant select on owned to public; \
         alter table owned enable row level security; create policy own on owned using (who = current_user)",
    );
    let (mut app, mut other) = (proxy.connect("app"), proxy.connect("clear"));
    warm(&proxy, &mut app, "select x from private");
    let refused = other.simple_query("select x from private").unwrap_err();
    assert_eq!(refused.code().map(|code| code.code()), Some("42501"), "{refused:?}");
    // Row security.
    never(&proxy, &mut app, "select who from owned");
    assert_eq!(
        (value(&mut app, "select who from owned"), value(&mut other, "select who from owned")),
        ("app".into(), "clear".into())
    );
    // Settings.
    for (set, sql, expected) in [
        ("set search_path = a", "select x from t", "1"),
        ("set search_path = b", "select x from t", "2"),
        ("set search_path = a, b, public", "select x from t", "1"),
        ("set timezone = 'UTC'", "select at from times", "2026-01-01 00:00:00+00"),
        ("set timezone = 'Asia/Tokyo'", "select at from times", "2026-01-01 09:00:00+09"),
        ("set datestyle = 'German'", "select at from times", "01.01.2026 09:00:00 JST"),
    ] {
        app.batch_execute(set).unwrap();
        for _ in 0..3 {
            assert_eq!(value(&mut app, sql), expected, "{set}");
        }
    }
    // Parameters, their types, and texts that differ in a space.
    let mut app = proxy.connect("app");
    warm(&proxy, &mut app, "select n from items where id = 2");
    behind(&cluster, "update items set n = id * 10");
    app.batch_execute("update items set n = n where id = 0").unwrap();
    let by = app.prepare("select n from items where id = $1").unwrap();
    for _ in 0..3 {
        for id in [1, 2] {
            assert_eq!(app.query_one(&by, &[&id]).unwrap().get::<_, i32>(0), id * 10);
            let text = app.query_typed(
                "select n::text from items where id = $1",
                &[(&id, postgres::types::Type::INT4)],
            );
            assert_eq!(text.unwrap()[0].get::<_, String>(0), (id * 10).to_string());
            assert_eq!(
                value(&mut app, &format!("select n from items where id = {id}")),
                (id * 10).to_string()
            );
        }
    }
    let before = hits(&proxy);
    let _ = app.query_one(&by, &[&1]).unwrap();
    assert!(hits(&proxy) > before, "prepared statements are answered as well");
}

#[test]
fn what_has_another_value_each_time_or_is_no_plain_table_is_not_kept() {
    let (cluster, proxy) = start("[[cache.tables]]\nname = \"fresh\"\nttl_secs = 0\n");
    cluster.execute(
        "create view seen as select * from items; create materialized view stored as select * from items; \
         grant all on seen, stored to public; create table fresh (x int); grant all on fresh to public; \
         create function mine(int) returns int language sql stable as 'select n from items where id = $1'; \
         create sequence counted; grant all on counted to public; \
         create function total(items) returns bigint language sql stable as 'select count(*) from others'; \
         create function plus(int, int) returns int language sql stable as 'select $1 + $2 + (select n from others)'; \
         create aggregate grown(int) (sfunc = plus, stype = int, initcond = '0'); \
         create function pure(int) returns int language sql immutable as 'select $1'; insert into fresh values (1)",
    );
    let mut app = proxy.connect("app");
    for sql in [
        "select 1",
        "select now(), n from items",
        "select n from items where 'now'::timestamptz > '2000-01-01'",
        "select current_date, n from items",
        "select current_user, n from items",
        "select random(), n from items",
        "select n from items tablesample system (100)",
        "select mine(id) from items",
        "select n from seen",
        "select n from stored",
        "select x from fresh",
        "select n, last_value from items, counted",
        "select relname from pg_class limit 1",
        "select xmin, n from items",
        "select n from items for update",
        "select items.total from items",
        "select grown(n) from items",
        "explain select n from items",
        "select E'n\\x6fw'::timestamptz, n from items",
        "select n from items; select n from items",
        "select /* helios:cache=skip */ n from items",
        "/* helios:cache=skip */ select n from items",
        "select n from items /* helios:cache=skip */",
        "select /* helios:route=standby helios:cache=skip */ n from items",
        "select /* helios:route=standby,cache=skip */ n from items",
        "select /* helios:route=standby helios:route=primary */ n from items",
    ] {
        never(&proxy, &mut app, sql);
    }
    for sql in [
        "select pure(id), lower('X'), coalesce(n, 1) from items where id in (1, 2)",
        "select /* helios:ttl=5m */ n from items",
        "select /* helios:route=primary helios:ttl=5m */ n from items",
        "with x as (select n from items) select count(*), max(n) from x",
        "table items",
    ] {
        warm(&proxy, &mut app, sql);
    }
    // A hint shortens the life.
    let short = "select /* helios:ttl=300ms */ n, id from items where id = 1";
    warm(&proxy, &mut app, short);
    behind(&cluster, "update items set n = 3 where id = 1");
    eventually(LONG, "its life is over", || value(&mut app, short) == "3");
    // Parameters that stand for a time.
    let before = hits(&proxy);
    for _ in 0..3 {
        let at = "select n from items where $1::text::timestamptz is not null and id = 1";
        app.query_typed(at, &[(&"now", postgres::types::Type::TEXT)]).unwrap();
    }
    assert_eq!(hits(&proxy), before);
}

#[test]
fn writes_that_reach_other_tables_count_there_as_well() {
    let (cluster, proxy) = start("ttl_secs = 3600\n");
    cluster.execute(
        "create table parent (id int primary key); create table child (id int references parent on delete cascade, n int); \
         create table measured (at int, n int) partition by range (at); \
         create table measured_1 partition of measured for values from (0) to (10); \
         create table watched (n int); create table log (n int); insert into log values (0); \
         create function note() returns trigger language plpgsql security definer as \
         'begin update log set n = n + 1; return new; end'; \
         create trigger t after insert on watched for each row execute function note(); \
         create function sneaky() returns int language plpgsql security definer as \
         'begin update items set n = n + 1 where id = 2; return 1; end'; \
         create view seen as select * from items; \
         grant all on parent, child, measured, measured_1, watched, log, seen to public; \
         insert into parent values (1), (2); insert into child values (1, 1), (2, 2); insert into measured values (1, 1)",
    );
    let (mut reader, mut writer) = (proxy.connect("app"), proxy.connect("app"));
    for (read, write) in [
        ("select count(*) from child", "delete from parent where id = 1"),
        ("select count(*) from measured", "insert into measured_1 values (2, 2)"),
        ("select count(*) from measured_1", "insert into measured values (3, 3)"),
        ("select n from log", "insert into watched values (1)"),
        ("select n from items where id = 2", "select sneaky()"),
        (
            "select n from items where id = 2",
            "begin; declare c cursor for select sneaky(); fetch all from c; commit",
        ),
        ("select n from items where id = 2", "prepare s as select sneaky(); execute s; deallocate s"),
        (
            "select n from items where id = 2",
            "prepare s as select sneaky(); explain analyze execute s; deallocate s",
        ),
        ("select n from items where id = 2", "update seen set n = n + 1 where id = 2"),
        ("select count(*) from child", "truncate parent cascade"),
    ] {
        warm(&proxy, &mut reader, read);
        let before = value(&mut reader, read);
        writer.simple_query(write).unwrap();
        assert_ne!(value(&mut reader, read), before, "{write}");
    }
    // What is granted, revoked and made elsewhere shows within seconds.
    warm(&proxy, &mut reader, READ);
    behind(&cluster, "revoke all on items from public");
    eventually(LONG, "the right is gone", || reader.simple_query(READ).is_err());
    behind(&cluster, "grant all on items to public");
    eventually(LONG, "it is back", || reader.simple_query(READ).is_ok());
    warm(&proxy, &mut reader, READ);
    behind(&cluster, "alter table items enable row level security");
    eventually(LONG, "no row is visible", || value(&mut reader, READ).is_empty());
}

#[test]
fn sessions_with_a_server_of_their_own_are_heard_and_not_answered() {
    let cluster = Cluster::start(&[]);
    cluster.execute(SCHEMA);
    let mut config = Config::primary_only(&cluster);
    config.more += &format!(
        "\n[[users]]\nname = \"clear\"\nmode = \"session\"\npassword = \"{}\"\n[cache]\nenabled = true\nttl_secs = 3600\n",
        password("clear")
    );
    let proxy = config.start().ready();
    let (mut pooled, mut owning) = (proxy.connect("app"), proxy.connect("clear"));
    let prepared = owning.prepare("update items set n = n + 1 where id = 1").unwrap();
    for n in 1..4 {
        warm(&proxy, &mut pooled, READ);
        owning.execute(&prepared, &[]).unwrap();
        assert_eq!(value(&mut pooled, READ), n.to_string(), "what was prepared long ago writes");
        assert!(!is_hit(&proxy, &mut owning, READ));
    }
    // Pinned: a temporary table that hides the real one.
    warm(&proxy, &mut pooled, READ);
    let mut pinned = proxy.connect("app");
    pinned
        .batch_execute("create temp table items (id int, n int); insert into items values (1, 77)")
        .unwrap();
    assert_eq!(value(&mut pinned, READ), "77");
    assert_eq!(value(&mut pooled, READ), "3");
    // A client that dies in the middle of a transaction.
    warm(&proxy, &mut pooled, READ);
    let mut dying = proxy.connect("app");
    dying.batch_execute("begin; update items set n = 100 where id = 1").unwrap();
    drop(dying);
    assert_eq!(value(&mut pooled, READ), "3");
}

#[test]
fn answers_do_not_pile_up_for_a_client_that_reads_none() {
    let (cluster, proxy) = start("");
    cluster.execute(
        "create table wide as select 1 as id, repeat('x', 900000) as v; grant all on wide to public",
    );
    let sql = "select v from wide";
    let mut client = proxy.connect("app");
    warm(&proxy, &mut client, sql);
    let (mut raw, _) = proxy.raw("app");
    raw.send(&helios_tests::raw::query(sql).repeat(500));
    let (before, pages) = (hits(&proxy), || {
        let statm = std::fs::read_to_string(format!("/proc/{}/statm", proxy.pid)).unwrap();
        statm.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    });
    std::thread::sleep(Duration::from_secs(2));
    assert!(pages() < (100 << 20) / 4096, "{} pages", pages());
    // It reads after all: every answer is there.
    for _ in 0..500 {
        let answer = raw.until_ready(1);
        assert_eq!(answer.iter().filter(|message| message.tag == b'D').count(), 1);
    }
    assert!(hits(&proxy) >= before);
}

#[test]
fn data_planes_share_answers_and_hear_of_each_others_writes() {
    let mut redis = Redis::start();
    let cluster = Cluster::start(&[]);
    cluster.execute(SCHEMA);
    let more = format!("ttl_secs = 3600\nredis_url = \"{}\"\n", redis.url());
    let (first, second) = (proxy(&cluster, &more), proxy(&cluster, &more));
    for proxy in [&first, &second] {
        eventually(LONG, "Redis answers", || metric(proxy, "up") == 1.0);
    }
    let (mut here, mut there) = (first.connect("app"), second.connect("app"));
    warm(&first, &mut here, "select id from others");
    warm(&second, &mut there, "select id from others");
    // An answer that one has kept serves the other.
    let shared =
        |proxy: &Proxy| proxy.metrics().sum("heliosproxy_cache_hits_total", &[("level", "shared")]).unwrap();
    let mut n = 0;
    eventually(LONG, "an answer comes from Redis", || {
        n += 1;
        let sql = format!("select n, {n} from items where id = 1");
        warm(&first, &mut here, &sql);
        let before = shared(&second);
        let _ = value(&mut there, &sql);
        shared(&second) > before
    });
    // Writes through one show through the other; through the same one at once.
    for round in 1..20 {
        warm(&second, &mut there, READ);
        here.batch_execute(&format!("update items set n = {round} where id = 1")).unwrap();
        assert_eq!(value(&mut here, READ), round.to_string(), "through the same data plane");
        eventually(LONG, "through the other", || value(&mut there, READ) == round.to_string());
    }
    // A data plane that starts anew finds nothing stale.
    warm(&first, &mut here, READ);
    drop((there, second));
    here.batch_execute("update items set n = 100 where id = 1").unwrap();
    warm(&first, &mut here, READ);
    let second = proxy(&cluster, &more);
    let mut there = second.connect("app");
    assert_eq!(value(&mut there, READ), "100");
    warm(&second, &mut there, READ);

    // A right that is taken away elsewhere: what Redis has of before is nobody's.
    let sql = "select n, 'right' from items where id = 1";
    warm(&first, &mut here, sql);
    behind(&cluster, "revoke all on items from public");
    for client in [&mut here, &mut there] {
        eventually(LONG, "the right is gone", || client.simple_query(sql).is_err());
        assert!(client.simple_query(sql).is_err(), "and stays gone");
    }
    behind(&cluster, "grant all on items to public");
    eventually(LONG, "it is back", || here.simple_query(sql).is_ok() && there.simple_query(sql).is_ok());
    // The counter is lost, as by eviction: numbers never go back, and words are heard all the same.
    warm(&second, &mut there, READ);
    let _ = redis.ask("DEL helios:writes");
    for round in 101..110 {
        here.batch_execute(&format!("update items set n = {round} where id = 1")).unwrap();
        assert_eq!(value(&mut here, READ), round.to_string());
        eventually(LONG, "through the other", || value(&mut there, READ) == round.to_string());
        warm(&second, &mut there, READ);
    }

    // Redis is gone: everything is read from PostgreSQL, and nobody notices.
    redis.kill();
    for (proxy, client) in [(&first, &mut here), (&second, &mut there)] {
        eventually(LONG, "it is noticed", || metric(proxy, "up") == 0.0);
        assert!(!is_hit(proxy, client, READ));
    }
    here.batch_execute("update items set n = 200 where id = 1").unwrap();
    assert_eq!((value(&mut here, READ), value(&mut there, READ)), ("200".to_owned(), "200".to_owned()));
    redis.launch();
    for (proxy, client) in [(&first, &mut here), (&second, &mut there)] {
        eventually(LONG, "it is back", || metric(proxy, "up") == 1.0);
        warm(proxy, client, READ);
        assert_eq!(value(client, READ), "200");
    }
    // It hangs.
    redis.signal("STOP");
    here.batch_execute("update items set n = 300 where id = 1").unwrap();
    assert_eq!(value(&mut here, READ), "300");
    eventually(LONG, "the silence is noticed", || value(&mut there, READ) == "300");
    redis.signal("CONT");
    for (proxy, client) in [(&first, &mut here), (&second, &mut there)] {
        warm(proxy, client, READ);
        assert_eq!(value(client, READ), "300");
    }
    for proxy in [&first, &second] {
        assert!(proxy.logged("secret-of-redis").is_empty(), "the password is in no log");
    }
}
