//! What is known of a database: its tables, which of them may be cached, what a write to each may change, and its functions.
//! From rows of the catalog to answers about a [`Reading`]; pure.

use super::reading::Reading;
use super::stamps::Touched;
use crate::route::functions::{is_any_keyword, is_builtin_safe};
use crate::server::ask::Row;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

/// Everything that decides what may be kept, as one text: another one is another catalog. `pg_catalog` alone is searched, so
/// that no operator of a user's has a say, and times and numbers are shown alike, whoever looks.
pub const FINGERPRINT: &str = "begin read only; set local search_path = pg_catalog; set local timezone = 'UTC'; \
    set local datestyle = 'ISO'; set local extra_float_digits = 1; \
    select md5(concat_ws('|', \
    (select string_agg(concat_ws(',', oid, relname, relnamespace, relowner, relacl, relkind, relpersistence, relrowsecurity, \
        relforcerowsecurity, relfilenode, relnatts, relhastriggers, relhasrules, relchecks), ';' order by oid) \
        from pg_class where relkind in ('r', 'p', 'v', 'm', 'f', 'S') and relnamespace <> 11), \
    (select concat_ws(',', oid, pg_postmaster_start_time(), pg_conf_load_time()) from pg_database \
        where datname = current_database()), \
    (select string_agg(concat_ws(',', attrelid, attnum, attname, atttypid, atttypmod, attcollation, attisdropped, attacl), ';' \
        order by attrelid, attnum) from pg_attribute where attrelid >= 16384 and attnum > 0), \
    (select string_agg(concat_ws(',', oid, adrelid, md5(adbin::text)), ';' order by oid) from pg_attrdef), \
    (select string_agg(concat_ws(',', oid, oprcode::oid), ';' order by oid) from pg_operator where oid >= 16384), \
    (select string_agg(concat_ws(',', oid, castfunc), ';' order by oid) from pg_cast where oid >= 16384), \
    (select string_agg(concat_ws(',', aggfnoid::oid, aggtransfn::oid, aggfinalfn::oid), ';' order by aggfnoid::oid) \
        from pg_aggregate where aggfnoid::oid >= 16384), \
    (select string_agg(concat_ws(',', inhrelid, inhparent), ';' order by inhrelid, inhparent) from pg_inherits), \
    (select string_agg(concat_ws(',', oid, conrelid, contypid, confrelid, confdeltype, confupdtype), ';' order by oid) \
        from pg_constraint where contype in ('f', 'c')), \
    (select string_agg(concat_ws(',', oid, typbasetype, typdefault), ';' order by oid) from pg_type where typtype = 'd'), \
    (select string_agg(concat_ws(',', oid, tgrelid, tgenabled), ';' order by oid) from pg_trigger where not tgisinternal), \
    (select string_agg(concat_ws(',', oid, polrelid, polcmd, polroles), ';' order by oid) from pg_policy), \
    (select string_agg(concat_ws(',', oid, nspname, nspowner, nspacl), ';' order by oid) from pg_namespace where nspname !~ '^pg_t'), \
    (select string_agg(concat_ws(',', oid, rolname, rolsuper, rolbypassrls, rolinherit, rolcanlogin), ';' order by oid) \
        from pg_roles), \
    (select string_agg(concat_ws(',', oid, enumtypid, enumsortorder, enumlabel), ';' order by oid) from pg_enum), \
    (select string_agg(concat_ws(',', roleid, member, to_jsonb(m) ->> 'inherit_option', to_jsonb(m) ->> 'set_option'), ';' \
        order by roleid, member, to_jsonb(m)::text) from pg_auth_members m), \
    (select string_agg(concat_ws(',', setdatabase, setrole, setconfig), ';' order by setdatabase, setrole) \
        from pg_db_role_setting), \
    (select string_agg(concat_ws(',', oid, proname, provolatile, proowner, proacl, xmin), ';' order by oid) \
        from pg_proc where oid >= 16384))); commit";

/// The catalog itself: `r`, name, oid, may be cached, a write to it may change anything; `e`, from, to: a write to one
/// changes the other; `p`, name, worst volatility, all are PostgreSQL's own; `o`: operators, casts or domains that run code
/// which may look at tables, or change them.
pub const CATALOG: &str = "begin read only; set local search_path = pg_catalog; \
    select 'r', c.relname::text, c.oid::text, \
        c.relkind in ('r', 'p') and not c.relrowsecurity and not c.relforcerowsecurity and c.relpersistence <> 't', \
        c.relkind not in ('r', 'p') \
        or exists (select from pg_trigger t where t.tgrelid = c.oid and not t.tgisinternal) \
        or exists (select from pg_rewrite w where w.ev_class = c.oid and w.rulename <> '_RETURN') \
        or exists (select from pg_attrdef a, pg_depend d, pg_proc p where a.adrelid = c.oid \
            and d.classid = 'pg_attrdef'::regclass and d.objid = a.oid and d.refclassid = 'pg_proc'::regclass \
            and p.oid = d.refobjid and p.oid >= 16384 and p.provolatile <> 'i') \
        or exists (select from pg_constraint k, pg_depend d, pg_proc p where k.conrelid = c.oid \
            and d.classid = 'pg_constraint'::regclass and d.objid = k.oid and d.refclassid = 'pg_proc'::regclass \
            and p.oid = d.refobjid and p.oid >= 16384 and p.provolatile <> 'i') \
        or exists (select from pg_policy k, pg_depend d, pg_proc p where k.polrelid = c.oid \
            and d.classid = 'pg_policy'::regclass and d.objid = k.oid and d.refclassid = 'pg_proc'::regclass \
            and p.oid = d.refobjid and p.oid >= 16384 and p.provolatile <> 'i') \
        from pg_class c, pg_namespace n where n.oid = c.relnamespace and c.relkind in ('r', 'p', 'v', 'm', 'f', 'S') \
        and n.nspname <> 'pg_catalog' and n.nspname !~ '^pg_t' \
    union all select 'e', inhparent::text, inhrelid::text, null, null from pg_inherits \
    union all select 'e', inhrelid::text, inhparent::text, null, null from pg_inherits \
    union all select 'e', confrelid::text, conrelid::text, null, null from pg_constraint where contype = 'f' \
        and (confdeltype in ('c', 'n', 'd') or confupdtype in ('c', 'n', 'd')) \
    union all select 'p', proname::text, max(greatest( \
        case provolatile when 'v' then '2' when 's' then '1' else '0' end, \
        (select max(case f.provolatile when 'v' then '2' when 's' then '1' else '0' end) from pg_aggregate a, pg_proc f \
        where a.aggfnoid = p.oid and f.oid in (a.aggtransfn, a.aggfinalfn, a.aggcombinefn, a.aggmtransfn, a.aggmfinalfn)))), \
        bool_and(oid < 16384), null from pg_proc p where prokind <> 'p' group by proname \
    union all select 'o', null, null, null, null from pg_proc p, pg_language l where l.oid = p.prolang \
        and p.oid >= 16384 and l.lanname not in ('internal', 'c') and p.provolatile <> 'i' and (exists (select from pg_operator o \
        where o.oprcode = p.oid) or exists (select from pg_cast k where k.castfunc = p.oid)) \
    union all select 'o', null, null, null, null from pg_depend d, pg_proc p where d.refclassid = 'pg_proc'::regclass \
        and p.oid = d.refobjid and p.oid >= 16384 and p.provolatile <> 'i' and (d.classid = 'pg_type'::regclass and exists (select \
        from pg_type t where t.oid = d.objid and t.typtype = 'd') or d.classid = 'pg_constraint'::regclass and exists (select \
        from pg_constraint k where k.oid = d.objid and k.contypid <> 0)); \
    commit";

/// Tables that a publication tells everything about, by their object identifiers, as one text: it holds them, or what they
/// are partitions of, with every kind of change and without a filter of rows, and they are logged. A table that others
/// inherit from counts if all of these do. `$` stands for the publication's name.
pub const TOLD: &str = "begin read only; set local search_path = pg_catalog; \
    with recursive listed as (select t.relid from pg_publication p, lateral pg_get_publication_tables(p.pubname::text) t \
        where p.pubname = '$' and p.pubinsert and p.pubupdate and p.pubdelete and p.pubtruncate and not p.pubviaroot \
        and coalesce(to_jsonb(t) ->> 'qual', '') = ''), \
    told as (select relid from listed union select i.inhrelid from pg_inherits i, told, pg_class c \
        where i.inhparent = told.relid and c.oid = told.relid and c.relkind = 'p'), \
    down as (select oid as root, oid from pg_class where relkind in ('r', 'p') and oid >= 16384 \
        union select d.root, i.inhrelid from down d, pg_inherits i where i.inhparent = d.oid) \
    select string_agg(root::text, ',' order by root) from (select root from down d, pg_class c where c.oid = d.oid group by root \
        having bool_and(c.relkind = 'p' or c.relkind = 'r' and c.relpersistence = 'p' and c.oid in (select relid from told))) r; \
    commit";

/// Stable functions of PostgreSQL's own whose values hang on nothing but their arguments and the session's settings.
const STEADY: &[&[u8]] = &[
    b"array_agg",
    b"array_to_json",
    b"array_to_string",
    b"concat",
    b"concat_ws",
    b"date_part",
    b"date_trunc",
    b"extract",
    b"format",
    b"generate_series",
    b"json_agg",
    b"json_build_array",
    b"json_build_object",
    b"json_object_agg",
    b"jsonb_agg",
    b"jsonb_build_array",
    b"jsonb_build_object",
    b"jsonb_object_agg",
    b"quote_literal",
    b"quote_nullable",
    b"row_to_json",
    b"timezone",
    b"to_char",
    b"to_date",
    b"to_json",
    b"to_jsonb",
    b"to_number",
    b"to_timestamp",
];

/// Functions of PostgreSQL's own that change something, but no table that may be cached.
const HARMLESS: &[&[u8]] = &[
    b"nextval",
    b"currval",
    b"lastval",
    b"setval",
    b"clock_timestamp",
    b"timeofday",
    b"set_config",
    b"setseed",
    b"txid_current",
    b"pg_current_xact_id",
    b"pg_notify",
    b"pg_sleep",
    b"pg_advisory_lock",
    b"pg_advisory_unlock",
    b"pg_advisory_xact_lock",
    b"pg_try_advisory_lock",
    b"pg_try_advisory_xact_lock",
    b"pg_backend_pid",
];

/// What a text may change, and on what its answer depends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Effect {
    /// Tables that it may change if it is a write.
    pub touches: Touched,
    /// It may change the catalog as well.
    pub doubts: bool,
    /// It may change what all databases share: roles, their rights, databases themselves.
    pub everywhere: bool,
    /// Tables that its answer depends on, if that may be kept, and for how long at most.
    pub reads: Option<(Arc<[u32]>, Duration)>,
}

#[derive(Debug, Clone, Copy)]
struct Table {
    oid: u32,
    plain: bool,
}

#[derive(Debug, Clone, Copy)]
struct Function {
    /// 0: immutable, 1: stable, 2: volatile.
    worst: u8,
    builtin: bool,
}

/// One look at the catalog.
#[derive(Debug, Default)]
pub struct Facts {
    /// The fingerprint that it was taken under.
    pub fingerprint: Vec<u8>,
    tables: HashMap<Box<[u8]>, Vec<Table>>,
    /// What a write to a table may change.
    spread: HashMap<u32, Touched>,
    functions: HashMap<Box<[u8]>, Function>,
    /// Operators or casts may look at tables: nothing is kept.
    opaque: bool,
}

impl Facts {
    /// From the rows of [`CATALOG`]; `None` if they are not what was asked for.
    #[must_use]
    pub fn read(fingerprint: Vec<u8>, rows: Vec<Row>) -> Option<Self> {
        let mut facts = Self { fingerprint, ..Self::default() };
        let (mut wild, mut edges) = (HashSet::new(), HashMap::<u32, Vec<u32>>::new());
        for row in rows {
            let [kind, first, second, third, fourth]: [_; 5] = row.try_into().ok()?;
            let yes = |flag: &Option<Vec<u8>>| flag.as_deref() == Some(b"t");
            match kind?.as_slice() {
                b"r" => {
                    let table = Table { oid: number(second.as_deref())?, plain: yes(&third) };
                    if yes(&fourth) {
                        wild.insert(table.oid);
                    }
                    facts.tables.entry(first?.into()).or_default().push(table);
                }
                b"e" => edges.entry(number(first.as_deref())?).or_default().push(number(second.as_deref())?),
                b"p" => {
                    let worst = u8::try_from(number(second.as_deref())?).ok()?;
                    facts.functions.insert(first?.into(), Function { worst, builtin: yes(&third) });
                }
                b"o" => facts.opaque = true,
                _ => return None,
            }
        }
        // What is read through another table is no better than it.
        let bad: HashSet<u32> =
            facts.tables.values().flatten().filter(|table| !table.plain).map(|table| table.oid).collect();
        for table in facts.tables.values_mut().flatten() {
            let reached = reached(table.oid, &edges);
            table.plain &= reached.iter().all(|oid| !bad.contains(oid));
            let _ = facts.spread.insert(table.oid, spread(reached, &wild));
        }
        Some(facts)
    }

    /// Whether there is such a table.
    #[must_use]
    pub fn has(&self, table: u32) -> bool {
        self.spread.contains_key(&table)
    }

    /// Only these tables may be kept.
    #[must_use]
    pub fn only(mut self, told: &HashSet<u32>) -> Self {
        for table in self.tables.values_mut().flatten() {
            table.plain &= told.contains(&table.oid);
        }
        self
    }

    /// What a change of rows of these tables may have changed, by whomever: what it did elsewhere is told by itself.
    #[must_use]
    pub fn changed(&self, tables: &HashSet<u32>) -> Touched {
        let mut touched = Touched::Nothing;
        for table in tables {
            touched.add(self.spread.get(table).unwrap_or(&Touched::All));
        }
        touched
    }

    /// What a text does; `ttl` is the longest life of an answer from tables of these names.
    pub fn effect(&self, reading: &Reading, ttl: impl Fn(&[u8]) -> Duration) -> Effect {
        let doubts = reading.doubt || !reading.plain;
        let everywhere = concerns_all(reading);
        Effect { touches: self.touches(reading), doubts, everywhere, reads: self.reads(reading, ttl) }
    }

    fn touches(&self, reading: &Reading) -> Touched {
        if reading.doubt || !reading.plain || !reading.calls.iter().all(|call| self.leaves_tables(call)) {
            return Touched::All;
        }
        let mut touched = Touched::Nothing;
        let named = reading.names.iter().filter_map(|name| self.tables.get(name)).flatten();
        for table in named {
            touched.add(self.spread.get(&table.oid).unwrap_or(&Touched::All));
        }
        touched
    }

    /// Whether a call changes no table that is not named: a harmless function, or a table with a list of columns.
    fn leaves_tables(&self, call: &[u8]) -> bool {
        match self.functions.get(call) {
            Some(Function { builtin: true, .. }) => {
                is_builtin_safe(call) || HARMLESS.contains(&call) || is_any_keyword(call)
            }
            Some(Function { worst, .. }) => *worst < 2,
            None => self.tables.contains_key(call) || is_any_keyword(call),
        }
    }

    fn reads(&self, reading: &Reading, ttl: impl Fn(&[u8]) -> Duration) -> Option<(Arc<[u32]>, Duration)> {
        let wrong = reading.doubt || reading.fickle || !reading.plain || !reading.query || self.opaque;
        if wrong || !reading.calls.iter().all(|call| self.is_steady(call)) {
            return None;
        }
        let (mut tables, mut life) = (Vec::new(), Duration::MAX);
        for name in &reading.names {
            // `t.f` may be a call of f(t).
            if self.functions.get(name).is_some_and(|_| !self.is_steady(name)) {
                return None;
            }
            let Some(named) = self.tables.get(name) else { continue };
            if named.iter().any(|table| !table.plain) {
                return None;
            }
            tables.extend(named.iter().map(|table| table.oid));
            life = life.min(ttl(name));
        }
        (!tables.is_empty() && !life.is_zero()).then(|| (tables.into(), life))
    }

    fn is_steady(&self, call: &[u8]) -> bool {
        match self.functions.get(call) {
            Some(f) if f.worst == 0 => true,
            Some(f) => f.builtin && (is_any_keyword(call) || f.worst == 1 && STEADY.contains(&call)),
            None => is_any_keyword(call),
        }
    }
}

/// Words of statements about what all databases share.
const SHARED: &[&[u8]] = &[
    b"database",
    b"role",
    b"user",
    b"group",
    b"tablespace",
    b"system",
    b"grant",
    b"revoke",
    b"reassign",
    b"owned",
];

/// Whether a text may change what all databases share.
#[must_use]
pub fn concerns_all(reading: &Reading) -> bool {
    !reading.plain && (reading.doubt || reading.names.iter().any(|name| SHARED.contains(&&**name)))
}

/// The tables of an answer to [`TOLD`].
#[must_use]
pub fn told(list: &[u8]) -> Option<HashSet<u32>> {
    let numbers = list.split(|byte| *byte == b',').filter(|number| !number.is_empty());
    numbers.map(|text| number(Some(text))).collect()
}

fn number(text: Option<&[u8]>) -> Option<u32> {
    std::str::from_utf8(text?).ok()?.parse().ok()
}

/// Everything that a write to a table may change which reaches these.
fn spread(reached: HashSet<u32>, wild: &HashSet<u32>) -> Touched {
    if reached.iter().any(|table| wild.contains(table)) {
        return Touched::All;
    }
    let mut tables: Vec<u32> = reached.into_iter().collect();
    tables.sort_unstable();
    Touched::Tables(tables)
}

/// A table and all to which its edges lead.
fn reached(from: u32, edges: &HashMap<u32, Vec<u32>>) -> HashSet<u32> {
    let (mut seen, mut next) = (HashSet::from([from]), vec![from]);
    while let Some(table) = next.pop() {
        let more = edges.get(&table).into_iter().flatten();
        next.extend(more.filter(|to| seen.insert(**to)));
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::super::reading::read;
    use super::*;

    const LIFE: Duration = Duration::from_secs(60);

    fn row(columns: [&str; 5]) -> Row {
        columns.iter().map(|c| (*c != "-").then(|| c.as_bytes().to_vec())).collect()
    }

    fn facts() -> Facts {
        let rows = [
            ["r", "a", "1", "t", "f"],
            ["r", "b", "2", "t", "f"],
            ["r", "child", "3", "t", "f"],
            ["r", "v", "4", "f", "t"],
            ["r", "trig", "5", "t", "t"],
            ["r", "secret", "6", "f", "f"],
            ["r", "a", "7", "t", "f"],
            ["r", "to_trig", "8", "t", "f"],
            ["r", "on_secret", "9", "t", "f"],
            ["e", "9", "6", "-", "-"],
            ["e", "2", "3", "-", "-"],
            ["e", "8", "5", "-", "-"],
            ["p", "lower", "0", "t", "-"],
            ["p", "now", "1", "t", "-"],
            ["p", "to_char", "1", "t", "-"],
            ["p", "nextval", "2", "t", "-"],
            ["p", "lo_import", "2", "t", "-"],
            ["p", "mine", "0", "f", "-"],
            ["p", "yours", "1", "f", "-"],
            ["p", "does", "2", "f", "-"],
            ["p", "data", "2", "f", "-"],
            ["p", "date_part", "1", "t", "-"],
        ];
        Facts::read(Vec::new(), rows.map(row).to_vec()).unwrap()
    }

    fn effect(sql: &str) -> Effect {
        let ttl = |name: &[u8]| if name == b"b" { Duration::ZERO } else { LIFE };
        facts().effect(&read(sql.as_bytes(), true), ttl)
    }

    #[test]
    fn what_answers_depend_on() {
        for (sql, tables) in [
            ("select * from a", Some(&[1, 7][..])),
            ("select lower(x), mine(y) from child", Some(&[3])),
            ("select to_char(x, 'y') from child", Some(&[3])),
            ("select x from trig", Some(&[5])),
            ("select x from child where x in (1, 2) and coalesce(x, 1) = 1", Some(&[3])),
            ("select date_part('year', x) from child", Some(&[3])),
            ("select data(x) from child", None),
            ("select 1", None),
            ("select * from b", None),
            ("select * from v", None),
            ("select * from child, secret", None),
            ("select now() from child", None),
            ("select yours(x) from child", None),
            ("select unheard_of(x) from child", None),
            ("select current_date from child", None),
            ("truncate child", None),
            ("explain select * from child", None),
            ("select c.yours from child c", None),
            ("select x from on_secret", None),
        ] {
            assert_eq!(
                effect(sql).reads.map(|(tables, _)| tables.to_vec()),
                tables.map(<[u32]>::to_vec),
                "{sql}"
            );
        }
    }

    #[test]
    fn what_writes_change() {
        let tables = |list: &[u32]| Touched::Tables(list.to_vec());
        for (sql, touched) in [
            ("update child set x = 1", tables(&[3])),
            ("insert into b (x) values (lower('y'))", tables(&[2, 3])),
            ("delete from a", tables(&[1, 7])),
            ("insert into nowhere values (nextval('s'))", Touched::Nothing),
            ("delete from trig", Touched::All),
            ("delete from to_trig", Touched::All),
            ("delete from v", Touched::All),
            ("select does()", Touched::All),
            ("select data()", Touched::All),
            ("select mine(1), yours(2)", Touched::Nothing),
            ("select unheard_of()", Touched::All),
            ("select lo_import('x')", Touched::All),
            ("alter table a add y int", Touched::All),
            ("begin", Touched::Nothing),
        ] {
            assert_eq!(effect(sql).touches, touched, "{sql}");
        }
    }

    #[test]
    fn strange_rows_and_operators_that_run_code() {
        assert!(Facts::read(Vec::new(), vec![row(["x", "-", "-", "-", "-"])]).is_none());
        assert!(Facts::read(Vec::new(), vec![row(["r", "a", "much", "t", "f"])]).is_none());
        let rows = [["r", "a", "1", "t", "f"], ["o", "-", "-", "-", "-"]].map(row).to_vec();
        let facts = Facts::read(Vec::new(), rows).unwrap();
        assert_eq!(facts.effect(&read(b"select * from a", true), |_| LIFE).reads, None);
    }
}
