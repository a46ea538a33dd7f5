//! The result cache, where a commit shows before its writer has the answer, where something else is changed than what the
//! session's database holds, and where code runs that no statement names. Each test has a cluster of its own. Never measures
//! time.

use std::time::Duration;

use helios_tests::cluster::{client_config, password};
use helios_tests::raw::{Next, query};
use helios_tests::{Cluster, Config, Proxy, Raw, eventually};
use postgres::{Client, NoTls};

use super::cache::{LONG, READ, SCHEMA, behind, metric, proxy, value, warm};

/// A look at the catalog, as the server shows it.
const LOOK: &str = "begin read only; set local search_path = pg_catalog%";

const LIFE: &str = "ttl_secs = 3600\n";

fn on(cluster: &Cluster, role: &str, database: &str) -> Client {
    client_config(cluster.primary().port, role).dbname(database).connect(NoTls).unwrap()
}

fn through(proxy: &Proxy, role: &str, database: &str) -> Client {
    proxy.config(role).dbname(database).connect(NoTls).unwrap()
}

/// One who hears what others notify.
fn listener(proxy: &Proxy) -> Raw {
    let (mut listener, _) = proxy.raw("app");
    let _ = listener.query("listen c");
    listener
}

#[track_caller]
fn hears(listener: &mut Raw) {
    assert!(matches!(listener.next(Duration::from_secs(30)), Next::Message(_)), "a notification");
}

#[test]
fn whoever_was_notified_of_a_commit_reads_what_was_committed() {
    let cluster = Cluster::start(&[]);
    cluster.execute(SCHEMA);
    cluster.execute(
        "create procedure p() language plpgsql as $$ begin update items set n = n + 1 where id = 1; \
         perform pg_notify('c', ''); commit; perform pg_sleep(2); end $$",
    );
    let proxy = proxy(&cluster, LIFE);
    let mut reader = proxy.connect("app");
    let mut listener = listener(&proxy);
    for (expected, write) in [
        ("1", "call p()"),
        ("2", "begin; update items set n = n + 1 where id = 1; notify c; commit; select pg_sleep(2)"),
    ] {
        warm(&proxy, &mut reader, READ);
        let config = proxy.config("app");
        let writer = std::thread::spawn(move || config.connect(NoTls).unwrap().batch_execute(write).unwrap());
        hears(&mut listener);
        assert_eq!(value(&mut reader, READ), expected, "{write}");
        writer.join().unwrap();
        assert_eq!(value(&mut reader, READ), expected, "{write}");
    }
    // Many times, and no sleep.
    let mut writer = proxy.connect("app");
    for n in 3..300 {
        let (_, _) = (value(&mut reader, READ), value(&mut reader, READ));
        std::thread::scope(|scope| {
            let write = format!("update items set n = {n} where id = 1; notify c");
            let writer = &mut writer;
            scope.spawn(move || writer.batch_execute(&write).unwrap());
            hears(&mut listener);
            assert_eq!(value(&mut reader, READ), n.to_string());
        });
    }
    // And the cache works all the same.
    warm(&proxy, &mut reader, READ);
}

#[test]
fn a_client_that_reads_no_more_of_its_answer_hides_its_commit_from_nobody() {
    let cluster = Cluster::start(&[]);
    cluster.execute(SCHEMA);
    let proxy = proxy(&cluster, LIFE);
    let mut reader = proxy.connect("app");
    let mut direct = cluster.primary().superuser();
    let stuck = "select count(*) from pg_stat_activity where usename = 'app' and wait_event = 'ClientWrite'";
    let mut clients = Vec::new();
    let mut committed = 0;
    for kilobytes in [100, 1_000, 2_000, 3_000, 4_000, 5_000, 6_000, 8_000] {
        let table = format!("t{kilobytes}");
        cluster.execute(&format!(
            "create table {table} (n int); insert into {table} values (0); grant all on {table} to public"
        ));
        let read = format!("select n from {table}");
        warm(&proxy, &mut reader, &read);
        let before = value(&mut direct, stuck);
        let (mut raw, _) = proxy.raw("app");
        raw.send(&query(&format!("update {table} set n = 5 returning repeat('x', {kilobytes}000)")));
        // The server commits once it has got rid of the answer, and waits for what does not fit to be read.
        eventually(LONG, "committed or stuck", || {
            value(&mut direct, &read) == "5" || value(&mut direct, stuck) != before
        });
        if value(&mut direct, &read) == "5" {
            committed += 1;
            (0..5).for_each(|_| assert_eq!(value(&mut reader, &read), "5", "{kilobytes} kB"));
        }
        clients.push(raw);
    }
    assert!(committed > 0);
}

#[test]
fn what_all_databases_share_is_changed_from_any_of_them() {
    let cluster = Cluster::start(&[]);
    cluster.execute("alter role clear superuser; create role readers; grant readers to app");
    cluster.execute("create database shop_template");
    on(&cluster, "clear", "shop_template").batch_execute(SCHEMA).unwrap();
    cluster.execute("create database shop template shop_template");
    on(&cluster, "clear", "shop")
        .batch_execute(
            "create table private (n int); insert into private values (7); grant select on private to readers",
        )
        .unwrap();
    let proxy = proxy(&cluster, LIFE);
    let mut client = through(&proxy, "app", "shop");
    let mut admin = through(&proxy, "clear", "postgres");
    // A right that goes with a membership.
    warm(&proxy, &mut client, "select n from private");
    admin.batch_execute("revoke readers from app").unwrap();
    assert!(client.simple_query("select n from private").is_err(), "at once");
    // Another database of the same name, with the same numbers in its catalog.
    warm(&proxy, &mut client, READ);
    client.batch_execute("update items set n = 5 where id = 1").unwrap();
    warm(&proxy, &mut client, READ);
    drop(client);
    admin.batch_execute("drop database shop with (force)").unwrap();
    admin.batch_execute("create database shop template shop_template").unwrap();
    eventually(LONG, "it is there", || proxy.config("app").dbname("shop").connect(NoTls).is_ok());
    let mut client = through(&proxy, "app", "shop");
    assert_eq!(value(&mut client, READ), "0");
}

#[test]
fn what_changes_beside_the_proxy_is_known_within_seconds() {
    let cluster = Cluster::start(&[]);
    cluster.execute(SCHEMA);
    cluster.execute(
        "create schema s authorization app; create table s.t (n int); insert into s.t values (7); grant select on s.t to app; \
         create table words (w text); insert into words values ('a'), ('B'); grant all on words to public; \
         create table bytes (b bytea); insert into bytes values ('x'); grant all on bytes to public",
    );
    let proxy = proxy(&cluster, LIFE);
    let mut client = proxy.connect("app");
    let sql = "select string_agg(w, '') from (select w from words order by w) o";
    let first = "select w from words order by w";
    warm(&proxy, &mut client, first);
    assert_eq!(value(&mut client, first), "B", "by bytes: {sql}");
    behind(&cluster, "alter table words alter column w type text collate \"und-x-icu\"");
    eventually(LONG, "another order", || value(&mut client, first) == "a");
    warm(&proxy, &mut client, "select b from bytes");
    behind(&cluster, "alter system set bytea_output = 'escape'");
    behind(&cluster, "select pg_reload_conf()");
    eventually(LONG, "another form", || value(&mut client, "select b from bytes") == "x");
    warm(&proxy, &mut client, "select n from s.t");
    behind(&cluster, "alter schema s owner to postgres");
    eventually(LONG, "no right any more", || client.simple_query("select n from s.t").is_err());
    // A server that was killed may have lost what it had said was committed.
    warm(&proxy, &mut client, READ);
    let before = metric(&proxy, "flushes_total");
    cluster.primary().kill();
    cluster.primary().start();
    eventually(LONG, "nothing of before is believed", || {
        let _ = proxy.config("app").connect(NoTls).and_then(|mut client| client.simple_query("select 1"));
        metric(&proxy, "flushes_total") > before
    });
}

#[test]
fn code_that_no_statement_names_is_expected_to_write() {
    let cluster = Cluster::start(&[]);
    cluster.execute(SCHEMA);
    cluster.execute(
        "create table log (n int); insert into log values (0); \
         create function note(int) returns bool language plpgsql security definer as 'begin update log set n = n + 1; return true; end'; \
         create function bump() returns int language plpgsql security definer as 'begin update log set n = n + 1; return 1; end'; \
         create function hidden() returns int language plpgsql stable as 'begin return bump(); end'; \
         create table checked (n int check (note(n))); \
         create table pol (n int); alter table pol enable row level security; create policy p on pol using (true) with check (note(n)); \
         create table defaulted (id int, n int default hidden()); \
         grant all on log, checked, pol, defaulted to public",
    );
    let proxy = proxy(&cluster, LIFE);
    let (mut reader, mut writer) = (proxy.connect("app"), proxy.connect("app"));
    let sql = "select n from log";
    for (n, write) in [
        "insert into checked values (1)",
        "insert into pol values (1)",
        "insert into defaulted (id) values (1)",
        "select bump()",
    ]
    .iter()
    .enumerate()
    {
        warm(&proxy, &mut reader, sql);
        writer.batch_execute(write).unwrap();
        assert_eq!(value(&mut reader, sql), (n + 1).to_string(), "{write}");
    }
    // Where a domain does such things, nothing is sure.
    behind(&cluster, "create domain odd as int check (note(value))");
    eventually(LONG, "nothing is kept", || (0..3).all(|_| !super::cache::is_hit(&proxy, &mut reader, sql)));
    behind(&cluster, "drop domain odd");
    warm(&proxy, &mut reader, sql);
}

#[test]
fn what_a_session_has_judged_by_an_older_catalog_counts_no_more() {
    let cluster = Cluster::start(&[]);
    cluster.execute(SCHEMA);
    cluster.execute(
        "create table watched (n int); create table log (n int); insert into log values (0); grant all on watched, log to public; \
         create function note() returns trigger language plpgsql security definer as 'begin update log set n = n + 1; return new; end'",
    );
    let mut config = Config::primary_only(&cluster);
    config.more += &format!(
        "\n[[users]]\nname = \"clear\"\nmode = \"session\"\npassword = \"{}\"\n[cache]\nenabled = true\n{LIFE}",
        password("clear")
    );
    let proxy = config.start().ready();
    let (mut pooled, mut owning) = (proxy.connect("app"), proxy.connect("clear"));
    warm(&proxy, &mut pooled, "select n from log");
    let prepared = owning.prepare("insert into watched values ($1)").unwrap();
    let _ = owning.execute(&prepared, &[&1]).unwrap();
    let before = metric(&proxy, "flushes_total");
    behind(&cluster, "create trigger t after insert on watched for each row execute function note()");
    eventually(LONG, "the catalog is another one", || metric(&proxy, "flushes_total") > before);
    warm(&proxy, &mut pooled, "select n from log");
    let _ = owning.execute(&prepared, &[&2]).unwrap();
    assert_eq!(value(&mut pooled, "select n from log"), "1");
}

#[test]
fn who_looks_at_the_catalog_makes_no_difference() {
    let cluster = Cluster::start(&[]);
    cluster.execute(SCHEMA);
    cluster.execute(&format!("create role other login password '{}'", password("other")));
    cluster.execute("alter role app set timezone = 'Asia/Tokyo'; alter role app set datestyle = 'German'");
    cluster.execute(
        "alter role other set timezone = 'America/New_York'; alter role other set extra_float_digits = 0",
    );
    // One place: a connection of one role is closed for one of the other.
    let config = Config { pool: 1, ..Config::primary_only(&cluster) };
    let proxy = Proxy::start(&format!("{}\n[cache]\nenabled = true\n{LIFE}", config.text())).ready();
    let mut superuser = cluster.primary().superuser();
    let mut last_look = |role: &str| -> Option<String> {
        let sql = "select max(query_start)::text from pg_stat_activity where usename = $1 and query like $2";
        superuser.query_one(sql, &[&role, &LOOK]).unwrap().get(0)
    };
    let mut other = through(&proxy, "other", "postgres");
    warm(&proxy, &mut other, READ);
    eventually(LONG, "one of them looks", || last_look("other").is_some());
    drop(other);
    let mut app = through(&proxy, "app", "postgres");
    warm(&proxy, &mut app, READ);
    eventually(LONG, "then the other", || last_look("app").is_some() && last_look("other").is_none());
    let first = last_look("app");
    eventually(LONG, "and once more, so that the first look is over", || last_look("app") > first);
    warm(&proxy, &mut app, READ);
    assert_eq!(metric(&proxy, "flushes_total"), 0.0, "it is the same catalog");
}
