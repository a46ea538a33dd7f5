//! PostgreSQL's lexical rules over bytes: where literals, quoted names and comments begin and end.
//! Linear and without recursion; never allocates, never copies, and never interprets what it finds.

use std::ops::Range;

/// What a token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenKind {
    /// A keyword or an unquoted name.
    Word,
    /// `"name"` or `U&"name"`.
    QuotedIdent,
    /// Any literal in quotes or dollars, continuations across newlines included.
    String,
    /// Digits and dots.
    Number,
    /// `$1`
    Param,
    /// A run of operator characters, or `:`, `::`, `:=`.
    Op,
    /// One of `( ) , ; . [ ]`.
    Punct(u8),
    /// `/* ... */`, nested ones included.
    BlockComment,
    /// `-- ...` up to the end of the line.
    LineComment,
    /// A byte that begins no token; PostgreSQL refuses the text.
    Other,
}

/// One token: its kind and its bytes in the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// What it is.
    pub kind: TokenKind,
    /// Where it stands, quotes and comment marks included.
    pub range: Range<usize>,
}

/// Cuts a text into tokens. Something unterminated ends with the text and sets [`Lexer::unterminated`].
#[derive(Debug)]
pub struct Lexer<'a> {
    text: &'a [u8],
    at: usize,
    standard_strings: bool,
    unterminated: bool,
}

/// How a quoted thing treats backslashes and doubled quotes.
#[derive(Clone, Copy)]
struct Quoting {
    quote: u8,
    backslash: bool,
    doubled: bool,
}

const SPACE: u8 = 1;
const IDENT_START: u8 = 2;
const IDENT: u8 = 4;
const DIGIT: u8 = 8;
const OP: u8 = 16;
const PUNCT: u8 = 32;

/// Class bits of every byte; bytes from 0x80 up belong to names.
static CLASS: [u8; 256] = classes();

#[allow(clippy::indexing_slicing)] // constant evaluation: out of range does not compile
const fn classes() -> [u8; 256] {
    let mut table = [0; 256];
    let mut byte: u8 = 0;
    let mut i = 0;
    while i < 256 {
        table[i] = match byte {
            b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c => SPACE,
            b'a'..=b'z' | b'A'..=b'Z' | b'_' | 0x80.. => IDENT_START | IDENT,
            b'0'..=b'9' => DIGIT | IDENT,
            b'$' => IDENT,
            b'~' | b'!' | b'@' | b'#' | b'^' | b'&' | b'|' | b'`' | b'?' | b'+' | b'-' | b'*' | b'/'
            | b'%' | b'<' | b'>' | b'=' => OP,
            b'(' | b')' | b',' | b';' | b'.' | b'[' | b']' => PUNCT,
            _ => 0,
        };
        i += 1;
        byte = byte.wrapping_add(1);
    }
    table
}

fn is(byte: u8, class: u8) -> bool {
    CLASS.get(usize::from(byte)).is_some_and(|c| c & class != 0)
}

// === impl Lexer ===

impl<'a> Lexer<'a> {
    /// Begins at the start of `text`; `standard_strings` is the session's `standard_conforming_strings`.
    #[must_use]
    pub const fn new(text: &'a [u8], standard_strings: bool) -> Self {
        Self { text, at: 0, standard_strings, unterminated: false }
    }

    /// Whether a literal, a quoted name or a comment was still open at the end. Final after the last token.
    #[must_use]
    pub const fn unterminated(&self) -> bool {
        self.unterminated
    }

    /// The bytes of a token of this text.
    #[must_use]
    pub fn bytes(&self, token: &Token) -> &'a [u8] {
        self.text.get(token.range.clone()).unwrap_or_default()
    }

    fn peek(&self, ahead: usize) -> Option<u8> {
        self.text.get(self.at.saturating_add(ahead)).copied()
    }

    fn rest(&self) -> &'a [u8] {
        self.text.get(self.at..).unwrap_or_default()
    }

    #[inline]
    fn advance(&mut self, by: usize) {
        self.at = self.at.saturating_add(by).min(self.text.len());
    }

    /// Steps over bytes of a class.
    #[inline]
    fn skip(&mut self, class: u8) {
        let rest = self.rest();
        let count = rest.iter().take_while(|b| is(**b, class)).count();
        self.at = self.at.wrapping_add(count);
    }

    #[inline]
    fn token(&mut self, first: u8) -> TokenKind {
        let class = CLASS.get(usize::from(first)).copied().unwrap_or(0);
        if class & IDENT_START != 0 {
            return self.word(first);
        }
        if class & PUNCT != 0 {
            self.advance(1);
            return TokenKind::Punct(first);
        }
        if class & DIGIT != 0 {
            return self.number();
        }
        match first {
            b'\'' => self.string(!self.standard_strings),
            b'"' => self.quoted_ident(),
            b'-' if self.peek(1) == Some(b'-') => self.line_comment(),
            b'/' if self.peek(1) == Some(b'*') => self.block_comment(),
            b'$' => self.dollar(),
            b':' => {
                let double = matches!(self.peek(1), Some(b':' | b'='));
                self.advance(if double { 2 } else { 1 });
                TokenKind::Op
            }
            _ if class & OP != 0 => self.operator(),
            _ => {
                self.advance(1);
                TokenKind::Other
            }
        }
    }

    fn word(&mut self, first: u8) -> TokenKind {
        if matches!(first | 0x20, b'b' | b'e' | b'n' | b'u' | b'x')
            && let Some(kind) = self.prefixed(first | 0x20)
        {
            return kind;
        }
        self.skip(IDENT);
        TokenKind::Word
    }

    /// A literal or a name whose quotes follow a letter.
    fn prefixed(&mut self, letter: u8) -> Option<TokenKind> {
        let (skip, backslash, doubled) = match (letter, self.peek(1)?) {
            (b'e', b'\'') => (1, true, true),
            (b'b' | b'x', b'\'') => (1, false, false),
            (b'n', b'\'') => (1, !self.standard_strings, true),
            (b'u', b'&') if self.peek(2) == Some(b'\'') => (2, false, true),
            (b'u', b'&') if self.peek(2) == Some(b'"') => {
                self.advance(2);
                return Some(self.quoted_ident());
            }
            _ => return None,
        };
        self.advance(skip);
        Some(self.continued(Quoting { quote: b'\'', backslash, doubled }))
    }

    /// Digits and dots only: what follows is a word of its own to old servers, and refused by new ones.
    fn number(&mut self) -> TokenKind {
        let rest = self.rest();
        let end = rest.iter().position(|b| !is(*b, DIGIT) && *b != b'.');
        self.advance(end.unwrap_or(rest.len()));
        TokenKind::Number
    }

    /// A run of operator characters ends where a comment begins.
    fn operator(&mut self) -> TokenKind {
        let rest = self.rest();
        let mut end = 0_usize;
        for (i, byte) in rest.iter().enumerate() {
            let next = rest.get(i.saturating_add(1));
            let comment = matches!((byte, next), (b'/', Some(b'*')) | (b'-', Some(b'-')));
            if !is(*byte, OP) || comment {
                break;
            }
            end = i.saturating_add(1);
        }
        self.advance(end.max(1));
        TokenKind::Op
    }

    fn string(&mut self, backslash: bool) -> TokenKind {
        self.continued(Quoting { quote: b'\'', backslash, doubled: true })
    }

    fn quoted_ident(&mut self) -> TokenKind {
        self.quoted(Quoting { quote: b'"', backslash: false, doubled: true });
        TokenKind::QuotedIdent
    }

    /// A string and its continuations: more of it in quotes after white space with a newline.
    fn continued(&mut self, quoting: Quoting) -> TokenKind {
        self.quoted(quoting);
        while let Some(gap) = self.continuation() {
            self.advance(gap);
            self.quoted(quoting);
        }
        TokenKind::String
    }

    /// From an opening quote to just after its closing one.
    fn quoted(&mut self, quoting: Quoting) {
        self.advance(1);
        loop {
            let rest = self.rest();
            let stop = |b: &u8| *b == quoting.quote || (quoting.backslash && *b == b'\\');
            let Some(i) = rest.iter().position(stop) else {
                self.at = self.text.len();
                self.unterminated = true;
                return;
            };
            let escape = rest.get(i) == Some(&b'\\');
            let doubled = quoting.doubled && rest.get(i.saturating_add(1)) == Some(&quoting.quote);
            if escape || doubled {
                self.advance(i.saturating_add(2));
            } else {
                self.advance(i.saturating_add(1));
                return;
            }
        }
    }

    /// Distance to the quote that continues the string just closed, if one does. `--` comments may stand between.
    fn continuation(&self) -> Option<usize> {
        let rest = self.rest();
        let mut newline = false;
        let mut i = 0_usize;
        loop {
            match rest.get(i)? {
                b'\n' | b'\r' => newline = true,
                b'\'' if newline => return Some(i),
                b'-' if rest.get(i.saturating_add(1)) == Some(&b'-') => {
                    let comment = rest.get(i..).unwrap_or_default();
                    let end = comment.iter().position(|b| matches!(b, b'\n' | b'\r'))?;
                    i = i.saturating_add(end);
                    newline = true;
                }
                b if is(*b, SPACE) => {}
                _ => return None,
            }
            i = i.saturating_add(1);
        }
    }

    fn line_comment(&mut self) -> TokenKind {
        let rest = self.rest();
        self.advance(rest.iter().position(|b| matches!(b, b'\n' | b'\r')).unwrap_or(rest.len()));
        TokenKind::LineComment
    }

    fn block_comment(&mut self) -> TokenKind {
        self.advance(2);
        let mut depth = 1_usize;
        while depth > 0 {
            let rest = self.rest();
            let Some(i) = rest.iter().position(|b| matches!(b, b'*' | b'/')) else {
                self.at = self.text.len();
                self.unterminated = true;
                break;
            };
            match (rest.get(i), rest.get(i.saturating_add(1))) {
                (Some(b'*'), Some(b'/')) => depth = depth.saturating_sub(1),
                (Some(b'/'), Some(b'*')) => depth = depth.saturating_add(1),
                _ => {
                    self.advance(i.saturating_add(1));
                    continue;
                }
            }
            self.advance(i.saturating_add(2));
        }
        TokenKind::BlockComment
    }

    /// `$1`, `$tag$ ... $tag$`, or a dollar that begins nothing.
    fn dollar(&mut self) -> TokenKind {
        if self.peek(1).is_some_and(|b| is(b, DIGIT)) {
            self.advance(1);
            self.skip(DIGIT);
            return TokenKind::Param;
        }
        let Some(length) = self.dollar_tag() else {
            self.advance(1);
            return TokenKind::Other;
        };
        let tag = self.rest().get(..length).unwrap_or_default();
        self.advance(length);
        loop {
            let rest = self.rest();
            let Some(i) = rest.iter().position(|b| *b == b'$') else {
                self.at = self.text.len();
                self.unterminated = true;
                return TokenKind::String;
            };
            self.advance(i);
            if self.rest().starts_with(tag) {
                self.advance(length);
                return TokenKind::String;
            }
            self.advance(1);
        }
    }

    /// Length of the `$tag$` that begins here.
    fn dollar_tag(&self) -> Option<usize> {
        let after = self.rest().get(1..)?;
        let end = after.iter().position(|b| *b == b'$' || !is(*b, IDENT))?;
        let named = end == 0 || after.first().is_some_and(|b| is(*b, IDENT_START));
        (after.get(end) == Some(&b'$') && named).then(|| end.saturating_add(2))
    }
}

impl Iterator for Lexer<'_> {
    type Item = Token;

    #[inline]
    fn next(&mut self) -> Option<Token> {
        let mut first = self.peek(0)?;
        if is(first, SPACE) {
            self.skip(SPACE);
            first = self.peek(0)?;
        }
        let start = self.at;
        let kind = self.token(first);
        Some(Token { kind, range: start..self.at })
    }
}
