//! Rows 1 to 14 and 21 to 31 of the bad-input table: the first packet, requests for encryption, cancel requests,
//! parameters and passwords.

use helios_tests::cluster::{long_role, password};
use helios_tests::raw::{message, packet, query, startup};

use super::write::*;
use super::{Case, End, Step};

/// Rows 1 to 14: the first packet.
pub(super) fn first_packets() -> Vec<Case> {
    let body = |text: &str| packet(&[&V3.to_be_bytes()[..], text.as_bytes()].concat());
    let sized = |total: usize| {
        let fixed = "user\0app\0database\0postgres\0application_name\0\0\0".len() + 8;
        body(&format!("user\0app\0database\0postgres\0application_name\0{}\0\0", "a".repeat(total - fixed)))
    };
    let refused = |row, what, bytes, user: &str| {
        let authenticate = Step::Authenticate(user.into(), "wrong".into());
        case(row, what, vec![Step::Send(bytes), authenticate], End::Closed)
    };
    let mut cases = vec![
        cut("2", "no body", body("")),
        login("3", "10,004 bytes", sized(10_004), End::Probe),
        cut("4", "10,005 bytes", sized(10_005)),
        cut("4", "0x7fffffff", lying(None, 0x7fff_ffff, &V3.to_be_bytes())),
        cut("4", "0xffffffff", lying(None, u32::MAX, &V3.to_be_bytes())),
        cut("5", "no terminator", body("user\0app\0database\0postgres\0")),
        cut("5", "no terminator at all", body("user\0app\0database\0postgres")),
        cut("5", "key without value", body("user\0app\0database\0\0")),
        cut("5", "key without value at the end", body("user\0app\0database\0")),
        cut("5", "bytes after the terminator", body("user\0app\0database\0postgres\0\0x\0")),
        cut("6", "no user", body("database\0postgres\0\0")),
        cut("6", "empty user", body("user\0\0database\0postgres\0\0")),
        refused("9", "user not UTF-8", packet(b"\0\x03\0\0user\0a\xff\xfe\0database\0postgres\0\0"), "a"),
        refused("9", "newline and escape in the user", startup(V3, &[("user", "a\nb\x1b[31m")]), "a"),
        cut("10", "HTTP", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
        cut("10", "SSH", b"SSH-2.0-OpenSSH_9.2\r\n".to_vec()),
        case(
            "11",
            "protocol 2.0",
            vec![Step::Send(packet(&[&0x0002_0000_u32.to_be_bytes()[..], &[0; 288]].concat()))],
            End::Text,
        ),
        cut("13", "protocol 4.0", startup(0x0004_0000, &APP)),
        login(
            "12",
            "database of 9 KiB",
            startup(V3, &[("user", "app"), ("database", &"d".repeat(9000))]),
            End::Closed,
        ),
        login("12", "database named by nobody", startup(V3, &[("user", "app")]), End::Closed),
    ];
    for (what, len) in [("length 0", 0), ("length 3", 3), ("length 4", 4), ("length 7", 7)] {
        cases.push(cut("1", what, lying(None, len, b"\0\x03\0\0")));
    }
    let twice = startup(V3, &[("user", "nosuch"), ("user", "app"), ("database", "postgres")]);
    let mut twice = login("7", "user twice", twice, End::Probe);
    twice.steps.push(Step::Send(query("select current_user, session_user")));
    cases.push(twice);
    let long = "u".repeat(200);
    let bytes = startup(V3, &[("user", &long), ("database", "postgres")]);
    cases.push(refused("8", "user of 200 bytes, wrong password", bytes.clone(), &long_role()));
    let mut long = login_as("8", "user of 200 bytes", bytes, &long_role(), End::Probe);
    long.steps.push(Step::Send(query("select current_user")));
    cases.push(long);
    let negotiated = |what, version, more: &[(&str, &str)], expect| {
        let bytes = startup(version, &[&APP[..], more].concat());
        // The negotiation comes before the authentication request.
        expecting(case("14", what, vec![Step::Send(bytes), Step::Asked], End::Silent), expect)
    };
    cases.extend([
        negotiated("3.1", 0x0003_0001, &[], "R Silence"),
        negotiated("3.2", 0x0003_0002, &[], "R Silence"),
        negotiated("3.9999", 0x0003_270f, &[], "v:3.2:0: R Silence"),
        negotiated("3.0 with _pq_.x", V3, &[("_pq_.x", "1")], "v:3.0:1:_pq_.x R Silence"),
        negotiated(
            "3.9999 with two",
            0x0003_270f,
            &[("_pq_.a", "1"), ("_pq_.b", "1")],
            "v:3.2:2:_pq_.a _pq_.b R Silence",
        ),
    ]);
    cases
}

/// Rows 21 to 31: encryption requests, cancel requests, parameters and passwords.
pub(super) fn logins() -> Vec<Case> {
    let gss = join(&[GSS.to_vec(), startup(V3, &APP)]);
    let asked = |row, what, user: &str, bytes| {
        let begin = Step::Send(startup(V3, &[("user", user), ("database", "postgres")]));
        case(row, what, vec![begin, Step::Asked, Step::Send(bytes)], End::Closed)
    };
    let cancel = |len: usize| packet(&[&[4, 210, 22, 46][..], &vec![1; len - 8]].concat());
    let mut after_gss =
        case("21", "GSSENCRequest, then a login", vec![Step::Send(GSS.to_vec()), Step::Byte], End::Probe);
    after_gss.steps.push(Step::Send(startup(V3, &APP)));
    after_gss.steps.push(Step::Authenticate("app".into(), password("app")));
    let ssl_after = vec![Step::Send(GSS.to_vec()), Step::Byte, Step::Send(SSL.to_vec()), Step::Byte];
    let param = |row, what, params: &[(&str, &str)]| with_params(row, what, params, None);
    let gss_twice = vec![Step::Send(GSS.to_vec()), Step::Byte, Step::Send(GSS.to_vec())];
    let mut cases = vec![
        // Debian's PostgreSQL has GSSAPI and says G; the proxy has not, as PostgreSQL built without it.
        expecting(after_gss, "byte N ready Z:I T1 D:probe C:SELECT 1 Z:I alive"),
        expecting(case("21", "GSSENCRequest, then SSLRequest", ssl_after, End::Silent), "byte N*2 Silence"),
        expecting(case("21", "GSSENCRequest twice", gss_twice, End::Closed), "byte N E:FATAL:0A000 closed"),
        expecting(
            case(
                "22",
                "GSSENCRequest and more in one segment",
                vec![Step::Send(gss), Step::Byte],
                End::Closed,
            ),
            "byte N E:FATAL:08P01 closed",
        ),
        cut("23", "CancelRequest of 15 bytes", cancel(15)),
        cut("23", "CancelRequest of 17 bytes", cancel(17)),
        cut("23", "CancelRequest, key of 257 bytes", cancel(12 + 257)),
        cut("24", "CancelRequest for nobody", cancel(16)),
        param("25", "unknown setting", &[("nosuch", "1")]),
        param("25", "bad value", &[("datestyle", "banana")]),
        param("25", "superuser's setting", &[("log_statement", "all")]),
        param("25", "setting of the postmaster", &[("max_connections", "1")]),
        with_params("25", "good value", &[("datestyle", "German")], Some("datestyle")),
        with_params("25", "unreported setting", &[("statement_timeout", "1234")], Some("statement_timeout")),
        with_params("25", "application_name", &[("application_name", "a b")], Some("application_name")),
        with_params("25", "custom setting", &[("app.tenant_id", "7")], Some("app.tenant_id")),
        with_params("25", "bad encoding", &[("client_encoding", "banana")], None),
        with_params("25", "LATIN1", &[("client_encoding", "LATIN1")], Some("client_encoding")),
        param("26", "--what", &[("options", "--what")]),
        param("26", "-c nosuch=1", &[("options", "-c nosuch=1")]),
        param("26", "-c without an argument", &[("options", "-c")]),
        param("26", "a word", &[("options", "banana")]),
        with_params("26", "-c", &[("options", "-c datestyle=German")], Some("datestyle")),
        with_params("26", "--name=value", &[("options", "--datestyle=German")], Some("datestyle")),
        with_params("26", "-cname=value", &[("options", "-cdatestyle=German")], Some("datestyle")),
        with_params(
            "26",
            "backslash",
            &[("options", "-c application_name=a\\ b\\\\c")],
            Some("application_name"),
        ),
        with_params("26", "two", &[("options", " -c  datestyle=German -c geqo=off ")], Some("geqo")),
        param("27", "replication=banana", &[("replication", "banana")]),
        with_params("27", "replication=false", &[("replication", "false")], Some("datestyle")),
        with_params("28", "injection", &[("search_path", "x; drop table counter")], Some("search_path")),
        with_params(
            "28",
            "semicolon in quotes",
            &[("search_path", "\"x; drop table counter\"")],
            Some("search_path"),
        ),
        with_params("28", "quote", &[("search_path", "x'; drop table counter; --")], Some("search_path")),
        with_params(
            "28",
            "quote in quotes",
            &[("search_path", "\"x'; drop table counter; --\"")],
            Some("search_path"),
        ),
        with_params(
            "28",
            "backslash",
            &[("application_name", "\\'; drop table counter; --")],
            Some("application_name"),
        ),
        with_params(
            "28",
            "backslash, old strings",
            &[("standard_conforming_strings", "off"), ("application_name", "\\'; drop table counter; --")],
            Some("application_name"),
        ),
        asked("29", "Query instead of SASL", "app", query("select 1")),
        asked("29", "Terminate instead of SASL", "app", message(b'X', b"")),
        asked("29", "Sync instead of SASL", "app", sync()),
        asked("30", "empty password", "clear", message(b'p', b"\0")),
        asked("31", "password without NUL", "clear", message(b'p', b"clear-secret")),
        asked("31", "password with inner NUL", "clear", message(b'p', b"clear\0-secret\0")),
        asked("31", "no password at all", "clear", message(b'p', b"")),
        asked("29", "Query instead of a password", "clear", query("select 1")),
    ];
    let wrong = Step::Authenticate("clear".into(), "wrong".into());
    let begin = Step::Send(startup(V3, &[("user", "clear"), ("database", "postgres")]));
    cases.push(case("30", "wrong password", vec![begin, wrong], End::Closed));
    cases
}
