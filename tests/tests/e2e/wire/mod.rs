//! The wire comparison: the same bytes to PostgreSQL and through the proxy, and the same record must come back, with
//! PostgreSQL 15 and 18 behind both. Rows are those of the bad-input table (1 to 63 and 75; what 64 to 78 say is not in one
//! connection's answers: `ends`, `leaks`, `routing`, `admin`) and of the protocol corner cases
//! (B1, B3 to B7, B16, B19, B31). A record holds message types, SQLSTATEs, row values, ReadyForQuery states and
//! whether the connection lives. Left out, because a proxy may differ: the kind of authentication, ParameterStatus
//! and BackendKeyData. Where the contract is PostgreSQL 18's and 15 differs, the record expected of the proxy in front of
//! 15 is written here, and 18 has to agree with it.

mod bodies;
mod frames;
mod pipelines;
mod sasl;
mod simple;
mod startups;
mod tls;
mod write;

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use helios_tests::cluster::password;
use helios_tests::raw::{Message, Next, PATIENCE, Raw, message, query, startup};
use helios_tests::socket::Refused;
use helios_tests::{Cluster, Config, Pki, Programs, Proxy, loudly};

use write::V3;

/// How a case begins and what is sent.
#[derive(Clone)]
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
    /// Begins TLS with these names of protocols; records how it was refused.
    Tls(&'static [&'static str]),
    /// Logs in as `app` after a StartupMessage and records the length of the key for cancel requests.
    Key,
    /// Sends the last message of a login with SCRAM that another connection has made, after a first one of its own.
    Replayed,
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
    /// The server closes, whatever it says before: an alert of TLS has no fixed form.
    Cut,
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
            Step::Tls(names) => {
                let refused = raw.encrypt(names).err();
                out.extend(refused.as_ref().map(|why| match why {
                    Refused::Alert(alert) => format!("alert {alert:?}"),
                    Refused::Closed => "closed".to_owned(),
                }));
                refused.is_none()
            }
            Step::Key => {
                let hello = raw.finish_login("app", &password("app"));
                out.push(hello.map_or("refused".into(), |hello| format!("key of {}", hello.key.len())));
                true
            }
            Step::Replayed => {
                sasl::replay(&mut raw, port);
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
        End::Cut => {
            let (_, closed) = raw.rest(PATIENCE);
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

/// For servers and proxies without TLS.
fn cases() -> Vec<Case> {
    let all = [
        startups::first_packets(),
        startups::logins(),
        sasl::passwords(),
        sasl::exchanges(false),
        frames::frames(),
        bodies::statements(),
        bodies::binds(),
        bodies::others(),
        pipelines::pipelines(),
        simple::simple(),
        tls::without(),
    ];
    all.into_iter().flatten().collect()
}

/// For servers and proxies with TLS.
fn tls_cases() -> Vec<Case> {
    [tls::requests(), sasl::exchanges(true)].into_iter().flatten().collect()
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
    loudly(&format!("wire comparison, {title}: {} cases, {} differ", cases.len(), differences.len()));
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

/// The proxy in front of this cluster as the server that it is compared with, so much TLS included.
fn proxy(cluster: &Cluster, client_tls: &str) -> Proxy {
    // Known beforehand: a role that is still to be learnt is asked for its password in clear, not by SCRAM.
    let secret = format!("password = \"{}\"", password("app"));
    let mut config = Config::primary_only(cluster).user("app", &secret);
    config.more += &format!("\n[client_tls]\n{client_tls}\n");
    config.start().ready()
}

/// What is expected of a proxy in front of 15: what it answers itself, or what is written with the case.
fn fifteen(cluster: &Cluster, cases: Vec<Case>, proxy: &Proxy, title: &str) {
    let (literal, judged): (Vec<Case>, Vec<Case>) = cases.into_iter().partition(|c| c.expect.is_some());
    let oracle = records(&judged, cluster.primary().port);
    let expected: Vec<String> = literal.iter().map(|c| c.expect.unwrap_or_default().to_owned()).collect();
    let all: Vec<Case> = judged.into_iter().chain(literal).collect();
    let want = [oracle, expected].concat();
    compare(&all, &want, &records(&all, proxy.port()), title);
}

#[test]
fn the_proxy_answers_as_postgresql_does() {
    let cluster = Cluster::shared();
    let proxy = proxy(cluster, "mode = \"disable\"");
    fifteen(cluster, cases(), &proxy, "proxy against PostgreSQL 15");
}

/// A server with TLS, and a proxy with TLS before it.
fn encrypted(programs: &Programs) -> (Cluster, Proxy) {
    let pki = Pki::new();
    for name in ["db", "proxy"] {
        pki.issue(name, &["localhost", "127.0.0.1"], 2090);
    }
    let cluster = Cluster::start_with(programs, &[]);
    cluster.primary().with_tls(&pki.file("db.pem"), &pki.file("db.key"), &pki.file("ca.pem"), "");
    let proxy = proxy(&cluster, &pki.server("proxy", false));
    (cluster, proxy)
}

#[test]
fn the_proxy_answers_in_tls_as_postgresql_does() {
    let (cluster, proxy) = encrypted(&Programs::newest());
    fifteen(&cluster, tls_cases(), &proxy, "proxy against PostgreSQL 15, TLS");
}

/// PostgreSQL 18 is the contract: nothing but its own answers is expected of the proxy, and of what is written here.
fn eighteen(cluster: &Cluster, cases: &[Case], proxy: &Proxy, title: &str) {
    let want = records(cases, cluster.primary().port);
    let told = cases.iter().zip(&want).filter_map(|(case, want)| Some((case, want, case.expect?)));
    let wrong: Vec<_> = told.filter(|(_, want, told)| want != told).collect();
    let wrong: Vec<_> =
        wrong.iter().map(|(c, want, told)| format!("{} ({}): {told}: {want}", c.row, c.what)).collect();
    assert!(wrong.is_empty(), "what is written here is not what PostgreSQL 18 answers: {wrong:#?}");
    compare(cases, &want, &records(cases, proxy.port()), title);
}

#[test]
fn the_proxy_answers_as_postgresql_18_does() {
    let Some(programs) = Programs::eighteen() else { return };
    let cluster = Cluster::start_with(&programs, &[]);
    let plain = proxy(&cluster, "mode = \"disable\"");
    eighteen(&cluster, &cases(), &plain, "proxy against PostgreSQL 18");
    let (cluster, proxy) = encrypted(&programs);
    eighteen(&cluster, &tls_cases(), &proxy, "proxy against PostgreSQL 18, TLS");
}
