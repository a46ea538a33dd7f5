//! The lexer and the classifier over any bytes: tokens cover the text, in order, with nothing but white space between
//! them; there are no more of them than bytes, so that the work is linear; what stands around a text does not make it
//! harmless. `differs` compares with the tokens of PostgreSQL's own scanner, which only fuzzers link.

use heliosdb_proxy::route::lexer::{Lexer, Token, TokenKind};
use heliosdb_proxy::route::{Class, NoFunctions, Verdict, VerdictCache, classify};
use std::ops::Range;

/// The tokens of a text, and whether something was left open at its end.
///
/// # Panics
/// When they do not cover the text.
#[must_use]
pub fn tokens(text: &[u8], standard_strings: bool) -> (Vec<Token>, bool) {
    let mut lexer = Lexer::new(text, standard_strings);
    let (mut found, mut end) = (Vec::new(), 0);
    for token in lexer.by_ref() {
        let Range { start, end: next } = token.range.clone();
        assert!(start >= end && next > start && next <= text.len(), "{token:?} after {end}");
        assert!(text[end..start].iter().all(|b| b" \t\n\r\x0b\x0c".contains(b)), "skipped at {end}");
        end = next;
        found.push(token);
        assert!(found.len() <= text.len());
    }
    assert!(text[end..].iter().all(|b| b" \t\n\r\x0b\x0c".contains(b)), "skipped at the end");
    (found, lexer.unterminated())
}

fn judged(text: &[u8], standard_strings: bool) -> Verdict {
    classify(text, standard_strings, &NoFunctions)
}

/// Whether statements end where they seem to: no parentheses, and none of the words that open a body.
fn is_plain(text: &[u8], tokens: &[Token]) -> bool {
    tokens.iter().all(|token| match token.kind {
        TokenKind::Punct(byte) => !matches!(byte, b'(' | b')' | b'[' | b']'),
        TokenKind::Word => {
            let word = text[token.range.clone()].to_ascii_lowercase();
            !matches!(word.as_slice(), b"begin" | b"atomic" | b"case" | b"end")
        }
        TokenKind::BlockComment => false,
        _ => true,
    })
}

/// The target.
///
/// # Panics
/// When a rule is broken.
pub fn run(data: &[u8]) {
    let Some((&first, text)) = data.split_first() else { return };
    let standard = first & 1 == 0;
    let (found, open) = tokens(text, standard);
    let verdict = judged(text, standard);
    if open {
        assert_eq!(verdict.class, Class::Write, "an open end is a write");
    }
    assert_eq!(VerdictCache::new().get_or_classify(text, standard, &NoFunctions), &verdict);
    if open || !is_plain(text, &found) {
        return;
    }
    for other in ["insert into t values (1)", "select 1", "set a.b = '1'", "listen a"] {
        let more = judged(other.as_bytes(), standard);
        for both in [[text, b"\n;\n", other.as_bytes()].concat(), [other.as_bytes(), b"\n;\n", text].concat()]
        {
            let sum = judged(&both, standard);
            assert!(sum.class >= verdict.class && sum.class >= more.class, "{other}: {sum:?}");
            assert!(sum.pins.contains(verdict.pins.union(more.pins)), "{other}: {sum:?}");
            assert!(sum.may_write >= (verdict.may_write | more.may_write), "{other}: {sum:?}");
        }
    }
}

/// A token of PostgreSQL's scanner: its bytes, and what it is as far as ours tells that apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Theirs {
    /// Where it stands.
    pub range: Range<usize>,
    /// What it is.
    pub kind: Coarse,
}

/// Kinds of tokens that matter to a router.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coarse {
    /// A name, a keyword, or a quoted name.
    Name,
    /// A literal in quotes or dollars.
    String,
    /// A comment of either kind.
    Comment,
    /// A semicolon.
    Semicolon,
    /// Anything else.
    Rest,
}

fn coarse(token: &Token) -> Coarse {
    match token.kind {
        TokenKind::Word | TokenKind::QuotedIdent => Coarse::Name,
        TokenKind::String => Coarse::String,
        TokenKind::BlockComment | TokenKind::LineComment => Coarse::Comment,
        TokenKind::Punct(b';') => Coarse::Semicolon,
        _ => Coarse::Rest,
    }
}

/// Whether a word of ours is inside a token of theirs that is none of the words: an exponent, the digits of another base.
fn is_in_number(token: &Token, theirs: &[Theirs]) -> bool {
    let around = |other: &Theirs| other.range.start < token.range.start && token.range.end <= other.range.end;
    token.kind == TokenKind::Word && theirs.iter().any(|other| other.kind == Coarse::Rest && around(other))
}

/// A token of ours as theirs would be: `N'…'` is the keyword NCHAR, and a string.
fn as_theirs(text: &[u8], token: &Token) -> impl Iterator<Item = Theirs> {
    let Range { start, end } = token.range;
    let national = token.kind == TokenKind::String && text[start].eq_ignore_ascii_case(&b'n');
    let word = national.then(|| Theirs { range: start..start + 1, kind: Coarse::Name });
    let rest = Theirs { range: start + usize::from(national)..end, kind: coarse(token) };
    word.into_iter().chain([rest])
}

/// What of their strings, comments, names and semicolons is not where ours are: those decide what a text does. Numbers
/// and operators are cut elsewhere on purpose.
///
/// # Panics
/// When our tokens do not cover the text.
#[must_use]
pub fn differs(text: &[u8], theirs: &[Theirs]) -> Option<String> {
    let (ours, _) = tokens(text, true);
    let ours: Vec<_> = ours
        .iter()
        .filter(|token| !is_in_number(token, theirs))
        .flat_map(|token| as_theirs(text, token))
        .filter(|token| token.kind != Coarse::Rest)
        .collect();
    let theirs: Vec<_> = theirs.iter().filter(|token| token.kind != Coarse::Rest).cloned().collect();
    let at = ours.iter().zip(&theirs).take_while(|(a, b)| a == b).count();
    let (mine, other) = (ours.get(at), theirs.get(at));
    (mine != other).then(|| format!("ours {mine:?}, theirs {other:?} in {:?}", String::from_utf8_lossy(text)))
}
