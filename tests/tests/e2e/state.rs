//! The state-leak matrix: every kind of state that a session can have, every way to make it, every way to leave, over one
//! server connection. Whoever comes next must find what a fresh, direct connection finds. Never relies on privileges: both
//! clients are the same superuser. Never looks at what a client may see of its own earlier state.

use std::collections::BTreeMap;

use helios_tests::raw::{PATIENCE, call, extended, message, parse, query, startup, sync};
use helios_tests::{Cluster, Config, Message, Proxy, Raw, loudly};

/// A kind of state.
struct Kind {
    name: &'static str,
    /// Statements that make it.
    make: &'static [&'static str],
    /// How it is looked for.
    look: Look,
    /// What is known to be found, and why it stands in the documents: see docs/pooling.md.
    tolerated: bool,
}

enum Look {
    Sql(&'static str),
    Bytes(fn() -> Vec<u8>),
}

/// How its statements are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    Simple,
    Extended,
    /// Inside the body of a DO.
    Body,
    /// In a transaction block that commits.
    Block,
}

/// How the client leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Leave {
    Terminate,
    Close,
    InTransaction,
    Failed,
    /// With a FIN, while a statement runs.
    Running,
    /// With a reset, while a statement runs.
    Cut,
    InCopy,
    HalfMessage,
    Reset,
    /// It does not leave, and is idle. If it is pinned, nobody else gets its server.
    Stays,
    /// The same after `DISCARD ALL`.
    Discard,
}

const WAYS: [Way; 4] = [Way::Simple, Way::Extended, Way::Body, Way::Block];
const LEAVES: [Leave; 11] = [
    Leave::Terminate,
    Leave::Close,
    Leave::InTransaction,
    Leave::Failed,
    Leave::Running,
    Leave::Cut,
    Leave::InCopy,
    Leave::HalfMessage,
    Leave::Reset,
    Leave::Stays,
    Leave::Discard,
];

const fn kind(name: &'static str, make: &'static [&'static str], look: &'static str) -> Kind {
    Kind { name, make, look: Look::Sql(look), tolerated: false }
}

const fn tolerated(name: &'static str, make: &'static [&'static str], look: &'static str) -> Kind {
    Kind { name, make, look: Look::Sql(look), tolerated: true }
}

const fn by_protocol(name: &'static str, look: fn() -> Vec<u8>) -> Kind {
    Kind { name, make: &[], look: Look::Bytes(look), tolerated: false }
}

const WORK_MEM: &str = "show work_mem";
const WHO: &str = "select current_user, session_user";
const RELATION: &str = "select to_regclass('leftover'), to_regclass('pg_temp.leftover')";
const LOCKS: &str = "select count(*) from pg_locks where pid = pg_backend_pid() and locktype = 'advisory'";

#[rustfmt::skip]
const KINDS: &[Kind] = &[
    kind("setting", &["set work_mem = '7MB'"], WORK_MEM),
    kind("setting in quotes", &["set \"work_mem\" = '7MB'"], WORK_MEM),
    kind("several settings in one text", &["set work_mem = '7MB'; set lock_timeout = 77"], "select current_setting('work_mem'), current_setting('lock_timeout')"),
    kind("statement_timeout", &["set statement_timeout = '77s'"], "show statement_timeout"),
    kind("search_path", &["set search_path = evil, public"], "show search_path"),
    kind("SET SCHEMA", &["set schema 'evil'"], "show search_path"),
    kind("TimeZone", &["set time zone 'Asia/Tokyo'"], "show timezone"),
    kind("DateStyle", &["set datestyle = 'German, DMY'"], "select current_setting('datestyle'), '2026-02-01'::date"),
    kind("half a DateStyle", &["set datestyle = 'German'"], "show datestyle"),
    kind("application_name", &["set application_name = 'somebody'"], "show application_name"),
    kind("client_encoding", &["set client_encoding = 'LATIN1'"], "show client_encoding"),
    kind("SET NAMES", &["set names 'LATIN1'"], "show client_encoding"),
    kind("standard_conforming_strings", &["set standard_conforming_strings = off"], "show standard_conforming_strings"),
    kind("default_text_search_config", &["set default_text_search_config = 'german'"], "show default_text_search_config"),
    kind("default_transaction_read_only", &["set default_transaction_read_only = on"], "select current_setting('default_transaction_read_only'), current_setting('transaction_read_only')"),
    kind("session characteristics", &["set session characteristics as transaction isolation level serializable"], "show transaction_isolation"),
    kind("session_replication_role", &["set session_replication_role = replica"], "show session_replication_role"),
    kind("idle_session_timeout", &["set idle_session_timeout = '77min'"], "show idle_session_timeout"),
    kind("setting with a dot", &["set my.tenant = 'somebody'"], "select current_setting('my.tenant', true)"),
    kind("set_config", &["select set_config('work_mem', '7MB', false)"], WORK_MEM),
    kind("set_config, local", &["select set_config('work_mem', '7MB', true)"], WORK_MEM),
    kind("set_config in a plan", &["explain analyze select set_config('work_mem', '7MB', false)"], WORK_MEM),
    kind("set_config in COPY", &["copy (select set_config('work_mem', '7MB', false)) to stdout"], WORK_MEM),
    kind("set_config in EXECUTE", &["prepare leftover as select set_config('work_mem', '7MB', false)", "execute leftover"], WORK_MEM),
    kind("set_config in query_to_xml", &["select query_to_xml('select set_config(''work_mem'', ''7MB'', false)', true, true, '')"], WORK_MEM),
    kind("UPDATE pg_settings", &["update pg_settings set setting = '7777' where name = 'work_mem'"], WORK_MEM),
    kind("setting of a function", &["select matrix_function_with_setting()"], WORK_MEM),
    kind("SET LOCAL, open transaction", &["begin; set local work_mem = '7MB'"], WORK_MEM),
    kind("role", &["set role matrix_other"], WHO),
    kind("session authorization", &["set session authorization matrix_other"], WHO),
    kind("role by set_config", &["select set_config('role', 'matrix_other', false)"], WHO),
    kind("seed of random()", &["select setseed(0.5)"], "select random() = (select expected from matrix_random)"),
    kind("SET SEED", &["set seed = 0.5"], "select random() = (select expected from matrix_random)"),
    kind("SQL PREPARE", &["prepare leftover as select 7"], "execute leftover"),
    kind("cursor", &["begin; declare leftover cursor for select 7"], "fetch leftover"),
    kind("cursor WITH HOLD", &["declare leftover cursor with hold for select 7"], "fetch leftover"),
    kind("temporary table", &["create temp table leftover (i int)"], RELATION),
    kind("temporary table by its schema", &["create table pg_temp.leftover (i int)"], RELATION),
    kind("SELECT INTO TEMP", &["select 7 as i into temp leftover"], RELATION),
    kind("temporary view", &["create temp view leftover as select 7"], RELATION),
    kind("temporary sequence", &["create temp sequence leftover"], RELATION),
    kind("temporary function", &["create function pg_temp.leftover() returns int language sql as 'select 7'"], "select to_regproc('pg_temp.leftover')"),
    kind("temporary type", &["create type pg_temp.leftover as (i int)"], "select to_regtype('pg_temp.leftover')"),
    kind("LISTEN", &["listen leftover"], "select count(*) from pg_listening_channels()"),
    kind("NOTIFY, open transaction", &["begin; notify leftover, 'somebody'"], "listen leftover"),
    kind("advisory lock", &["select pg_advisory_lock(4730)"], LOCKS),
    kind("advisory lock, shared", &["select pg_try_advisory_lock_shared(4731)"], LOCKS),
    kind("advisory lock, open transaction", &["begin; select pg_advisory_xact_lock(4732)"], LOCKS),
    kind("open transaction", &["begin isolation level serializable; lock table matrix_table"], "select current_setting('transaction_isolation'), (select count(*) from pg_locks where pid = pg_backend_pid() and relation = 'matrix_table'::regclass)"),
    kind("failed transaction", &["begin; create table leftover (i int); select 1/0"], RELATION),
    kind("large object descriptor", &["begin; select lo_open(lo_creat(-1), 131072)"], "select loread(0, 1)"),
    kind("LOAD", &["load 'plpgsql'"], "show plpgsql.extra_errors"),
    tolerated("currval and lastval", &["select nextval('matrix_sequence')"], "select currval('matrix_sequence'), lastval()"),
    tolerated("setting by a function of one's own", &["select matrix_function_that_sets()"], WORK_MEM),
    tolerated("setting by a view of one's own", &["select * from matrix_view"], WORK_MEM),
    by_protocol("named statement by protocol", || [call("leftover", &[]), sync()].concat()),
    by_protocol("unnamed statement by protocol", || [call("", &[]), sync()].concat()),
    by_protocol("portal by protocol", || [message(b'E', b"leftover\0\0\0\0\0"), sync()].concat()),
    by_protocol("COPY by protocol", || query("select 7")),
];

/// What makes a state that has no statements.
fn made_by_protocol(name: &str) -> Vec<u8> {
    match name {
        "named statement by protocol" => [parse("leftover", "select 'somebody'"), sync()].concat(),
        "unnamed statement by protocol" => [parse("", "select 'somebody'"), sync()].concat(),
        "portal by protocol" => {
            let bind = message(b'B', b"leftover\0\0\0\0\0\0\0\0");
            [query("begin"), parse("", "select 'somebody'"), bind, sync()].concat()
        }
        _ => query("copy copy_target from stdin"),
    }
}

/// What a client sees that comes to a server connection: rows, errors, notifications, reported settings.
fn outcome(messages: &[Message]) -> String {
    let told = messages.iter().filter_map(|m| match m.tag {
        b'D' => Some(m.fields().join(",")),
        b'E' => Some(m.sqlstate()),
        b'A' | b'S' => Some(format!("{}: {}", char::from(m.tag), String::from_utf8_lossy(&m.body))),
        _ => None,
    });
    told.collect::<Vec<_>>().join("; ")
}

fn looks(raw: &mut Raw, look: &Look) -> String {
    match look {
        Look::Sql(sql) => raw.send(&query(sql)),
        Look::Bytes(bytes) => raw.send(&bytes()),
    }
    outcome(&raw.until_ready(1))
}

/// Makes the state, if it can be made this way.
fn make(raw: &mut Raw, kind: &Kind, way: Way) -> bool {
    if kind.make.is_empty() {
        if way != Way::Extended {
            return false;
        }
        let bytes = made_by_protocol(kind.name);
        let copies = kind.name.starts_with("COPY");
        raw.send(&bytes);
        if !copies {
            raw.until_ready(1 + usize::from(bytes[0] == b'Q'));
        }
        return true;
    }
    let open = kind.make[0].starts_with("begin");
    let several = kind.make[0].contains("; ");
    match way {
        Way::Simple => kind.make.iter().all(|sql| fine(&raw.query(sql)) || sql.ends_with("1/0")),
        Way::Extended if several => false,
        Way::Extended => kind.make.iter().all(|sql| {
            raw.send(&extended(sql, &[]));
            fine(&raw.until_ready(1))
        }),
        Way::Body if open => false,
        Way::Body => kind
            .make
            .iter()
            .all(|sql| fine(&raw.query(&format!("do $body$ begin execute $text${sql}$text$; end $body$")))),
        Way::Block if open => false,
        Way::Block => {
            let done = fine(&raw.query("begin")) && kind.make.iter().all(|sql| fine(&raw.query(sql)));
            raw.query(if done { "commit" } else { "rollback" });
            done
        }
    }
}

fn fine(messages: &[Message]) -> bool {
    messages.iter().all(|m| m.tag != b'E')
}

/// Leaves; what is returned is still there.
fn leave(mut raw: Raw, how: Leave, copies: bool) -> Option<Raw> {
    match how {
        Leave::Terminate => raw.send(&message(b'X', b"")),
        Leave::Close => {}
        // Nothing else is understood in the middle of a COPY.
        _ if copies => return None,
        Leave::InTransaction => drop(raw.query("begin; select 1")),
        Leave::Failed => drop(raw.query("begin; select 1/0")),
        // It may still want its answer, for all that anybody knows.
        Leave::Running => raw.send(&query("select pg_sleep(0.01)")),
        Leave::Cut => {
            raw.send(&query("select repeat('x', 100000); select pg_sleep(60)"));
            // With more unread: the system resets the connection.
            raw.next(PATIENCE);
        }
        Leave::InCopy => raw.send(&query("begin; copy copy_target from stdin")),
        Leave::HalfMessage => raw.send(&query("select 'somebody'")[..9]),
        Leave::Reset => drop(raw.query("reset all")),
        Leave::Stays => return Some(raw),
        Leave::Discard => {
            raw.query("discard all");
            return Some(raw);
        }
    }
    None
}

fn prepare(cluster: &Cluster) {
    cluster.execute(
        "create role matrix superuser login password 'matrix-secret'; create role matrix_other superuser; \
         create table matrix_table (i int); create sequence matrix_sequence; \
         create function matrix_function_with_setting() returns text language plpgsql set work_mem = '7MB' as \
         $$ begin return current_setting('work_mem'); end $$; \
         create function matrix_function_that_sets() returns text language plpgsql as \
         $$ begin return set_config('work_mem', '7MB', false); end $$; \
         create view matrix_view as select set_config('work_mem', '7MB', false) as v",
    );
    let mut seeded = cluster.primary().superuser();
    seeded
        .batch_execute("select setseed(0.5); create table matrix_random as select random() as expected")
        .unwrap();
}

/// What became of the cells of one kind.
#[derive(Debug, Default)]
struct Cells {
    /// As on a fresh connection.
    fresh: u32,
    /// Nobody else gets the server: the client is pinned to it.
    kept: u32,
    /// It cannot be made this way.
    not_made: u32,
    /// Something is seen, as documented.
    tolerated: u32,
    leaks: Vec<String>,
}

fn pinned(proxy: &Proxy) -> bool {
    proxy.metrics().sum("heliosproxy_sessions_pinned", &[]).unwrap() > 0.5
}

fn cells(
    cluster: &Cluster,
    mode: &'static str,
    kinds: &[&Kind],
    leaves: &[Leave],
) -> BTreeMap<&'static str, Cells> {
    let config = Config { mode, pool: 1, acquire_timeout: 10, ..Config::primary_only(cluster) };
    let proxy = config.user("matrix", "password = \"matrix-secret\"").start().ready();
    let mut all = BTreeMap::<_, Cells>::new();
    let login = || Raw::login(proxy.port(), "matrix", "matrix-secret").0;
    for kind in kinds {
        let cells = all.entry(kind.name).or_default();
        let fresh = looks(&mut Raw::login(cluster.primary().port, "matrix", "matrix-secret").0, &kind.look);
        let copies = kind.name.starts_with("COPY");
        let open = copies
            || kind.name.starts_with("portal")
            || kind.make.first().is_some_and(|sql| sql.starts_with("begin"));
        for way in WAYS {
            for how in leaves.iter().copied() {
                // In an open transaction it keeps its server, pinned or not.
                if open && matches!(how, Leave::Stays | Leave::Discard) {
                    continue;
                }
                let mut first = login();
                if !make(&mut first, kind, way) {
                    let refused = mode == "statement" && open;
                    assert!(
                        way != Way::Simple || kind.make.is_empty() || refused,
                        "{mode}: {} cannot be made",
                        kind.name
                    );
                    cells.not_made += 1;
                    break;
                }
                let left = leave(first, how, copies);
                if left.is_some() && pinned(&proxy) {
                    cells.kept += 1;
                    continue;
                }
                let seen = looks(&mut login(), &kind.look);
                drop(left);
                if seen == fresh {
                    cells.fresh += 1;
                } else if kind.tolerated {
                    cells.tolerated += 1;
                } else {
                    cells.leaks.push(format!(
                        "{mode}: {}, {way:?}, {how:?}: {seen:?} instead of {fresh:?}",
                        kind.name
                    ));
                }
            }
        }
    }
    all
}

#[test]
fn whoever_comes_next_finds_what_a_fresh_connection_has() {
    let few = [Leave::Terminate, Leave::Close, Leave::InTransaction];
    let sum = matrix(&[("transaction", &LEAVES[..]), ("session", &few)]);
    assert!(sum.fresh > 500 && sum.kept > 50, "{sum:?}");
}

#[test]
fn the_same_in_statement_mode() {
    // What needs a block cannot be made there.
    let sum = matrix(&[("statement", &[Leave::Terminate, Leave::Close, Leave::Stays, Leave::Discard])]);
    assert!(sum.fresh > 200 && sum.kept > 20 && sum.not_made > 50, "{sum:?}");
}

/// Settings of the StartupMessage, and how they are looked for.
#[rustfmt::skip]
const STARTS: [(&[(&str, &str)], &str); 8] = [
    (&[("options", "-c search_path=evil,public")], "show search_path"),
    (&[("options", "-c role=matrix_other")], WHO),
    (&[("options", "-c statement_timeout=77s --work_mem=7MB")], "select current_setting('statement_timeout'), current_setting('work_mem')"),
    (&[("options", "-c my.tenant=somebody")], "select current_setting('my.tenant', true)"),
    (&[("TimeZone", "Asia/Tokyo")], "show timezone"),
    (&[("DateStyle", "German, DMY"), ("application_name", "somebody")], "select current_setting('datestyle'), current_setting('application_name')"),
    (&[("client_encoding", "LATIN1")], "show client_encoding"),
    (&[("search_path", "evil"), ("default_transaction_read_only", "on")], "select current_setting('search_path'), current_setting('transaction_read_only')"),
];

#[test]
fn what_a_startup_message_sets_is_for_its_own_session_only() {
    let cluster = Cluster::start(&[]);
    prepare(&cluster);
    let mut seen = 0;
    for mode in ["transaction", "session", "statement"] {
        let config = Config { mode, pool: 1, acquire_timeout: 10, ..Config::primary_only(&cluster) };
        let proxy = config.user("matrix", "password = \"matrix-secret\"").start().ready();
        for (settings, sql) in STARTS {
            let look = Look::Sql(sql);
            let login = |port: u16, settings: &[(&str, &str)]| {
                let mut raw = Raw::connect(port);
                let who = [("user", "matrix"), ("database", "postgres")];
                raw.send(&startup(0x0003_0000, &[&who, settings].concat()));
                raw.finish_login("matrix", "matrix-secret").unwrap();
                raw
            };
            let direct = [settings, &[]].map(|with| looks(&mut login(cluster.primary().port, with), &look));
            assert_ne!(direct[0], direct[1], "{settings:?} can be told");
            for how in [Leave::Terminate, Leave::Close, Leave::Running, Leave::Reset, Leave::Discard] {
                let mut first = login(proxy.port(), settings);
                assert_eq!(looks(&mut first, &look), direct[0], "{mode}: {settings:?}");
                // In session mode it keeps its server as long as it stays.
                let left = leave(first, how, false).filter(|_| mode != "session");
                let mut next = login(proxy.port(), &[]);
                assert_eq!(looks(&mut next, &look), direct[1], "{mode}: {settings:?}, {how:?}");
                if let Some(mut left) = left {
                    assert_eq!(looks(&mut left, &look), direct[0], "{mode}: {settings:?}, {how:?}, its own");
                }
                drop(next);
                assert_eq!(
                    looks(&mut login(proxy.port(), settings), &look),
                    direct[0],
                    "{mode}: {settings:?}"
                );
                seen += 1;
            }
        }
    }
    loudly(&format!("state by the StartupMessage: {seen} cells, leaks 0"));
}

/// Every kind of state in these modes, left in these ways: the sum of all. There is no leak.
fn matrix(modes: &[(&'static str, &[Leave])]) -> Cells {
    let cluster = Cluster::start(&[]);
    prepare(&cluster);
    let (mut leaks, mut sum) = (Vec::new(), Cells::default());
    for &(mode, leaves) in modes {
        let halves: [Vec<&Kind>; 2] = [0, 1].map(|half| {
            KINDS.iter().enumerate().filter(|(at, _)| at % 2 == half).map(|(_, kind)| kind).collect()
        });
        let results = std::thread::scope(|scope| {
            let both = halves.each_ref().map(|kinds| scope.spawn(|| cells(&cluster, mode, kinds, leaves)));
            both.map(|half| half.join().unwrap())
        });
        let mut results: BTreeMap<_, _> = results.into_iter().flatten().collect();
        for kind in KINDS {
            let cells = results.remove(kind.name).unwrap();
            loudly(&format!(
                "{mode:12} {:36} fresh {:3}  kept {:3}  not made {:2}  tolerated {:3}  leaks {}",
                kind.name,
                cells.fresh,
                cells.kept,
                cells.not_made,
                cells.tolerated,
                cells.leaks.len()
            ));
            sum.fresh += cells.fresh;
            sum.kept += cells.kept;
            sum.tolerated += cells.tolerated;
            sum.not_made += cells.not_made;
            leaks.extend(cells.leaks);
        }
    }
    loudly(&format!(
        "state of a session for the next: {} kinds, fresh {}, kept {}, not made {}, tolerated {}, leaks {}",
        KINDS.len(),
        sum.fresh,
        sum.kept,
        sum.not_made,
        sum.tolerated,
        leaks.len()
    ));
    assert!(leaks.is_empty(), "{leaks:#?}");
    sum
}
