//! The wire comparison: the same bytes to PostgreSQL and through the proxy, and the same record must come back.
//! Rows are those of the bad-input table (1 to 14, 21 to 31, 40 to 46, 57, 60) and of the protocol corner cases
//! (B1, B3 to B7, B16, B19, B31). A record holds message types, SQLSTATEs, row values, ReadyForQuery states and
//! whether the connection lives. Left out, because a proxy may differ: the kind of authentication, ParameterStatus
//! and BackendKeyData. Where the contract is PostgreSQL 18's and 15 differs, the record expected is written here.

use std::io::Write as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use helios_tests::cluster::{long_role, password};
use helios_tests::raw::{Message, Next, PATIENCE, Raw, message, packet, query, startup};
use helios_tests::{Cluster, Config};

const V3: u32 = 0x0003_0000;
const SSL: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];
const GSS: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 48];

/// How a case begins and what is sent.
enum Step {
    /// Logs in as this role, database `postgres`; nothing is recorded but a refusal.
    Login(&'static str),
    /// Answers what the server asks after a StartupMessage, as this role with this password, and records how the
    /// login ended.
    Authenticate(String, String),
    /// Sends bytes.
    Send(Vec<u8>),
    /// Records messages up to the next authentication request, that one included as `R`.
    Asked,
    /// Records one byte outside any message.
    Byte,
    /// Records messages up to this many ReadyForQuery.
    Ready(usize),
    /// Says that no more bytes come.
    HalfClose,
}

/// How a case ends.
enum End {
    /// The session is asked for one more row after a Sync: all that comes up to then is recorded, and `alive`.
    Probe,
    /// All is recorded until the server closes.
    Closed,
    /// As `Closed`, for a server that answers in the format of protocol 2: one text up to its first number.
    Text,
    /// The server says nothing and keeps the connection.
    Silent,
}

struct Case {
    row: &'static str,
    what: &'static str,
    steps: Vec<Step>,
    end: End,
    /// `None`: what PostgreSQL answers.
    expect: Option<&'static str>,
}

fn describe(m: &Message) -> Option<String> {
    let tag = char::from(m.tag);
    let text = String::from_utf8_lossy(&m.body).replace('\0', "");
    match m.tag {
        b'S' | b'K' | b'R' => None,
        b'E' | b'N' => Some(format!("{tag}:{}:{}", m.error().0, m.sqlstate())),
        b'Z' | b'C' => Some(format!("{tag}:{text}")),
        b'D' => Some(format!("D:{:.80}", m.fields().join(","))),
        b'T' | b't' => Some(format!("{tag}{}", u16::from_be_bytes([m.body[0], m.body[1]]))),
        b'v' => {
            let number = |at: usize| u32::from_be_bytes(m.body[at..at + 4].try_into().unwrap());
            let names = String::from_utf8_lossy(&m.body[8..]).replace('\0', " ");
            Some(format!("v:{}.{}:{}:{}", number(0) >> 16, number(0) & 0xffff, number(4), names.trim_end()))
        }
        _ => Some(tag.to_string()),
    }
}

/// Messages into `out` until `enough` says so; `false` when the connection closed or fell silent before.
fn collect(raw: &mut Raw, out: &mut Vec<String>, mut enough: impl FnMut(&Message) -> bool) -> bool {
    loop {
        match raw.next(PATIENCE) {
            Next::Message(m) => {
                out.extend(describe(&m));
                if enough(&m) {
                    return true;
                }
            }
            Next::Closed => {
                out.push("closed".into());
                return false;
            }
            Next::Silence => {
                out.push("SILENCE".into());
                return false;
            }
        }
    }
}

/// Runs a case against a port and returns its record.
fn record(case: &Case, port: u16) -> String {
    let (mut raw, mut out) = (Raw::connect(port), Vec::new());
    for step in &case.steps {
        let going = match step {
            Step::Login(user) => {
                raw.send(&startup(V3, &[("user", user), ("database", "postgres")]));
                authenticate(&mut raw, user, &password(user), &mut out)
            }
            Step::Authenticate(user, password) => {
                let ready = authenticate(&mut raw, user, password, &mut out);
                out.push(if ready { "ready".into() } else { "refused".into() });
                ready
            }
            Step::Send(bytes) => {
                raw.send(bytes);
                true
            }
            Step::Asked => {
                let asked = collect(&mut raw, &mut out, |m| m.tag == b'R');
                out.push("R".into());
                asked
            }
            Step::Byte => {
                let byte = raw.byte(PATIENCE);
                out.push(byte.map_or("closed".into(), |b| format!("byte {}", char::from(b))));
                byte.is_some()
            }
            Step::Ready(count) => {
                let mut seen = 0;
                collect(&mut raw, &mut out, |m| {
                    seen += usize::from(m.tag == b'Z');
                    seen == *count
                })
            }
            Step::HalfClose => {
                raw.half_close();
                true
            }
        };
        if !going {
            return compress(&out);
        }
    }
    finish(&case.end, &mut raw, &mut out);
    compress(&out)
}

fn finish(end: &End, raw: &mut Raw, out: &mut Vec<String>) {
    match end {
        End::Probe => {
            let mut bytes = message(b'S', b"");
            bytes.extend(query("select 'probe'"));
            raw.send(&bytes);
            let mut probed = false;
            let alive = collect(raw, out, |m| {
                probed |= m.tag == b'D' && m.fields() == ["probe"];
                probed && m.tag == b'Z'
            });
            if alive {
                out.push("alive".into());
            }
        }
        End::Closed => {
            collect(raw, out, |_| false);
        }
        End::Text => {
            let (bytes, closed) = raw.rest(PATIENCE);
            let text = String::from_utf8_lossy(&bytes).into_owned();
            out.push(text.split(|c: char| c.is_ascii_digit()).next().unwrap().to_owned());
            out.push(if closed { "closed".into() } else { "SILENCE".into() });
        }
        End::Silent => {
            let next = raw.next(Duration::from_millis(700));
            out.push(format!("{next:?}"));
        }
    }
}

/// Logs in; on a refusal records the error and that the connection is closed.
fn authenticate(raw: &mut Raw, user: &str, password: &str, out: &mut Vec<String>) -> bool {
    match raw.finish_login(user, password) {
        Ok(_) => true,
        Err(refusal) => {
            if refusal.tag == b'?' {
                out.push("SILENCE".into());
                return false;
            }
            if !refusal.body.is_empty() {
                out.extend(describe(&refusal));
            }
            collect(raw, out, |_| false);
            false
        }
    }
}

/// `Z:I Z:I Z:I` as `Z:I*3`.
fn compress(out: &[String]) -> String {
    let mut parts: Vec<(&str, usize)> = Vec::new();
    for item in out {
        match parts.last_mut() {
            Some((last, count)) if *last == item => *count += 1,
            _ => parts.push((item, 1)),
        }
    }
    let shown = parts.iter().map(|(s, n)| if *n == 1 { (*s).to_owned() } else { format!("{s}*{n}") });
    shown.collect::<Vec<_>>().join(" ")
}

// === writing cases ===

/// A length word that lies, and what follows it.
fn lying(tag: Option<u8>, len: u32, body: &[u8]) -> Vec<u8> {
    let mut out: Vec<u8> = tag.into_iter().collect();
    out.extend_from_slice(&len.to_be_bytes());
    out.extend_from_slice(body);
    out
}

fn join(parts: &[Vec<u8>]) -> Vec<u8> {
    parts.concat()
}

fn parse(name: &str, sql: &str) -> Vec<u8> {
    message(b'P', format!("{name}\0{sql}\0\0\0").as_bytes())
}

fn bind(portal: &str, statement: &str) -> Vec<u8> {
    message(b'B', format!("{portal}\0{statement}\0\0\0\0\0\0\0").as_bytes())
}

fn execute(portal: &str, max: u8) -> Vec<u8> {
    message(b'E', format!("{portal}\0\0\0\0{}", char::from(max)).as_bytes())
}

fn describe_of(kind: char, name: &str) -> Vec<u8> {
    message(b'D', format!("{kind}{name}\0").as_bytes())
}

fn close(kind: char, name: &str) -> Vec<u8> {
    message(b'C', format!("{kind}{name}\0").as_bytes())
}

fn sync() -> Vec<u8> {
    message(b'S', b"")
}

fn flush() -> Vec<u8> {
    message(b'H', b"")
}

/// All of an unnamed statement.
fn unnamed(sql: &str) -> Vec<u8> {
    join(&[parse("", sql), bind("", ""), describe_of('P', ""), execute("", 0)])
}

fn case(row: &'static str, what: &'static str, steps: Vec<Step>, end: End) -> Case {
    Case { row, what, steps, end, expect: None }
}

/// Bytes on a fresh connection, then until it is closed.
fn cut(row: &'static str, what: &'static str, bytes: Vec<u8>) -> Case {
    case(row, what, vec![Step::Send(bytes)], End::Closed)
}

/// A StartupMessage, then a whole login as `app`.
fn login(row: &'static str, what: &'static str, bytes: Vec<u8>, end: End) -> Case {
    login_as(row, what, bytes, "app", end)
}

fn login_as(row: &'static str, what: &'static str, bytes: Vec<u8>, user: &str, end: End) -> Case {
    let authenticate = Step::Authenticate(user.into(), password(user));
    case(row, what, vec![Step::Send(bytes), authenticate], end)
}

/// Bytes after a login as `app`, then a probe.
fn alive(row: &'static str, what: &'static str, bytes: Vec<u8>) -> Case {
    case(row, what, vec![Step::Login("app"), Step::Send(bytes)], End::Probe)
}

/// Bytes after a login as `app`, then until it is closed.
fn fatal(row: &'static str, what: &'static str, bytes: Vec<u8>) -> Case {
    case(row, what, vec![Step::Login("app"), Step::Send(bytes)], End::Closed)
}

/// A startup of `app` with further parameters, and what `show` says afterwards.
fn with_params(row: &'static str, what: &'static str, params: &[(&str, &str)], show: Option<&str>) -> Case {
    let mut all = vec![("user", "app"), ("database", "postgres")];
    all.extend_from_slice(params);
    let mut case = login(row, what, startup(V3, &all), End::Probe);
    case.steps.extend(show.map(|name| Step::Send(query(&format!("show {name}")))));
    case
}

fn expecting(case: Case, expect: &'static str) -> Case {
    Case { expect: Some(expect), ..case }
}

const APP: [(&str, &str); 2] = [("user", "app"), ("database", "postgres")];

/// Rows 1 to 14: the first packet.
fn first_packets() -> Vec<Case> {
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
fn logins() -> Vec<Case> {
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

/// Rows 40 to 46, 57 and 60: frames after the login.
fn frames() -> Vec<Case> {
    let unknown = |what, tag: u8| fatal("40", what, message(tag, b"x\0"));
    let types: Vec<u8> = [&[0, 0, 0xff, 0xff][..], &[0; 4 * 0xffff]].concat();
    let mut many = b"s\0select 1\0".to_vec();
    many.extend_from_slice(&types[2..]);
    let mut cases = vec![
        unknown("type z", b'z'),
        unknown("type q", b'q'),
        unknown("type NUL", 0),
        unknown("type p", b'p'),
        unknown("type R", b'R'),
        fatal("40", "SSLRequest after login", SSL.to_vec()),
        fatal("40", "startup after login", startup(V3, &APP)),
        alive("42", "Query of length 4", message(b'Q', b"")),
        alive("42", "Query without NUL", message(b'Q', b"select 1")),
        alive("42", "Query with bytes after NUL", message(b'Q', b"select 1\0x")),
        alive("42", "Query with a second NUL", message(b'Q', b"select 1\0\0")),
        alive("43", "Sync with a body", message(b'S', b"x")),
        alive("43", "Flush with a body", message(b'H', b"x")),
        fatal("43", "Sync of length 10,001", message(b'S', &[0; 9_997])),
        case("44", "half a Terminate", vec![Step::Login("app"), Step::Send(b"X\0\0".to_vec())], End::Silent),
        case(
            "45",
            "Query of 100 bytes, 8 sent, then gone",
            vec![Step::Login("app"), Step::Send(lying(Some(b'Q'), 100, b"sel")), Step::HalfClose],
            End::Closed,
        ),
        alive("46", "Parse too short", message(b'P', b"\0select 1\0\0")),
        alive("46", "Parse without types", message(b'P', b"\0select 1\0")),
        alive("46", "Parse of 65,535 types that are not there", message(b'P', b"s\0select 1\0\xff\xff")),
        alive("46", "Parse of 65,535 types", message(b'P', &many)),
        alive("46", "Parse without NUL", message(b'P', b"\0select 1")),
        alive("46", "Parse with a name without NUL", message(b'P', b"name")),
        alive("46", "Parse of nothing", message(b'P', b"")),
        alive("46", "Parse with bytes after it", message(b'P', b"\0select 1\0\0\0x")),
        alive("57", "Sync x 1,000", sync().repeat(1000)),
        alive("60", "CopyData outside COPY", message(b'd', b"1\n")),
        alive("60", "CopyDone outside COPY", message(b'c', b"")),
        alive("60", "CopyFail outside COPY", message(b'f', b"x\0")),
        alive(
            "60",
            "all three, then a query",
            join(&[message(b'd', b"1\n"), message(b'c', b""), message(b'f', b"x\0"), query("select 1")]),
        ),
    ];
    for (what, len) in [("0", 0), ("3", 3), ("0x40000000", 0x4000_0000), ("0xffffffff", u32::MAX)] {
        cases.push(fatal("41", what, lying(Some(b'Q'), len, b"select 1\0")));
    }
    cases
}

/// B1, B3 to B6: the extended protocol.
fn pipelines() -> Vec<Case> {
    let insert = "insert into copy_target values (-1)";
    let count = query("select count(*) from copy_target where i = -1");
    vec![
        alive(
            "B1",
            "error half-way",
            join(&[unnamed("select 1"), unnamed("select 1/0"), unnamed("select 3"), sync()]),
        ),
        alive(
            "B1",
            "earlier insert is undone",
            join(&[unnamed(insert), unnamed("select 1/0"), sync(), count]),
        ),
        alive(
            "B1",
            "queries are dropped up to Sync",
            join(&[unnamed("select 1/0"), query("select 2"), query("select 3"), sync(), query("select 4")]),
        ),
        alive("B1", "two blocks", join(&[unnamed("select 1/0"), sync(), unnamed("select 2"), sync()])),
        alive("B1", "parse error", join(&[unnamed("selec 1"), unnamed("select 2"), sync()])),
        alive(
            "B3",
            "Query after un-Synced messages",
            join(&[unnamed("select 1"), query("select 2"), sync()]),
        ),
        alive("B3", "Query after a Parse (58)", join(&[parse("", "select 1"), query("select 2"), sync()])),
        alive(
            "B3",
            "Query after a failed extended part (56)",
            join(&[parse("", "select 1"), bind("", "nosuch"), query("select 2"), sync(), query("select 3")]),
        ),
        alive(
            "B3",
            "Query that fails after un-Synced messages",
            join(&[unnamed("select 1"), query("select 1/0"), unnamed("select 2"), sync()]),
        ),
        alive(
            "B4",
            "several Syncs",
            join(&[
                unnamed("select 1"),
                sync(),
                unnamed("select 2"),
                sync(),
                sync(),
                query("select 3"),
                sync(),
            ]),
        ),
        alive(
            "B4",
            "a transaction in several blocks",
            join(&[
                unnamed("begin"),
                sync(),
                unnamed("select 1/0"),
                sync(),
                unnamed("select 2"),
                sync(),
                unnamed("rollback"),
                sync(),
            ]),
        ),
        alive(
            "B5",
            "portal kept over Flush",
            join(&[
                parse("", "select generate_series(1, 5)"),
                bind("c", ""),
                execute("c", 2),
                flush(),
                execute("c", 2),
                flush(),
                execute("c", 2),
                sync(),
            ]),
        ),
        alive(
            "B5",
            "portal gone after Sync",
            join(&[
                parse("", "select generate_series(1, 5)"),
                bind("c", ""),
                execute("c", 2),
                sync(),
                execute("c", 2),
                sync(),
            ]),
        ),
        alive(
            "B5",
            "portal lives in a transaction",
            join(&[
                query("begin"),
                parse("", "select generate_series(1, 5)"),
                bind("c", ""),
                execute("c", 2),
                sync(),
                execute("c", 2),
                sync(),
                query("commit"),
            ]),
        ),
        alive("B6", "Close of nothing", join(&[close('S', "nosuch"), close('P', "nosuch"), sync()])),
        alive("B6", "Describe of a missing statement", join(&[describe_of('S', "nosuch"), sync()])),
        alive("B6", "Describe of a missing portal", join(&[describe_of('P', "nosuch"), sync()])),
        alive(
            "B6",
            "closing a portal keeps the statement",
            join(&[
                parse("n", "select 1"),
                bind("n", "n"),
                close('P', "n"),
                describe_of('S', "n"),
                bind("", "n"),
                execute("", 0),
                sync(),
            ]),
        ),
        alive(
            "B6",
            "closing a statement closes its portal",
            join(&[parse("n", "select 1"), bind("n", "n"), close('S', "n"), execute("n", 0), sync()]),
        ),
        alive(
            "B6",
            "describe statement without rows",
            join(&[parse("", "begin"), describe_of('S', ""), sync()]),
        ),
        alive(
            "B6",
            "describe statement with a parameter",
            join(&[parse("", "select $1::int"), describe_of('S', ""), sync()]),
        ),
        alive(
            "B6",
            "Describe of kind X, Close of kind Z (52)",
            join(&[describe_of('X', ""), sync(), close('Z', ""), sync()]),
        ),
    ]
}

/// B7, B16, B19, B31: COPY, multi-statements, half-close, odd texts.
fn simple() -> Vec<Case> {
    let copy = query("copy copy_target from stdin");
    let data = |text: &str| message(b'd', text.as_bytes());
    let done = || message(b'c', b"");
    let two = "copy copy_target from stdin; copy copy_target from stdin; select 7";
    let mut cases = vec![
        alive("B7", "COPY", join(&[copy.clone(), data("1\n"), data("2\n"), done()])),
        alive(
            "B7",
            "bad row, the rest is swallowed",
            join(&[
                copy.clone(),
                data("x\n"),
                data("2\n"),
                done(),
                data("3\n"),
                message(b'f', b"x\0"),
                query("select 1"),
            ]),
        ),
        alive("B7", "CopyFail (63)", join(&[copy.clone(), data("1\n"), message(b'f', b"no\0")])),
        alive(
            "B7",
            "Sync and Flush inside COPY",
            join(&[copy.clone(), data("1\n"), sync(), flush(), data("2\n"), done()]),
        ),
        alive("B7", "two COPYs in one Query", join(&[query(two), data("1\n"), done(), data("2\n"), done()])),
        alive("B7", "COPY fails at once", join(&[query("copy nosuch from stdin"), data("1\n"), done()])),
        alive("B7", "COPY OUT", query("copy (select generate_series(1, 3)) to stdout")),
        alive(
            "B7",
            "COPY by the extended protocol",
            join(&[
                parse("", "copy copy_target from stdin"),
                bind("", ""),
                execute("", 0),
                data("1\n"),
                done(),
                sync(),
            ]),
        ),
        fatal("B7", "Query inside COPY (61)", join(&[copy.clone(), data("1\n"), query("select 1")])),
        fatal("B7", "unknown type inside COPY", join(&[copy, message(b'z', b"")])),
        alive("B16", "begin and a row", join(&[query("begin; select 1"), query("rollback")])),
        alive("B16", "commit, then an error", query("select 1; commit; select 1/0")),
        alive("B16", "begin, commit, then an error", query("begin; select 1; commit; select 1/0")),
        alive(
            "B16",
            "failed transaction",
            join(&[query("begin"), query("select 1/0"), query("select 2"), query("commit")]),
        ),
        alive("B16", "rollback of nothing", query("rollback")),
        alive("B16", "begin twice", join(&[query("begin"), query("begin"), query("commit")])),
        alive(
            "B16",
            "savepoint",
            join(&[
                query("begin; savepoint a"),
                query("select 1/0"),
                query("rollback to a"),
                query("select 1"),
                query("commit and chain"),
                query("commit"),
            ]),
        ),
        alive("B16", "vacuum in a multi-statement", query("select 1; vacuum copy_target")),
        case(
            "B19",
            "half-close",
            vec![Step::Login("app"), Step::Send(query("select 1 from pg_sleep(0.2)")), Step::HalfClose],
            End::Closed,
        ),
        case("B19", "half-close of an idle session", vec![Step::Login("app"), Step::HalfClose], End::Closed),
        fatal(
            "B19",
            "queries, then Terminate",
            join(&[query("select 1"), query("select 2"), message(b'X', b"")]),
        ),
        alive("B31", "empty", query("")),
        alive("B31", "semicolons", query(";;")),
        alive("B31", "comment", query("/* nothing */ -- at all")),
        alive("B31", "empty, extended", join(&[unnamed(""), sync()])),
        alive("B31", "NUL inside", message(b'Q', b"select 1; \0 select 2\0")),
        alive("B31", "not UTF-8", message(b'Q', b"select '\xff\xfe'\0")),
        alive("B31", "not UTF-8, extended", join(&[message(b'P', b"\0select '\xff'\0\0\0"), sync()])),
        alive("B31", "syntax error", query("selec 1")),
        alive("B31", "notice", query("do $$ begin raise notice 'a'; raise warning 'b'; end $$")),
        alive("B31", "long row", query("select repeat('x', 300000), 1")),
        alive("B31", "many rows", query("select generate_series(1, 5000) % 2 = 3")),
    ];
    let two = vec![
        Step::Login("app"),
        Step::Send(query("begin")),
        Step::Ready(1),
        Step::Send(query("select 1/0")),
        Step::Ready(1),
        Step::Send(query("rollback")),
    ];
    cases.push(case("B16", "states one by one", two, End::Probe));
    cases
}

fn cases() -> Vec<Case> {
    [first_packets(), logins(), frames(), pipelines(), simple()].into_iter().flatten().collect()
}

/// All records of one port, in the table's order. Four at a time: the cases do not know of each other.
fn records(cases: &[Case], port: u16) -> Vec<String> {
    let (next, out) = (AtomicUsize::new(0), Mutex::new(vec![String::new(); cases.len()]));
    std::thread::scope(|s| {
        for _ in 0..4 {
            s.spawn(|| {
                while let Some((i, case)) =
                    Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|i| Some((i, cases.get(i)?)))
                {
                    let record = record(case, port);
                    out.lock().unwrap()[i] = record;
                }
            });
        }
    });
    out.into_inner().unwrap()
}

fn compare(cases: &[Case], want: &[String], got: &[String], title: &str) {
    let mut differences = Vec::new();
    for ((case, want), got) in cases.iter().zip(want).zip(got) {
        if want != got {
            differences.push(format!("{} ({}):\n    want {want}\n    got  {got}", case.row, case.what));
        }
    }
    // Past the test harness, which swallows what a passing test prints.
    let summary = format!("wire comparison, {title}: {} cases, {} differ\n", cases.len(), differences.len());
    let _ = std::io::stderr().write_all(summary.as_bytes());
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[test]
fn postgresql_agrees_with_itself() {
    let port = Cluster::shared().primary().port;
    let cases: Vec<Case> = cases().into_iter().filter(|c| c.expect.is_none()).collect();
    let first = records(&cases, port);
    if std::env::var_os("HELIOS_WIRE_PRINT").is_some() {
        cases.iter().zip(&first).for_each(|(c, r)| println!("{:4} {}: {r}", c.row, c.what));
    }
    let silent = cases.iter().zip(&first).filter(|(_, r)| r.contains("SILENCE")).map(|(c, _)| c.what);
    assert_eq!(silent.collect::<Vec<_>>(), Vec::<&str>::new(), "PostgreSQL does not answer");
    compare(&cases, &first, &records(&cases, port), "PostgreSQL against itself");
}

#[test]
fn the_proxy_answers_as_postgresql_does() {
    let (cluster, cases) = (Cluster::shared(), cases());
    // As the server that it is compared with.
    let mut config = Config::primary_only(cluster);
    config.more += "\n[client_tls]\nmode = \"disable\"\n";
    let proxy = config.start().ready();
    let (literal, judged): (Vec<Case>, Vec<Case>) = cases.into_iter().partition(|c| c.expect.is_some());
    let oracle = records(&judged, cluster.primary().port);
    let expected: Vec<String> = literal.iter().map(|c| c.expect.unwrap_or_default().to_owned()).collect();
    let all: Vec<Case> = judged.into_iter().chain(literal).collect();
    let want = [oracle, expected].concat();
    compare(&all, &want, &records(&all, proxy.port()), "proxy against PostgreSQL");
}
