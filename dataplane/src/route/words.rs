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
    Do,
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
    Reset,
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
    let (Some(first), Some(last)) = (word.first(), word.last()) else { return Kw::None };
    let lengths = LENGTHS.get(slot(*first, *last)).copied().unwrap_or(0);
    let length_bit = u32::try_from(word.len()).ok().and_then(|n| 1_u32.checked_shl(n)).unwrap_or(0);
    if lengths & length_bit == 0 {
        return Kw::None;
    }
    let mut buffer = [0_u8; 32];
    let Some(lower) = buffer.get_mut(..word.len()) else { return Kw::None };
    lower.copy_from_slice(word);
    lower.make_ascii_lowercase();
    exact(lower)
}

/// Where [`LENGTHS`] has the words that begin and end with these bytes, in either case.
#[allow(clippy::as_conversions)] // constant evaluation has no other way to widen a byte
const fn slot(first: u8, last: u8) -> usize {
    (((first & 31) as usize) << 5) | (last & 31) as usize
}

macro_rules! keywords {
    ($($kw:ident = $($word:literal)|+;)+) => {
        fn exact(word: &[u8]) -> Kw {
            match word {
                $($($word)|+ => Kw::$kw,)+
                _ => Kw::None,
            }
        }

        /// By first and last letter: a bit for every length that a keyword has, so that most names are told at a glance.
        static LENGTHS: [u32; 1024] = lengths(&[$($($word),+),+]);
    };
}

#[allow(clippy::indexing_slicing)] // constant evaluation: out of range does not compile
const fn lengths(words: &[&[u8]]) -> [u32; 1024] {
    let mut table = [0; 1024];
    let mut i = 0;
    while i < words.len() {
        let mut length_bit = 1;
        let mut n = 0;
        while n < words[i].len() {
            length_bit <<= 1;
            n += 1;
        }
        table[slot(words[i][0], words[i][n - 1])] |= length_bit;
        i += 1;
    }
    table
}

// `Steer` and `Construct` stand for several words each. `Construct` holds the reserved words and the keywords that PostgreSQL
// forbids as names of functions, and a few that only it could misuse so.
keywords! {
        Abort = b"abort";
        All = b"all";
        Alter = b"alter";
        Analyze = b"analyze" | b"analyse";
        And = b"and";
        As = b"as";
        Atomic = b"atomic";
        Begin = b"begin";
        By = b"by";
        Case = b"case";
        Chain = b"chain";
        Commit = b"commit";
        Constraints = b"constraints";
        Copy = b"copy";
        Create = b"create";
        Declare = b"declare";
        Delete = b"delete";
        Discard = b"discard";
        Distinct = b"distinct";
        Do = b"do";
        Drop = b"drop";
        End = b"end";
        Explain = b"explain";
        Filter = b"filter";
        For = b"for";
        From = b"from";
        Global = b"global";
        Group = b"group";
        Hold = b"hold";
        Insert = b"insert";
        Into = b"into";
        Key = b"key";
        Listen = b"listen";
        Load = b"load";
        Local = b"local";
        Materialized = b"materialized";
        Merge = b"merge";
        No = b"no";
        On = b"on";
        Only = b"only";
        Operator = b"operator";
        Order = b"order";
        Ordinality = b"ordinality";
        Over = b"over";
        Partition = b"partition";
        Prepare = b"prepare";
        Prepared = b"prepared";
        Read = b"read";
        Recursive = b"recursive";
        Replace = b"replace";
        Reset = b"reset";
        Rollback = b"rollback";
        Routine = b"function" | b"procedure";
        Select = b"select";
        Serializable = b"serializable";
        Set = b"set";
        Share = b"share";
        Show = b"show";
        Start = b"start";
        Stdout = b"stdout";
        Table = b"table";
        Tablesample = b"tablesample";
        Temp = b"temp" | b"temporary";
        To = b"to";
        Transaction = b"transaction";
        Update = b"update";
        Values = b"values";
        Verbose = b"verbose";
        With = b"with";
        Within = b"within";
        Write = b"write";
        Steer = b"unlisten" | b"deallocate" | b"fetch" | b"move" | b"close" | b"savepoint" |
        b"release";
        Construct = b"any" | b"array" | b"asc" | b"asymmetric" | b"between" | b"bigint" | b"bit" |
        b"boolean" | b"both" | b"cast" | b"char" | b"character" | b"check" | b"coalesce" | b"columns" |
        b"cross" | b"cube" | b"current_date" | b"current_time" | b"current_timestamp" | b"dec" | b"decimal"
        | b"default" | b"desc" | b"else" | b"escape" | b"except" | b"exists" | b"extract" | b"float" |
        b"foreign" | b"full" | b"greatest" | b"grouping" | b"having" | b"ilike" | b"in" | b"inner" | b"int"
        | b"integer" | b"intersect" | b"interval" | b"is" | b"isnull" | b"join" | b"lateral" | b"leading" |
        b"least" | b"limit" | b"localtime" | b"localtimestamp" | b"national" | b"natural" | b"nchar" |
        b"normalize" | b"not" | b"notnull" | b"null" | b"nullif" | b"numeric" | b"offset" | b"or" | b"outer"
        | b"overlaps" | b"overlay" | b"placing" | b"position" | b"precision" | b"primary" | b"real" |
        b"references" | b"repeatable" | b"returning" | b"rollup" | b"row" | b"setof" | b"sets" | b"similar"
        | b"smallint" | b"some" | b"substring" | b"symmetric" | b"then" | b"time" | b"timestamp" |
        b"trailing" | b"treat" | b"trim" | b"union" | b"unique" | b"using" | b"varchar" | b"variadic" |
        b"varying" | b"when" | b"where" | b"window" | b"xmlattributes" | b"xmlconcat" | b"xmlelement" |
        b"xmlexists" | b"xmlforest" | b"xmlnamespaces" | b"xmlparse" | b"xmlpi" | b"xmlroot" |
        b"xmlserialize" | b"xmltable" | b"zone";
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keywords_are_found_in_any_case() {
        for (word, kw) in [
            ("select", Kw::Select),
            ("SELECT", Kw::Select),
            ("Temporary", Kw::Temp),
            ("CURRENT_TIMESTAMP", Kw::Construct),
            ("by", Kw::By),
            ("selec", Kw::None),
            ("selecta", Kw::None),
            ("\u{e9}", Kw::None),
            ("", Kw::None),
            ("\u{1}s", Kw::None),
        ] {
            assert_eq!(keyword(word.as_bytes()), kw, "{word}");
        }
        assert_eq!(keyword(&[b's'; 1000]), Kw::None);
    }
}
