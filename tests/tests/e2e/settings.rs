//! Settings of many sessions over one server connection: each has its own, whatever the others do, and nobody keeps the
//! connection for it.

use helios_tests::dice::Dice;
use helios_tests::raw::PATIENCE;
use helios_tests::{Cluster, Config, Proxy, Role, eventually};
use postgres::{Client, SimpleQueryMessage};

fn one(client: &mut Client, sql: &str) -> String {
    let rows = client.simple_query(sql).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    let row = rows.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    });
    row.unwrap_or_else(|| panic!("{sql}: no row"))
}

fn pinned(proxy: &Proxy) -> f64 {
    proxy.metrics().sum("heliosproxy_pinned_total", &[]).unwrap()
}

/// One server connection for everybody.
fn narrow() -> Proxy {
    Config { pool: 1, ..Config::primary_only(Cluster::shared()) }.start().ready()
}

#[test]
fn each_session_has_its_own_settings_over_one_connection() {
    let proxy = narrow();
    let settings = [
        ("statement_timeout", "'7s'", "7s"),
        ("search_path", "pg_catalog, public", "pg_catalog, public"),
        ("DateStyle", "'German, DMY'", "German, DMY"),
        ("TimeZone", "'Asia/Tokyo'", "Asia/Tokyo"),
        ("IntervalStyle", "iso_8601", "iso_8601"),
        ("extra_float_digits", "3", "3"),
        ("application_name", "'it''s; me'", "it's; me"),
        ("work_mem", "'5MB'", "5MB"),
        ("lock_timeout", "100", "100ms"),
        ("bytea_output", "escape", "escape"),
    ];
    let mut plain = proxy.connect("app");
    let before: Vec<String> =
        settings.iter().map(|(name, ..)| one(&mut plain, &format!("show {name}"))).collect();
    let mut others: Vec<Client> = settings.iter().map(|_| proxy.connect("app")).collect();
    for (client, (name, value, _)) in others.iter_mut().zip(&settings) {
        client.batch_execute(&format!("SET {name} TO {value}")).unwrap();
    }
    for _ in 0..3 {
        for (i, client) in others.iter_mut().enumerate() {
            for (j, (name, _, shown)) in settings.iter().enumerate() {
                let wanted = if i == j { *shown } else { &before[j] };
                assert_eq!(one(client, &format!("show {name}")), wanted, "session {i}");
            }
        }
        for (before, (name, ..)) in before.iter().zip(&settings) {
            assert_eq!(one(&mut plain, &format!("show {name}")), *before);
        }
    }
    assert!(pinned(&proxy) < 1.0);
    // The other ways to give one up.
    others[0].batch_execute("reset statement_timeout").unwrap();
    others[1].batch_execute("reset all").unwrap();
    others[2].batch_execute("discard all").unwrap();
    others[3].batch_execute("set time zone default").unwrap();
    for (client, at) in others.iter_mut().zip(0..4) {
        one(&mut plain, "select 1");
        assert_eq!(one(client, &format!("show {}", settings[at].0)), before[at]);
    }
    assert!(pinned(&proxy) < 1.0);
}

#[test]
fn what_a_transaction_undoes_is_undone() {
    let proxy = narrow();
    let (mut a, mut b) = (proxy.connect("app"), proxy.connect("app"));
    let mut shows = |a: &mut Client, wanted: &str| {
        assert_ne!(one(&mut b, "show work_mem"), "9MB");
        assert_eq!(one(a, "show work_mem"), wanted);
    };
    a.batch_execute("set work_mem = '6MB'").unwrap();
    shows(&mut a, "6MB");
    for (statements, after) in [
        (&["begin", "set work_mem = '9MB'", "rollback"][..], "6MB"),
        (&["begin", "set local work_mem = '9MB'", "commit"], "6MB"),
        (&["begin", "set work_mem = '7MB'", "select 1", "commit"], "7MB"),
        (&["begin", "set work_mem = '9MB'", "select 1/0", "commit"], "7MB"),
        (&["set work_mem = 'nonsense'"], "7MB"),
        (&["begin", "set work_mem = '8MB'", "commit"], "8MB"),
    ] {
        for sql in statements {
            let _ = a.batch_execute(sql);
        }
        shows(&mut a, after);
    }
}

#[test]
fn what_cannot_be_followed_keeps_the_connection() {
    for statements in [
        &["set app.tenant = '1'"][..],
        &["set role pg_monitor"],
        &["select set_config('work_mem', '9MB', false)"],
        &["begin", "savepoint s", "set work_mem = '9MB'", "rollback to s", "commit"],
        &["set work_mem = '9MB'; select 1"],
        &["do $$ begin perform set_config('work_mem', '9MB', false); end $$"],
        &["set client_encoding = 'LATIN1'"],
    ] {
        let cluster = Cluster::shared();
        let proxy = Config { pool: 2, ..Config::primary_only(cluster) }.start().ready();
        let mut client = proxy.connect("app");
        for sql in statements {
            let _ = client.batch_execute(sql);
        }
        eventually(PATIENCE, &format!("{statements:?} pins"), || pinned(&proxy) > 0.0);
        let mut other = proxy.connect("app");
        assert_eq!(one(&mut other, "show work_mem"), "4MB", "{statements:?}");
        let now = || proxy.metrics().sum("heliosproxy_sessions_pinned", &[("reason", "setting")]);
        assert_eq!(now(), Some(1.0), "{statements:?}");
        drop(client);
        eventually(PATIENCE, "nobody is tied", || now() == Some(0.0));
    }
}

#[test]
fn settings_go_along_to_standbys_and_to_the_next_primary() {
    let cluster = Cluster::start(&[Role::Standby]);
    let proxy = Config { balancer: "slow_start_secs = 0", ..Config::new(&cluster) }.start().ready();
    let mut client = proxy.connect("app");
    client.batch_execute("set datestyle = 'German, DMY'").unwrap();
    let read = "select current_setting('DateStyle') || ' ' || pg_is_in_recovery()::text";
    assert_eq!(one(&mut client, &format!("/* helios:route=standby */ {read}")), "German, DMY true");
    assert_eq!(one(&mut client, &format!("/* helios:route=primary */ {read}")), "German, DMY false");
    cluster.node("standby").catch_up(cluster.primary());
    cluster.primary().stop("fast");
    cluster.node("standby").promote();
    client
        .batch_execute("create table after_all (i int)")
        .unwrap_or_else(|error| assert_eq!(error.code().unwrap().code(), "42501"));
    assert_eq!(one(&mut client, &format!("/* helios:route=primary */ {read}")), "German, DMY false");
}

#[test]
fn statements_prepared_by_name_do_not_mix_settings() {
    let cluster = Cluster::shared();
    cluster.execute("create schema one; create schema two; create table one.t (v text); create table two.t (v int); \
        insert into one.t values ('first'); insert into two.t values (2); grant usage on schema one, two to app; \
        grant select on one.t, two.t to app");
    let proxy = narrow();
    let (mut a, mut b) = (proxy.connect("app"), proxy.connect("app"));
    a.batch_execute("set search_path = one").unwrap();
    a.batch_execute("set datestyle = 'ISO, DMY'").unwrap();
    b.batch_execute("set search_path = two").unwrap();
    b.batch_execute("set datestyle = 'ISO, MDY'").unwrap();
    let (sa, sb) = (
        a.prepare("select v::text, ('01/02/2020'::date)::text from t").unwrap(),
        b.prepare("select v::text, ('01/02/2020'::date)::text from t").unwrap(),
    );
    for _ in 0..3 {
        let row = a.query_one(&sa, &[]).unwrap();
        assert_eq!((row.get::<_, &str>(0), row.get::<_, &str>(1)), ("first", "2020-02-01"));
        let row = b.query_one(&sb, &[]).unwrap();
        assert_eq!((row.get::<_, &str>(0), row.get::<_, &str>(1)), ("2", "2020-01-02"));
    }
    assert!(pinned(&proxy) < 1.0);
    // A setting that changes under a statement that is prepared: the statement stays what it was, at the price of a pin.
    a.batch_execute("set datestyle = 'ISO, MDY'").unwrap();
    assert_eq!(a.query_one(&sa, &[]).unwrap().get::<_, &str>(1), "2020-02-01");
    assert!(pinned(&proxy) > 0.0);
}

#[test]
fn a_setting_that_cannot_be_restored_ends_the_session_and_says_why() {
    let cluster = Cluster::start(&[]);
    cluster.execute("grant set on parameter log_min_duration_statement to app");
    let proxy = Config { pool: 1, ..Config::primary_only(&cluster) }.start().ready();
    let (mut a, mut b) = (proxy.connect("app"), proxy.connect("app"));
    a.batch_execute("set log_min_duration_statement = 1000").unwrap();
    assert_eq!(one(&mut b, "show log_min_duration_statement"), "-1");
    assert_eq!(one(&mut a, "show log_min_duration_statement"), "1s");
    cluster.execute("revoke set on parameter log_min_duration_statement from app");
    assert_eq!(one(&mut b, "select 1"), "1");
    // The driver tells of a FATAL error as of the end of the connection.
    assert!(a.batch_execute("select 1").is_err());
    let told = "could not restore the settings of a session";
    eventually(PATIENCE, told, || !proxy.logged(told).is_empty());
    assert_eq!(one(&mut b, "select 2"), "2");
    assert!(a.batch_execute("select 1").is_err());
}

#[test]
fn nothing_that_undoes_or_hides_a_setting_leaks_it() {
    let proxy = Config { pool: 3, ..Config::primary_only(Cluster::shared()) }.start().ready();
    let asyncpg = "select pg_advisory_unlock_all(); close all; unlisten *; reset all;";
    for statements in [
        &["set work_mem = '9MB'", "select 1; reset all"][..],
        &["set work_mem = '9MB'", asyncpg],
        &["set work_mem = '9MB'", "reset \"work_mem\""],
        &["set work_mem = '9MB'", "discard all; "],
        &["begin", "set work_mem = '9MB'", "commit; rollback"],
        &["begin", "set work_mem = '9MB'", "commit and chain; rollback"],
        &["begin", "set work_mem = '9MB'", "select 1; commit; begin; rollback"],
        &["begin", "savepoint s", "set work_mem = '9MB'", "rollback to s; commit"],
        &["set synchronous_commit to local"],
        &["set datestyle = 'SQL'", "set datestyle = 'DMY'"],
        &["set sort_mem = '9MB'", "reset work_mem"],
        &["update pg_settings set setting = '9999' where name = 'work_mem'"],
        &["set work_mem = '9MB'", "reset work_mem"],
    ] {
        let (mut a, mut alone) = (proxy.connect("app"), Cluster::shared().primary().connect("app"));
        let mut other = proxy.connect("app");
        let show = "select current_setting('work_mem') || current_setting('DateStyle') || current_setting('synchronous_commit')";
        let before = one(&mut other, show);
        for sql in statements {
            assert_eq!(outcome(&mut a, sql), outcome(&mut alone, sql), "{sql}");
            assert_eq!(one(&mut other, show), before, "{statements:?}");
            assert_eq!(one(&mut a, show), one(&mut alone, show), "{statements:?}");
        }
    }
}

/// What a statement came to, in a form that can be compared.
fn outcome(client: &mut Client, sql: &str) -> String {
    match client.simple_query(sql) {
        Ok(rows) => rows
            .iter()
            .filter_map(|message| match message {
                SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or_default().to_owned()),
                _ => None,
            })
            .collect::<Vec<_>>()
            .join(","),
        Err(error) => error.code().map_or_else(|| error.to_string(), |code| code.code().to_owned()),
    }
}

#[test]
fn sessions_that_set_at_random_see_what_they_would_see_alone() {
    const STATEMENTS: [&str; 30] = [
        "set work_mem = '5MB'",
        "set work_mem to '6MB'",
        "set session work_mem = 7000",
        "set work_mem to default",
        "reset work_mem",
        "set local work_mem = '8MB'",
        "set datestyle = 'German, YMD'",
        "set datestyle to iso, dmy",
        "reset datestyle",
        "set time zone 'Asia/Tokyo'",
        "set timezone = 'UTC'",
        "set time zone local",
        "reset all",
        "discard all",
        "begin",
        "begin",
        "commit",
        "rollback",
        "savepoint s",
        "rollback to s",
        "release s",
        "commit and chain",
        "select 1/0",
        "set work_mem = 'nonsense'",
        "set work_mem = '9MB'; select 1/0",
        "set datestyle = 'SQL'; set work_mem = '10MB'",
        "select set_config('work_mem', '11MB', false)",
        "select set_config('work_mem', '12MB', true)",
        "do $$ begin perform set_config('datestyle', 'Postgres', false); end $$",
        "select 1",
    ];
    const SHOW: &str = "select current_setting('work_mem') || '|' || current_setting('DateStyle') || '|' || \
        current_setting('TimeZone')";
    let cluster = Cluster::shared();
    let proxy = Config { pool: 4, ..Config::primary_only(cluster) }.start().ready();
    for seed in 0..40 {
        let mut dice = Dice(seed * 7919 + 17);
        // Every other time without what pins at once.
        let statements = if seed % 2 == 0 { &STATEMENTS[..24] } else { &STATEMENTS[..] };
        let mut sessions: Vec<(Client, Client)> =
            (0..3).map(|_| (proxy.connect("app"), cluster.primary().connect("app"))).collect();
        let mut story = Vec::new();
        for _ in 0..40 {
            let at = dice.roll(sessions.len());
            let sql = statements[dice.roll(statements.len())];
            story.push((at, sql));
            let (through, alone) = &mut sessions[at];
            for sql in [sql, SHOW] {
                assert_eq!(outcome(through, sql), outcome(alone, sql), "seed {seed}, {sql}: {story:#?}");
            }
        }
    }
}
