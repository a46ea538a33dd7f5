//! The lexer against PostgreSQL's own scanner: the same strings, comments, names and semicolons, at the same places.
#![no_main]

use helios_targets::sql::{Coarse, Theirs, differs};
use pg_query::protobuf::{KeywordKind, Token};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    // What PostgreSQL's scanner refuses goes to no server's executor; a NUL ends a text.
    let Ok(text) = std::str::from_utf8(data) else { return };
    if text.contains('\0') {
        return;
    }
    let Ok(scanned) = pg_query::scan(text) else { return };
    let theirs: Vec<_> = scanned.tokens.iter().map(|token| Theirs { range: range(token), kind: kind(token) }).collect();
    if let Some(difference) = differs(text.as_bytes(), &theirs) {
        panic!("{difference}");
    }
});

fn range(token: &pg_query::protobuf::ScanToken) -> std::ops::Range<usize> {
    usize::try_from(token.start).unwrap_or(0)..usize::try_from(token.end).unwrap_or(0)
}

fn kind(token: &pg_query::protobuf::ScanToken) -> Coarse {
    if token.keyword_kind() != KeywordKind::NoKeyword {
        return Coarse::Name;
    }
    match token.token() {
        Token::Ident | Token::Uident => Coarse::Name,
        Token::Sconst | Token::Usconst | Token::Bconst | Token::Xconst => Coarse::String,
        Token::SqlComment | Token::CComment => Coarse::Comment,
        Token::Ascii59 => Coarse::Semicolon,
        _ => Coarse::Rest,
    }
}
