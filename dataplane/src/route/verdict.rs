//! What is judged of one text: plain values, cheap to copy. Never looks at a text itself.

use super::hint::Hint;

/// What a whole text does, the worst of its statements.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// No statement at all.
    #[default]
    Empty,
    /// Every statement may run on a standby.
    Read,
    /// A read, but one that calls a function not known to be safe or asks about the node it runs on.
    VolatileFunction,
    /// Anything else, and everything in doubt.
    Write,
}

/// Whether a text begins or ends an explicit transaction block. A forecast: only ReadyForQuery decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TxWord {
    /// Neither.
    None,
    /// The text is one `BEGIN` or `START TRANSACTION`.
    Begin {
        /// Declared `READ ONLY`, and not `SERIALIZABLE`, which standbys refuse.
        read_only: bool,
    },
    /// The text is one `COMMIT`, `END`, `ROLLBACK`, `ABORT` or `PREPARE TRANSACTION`.
    End,
    /// Several statements with a begin or an end among them, or an end that begins anew (`AND CHAIN`).
    Mixed,
}

/// Session state that a text leaves behind on its server connection, as a set of reasons.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pins(u8);

/// The judgement of one text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// What the whole text does.
    pub class: Class,
    /// May change data, so that the session's read-your-writes window starts anew. Not set by statements that only steer
    /// the session (`BEGIN`, `COMMIT`, `SET`, `LISTEN`, cursors), although [`Class::Write`] sends those to the primary.
    pub may_write: bool,
    /// Whether it begins or ends a transaction block.
    pub tx: TxWord,
    /// Session state it leaves behind.
    pub pins: Pins,
    /// What its comments ask for.
    pub hint: Hint,
    /// Statements in the text, empty ones not counted; stops at 65,535.
    pub statements: u16,
    /// The text is one `DISCARD ALL`.
    pub is_discard_all: bool,
    /// A SET or RESET is among its statements, `SET LOCAL` included.
    pub sets: bool,
}

// === impl Class ===

impl Class {
    /// The worse of two.
    #[must_use]
    pub fn worse(self, other: Self) -> Self {
        if self > other { self } else { other }
    }
}

// === impl Pins ===

impl Pins {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// A setting of the session: `SET`, `SET ROLE`, `SET SESSION AUTHORIZATION`, `set_config`, `setseed`.
    pub const SETTING: Self = Self(1);
    /// `LISTEN`
    pub const LISTEN: Self = Self(2);
    /// A temporary table, view, sequence or function.
    pub const TEMP_TABLE: Self = Self(4);
    /// An advisory lock of the session.
    pub const ADVISORY_LOCK: Self = Self(8);
    /// A cursor `WITH HOLD`.
    pub const HOLD_CURSOR: Self = Self(16);
    /// SQL `PREPARE`.
    pub const PREPARE: Self = Self(32);
    /// `LOAD`
    pub const LOAD: Self = Self(64);

    /// Every single reason with its word in metrics and logs.
    pub const WORDS: [(Self, &'static str); 7] = [
        (Self::SETTING, "setting"),
        (Self::LISTEN, "listen"),
        (Self::TEMP_TABLE, "temp_table"),
        (Self::ADVISORY_LOCK, "advisory_lock"),
        (Self::HOLD_CURSOR, "hold_cursor"),
        (Self::PREPARE, "prepared_statement"),
        (Self::LOAD, "load"),
    ];

    /// Whether there is no reason.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether every reason of `other` is among these.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// These reasons and those.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// These reasons without those.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Of these reasons, those that a `DISCARD ALL` does not end.
    #[must_use]
    pub const fn kept_by_discard(self) -> Self {
        Self(self.0 & (Self::SETTING.0 | Self::LOAD.0))
    }

    /// The words of these reasons, in a fixed order.
    pub fn words(self) -> impl Iterator<Item = &'static str> {
        Self::WORDS.into_iter().filter(move |(pin, _)| self.contains(*pin)).map(|(_, word)| word)
    }
}

// === impl Verdict ===

impl Verdict {
    /// The judgement of a text that cannot be read, for instance in a client encoding that is unsafe to cut up.
    #[must_use]
    pub fn in_doubt() -> Self {
        Self {
            class: Class::Write,
            may_write: true,
            tx: TxWord::None,
            pins: Pins::NONE,
            hint: Hint::default(),
            statements: 1,
            is_discard_all: false,
            sets: true,
        }
    }
}
