//! The words that judging a statement needs to know, matched without case and without allocation.
//! Knows nothing of where a word stands.

/// A keyword that means something to the judgement.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Kw {
    /// Not a keyword of this list: mostly a name.
    #[default]
    None,
    /// A keyword that can stand before a parenthesis and is never a function's name.
    Construct,
    /// A verb that steers the session or the transaction, and changes no data.
    Steer,
    Abort,
    All,
    Alter,
    Analyze,
    And,
    As,
    Atomic,
    Begin,
    By,
    Case,
    Chain,
    Commit,
    Constraints,
    Copy,
    Create,
    Declare,
    Delete,
    Discard,
    Distinct,
    Drop,
    End,
    Explain,
    Filter,
    For,
    From,
    Global,
    Group,
    Hold,
    Insert,
    Into,
    Key,
    Listen,
    Load,
    Local,
    Materialized,
    Merge,
    No,
    On,
    Only,
    Operator,
    Order,
    Ordinality,
    Over,
    Partition,
    Prepare,
    Prepared,
    Read,
    Recursive,
    Replace,
    Rollback,
    /// `FUNCTION` or `PROCEDURE`.
    Routine,
    Select,
    Serializable,
    Set,
    Share,
    Show,
    Start,
    Stdout,
    Table,
    Tablesample,
    Temp,
    To,
    Transaction,
    Update,
    Values,
    Verbose,
    With,
    Within,
    Write,
}

/// Longest name that PostgreSQL tells from another, with room for a longer one to be noticed.
const NAME: usize = 64;

/// A name in lower case on the stack.
pub(super) struct Lower {
    bytes: [u8; NAME],
    length: usize,
}

impl Lower {
    /// `None` if it is longer than any name that PostgreSQL keeps.
    pub(super) fn new(word: &[u8]) -> Option<Self> {
        let mut lower = Self::exact(word)?;
        lower.bytes.make_ascii_lowercase();
        Some(lower)
    }

    /// The same for a name in quotes, which keeps its case.
    pub(super) fn exact(word: &[u8]) -> Option<Self> {
        let mut bytes = [0; NAME];
        bytes.get_mut(..word.len())?.copy_from_slice(word);
        Some(Self { bytes, length: word.len() })
    }

    pub(super) fn get(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }
}

/// The keyword that an unquoted word is.
pub(super) fn keyword(word: &[u8]) -> Kw {
    let mut buffer = [0_u8; 18];
    let Some(lower) = buffer.get_mut(..word.len()) else { return Kw::None };
    lower.copy_from_slice(word);
    lower.make_ascii_lowercase();
    verb_or_clause(lower)
}

#[allow(clippy::too_many_lines)] // one flat match, a word an arm
fn verb_or_clause(word: &[u8]) -> Kw {
    match word {
        b"abort" => Kw::Abort,
        b"all" => Kw::All,
        b"alter" => Kw::Alter,
        b"analyze" | b"analyse" => Kw::Analyze,
        b"and" => Kw::And,
        b"as" => Kw::As,
        b"atomic" => Kw::Atomic,
        b"begin" => Kw::Begin,
        b"by" => Kw::By,
        b"case" => Kw::Case,
        b"chain" => Kw::Chain,
        b"commit" => Kw::Commit,
        b"constraints" => Kw::Constraints,
        b"copy" => Kw::Copy,
        b"create" => Kw::Create,
        b"declare" => Kw::Declare,
        b"delete" => Kw::Delete,
        b"discard" => Kw::Discard,
        b"distinct" => Kw::Distinct,
        b"drop" => Kw::Drop,
        b"end" => Kw::End,
        b"explain" => Kw::Explain,
        b"filter" => Kw::Filter,
        b"for" => Kw::For,
        b"from" => Kw::From,
        b"global" => Kw::Global,
        b"group" => Kw::Group,
        b"hold" => Kw::Hold,
        b"insert" => Kw::Insert,
        b"into" => Kw::Into,
        b"key" => Kw::Key,
        b"listen" => Kw::Listen,
        b"load" => Kw::Load,
        b"local" => Kw::Local,
        b"materialized" => Kw::Materialized,
        b"merge" => Kw::Merge,
        b"no" => Kw::No,
        b"on" => Kw::On,
        b"only" => Kw::Only,
        b"operator" => Kw::Operator,
        b"order" => Kw::Order,
        b"ordinality" => Kw::Ordinality,
        b"over" => Kw::Over,
        b"partition" => Kw::Partition,
        b"prepare" => Kw::Prepare,
        b"prepared" => Kw::Prepared,
        b"read" => Kw::Read,
        b"recursive" => Kw::Recursive,
        b"replace" => Kw::Replace,
        b"rollback" => Kw::Rollback,
        b"function" | b"procedure" => Kw::Routine,
        b"select" => Kw::Select,
        b"serializable" => Kw::Serializable,
        b"set" => Kw::Set,
        b"share" => Kw::Share,
        b"show" => Kw::Show,
        b"start" => Kw::Start,
        b"stdout" => Kw::Stdout,
        b"table" => Kw::Table,
        b"tablesample" => Kw::Tablesample,
        b"temp" | b"temporary" => Kw::Temp,
        b"to" => Kw::To,
        b"transaction" => Kw::Transaction,
        b"update" => Kw::Update,
        b"values" => Kw::Values,
        b"verbose" => Kw::Verbose,
        b"with" => Kw::With,
        b"within" => Kw::Within,
        b"write" => Kw::Write,
        b"reset" | b"unlisten" | b"deallocate" | b"fetch" | b"move" | b"close" | b"savepoint"
        | b"release" => Kw::Steer,
        _ => construct(word),
    }
}

/// Reserved words and the keywords that PostgreSQL forbids as names of functions, and a few only it could misuse so.
fn construct(word: &[u8]) -> Kw {
    match word {
        b"any" | b"array" | b"asc" | b"asymmetric" | b"between" | b"bigint" | b"bit" | b"boolean"
        | b"both" | b"cast" | b"char" | b"character" | b"check" | b"coalesce" | b"columns" | b"cross"
        | b"cube" | b"current_date" | b"current_time" | b"current_timestamp" | b"dec" | b"decimal"
        | b"default" | b"desc" | b"else" | b"escape" | b"except" | b"exists" | b"extract" | b"float"
        | b"foreign" | b"full" | b"greatest" | b"grouping" | b"having" | b"ilike" | b"in" | b"inner"
        | b"int" | b"integer" | b"intersect" | b"interval" | b"is" | b"isnull" | b"join" | b"lateral"
        | b"leading" | b"least" | b"limit" | b"localtime" | b"localtimestamp" | b"national" | b"natural"
        | b"nchar" | b"normalize" | b"not" | b"notnull" | b"null" | b"nullif" | b"numeric" | b"offset"
        | b"or" | b"outer" | b"overlaps" | b"overlay" | b"placing" | b"position" | b"precision"
        | b"primary" | b"real" | b"references" | b"repeatable" | b"returning" | b"rollup" | b"row"
        | b"setof" | b"sets" | b"similar" | b"smallint" | b"some" | b"substring" | b"symmetric" | b"then"
        | b"time" | b"timestamp" | b"trailing" | b"treat" | b"trim" | b"union" | b"unique" | b"using"
        | b"varchar" | b"variadic" | b"varying" | b"when" | b"where" | b"window" | b"xmlattributes"
        | b"xmlconcat" | b"xmlelement" | b"xmlexists" | b"xmlforest" | b"xmlnamespaces" | b"xmlparse"
        | b"xmlpi" | b"xmlroot" | b"xmlserialize" | b"xmltable" | b"zone" => Kw::Construct,
        _ => Kw::None,
    }
}

/// Relations and settings that tell about the very node or session, so that another node's answer would mislead.
/// Drivers look for a writable server by `SHOW transaction_read_only`.
pub(super) fn is_node_local(name: &[u8]) -> bool {
    match name.split_at_checked(3) {
        Some((b"pg_", rest)) => {
            rest.starts_with(b"stat_")
                || rest.starts_with(b"statio_")
                || matches!(
                    rest,
                    b"locks"
                        | b"cursors"
                        | b"prepared_statements"
                        | b"prepared_xacts"
                        | b"replication_slots"
                        | b"replication_origin_status"
                        | b"backend_memory_contexts"
                )
        }
        _ => matches!(name, b"transaction_read_only" | b"default_transaction_read_only" | b"in_hot_standby"),
    }
}

impl Kw {
    /// Whether a parenthesis after this word opens something other than a function's arguments.
    pub(super) const fn opens_construct(self) -> bool {
        matches!(
            self,
            Self::Construct
                | Self::All
                | Self::Analyze
                | Self::And
                | Self::As
                | Self::Case
                | Self::Distinct
                | Self::End
                | Self::Explain
                | Self::For
                | Self::From
                | Self::Group
                | Self::Into
                | Self::Materialized
                | Self::On
                | Self::Only
                | Self::Operator
                | Self::Order
                | Self::Select
                | Self::Table
                | Self::Tablesample
                | Self::To
                | Self::Values
                | Self::Verbose
                | Self::With
        )
    }

    /// Whether a query begins with this word.
    pub(super) const fn begins_query(self) -> bool {
        matches!(self, Self::Select | Self::Values | Self::Table | Self::With)
    }

    /// Whether the word is a verb that changes rows.
    pub(super) const fn changes_rows(self) -> bool {
        matches!(self, Self::Insert | Self::Update | Self::Delete | Self::Merge)
    }
}
