//! Client encodings in which a byte of a character may look like a backslash or a quote: their texts are not judged byte
//! by byte but go to the primary, however the encoding came about.

use helios_tests::raw::{PATIENCE, message, startup};
use helios_tests::{Cluster, Config, Message, Proxy, Raw};

/// A letter of Shift JIS whose second byte is that of a backslash.
const SO: &[u8] = b"\x83\x5c";

fn login(proxy: &Proxy, more: &[(&str, &str)]) -> Raw {
    let mut raw = Raw::connect(proxy.port());
    let params = [&[("user", "app"), ("database", "postgres")], more].concat();
    raw.send(&startup(0x0003_0000, &params));
    raw.finish_login("app", "app-secret").unwrap();
    raw
}

/// Sends bytes as a Query, or as the text of a Parse that is then run.
fn run(raw: &mut Raw, sql: &[&[u8]], extended: bool) -> Vec<Message> {
    let text = [&sql.concat(), &b"\0"[..]].concat();
    if extended {
        let parse = message(b'P', &[b"\0", &text[..], b"\0\0"].concat());
        let rest = [message(b'B', &[0; 8]), message(b'E', &[0; 5]), message(b'S', b"")].concat();
        raw.send(&[parse, rest].concat());
    } else {
        raw.send(&message(b'Q', &text));
    }
    raw.until_ready(1)
}

/// The last row's first field.
fn last_field(messages: &[Message]) -> String {
    let row = messages.iter().rev().find(|m| m.tag == b'D').unwrap_or_else(|| panic!("{messages:?}"));
    row.fields().swap_remove(0)
}

const PORT: &[u8] = b"select setting from pg_settings where name = 'port'";

#[test]
fn a_text_in_shift_jis_is_read_by_postgresql_alone() {
    let cluster = Cluster::shared();
    cluster.execute("create table letters (t text); grant all on letters to app");
    let primary = cluster.primary().port.to_string();
    let proxy = Config::new(cluster).start().ready();
    let by_startup = login(&proxy, &[("client_encoding", "SJIS")]);
    let mut by_set = login(&proxy, &[]);
    run(&mut by_set, &[b"set client_encoding = 'SJIS'"], false);
    let mut by_function = login(&proxy, &[]);
    run(&mut by_function, &[b"select set_config('client_encoding', 'SJIS', false)"], true);
    for (mut raw, said) in [(by_startup, "startup"), (by_set, "SET"), (by_function, "set_config")] {
        // Byte by byte the letter escapes the quote, and a literal hides the rest.
        let hidden: &[&[u8]] = &[b"select E'", SO, b"'; insert into letters values (E'", SO, b"') --'"];
        let messages = run(&mut raw, hidden, false);
        assert!(messages.iter().all(|m| m.tag != b'E'), "{said}: {messages:?}");
        for extended in [false, true] {
            // Byte by byte the hint is a comment; to PostgreSQL it is within the literal.
            let hint: &[&[u8]] = &[b"select E'", SO, b"', ' /* helios:route=standby */ '"];
            run(&mut raw, hint, extended);
            assert_eq!(last_field(&run(&mut raw, &[PORT], extended)), primary, "{said}");
        }
        drop(raw);
    }
    let mut plain = login(&proxy, &[]);
    let count = run(
        &mut plain,
        &[b"/* helios:route=primary */ select count(*) from letters where t = U&'\\30BD'"],
        false,
    );
    assert_eq!(last_field(&count), "3");
    // Nobody inherits the encoding, and texts that can be read are split again.
    assert_ne!(last_field(&run(&mut plain, &[PORT], false)), primary);
    assert_eq!(last_field(&run(&mut plain, &[b"show client_encoding"], false)), "UTF8");
    raw_is_silent(&mut plain);
}

/// No answer is left over.
fn raw_is_silent(raw: &mut Raw) {
    raw.send(&message(b'X', b""));
    assert_eq!(raw.rest(PATIENCE), (Vec::new(), true));
}
