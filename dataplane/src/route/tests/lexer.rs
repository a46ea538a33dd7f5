//! How texts are cut up.

use crate::route::lexer::{Lexer, TokenKind};

fn cut(sql: &str, standard_strings: bool) -> (Vec<(TokenKind, String)>, bool) {
    let mut lexer = Lexer::new(sql.as_bytes(), standard_strings);
    let mut tokens = Vec::new();
    while let Some(token) = lexer.next() {
        tokens.push((token.kind, String::from_utf8_lossy(lexer.bytes(&token)).into_owned()));
    }
    (tokens, lexer.unterminated())
}

fn one(sql: &str, kind: TokenKind) {
    assert_eq!(cut(sql, true), (vec![(kind, sql.to_owned())], false), "{sql}");
}

#[test]
fn single_tokens() {
    for sql in [
        "'a'",
        "'it''s'",
        r"'\'",
        r"E'\''",
        r"e'\\'",
        "e'a''b'",
        "b'01'",
        "X'1F'",
        "n'x'",
        "N'x''y'",
        "U&'\\0061'",
        "u&'a''b'",
        "$$a$$",
        "$a$ $$ $b$ $a$",
        "$\u{e9}1$x$\u{e9}1$",
        "'a'\n'b'",
        "'a' \t-- c\n  -- d\r\n 'b'",
        "E'a'\n'\\''",
        "'a'\n'b'\n'c'",
    ] {
        one(sql, TokenKind::String);
    }
    for sql in ["\"a\"", "\"a\"\"b\"", "U&\"a\"\"b\"", "u&\"x\"", "\"/* -- '\""] {
        one(sql, TokenKind::QuotedIdent);
    }
    for sql in ["/**/", "/* a /* b */ c */", "/*/ */", "/* **/", "/*/**/*/", "/* //* x */ */"] {
        one(sql, TokenKind::BlockComment);
    }
    for sql in ["a", "_a$1", "\u{e9}t\u{e9}", "e", "u", "a$$", "x$a$"] {
        one(sql, TokenKind::Word);
    }
    one("-- a", TokenKind::LineComment);
    one("$12", TokenKind::Param);
    for sql in ["::", ":=", ":", "<=>", "||", "*-", "/", "@-", "?|"] {
        one(sql, TokenKind::Op);
    }
}

#[test]
fn several_tokens() {
    for (sql, texts) in [
        ("a*/**/b", vec!["a", "*", "/**/", "b"]),
        ("5*/*c*/3", vec!["5", "*", "/*c*/", "3"]),
        ("1--2\n+3", vec!["1", "--2", "+", "3"]),
        ("1<--2", vec!["1", "<", "--2"]),
        ("'a' 'b'", vec!["'a'", "'b'"]),
        ("'a' /* c */\n'b'", vec!["'a'", "/* c */", "'b'"]),
        ("b'1''2'", vec!["b'1'", "'2'"]),
        ("1into", vec!["1", "into"]),
        ("1$$x$$", vec!["1", "$$x$$"]),
        ("$1$ x", vec!["$1", "$", "x"]),
        ("$a x$", vec!["$", "a", "x$"]),
        ("a.b::c", vec!["a", ".", "b", "::", "c"]),
        ("be'x'", vec!["be", "'x'"]),
        ("-- a\r/*b*/", vec!["-- a", "/*b*/"]),
    ] {
        let (tokens, unterminated) = cut(sql, true);
        assert_eq!(tokens.into_iter().map(|(_, t)| t).collect::<Vec<_>>(), texts, "{sql}");
        assert!(!unterminated, "{sql}");
    }
}

#[test]
fn backslashes_count_without_standard_strings() {
    for sql in [r"'\''", r"N'\' x'", "'a'\n'\\''"] {
        assert_eq!(cut(sql, false), (vec![(TokenKind::String, sql.to_owned())], false), "{sql}");
    }
    assert!(cut(r"'\''", true).1);
}

#[test]
fn what_is_open_at_the_end_is_noticed() {
    for sql in ["'", "'a", r"E'\'", "\"a", "/*", "/* /* */", "$$", "$a$ $b$", "$a$ $a", "U&'", "'a'\n'b"] {
        assert!(cut(sql, true).1, "{sql}");
    }
}
