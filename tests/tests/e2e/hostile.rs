//! A server that is hostile, or broken, and clients that send nonsense among others that work. The attacker is a small program
//! inside the test; it stands behind the name of a replica, so that reads go to it while everything else goes to a real server.
//! The proxy closes the connection, serves everybody else, and keeps its memory. Never judges how fast that is.

use std::io::{Error, ErrorKind, Read as _, Write as _};
use std::net::TcpListener;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use helios_tests::raw::{Message, Next, message, packet, query};
use helios_tests::{Cluster, Config, Load, Proxy, Raw, Role, eventually, free_port};

const LONG: Duration = Duration::from_secs(60);
/// Growth of the proxy that would be a leak, in KiB.
const GROWTH: u64 = 48 * 1024;

/// What the attacker does to a connection whose StartupMessage it has read.
type Attack = fn(&mut TcpStream) -> Result<(), Error>;

/// The attacker.
struct Fake {
    port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    attack: Mutex<Attack>,
    /// Connections that were attacked, and those that the proxy has closed since.
    begun: AtomicUsize,
    closed: AtomicUsize,
    stop: AtomicBool,
}

impl Fake {
    fn start() -> Self {
        let port = free_port();
        let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
        let shared = Arc::new(Shared {
            attack: Mutex::new(|_| Ok(())),
            begun: AtomicUsize::new(0),
            closed: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
        });
        let of = Arc::clone(&shared);
        std::thread::spawn(move || {
            for io in listener.incoming() {
                if of.stop.load(Ordering::SeqCst) {
                    return;
                }
                let (io, shared) = (io.unwrap(), Arc::clone(&of));
                std::thread::spawn(move || shared.serve(io));
            }
        });
        Self { port, shared }
    }

    fn does(&self, attack: Attack) {
        *self.shared.attack.lock().unwrap() = attack;
    }

    fn begun(&self) -> usize {
        self.shared.begun.load(Ordering::SeqCst)
    }

    /// Whether the proxy has closed every connection that was attacked.
    fn all_closed(&self) -> bool {
        self.shared.closed.load(Ordering::SeqCst) == self.begun()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

impl Shared {
    fn serve(&self, mut io: TcpStream) {
        io.set_nodelay(true).unwrap();
        while let Ok(body) = untyped(&mut io) {
            if body == [4, 210, 22, 47] {
                // No TLS here. A probe wants to know no more.
                let _ = io.write_all(b"N");
                continue;
            }
            if body.starts_with(&[4, 210]) {
                return;
            }
            self.begun.fetch_add(1, Ordering::SeqCst);
            let attack = *self.attack.lock().unwrap();
            if attack(&mut io).is_ok() {
                let _ = std::io::copy(&mut io, &mut std::io::sink());
            }
            self.closed.fetch_add(1, Ordering::SeqCst);
            return;
        }
    }
}

fn untyped(io: &mut TcpStream) -> Result<Vec<u8>, Error> {
    let mut length = [0; 4];
    io.read_exact(&mut length)?;
    let mut body = vec![0; (u32::from_be_bytes(length) as usize).saturating_sub(4).min(1 << 20)];
    io.read_exact(&mut body)?;
    Ok(body)
}

fn typed(io: &mut TcpStream) -> Result<Vec<u8>, Error> {
    io.read_exact(&mut [0])?;
    untyped(io)
}

fn say(io: &mut TcpStream, messages: &[(u8, &[u8])]) -> Result<(), Error> {
    io.write_all(&messages.iter().flat_map(|(tag, body)| message(*tag, body)).collect::<Vec<_>>())
}

/// Says something until nobody listens any more.
fn for_ever(io: &mut TcpStream, bytes: impl Fn(usize) -> Vec<u8>, pause: Duration) -> Result<(), Error> {
    for i in 0.. {
        io.write_all(&bytes(i))?;
        std::thread::sleep(pause);
    }
    Ok(())
}

const OK: (u8, &[u8]) = (b'R', &[0; 4]);
const KEY: (u8, &[u8]) = (b'K', &[0, 0, 0, 9, 1, 2, 3, 4]);
const READY: (u8, &[u8]) = (b'Z', b"I");
const ROW: (u8, &[u8]) = (b'D', b"\0\x01\0\0\0\x06theirs");
const COLUMN: (u8, &[u8]) = (b'T', b"\0\x01x\0\0\0\0\0\0\0\0\0\0\x19\xff\xff\xff\xff\xff\xff\0\0");
const DONE: (u8, &[u8]) = (b'C', b"SELECT 1\0");

/// Lets anybody in, and reads one query.
fn asked(io: &mut TcpStream) -> Result<(), Error> {
    let status = |name: &str, value: &str| message(b'S', format!("{name}\0{value}\0").as_bytes());
    let all = [
        message(OK.0, OK.1),
        status("server_version", "15.1"),
        status("client_encoding", "UTF8"),
        status("standard_conforming_strings", "on"),
        message(KEY.0, KEY.1),
        message(READY.0, READY.1),
    ];
    io.write_all(&all.concat())?;
    typed(io).map(drop)
}

/// Offers SCRAM, and answers the client's first message with a nonce that goes on like this, and this many rounds.
fn challenge(io: &mut TcpStream, more: &str, rounds: u64) -> Result<(), Error> {
    say(io, &[(b'R', b"\0\0\0\x0aSCRAM-SHA-256\0\0")])?;
    let first = String::from_utf8(typed(io)?).unwrap();
    let nonce = first.rsplit_once("r=").unwrap().1;
    let text = format!("r={nonce}{more},s=AAAAAAAAAAAAAAAAAAAAAA==,i={rounds}");
    say(io, &[(b'R', &[&[0, 0, 0, 11], text.as_bytes()].concat())])
}

/// During the login.
const AT_LOGIN: [(&str, Attack); 14] = [
    ("an error without a code", |io| say(io, &[(b'E', b"SFATAL\0Mno\0\0")])),
    ("an error without an end", |io| say(io, &[(b'E', b"SFATAL")])),
    ("a message of 2 GB", |io| io.write_all(b"R\x7f\xff\xff\xff\0\0\0\0")),
    ("a message of 60 MB", |io| io.write_all(b"R\x03\x93\x87\x00\0\0\0\0").and_then(|()| flood(io))),
    ("a length below its own", |io| io.write_all(b"R\0\0\0\x01")),
    ("no PostgreSQL", |io| io.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")),
    ("ready before anything was proved", |io| say(io, &[KEY, READY])),
    ("parameters without end", |io| {
        say(io, &[OK])?;
        for_ever(io, |i| message(b'S', format!("p{i}\0{i}\0").as_bytes()), Duration::ZERO)
    }),
    ("a thousand million rounds", |io| challenge(io, "x", 1_000_000_000)),
    ("a long nonce", |io| challenge(io, &"x".repeat(60_000), 4096)),
    ("a nonce of its own", |io| {
        say(io, &[(b'R', b"\0\0\0\x0aSCRAM-SHA-256\0\0")])?;
        typed(io)?;
        say(io, &[(b'R', b"\0\0\0\x0br=mine,s=AAAAAAAAAAAAAAAAAAAAAA==,i=4096")])
    }),
    ("a wrong signature", |io| {
        challenge(io, "x", 4096)?;
        typed(io)?;
        let signature = b"\0\0\0\x0cv=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
        say(io, &[(b'R', signature), OK, KEY, READY])
    }),
    ("no signature", |io| {
        challenge(io, "x", 4096)?;
        typed(io)?;
        say(io, &[OK, KEY, READY])
    }),
    ("asks for GSSAPI", |io| say(io, &[(b'R', b"\0\0\0\x07")])),
];

/// Inside a session.
const LATER: [(&str, Attack); 8] = [
    ("a second answer that nobody asked for", |io| {
        asked(io)?;
        say(io, &[COLUMN, ROW, DONE, READY, COLUMN, ROW, DONE, READY])
    }),
    ("ready without a request", |io| {
        asked(io)?;
        say(io, &[READY, READY, READY])
    }),
    ("asks for the password again", |io| {
        asked(io)?;
        say(io, &[(b'R', b"\0\0\0\x03")])
    }),
    ("another key", |io| {
        asked(io)?;
        say(io, &[KEY, COLUMN, ROW, DONE, READY])
    }),
    ("a type of message that there is not", |io| {
        asked(io)?;
        say(io, &[(b'!', b"what")])
    }),
    ("a row of 2 GB", |io| {
        asked(io)?;
        say(io, &[COLUMN])?;
        io.write_all(b"D\x7f\xff\xff\xff\0\x01")
    }),
    ("a status that there is not", |io| {
        asked(io)?;
        say(io, &[COLUMN, ROW, DONE, (b'Z', b"?")])
    }),
    ("an answer to extended messages", |io| {
        asked(io)?;
        say(io, &[(b'1', b""), (b'2', b""), (b'3', b""), READY])
    }),
];

fn flood(io: &mut TcpStream) -> Result<(), Error> {
    for_ever(io, |_| vec![b'x'; 64 * 1024], Duration::ZERO)
}

/// A proxy in front of a real primary and an attacker that reads go to.
fn proxy(fake: &Fake, limits: &str) -> Proxy {
    let mut config = Config { balancer: "slow_start_secs = 0", ..Config::primary_only(Cluster::shared()) };
    config.nodes.push(("replica-1".to_owned(), Role::Replica, fake.port));
    config.more = format!("[health]\ncheck_interval_secs = 1\n[limits]\n{limits}\n");
    // Proved at the proxy, which then has what the attacker asks for.
    config.user("app", "password = \"app-secret\"").start().ready()
}

/// What a client gets for a read.
fn read(proxy: &Proxy) -> Vec<Message> {
    let (mut client, _) = proxy.raw("app");
    client.send(&query("select 'ours'"));
    let mut seen = Vec::new();
    while let Next::Message(message) = client.next(LONG) {
        seen.push(message);
        if seen.last().is_some_and(|last| last.tag == b'Z') {
            break;
        }
    }
    seen
}

/// Sends reads until the attacker has had one, and waits until the proxy has closed its connection.
fn attack(proxy: &mut Proxy, fake: &Fake, (name, attack): (&str, Attack)) {
    fake.does(attack);
    let before = fake.begun();
    eventually(LONG, name, || {
        let seen = read(proxy);
        let own = seen.iter().filter(|m| m.tag == b'D').all(|m| m.fields() == ["ours"]);
        let attacked = fake.begun() > before;
        assert!(own || attacked, "{name}: {seen:?}");
        assert!(seen.iter().all(|m| !matches!(m.tag, b'R' | b'K' | b'!')), "{name}: {seen:?}");
        attacked
    });
    eventually(LONG, name, || fake.all_closed());
    // Nothing of it reaches anybody else.
    let mut write = proxy.raw("app").0;
    let answer = write.query("update counter set n = n where id = 3 returning 'ours'");
    assert!(answer.iter().any(|m| m.tag == b'C'), "{name}: {answer:?}");
    assert!(proxy.alive(), "{name}");
}

#[test]
fn a_hostile_server_is_left_and_everybody_else_is_served() {
    let fake = Fake::start();
    let mut proxy = proxy(&fake, "");
    let (_held, _) = proxy.raw("app");
    let before = proxy.rss_kib();
    for case in AT_LOGIN.into_iter().chain(LATER) {
        let since = Instant::now();
        attack(&mut proxy, &fake, case);
        println!("{}: closed after {:?}", case.0, since.elapsed());
    }
    let after = proxy.rss_kib();
    println!("{} attacks, memory {before} to {after} KiB", fake.begun());
    assert!(after < before + GROWTH, "{before} to {after} KiB");
    assert!(proxy.logged("panicked").is_empty());
    assert_eq!(proxy.get("/health").status, 200);
}

#[test]
fn a_row_that_breaks_off_is_not_filled_up_with_words_of_the_proxy() {
    let fake = Fake::start();
    let proxy = proxy(&fake, "");
    fake.does(|io| {
        asked(io)?;
        let row = message(b'D', &[&b"\0\x01\0\0\x04\0"[..], &[b'x'; 1024]].concat());
        say(io, &[COLUMN])?;
        // Less is missing than an error takes.
        io.write_all(&row[..row.len() - 40])?;
        Err(ErrorKind::ConnectionAborted.into())
    });
    eventually(LONG, "a read goes there", || {
        let seen = read(&proxy);
        assert!(seen.iter().filter(|m| m.tag == b'D').all(|m| m.fields() == ["ours"]), "{seen:?}");
        seen.last().is_some_and(|last| last.tag == b'T')
    });
}

#[test]
fn a_server_that_trickles_holds_nobody_for_longer_than_the_limits_say() {
    let cases: [(&str, Attack); 4] = [
        ("an answer byte by byte", |io| {
            asked(io)?;
            say(io, &[COLUMN])?;
            io.write_all(b"D\x00\x10\x00\x00\0\x01\x00\x0f\xff\xfa")?;
            for_ever(io, |_| vec![b'x'], Duration::from_millis(20))
        }),
        ("parameters without end", |io| {
            asked(io)?;
            for_ever(io, |i| message(b'S', format!("p\0{i}\0").as_bytes()), Duration::from_millis(1))
        }),
        ("a login byte by byte", |io| {
            io.write_all(b"R\0\0\x80\0")?;
            for_ever(io, |_| vec![0], Duration::from_millis(50))
        }),
        ("a login of notices", |io| {
            for_ever(io, |_| message(b'N', b"SNOTICE\0Mwait\0\0"), Duration::from_millis(1))
        }),
    ];
    std::thread::scope(|s| {
        for case in cases {
            s.spawn(move || {
                let fake = Fake::start();
                let mut proxy = proxy(&fake, "query_timeout_secs = 1");
                let (before, since) = (proxy.rss_kib(), Instant::now());
                attack(&mut proxy, &fake, case);
                let after = proxy.rss_kib();
                println!("{}: cut after {:?}, memory {before} to {after} KiB", case.0, since.elapsed());
                assert!(after < before + GROWTH, "{}: {before} to {after} KiB", case.0);
            });
        }
    });
}

/// Numbers that look random, the same in every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % below
    }
}

/// One client that sends nonsense: before the login, in place of it, or in a session, with pieces of what is right.
fn nonsense(port: u16, dice: &mut Dice) {
    let mut raw =
        if dice.roll(2) == 0 { Raw::connect(port) } else { Raw::login(port, "app", "app-secret").0 };
    let pieces: [Vec<u8>; 12] = [
        query("select 1"),
        query("begin"),
        message(b'P', b"a\0select $1::int\0\0\0"),
        message(b'B', b"\0a\0\0\0\0\0\0\0"),
        message(b'E', &[0; 5]),
        message(b'S', b""),
        message(b'd', b"data"),
        message(b'c', b""),
        message(b'p', b"password\0"),
        message(b'F', b"\0\0\0\x01"),
        packet(&[0, 3, 0, 0, b'u', b's', b'e', b'r', 0]),
        (0..40).map(|_| dice.roll(256) as u8).collect(),
    ];
    for _ in 0..=dice.roll(6) {
        let mut piece = pieces[dice.roll(pieces.len())].clone();
        match dice.roll(4) {
            0 => {
                let at = dice.roll(piece.len());
                piece[at] ^= 1 << dice.roll(8);
            }
            1 => piece.truncate(dice.roll(piece.len())),
            _ => {}
        }
        raw.send(&piece);
    }
    if dice.roll(2) == 0 {
        let _ = raw.next(Duration::from_millis(20));
    }
}

#[test]
fn clients_that_send_nonsense_cost_the_others_nothing() {
    let cluster = Cluster::start(&[Role::Replica]);
    Load::prepare(&cluster);
    let mut config =
        Config { acquire_timeout: 60, ..Config::new(&cluster) }.user("app", "password = \"app-secret\"");
    config.more += "\n[limits]\nfailed_login_delay_secs = 0\n";
    let mut proxy = config.start().ready();
    let load = Load::start(6, &[&proxy]);
    load.go_on(20);
    let before = proxy.rss_kib();
    let (port, since) = (proxy.port(), Instant::now());
    let seed = since.elapsed().subsec_nanos().wrapping_add(std::process::id());
    std::thread::scope(|s| {
        for thread in 0..2 {
            s.spawn(move || {
                let mut dice = Dice(u64::from(seed) + thread);
                (0..150).for_each(|_| nonsense(port, &mut dice));
            });
        }
    });
    load.go_on(20);
    let outcome = load.finish();
    println!("300 clients with nonsense (seed {seed}) in {:?}", since.elapsed());
    outcome.check(cluster.primary());
    outcome.nothing_failed();
    assert!(proxy.alive() && proxy.logged("panicked").is_empty());
    let busy = || proxy.metrics().sum("heliosproxy_pool_connections_active", &[]);
    eventually(LONG, "no server connection is held", || busy() == Some(0.0));
    let after = proxy.rss_kib();
    println!("memory {before} to {after} KiB");
    assert!(after < before + GROWTH, "{before} to {after} KiB");
}
