//! Hints: what a comment that starts with `helios:` asks for. A hint narrows where a statement may run, never widens it.
//! Never sees literals or line comments: the lexer hands over whole block comments of the top level only.

use std::time::Duration;

/// Where `route=` sends a statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouteHint {
    /// To the primary.
    Primary,
    /// To any node that is not the primary.
    Standby,
    /// To a node of role replica, else to any that is not the primary.
    Replica,
    /// As without a hint.
    Any,
}

/// Everything the comments of one text ask for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hint {
    /// `route=`; two that disagree make it the primary.
    pub route: Option<RouteHint>,
    /// `node=`
    pub node: Option<Box<str>>,
    /// `cache=skip`, or hints that disagree.
    pub cache_skip: bool,
    /// `ttl=`: how long a cached result may live; a number of seconds, or with unit `ms`, `s`, `m` or `h`.
    pub ttl: Option<Duration>,
    /// Pairs that mean nothing here; stops at 255.
    pub unknown: u8,
    /// Two hints disagree.
    pub conflict: bool,
}

const PREFIX: &[u8] = b"helios:";

// === impl Hint ===

impl Hint {
    /// Reads one block comment, marks included. Anything that does not start with `helios:` is no hint.
    pub(super) fn read(&mut self, comment: &[u8]) {
        let text = comment.strip_prefix(b"/*").unwrap_or(comment);
        let text = text.strip_suffix(b"*/").unwrap_or(text).trim_ascii();
        if strip_prefix(text).is_none() {
            return;
        }
        for pair in text.split(|b| b.is_ascii_whitespace() || *b == b',') {
            let pair = strip_prefix(pair).unwrap_or(pair);
            if !pair.is_empty() && !self.apply(pair) {
                self.unknown = self.unknown.saturating_add(1);
            }
        }
    }

    /// One `key=value`; false if it means nothing.
    fn apply(&mut self, pair: &[u8]) -> bool {
        let mut halves = pair.splitn(2, |b| *b == b'=');
        let (Some(key), Some(value)) = (halves.next(), halves.next()) else { return false };
        if key.eq_ignore_ascii_case(b"route") {
            RouteHint::from_word(value).map(|route| self.set_route(route)).is_some()
        } else if key.eq_ignore_ascii_case(b"node") {
            self.set_node(value)
        } else if key.eq_ignore_ascii_case(b"cache") {
            let skip = value.eq_ignore_ascii_case(b"skip");
            self.cache_skip |= skip;
            skip
        } else if key.eq_ignore_ascii_case(b"ttl") {
            let ttl = duration(value);
            self.ttl = ttl.or(self.ttl);
            ttl.is_some()
        } else {
            false
        }
    }

    fn set_route(&mut self, route: RouteHint) {
        if self.route.is_some_and(|before| before != route) {
            self.disagree();
        } else {
            self.route = Some(route);
        }
    }

    fn set_node(&mut self, name: &[u8]) -> bool {
        let Ok(name) = std::str::from_utf8(name) else { return false };
        if name.is_empty() {
            return false;
        }
        match &self.node {
            Some(before) if **before != *name => self.disagree(),
            Some(_) => {}
            None => self.node = Some(name.into()),
        }
        true
    }

    /// In doubt, the primary and no cached answer.
    fn disagree(&mut self) {
        self.conflict = true;
        self.route = Some(RouteHint::Primary);
        self.cache_skip = true;
    }
}

// === impl RouteHint ===

impl RouteHint {
    fn from_word(word: &[u8]) -> Option<Self> {
        let words: [(&[u8], Self); 4] = [
            (b"primary", Self::Primary),
            (b"standby", Self::Standby),
            (b"replica", Self::Replica),
            (b"any", Self::Any),
        ];
        words.into_iter().find(|(w, _)| word.eq_ignore_ascii_case(w)).map(|(_, route)| route)
    }
}

fn strip_prefix(text: &[u8]) -> Option<&[u8]> {
    let (head, tail) = text.split_at_checked(PREFIX.len())?;
    head.eq_ignore_ascii_case(PREFIX).then_some(tail)
}

fn duration(value: &[u8]) -> Option<Duration> {
    let text = std::str::from_utf8(value).ok()?;
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at_checked(digits)?;
    let number: u64 = number.parse().ok()?;
    match unit {
        "ms" => Some(Duration::from_millis(number)),
        "" | "s" => Some(Duration::from_secs(number)),
        "m" => number.checked_mul(60).map(Duration::from_secs),
        "h" => number.checked_mul(3600).map(Duration::from_secs),
        _ => None,
    }
}
