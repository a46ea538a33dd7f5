//! What the judgement says of statements, good and bad.

use crate::route::{Class, NoFunctions, Pins, TxWord, Verdict, classify};

fn verdict(sql: &str) -> Verdict {
    classify(sql.as_bytes(), true, &NoFunctions)
}

fn all(class: Class, table: &[&str]) {
    for sql in table {
        assert_eq!(verdict(sql).class, class, "{sql}");
    }
}

#[test]
fn plain_reads() {
    all(
        Class::Read,
        &[
            "SELECT 1",
            "select",
            "SELECT abalance FROM pgbench_accounts WHERE aid = 1;",
            "SELECT count(*) FROM pgbench_branches",
            "select 1; select 2;;",
            "(select 1) union all (select 2) order by 1",
            "VALUES (1, lower('A')), (2, 'b')",
            "TABLE t",
            "WITH t(a, b) AS (VALUES (1,2)), u (c) AS MATERIALIZED (SELECT 1), v AS NOT MATERIALIZED (SELECT a FROM t) SELECT * FROM t, u",
            "WITH RECURSIVE t(n) AS (VALUES (1) UNION ALL SELECT n+1 FROM t WHERE n < 100) SELECT sum(n) FROM t",
            "select * from (with x(a) as (select 1) select a from x) s(b)",
            "with a(x) as (select 1) (select x from a) limit 1",
            "SHOW search_path",
            "show all",
            "EXPLAIN SELECT f()",
            "explain insert into t values (1)",
            "explain (costs off, format json) delete from t",
            "explain (select 1)",
            "EXPLAIN ANALYZE VERBOSE SELECT 1",
            "explain (analyze, buffers) select count(*) from t",
            "explain analyze with x(a) as (select 1) select * from x",
            "COPY t TO STDOUT",
            "copy s.t (a, b) to stdout with (format csv, header, force_quote (a, b))",
            "copy (select lower(a) from t) to stdout csv header",
            "select a in (1,2), b not in (select 3), exists(select 1), coalesce(a,b), cast(a as numeric(10,2)) from t",
            "select a::numeric(10,2), b::varchar(10)[], c::geometry(Point,4326), d::character varying(5) from t",
            "select row(1,2), array(select 1), array[1,2], (a and (b or (c))) from t where not (a) and (b)",
            "select sum(a) over (partition by (b) order by (c)), count(*) filter (where (a > 1)) over w from t window w as (order by a)",
            "select * from generate_series(1, 10) as g(x), unnest(array[1]) with ordinality t(y, n)",
            "select * from foo f(a, b) join bar b(c) using (c) left join lateral (select 1) l(d) on (true)",
            "select * from json_to_recordset('[]') as x(a int, b varchar(3), c numeric(10,2), d geometry(Point, 4326))",
            "select distinct on (a) lower(b) from t",
            "select a operator(pg_catalog.+) abs(b) from t",
            "select extract(epoch from now()), trim(both ' ' from a), substring(a from 1 for 2), position('a' in b) from t",
            "select percentile_cont(0.5) within group (order by x) from t tablesample bernoulli (10) repeatable (1)",
            "select pg_catalog.lower('x'), \"lower\"('X'), pg_catalog . \"upper\" ('x')",
            "select t.update, t.\"for\", t.into, 1 as update from t",
            "select current_timestamp(3), interval(3) '1', timestamp(0) with time zone '2020-01-01'",
            "select 'insert into t', $$delete from t$$, \"update\" from t -- drop\n/* ; insert */",
            "select left('abc', 1), right('abc', 1), 'a' like ('b'), 'a' ilike ('b')",
            "select json_agg(x), string_agg(a, ',' order by b), to_char(now(), 'x') from t group by (a), cube(b), grouping sets ((a))",
            "select pg_is_in_recovery(), random(), gen_random_uuid(), version(), current_setting('x'), pg_sleep(0.1)",
            "select $1::int, :a, a[1:2], b->>'x', c @> '{}', d ? 'x' from t",
            "select 1 from t fetch first 5 rows only",
            "select * from pg_stats, pg_statistic, pg_settings, pg_class",
            "commit",
            "ROLLBACK",
            "begin read only",
        ],
    );
}

#[test]
fn writes_in_every_disguise() {
    all(
        Class::Write,
        &[
            "INSERT INTO t VALUES (1)",
            "update t set a = 1",
            "DELETE FROM t",
            "merge into t using s on (true) when matched then delete",
            "/* helios:route=standby */ insert into t values (1)",
            "select 1; insert into t values (1)",
            "insert into t values (1); select 1",
            "with x as (insert into t values (1) returning *) select * from x",
            "with x as materialized (delete from t returning *) select * from x",
            "with x as (with y as (select 1) update t set a = 1 returning 1) select 1",
            "with x as (select 1) insert into t select * from x",
            "select * from (select 1) s for update",
            "select 1 for no key update",
            "select * from t FOR /* c */ SHARE of t nowait",
            "select 1 for key share skip locked",
            "select * from (select * from t for update) s",
            "select * into x from t",
            "select 1 into temp x",
            "explain analyze insert into t values (1)",
            "explain (analyze) update t set a = 1",
            "explain (analyze, verbose) select 1 into x",
            "explain analyze with x as (delete from t returning 1) select 1",
            "explain create table x as select 1",
            "explain analyze execute p",
            "explain execute p",
            "copy t from stdin",
            "copy t to '/tmp/x'",
            "copy t to program 'cat'",
            "copy (delete from t returning 1) to stdout",
        ],
    );
}

#[test]
fn commands_and_doubts() {
    all(
        Class::Write,
        &[
            "do $$ begin perform 1; end $$",
            "call p()",
            "execute p(1)",
            "vacuum",
            "analyze t",
            "reindex table t",
            "lock t",
            "truncate t",
            "refresh materialized view v",
            "notify x",
            "grant select on t to x",
            "comment on table t is ''",
            "drop table t",
            "create view v as select 1",
            "set x = 1",
            "reset all",
            "savepoint a",
            "release a",
            "rollback to a",
            "rollback work to savepoint a",
            "begin",
            "start transaction",
            "begin isolation level serializable read only",
            "begin read only, read write",
            "begin; select 1; commit",
            "commit and chain",
            "commit prepared 'x'",
            "prepare transaction 'x'",
            "declare c cursor for select 1",
            "fetch 1 from c",
            "checkpoint",
            "nonsense",
            "\"select\" 1",
            "1",
            "select 'open",
            "select /* open",
            "select $a$ open $A$",
            "select \"open",
            "select 1 \\ 2",
            "select (1; insert into t values (1))",
            "select 1)",
            "select \u{1}",
            "with x as (select 1) merge into t using x on true when matched then delete",
            "select E'\\'; --'; delete from t",
            "select $1$; delete from t; $1$",
        ],
    );
}

#[test]
fn functions_that_are_not_known_to_be_safe() {
    all(
        Class::VolatileFunction,
        &[
            "select f()",
            "select nextval('s')",
            "select a, f (1) from t",
            "select * from f(1) as x(a)",
            "select s.lower('x')",
            "select \"Lower\"('x')",
            "select pg_catalog.nextval('s')",
            "select /* c */ f /* c */ (1)",
            "values (f())",
            "select distinct f()",
            "select distinct on (a) f(b) from t",
            "select a operator(pg_catalog.+) f(b) from t",
            "select case when f() then 1 end",
            "with x as (select 1) select 1, f(2)",
            "with x as (select 1) (select 1) order by 1, f(2)",
            "explain analyze with a as (select 1) select * from lower('') with ordinality, f(1)",
            "explain analyze select f()",
            "copy (select f()) to stdout",
            "select 1; select f()",
            "select pg_advisory_lock(1)",
            "select pg_advisory_xact_lock(1)",
            "select set_config('a', 'b', true)",
            "select setval('s', 1)",
            "select lo_create(0)",
            "select dblink_exec('x')",
            "select pg_notify('a', 'b')",
            "select txid_current()",
            "select query_to_xml('delete from t', true, true, '')",
            "select U&\"f\"()",
            "select 1 where a = any(f())",
            "select (f(1)).x",
            "select pg_current_wal_lsn()",
            "select lastval(), currval('s')",
            "select * from pg_stat_activity",
            "select * from pg_catalog.pg_locks",
            "select * from \"pg_stat_replication\"",
            "show transaction_read_only",
            "SHOW in_hot_standby",
            "select pg_backend_pid()",
            "select update_everything(1)",
            "select over(1)",
            "select by(1)",
            "select \u{e9}(1)",
            "select limit_me(1)",
        ],
    );
    assert_eq!(verdict("explain with a as (select 1) select f(1)").class, Class::Read, "nothing runs");
    let deep = format!("select {}f(1){}", "(".repeat(10_000), ")".repeat(10_000));
    assert_eq!(verdict(&deep).class, Class::VolatileFunction);
    let deep = format!("select {}1{}", "(".repeat(10_000), ")".repeat(10_000));
    assert_eq!(verdict(&deep).class, Class::Read);
}

#[test]
fn what_is_known_of_user_functions_counts() {
    struct Known;
    impl crate::route::KnownFunctions for Known {
        fn is_safe(&self, name: &[u8]) -> bool {
            name == b"mine" || name == b"Mine"
        }
        fn is_volatile(&self, name: &[u8]) -> bool {
            name == b"lower"
        }
    }
    let class = |sql: &str| classify(sql.as_bytes(), true, &Known).class;
    assert_eq!(class("select MINE(1), app.mine(2), \"Mine\"(3)"), Class::Read);
    assert_eq!(class("select pg_catalog.mine(1)"), Class::VolatileFunction);
    assert_eq!(class("select lower('')"), Class::VolatileFunction);
    assert_eq!(class("select pg_catalog.lower('')"), Class::Read);
}

#[test]
fn texts_without_a_statement() {
    all(Class::Empty, &["", " \n", ";;", "-- x", "/* x */ ; -- y", "/* helios:route=primary */"]);
    assert_eq!(verdict(";;").statements, 0);
    assert_eq!(verdict("select 1;; select 2;").statements, 2);
    assert_eq!(verdict(&"select 1;".repeat(70_000)).statements, u16::MAX);
}

#[test]
fn pgbench_is_judged_right() {
    let script = [
        ("BEGIN;", Class::Write, TxWord::Begin { read_only: false }),
        ("UPDATE pgbench_accounts SET abalance = abalance + -42 WHERE aid = 7;", Class::Write, TxWord::None),
        ("SELECT abalance FROM pgbench_accounts WHERE aid = 7;", Class::Read, TxWord::None),
        ("UPDATE pgbench_tellers SET tbalance = tbalance + -42 WHERE tid = 1;", Class::Write, TxWord::None),
        (
            "INSERT INTO pgbench_history (tid, bid, aid, delta, mtime) VALUES (1, 1, 7, -42, CURRENT_TIMESTAMP);",
            Class::Write,
            TxWord::None,
        ),
        ("END;", Class::Read, TxWord::End),
    ];
    for (sql, class, tx) in script {
        let verdict = verdict(sql);
        assert_eq!((verdict.class, verdict.tx, verdict.statements), (class, tx, 1), "{sql}");
    }
}

#[test]
fn transaction_words() {
    let begin = |read_only| TxWord::Begin { read_only };
    for (sql, tx) in [
        ("begin", begin(false)),
        (" BEGIN READ ONLY ;", begin(true)),
        ("start transaction isolation level repeatable read, read only", begin(true)),
        ("begin isolation level serializable read only deferrable", begin(false)),
        ("begin transaction read write", begin(false)),
        ("commit work", TxWord::End),
        ("END", TxWord::End),
        ("abort", TxWord::End),
        ("rollback and no chain", TxWord::End),
        ("rollback to savepoint a", TxWord::None),
        ("savepoint a", TxWord::None),
        ("release savepoint a", TxWord::None),
        ("commit prepared 'x'", TxWord::None),
        ("rollback prepared 'x'", TxWord::None),
        ("prepare transaction 'x'", TxWord::End),
        ("commit and chain", TxWord::Mixed),
        ("begin; select 1", TxWord::Mixed),
        ("select 1; commit", TxWord::Mixed),
        ("commit; begin", TxWord::Mixed),
        ("select 1; select 2", TxWord::None),
        (
            "create function f() returns int begin atomic select 1; select case when true then 1 end; end",
            TxWord::None,
        ),
        ("create function f() returns int begin atomic select 1; end; commit", TxWord::Mixed),
    ] {
        assert_eq!(verdict(sql).tx, tx, "{sql}");
    }
}

#[test]
fn state_left_behind() {
    for (sql, words) in [
        ("set x = 1", "setting"),
        ("SET SESSION statement_timeout TO 1", "setting"),
        ("set role a", "setting"),
        ("set session authorization a", "setting"),
        ("set session characteristics as transaction read only", "setting"),
        ("set time zone 'UTC'", "setting"),
        ("select set_config('a', 'b', false)", "setting"),
        ("select 1; set a.b = 1", "setting"),
        ("insert into t select pg_catalog.set_config('a','b',false)", "setting"),
        ("select setseed(0)", "setting"),
        ("set local x = 1", ""),
        ("set transaction read only", ""),
        ("set constraints all deferred", ""),
        ("reset x", "setting"),
        ("listen a", "listen"),
        ("unlisten a", ""),
        ("notify a", ""),
        ("create temp table t (a int)", "temp_table"),
        ("CREATE LOCAL TEMPORARY TABLE t AS SELECT 1", "temp_table"),
        ("create or replace temp view v as select 1", "temp_table"),
        ("create global temp sequence s", "temp_table"),
        ("create table pg_temp.t (a int)", "temp_table"),
        ("create table \"pg_temp\".t (a int)", "temp_table"),
        ("create function pg_temp.f() returns int language sql as $$select 1$$", "temp_table"),
        ("select 1 into temp x", "temp_table"),
        ("select 1 into local temporary table x", "temp_table"),
        ("select 1 into pg_temp.x", "temp_table"),
        ("select 1 into x", ""),
        ("create table temp (a int)", ""),
        ("create temp table t (a int) on commit drop", ""),
        ("create table t (temp int)", ""),
        ("select pg_advisory_lock(1)", "advisory_lock"),
        ("select PG_TRY_ADVISORY_LOCK_SHARED(1, 2)", "advisory_lock"),
        ("select \"pg_advisory_lock\"(1)", "advisory_lock"),
        ("select pg_advisory_xact_lock(1)", ""),
        ("select pg_advisory_unlock(1)", ""),
        ("select U&\"pg_advisory\\005flock\"(1)", "setting advisory_lock"),
        ("declare c cursor with hold for select 1", "hold_cursor"),
        ("declare c cursor for select 1", ""),
        ("declare c cursor without hold for select 1", ""),
        ("prepare p as select 1", "prepared_statement"),
        ("prepare p (int) as select $1", "prepared_statement"),
        ("execute p", ""),
        ("load 'auto_explain'", "load"),
        ("create table begin_ as select 1 from begin atomic; set role x", "setting"),
    ] {
        assert_eq!(verdict(sql).pins.words().collect::<Vec<_>>().join(" "), words, "{sql}");
    }
    assert!(
        verdict("select 1").pins.is_empty()
            && Pins::LOAD.union(Pins::LISTEN).without(Pins::LOAD) == Pins::LISTEN
    );
}

#[test]
fn state_hidden_in_bodies_and_names() {
    for (sql, words) in [
        ("do $$ begin perform set_config('a','b',false); end $$", "setting"),
        ("do language plpgsql 'begin listen x; end'", "setting"),
        ("insert into t values (1) on conflict do nothing", ""),
        ("set local.x = 1", "setting"),
        ("set transaction.x to 1", "setting"),
        ("set constraints.x = 1", "setting"),
        ("set local a.x = 1", ""),
        ("prepare transaction as select 1", "prepared_statement"),
        ("prepare transaction (int) as select $1", "prepared_statement"),
        ("prepare transaction 'x'", ""),
        ("create table U&\"pg\\005ftemp\".t (a int)", "temp_table"),
        ("create function f() returns int begin atomic select 1 as case; end; set x = 1", "setting"),
        ("create function f() returns int begin atomic select 1 case; return 2; end; listen x", "setting"),
        ("create function f() returns int begin atomic select case 1 when 1 then 2 end; return 1; end", ""),
        ("listen a; set b = 1; load 'x'", "setting listen load"),
    ] {
        assert_eq!(verdict(sql).pins.words().collect::<Vec<_>>().join(" "), words, "{sql}");
    }
}

#[test]
fn only_what_may_change_data_starts_a_read_your_writes_window() {
    for sql in [
        "insert into t values (1)",
        "select f()",
        "call p()",
        "execute p",
        "select 1 into x",
        "commit prepared 'x'",
        "select 'open",
    ] {
        assert!(verdict(sql).may_write, "{sql}");
    }
    for sql in [
        "select 1",
        "begin",
        "commit",
        "set a = 1",
        "listen x",
        "savepoint a",
        "select 1 for update",
        "show transaction_read_only",
        "",
        "select pg_advisory_lock(1)",
        "discard all",
        "explain delete from t",
    ] {
        assert!(!verdict(sql).may_write, "{sql}");
    }
}

#[test]
fn discard_all_is_told_from_the_others() {
    assert!(verdict("/* x */ DISCARD ALL ;").is_discard_all);
    for sql in
        ["discard temp", "discard all; select 1", "select 1; discard all", "select 'discard all'", "discard"]
    {
        assert!(!verdict(sql).is_discard_all, "{sql}");
    }
}

#[test]
fn queries_of_tools_and_drivers_are_reads() {
    all(
        Class::Read,
        &[
            // psql \d
            "SELECT c.oid,\n  n.nspname,\n  c.relname\nFROM pg_catalog.pg_class c\n     LEFT JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace\n\
             WHERE c.relname OPERATOR(pg_catalog.~) '^(t)$' COLLATE pg_catalog.default\n  AND pg_catalog.pg_table_is_visible(c.oid)\nORDER BY 2, 3;",
            "SELECT a.attname,\n  pg_catalog.format_type(a.atttypid, a.atttypmod),\n  (SELECT pg_catalog.pg_get_expr(d.adbin, d.adrelid, true)\n   \
             FROM pg_catalog.pg_attrdef d\n   WHERE d.adrelid = a.attrelid AND d.adnum = a.attnum AND a.atthasdef),\n  a.attnotnull,\n  (SELECT c.collname \
             FROM pg_catalog.pg_collation c, pg_catalog.pg_type t\n   WHERE c.oid = a.attcollation AND t.oid = a.atttypid AND a.attcollation <> t.typcollation) AS attcollation\n\
             FROM pg_catalog.pg_attribute a\nWHERE a.attrelid = '16384' AND a.attnum > 0 AND NOT a.attisdropped\nORDER BY a.attnum;",
            "SELECT c2.relname, i.indisprimary, pg_catalog.pg_get_indexdef(i.indexrelid, 0, true),\n  pg_catalog.pg_get_constraintdef(con.oid, true)\n\
             FROM pg_catalog.pg_class c, pg_catalog.pg_index i\n  LEFT JOIN pg_catalog.pg_constraint con ON (conrelid = i.indrelid AND contype IN ('p','u','x'))",
            "SELECT d.datname as \"Name\", pg_catalog.pg_get_userbyid(d.datdba) as \"Owner\", pg_catalog.array_to_string(d.datacl, E'\\n') AS \"Access privileges\", \
             CASE WHEN pg_catalog.has_database_privilege(d.datname, 'CONNECT') THEN pg_catalog.pg_size_pretty(pg_catalog.pg_database_size(d.datname)) ELSE 'No Access' END FROM pg_catalog.pg_database d",
            // SQLAlchemy, Django
            "select pg_catalog.version()",
            "select current_schema()",
            "show standard_conforming_strings",
            "show transaction isolation level",
            "SELECT pg_catalog.pg_class.relname FROM pg_catalog.pg_class JOIN pg_catalog.pg_namespace ON pg_catalog.pg_namespace.oid = pg_catalog.pg_class.relnamespace \
             WHERE pg_catalog.pg_class.relname = 'a'::VARCHAR AND pg_catalog.pg_class.relkind = ANY (ARRAY['r'::VARCHAR, 'p'::VARCHAR]) AND pg_catalog.pg_table_is_visible(pg_catalog.pg_class.oid)",
            "SELECT c.relname, CASE WHEN c.relispartition THEN 'p' WHEN c.relkind IN ('m', 'v') THEN 'v' ELSE 't' END, obj_description(c.oid, 'pg_class') \
             FROM pg_catalog.pg_class c LEFT JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('f', 'm', 'p', 'r', 'v') AND n.nspname NOT IN ('pg_catalog', 'pg_toast')",
            "SELECT COUNT(*) AS \"__count\" FROM \"auth_user\" WHERE (\"auth_user\".\"is_active\" AND UPPER(\"auth_user\".\"name\"::text) LIKE UPPER('a%'))",
            // pgjdbc, asyncpg
            "SELECT NULL AS TABLE_CAT, n.nspname AS TABLE_SCHEM, c.relname AS TABLE_NAME, CASE n.nspname ~ '^pg_' OR n.nspname = 'information_schema' WHEN true THEN CASE \
             WHEN n.nspname = 'pg_catalog' THEN CASE c.relkind WHEN 'r' THEN 'SYSTEM TABLE' ELSE NULL END END END AS TABLE_TYPE FROM pg_catalog.pg_namespace n, pg_catalog.pg_class c",
            "SELECT typinput='array_in'::regproc as is_array, typtype, typname, pg_type.oid FROM pg_catalog.pg_type LEFT JOIN (select ns.oid as nspoid, ns.nspname, r.r \
             from pg_namespace as ns join ( select s.r, (current_schemas(false))[s.r] as nspname from generate_series(1, array_upper(current_schemas(false), 1)) as s(r) ) as r using ( nspname )) as sp ON sp.nspoid = typnamespace",
            "WITH RECURSIVE typeinfo_tree( oid, ns, name, kind, basetype, depth) AS ( SELECT ti.oid, ti.ns, 0 FROM ( SELECT t.oid AS oid, ns.nspname AS ns, format_type(t.oid, NULL) AS name, \
             (CASE WHEN t.typtype = 'd' THEN (WITH RECURSIVE typebases(oid, depth) AS ( SELECT t2.typbasetype AS oid, 0 AS depth FROM pg_type t2 UNION ALL SELECT t2.typbasetype AS oid, tb.depth + 1 \
             FROM pg_type t2, typebases tb) SELECT oid FROM typebases ORDER BY depth DESC LIMIT 1) ELSE NULL END) AS basetype FROM pg_catalog.pg_type AS t ) AS ti WHERE ti.oid = any($1::oid[]) ) \
             SELECT DISTINCT *, basetype::regtype::text AS basetype_name FROM typeinfo_tree ORDER BY depth DESC",
        ],
    );
}

#[test]
fn random_bytes_and_long_texts_do_no_harm() {
    let pieces: [&[u8]; 24] = [
        b"'",
        b"\"",
        b"$$",
        b"$a$",
        b"/*",
        b"*/",
        b"--",
        b"\n",
        b"(",
        b")",
        b";",
        b"\\",
        b"E'",
        b"select ",
        b"with ",
        b"as ",
        b"f(",
        b",",
        b"\x00",
        b"\xff",
        b"explain ",
        b"copy ",
        b"/* helios:route=x,node=\xff */",
        b".",
    ];
    let mut state = 88_172_645_463_325_252_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for _ in 0..20_000 {
        let mut text = Vec::new();
        for _ in 0..next() % 24 {
            match next() % 4 {
                0 => text.extend_from_slice(&next().to_le_bytes()),
                _ => text.extend_from_slice(pieces[usize::try_from(next() % 24).unwrap()]),
            }
        }
        for standard_strings in [true, false] {
            let _ = classify(&text, standard_strings, &NoFunctions);
        }
    }
    for piece in pieces {
        let _ = classify(&piece.repeat(1_000_000 / piece.len()), true, &NoFunctions);
    }
    let long = format!("select '{}'", "x".repeat(50 << 20));
    assert_eq!(verdict(&long).class, Class::Read);
    assert_eq!(verdict(&format!("select 1{}", "/* c */".repeat(1_000_000))).class, Class::Read);
}
