//! A mixed load of raw clients over few server connections, each answer of which carries a token of its own: simple and
//! extended statements, names, pipelines, COPY both ways, errors, transactions, settings that follow, state that pins,
//! notifications, cancels that race, sessions that end in the middle of anything. Half of the clients have TLS. Ends after a
//! number of rounds or at a deadline. Never retries, and panics at the first answer that is not its own.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use helios_pgwire::frontend;

use crate::dice::Dice;
use crate::proxy::Proxy;
use crate::raw::{Hello, Message, PATIENCE, Raw, call, extended, message, parse, query, sync};

/// How far a load goes: whichever comes first.
#[derive(Debug, Clone, Copy)]
pub struct Until {
    /// Rounds of each client.
    pub rounds: u64,
    /// The end, if there is one.
    pub end: Option<Instant>,
    /// What the dice begin with.
    pub seed: u64,
}

impl Until {
    /// Whether a client that has done so many rounds goes on.
    #[must_use]
    pub fn goes_on(&self, rounds: u64) -> bool {
        rounds < self.rounds && self.end.is_none_or(|end| Instant::now() < end)
    }
}

/// What a load has seen.
#[derive(Debug, Default)]
pub struct Seen {
    /// Answers that were checked.
    pub answers: AtomicU64,
    /// Sessions, all of which ended.
    pub sessions: AtomicU64,
    /// Settings that were set or reset, and found later.
    pub settings: AtomicU64,
    /// Cancel requests sent.
    pub cancels: AtomicU64,
    /// Statements that a cancel has ended.
    pub cancelled: AtomicU64,
}

/// Settings that follow their session, with what a session begins with.
const DEFAULTS: [(&str, &str); 5] = [
    ("application_name", ""),
    ("work_mem", "4MB"),
    ("search_path", "\"$user\", public"),
    ("TimeZone", "UTC"),
    ("DateStyle", "ISO, MDY"),
];

struct Client<'a> {
    proxy: &'a Proxy,
    raw: Raw,
    hello: Hello,
    number: u64,
    /// Nobody else's: loads may run side by side on one database, where notifications go to everybody.
    name: String,
    round: u64,
    dice: Dice,
    seen: &'a Seen,
    /// Rounds until it logs in anew.
    left: usize,
    /// It has prepared its statement by name.
    named: bool,
    /// What its settings are.
    settings: Vec<String>,
}

/// Runs `clients` clients at once, as role `app`.
///
/// # Panics
/// At a foreign, shifted or missing answer.
pub fn run(proxy: &Proxy, clients: u64, until: Until) -> Seen {
    let seen = Seen::default();
    std::thread::scope(|scope| {
        for number in 0..clients {
            let seen = &seen;
            scope.spawn(move || {
                let mut client = Client::new(proxy, number, until.seed, seen);
                while until.goes_on(client.round) {
                    client.round += 1;
                    client.step();
                }
            });
        }
    });
    seen
}

fn defaults() -> Vec<String> {
    DEFAULTS.iter().map(|(_, value)| (*value).to_owned()).collect()
}

fn login(proxy: &Proxy, number: u64) -> (Raw, Hello) {
    if number.is_multiple_of(2) { proxy.raw("app") } else { proxy.raw_tls("app") }
}

impl<'a> Client<'a> {
    fn new(proxy: &'a Proxy, number: u64, seed: u64, seen: &'a Seen) -> Self {
        let (raw, hello) = login(proxy, number);
        let dice = Dice(seed.wrapping_mul(1_000_003).wrapping_add(number));
        let (name, settings) = (format!("{}-{seed}-{number}", proxy.port()), defaults());
        Self { proxy, raw, hello, number, name, round: 0, dice, seen, left: 50, named: false, settings }
    }

    fn token(&self, part: u32) -> String {
        format!("{}-{}-{part}", self.name, self.round)
    }

    /// Checks rows and errors in their order, and that no setting of another session is reported.
    fn check(&self, messages: &[Message], want: &[&str]) {
        let got: Vec<String> = messages.iter().filter_map(told).collect();
        assert_eq!(got, want, "client {} in round {}: {messages:?}", self.number, self.round);
        for report in messages.iter().filter(|m| m.tag == b'S') {
            let text = String::from_utf8_lossy(&report.body);
            let Some(name) = text.strip_prefix("application_name\0") else { continue };
            let own = name == "\0" || name.starts_with(&format!("{}-", self.name));
            assert!(own, "client {} in round {}: {messages:?}", self.number, self.round);
        }
        let answers = messages.iter().filter(|m| m.tag == b'Z').count();
        self.seen.answers.fetch_add(u64::try_from(answers).unwrap(), Ordering::Relaxed);
    }

    /// Sends, waits for as many ReadyForQuery, and checks.
    fn ask(&mut self, bytes: &[u8], readies: usize, want: &[&str]) {
        self.raw.send(bytes);
        let messages = self.raw.until_ready(readies);
        self.check(&messages, want);
    }

    /// A statement by either protocol.
    fn any(&mut self, sql: &str, want: &[&str]) {
        let bytes = if self.dice.roll(2) == 0 { query(sql) } else { extended(sql, &[]) };
        self.ask(&bytes, 1, want);
    }

    fn step(&mut self) {
        let (a, b, c) = (self.token(1), self.token(2), self.token(3));
        self.left -= 1;
        if self.left == 0 {
            return self.begin_anew(&a);
        }
        match self.dice.roll(16) {
            0 => self.any(&format!("select '{a}'"), &[&a]),
            1 => self.ask(&extended("select $1::text, $2::text", &[&a, &b]), 1, &[&format!("{a},{b}")]),
            2 => self.pipeline(&a, &b, &c),
            3 => self.any(&format!("copy (select '{a}') to stdout"), &[&a]),
            4 => self.copy_in(&a),
            5 => {
                self.ask(&query(&format!("select '{a}'; select 1/0; select '{b}'")), 1, &[&a, "22012"]);
            }
            6 => self.transaction(&a, &b),
            7 => self.apart(&a),
            8 => {
                let both = [query(&format!("select '{a}'")), query(&format!("select '{b}'"))].concat();
                self.ask(&both, 2, &[&a, &b]);
            }
            9 | 10 => self.cancelled(&a),
            // Names and settings in one session would tie it to a server for good.
            _ if self.number % 4 < 2 => self.settings(&a),
            _ => self.named(&a),
        }
    }

    /// Leaves, in one way or another, and comes back.
    fn begin_anew(&mut self, a: &str) {
        let parting = match self.dice.roll(7) {
            0 => message(b'X', b""),
            1 => Vec::new(),
            2 => query(&format!("begin; select '{a}'")),
            3 => query(&format!("select '{a}' from pg_sleep(0.01)")),
            4 => query("begin; create temp table copied (v text); copy copied from stdin"),
            5 => [parse("", "select $1::text"), call("", &[a])].concat(),
            _ => query(&format!("select '{a}'"))[..9].to_vec(),
        };
        self.raw.send(&parting);
        (self.raw, self.hello) = login(self.proxy, self.number);
        (self.left, self.named, self.settings) = (20 + self.dice.roll(60), false, defaults());
        self.seen.sessions.fetch_add(1, Ordering::Relaxed);
    }

    fn named(&mut self, a: &str) {
        if self.named && self.dice.roll(5) == 0 {
            self.named = false;
            let gone = self.dice.one_of(&["deallocate mine", "deallocate all", "discard all"]);
            self.ask(&query(gone), 1, &[]);
            let missing = [call("mine", &[a]), sync()].concat();
            return self.ask(&missing, 1, &["26000"]);
        }
        let first = if self.named { Vec::new() } else { parse("mine", "select $1::text || ''") };
        self.named = true;
        self.ask(&[first, call("mine", &[a]), sync()].concat(), 1, &[a]);
    }

    /// Three runs at once; the one in the middle fails half way.
    fn pipeline(&mut self, a: &str, b: &str, c: &str) {
        let select = |parameter: &str| [parse("", "select $1::text"), call("", &[parameter])].concat();
        let broken = [select(b), parse("", "select 1/$1::int"), call("", &["0"]), select("never")].concat();
        let all = [select(a), sync(), broken, sync(), select(c), sync()].concat();
        self.ask(&all, 3, &[a, b, "22012", c]);
    }

    fn copy_in(&mut self, a: &str) {
        let copy = query("begin; create temp table copied (v text) on commit drop; copy copied from stdin");
        let data = message(b'd', format!("{a}\n").as_bytes());
        if self.dice.roll(3) == 0 {
            let failed = message(b'f', format!("{a}\0").as_bytes());
            return self.ask(&[copy, data, failed, query("rollback")].concat(), 2, &["57014"]);
        }
        let end = [message(b'c', b""), query("select v from copied"), query("rollback")].concat();
        self.ask(&[copy, data, end].concat(), 3, &[a]);
    }

    fn transaction(&mut self, a: &str, b: &str) {
        self.any("begin", &[]);
        self.any(&format!("set local my.token = '{a}'"), &[]);
        self.any(&format!("select current_setting('my.token'), '{b}'"), &[&format!("{a},{b}")]);
        if self.dice.roll(3) == 0 {
            self.any("select 1/0", &["22012"]);
            self.any(&format!("select '{a}'"), &["25P02"]);
        }
        let end = self.dice.one_of(&["commit", "rollback"]);
        self.any(end, &[]);
    }

    /// Sets or resets something, in a transaction or not, and looks at all of it.
    fn settings(&mut self, a: &str) {
        let at = self.dice.roll(DEFAULTS.len());
        let name = DEFAULTS[at].0;
        let value = match name {
            "application_name" => a.to_owned(),
            // No multiple of a megabyte: shown as it is.
            "work_mem" => format!("{}kB", 2049 + 2 * self.dice.roll(900)),
            "search_path" => format!("s{}, public", self.dice.roll(50)),
            "TimeZone" => self.dice.one_of(&["Asia/Tokyo", "Europe/Berlin", "America/Lima"]).to_owned(),
            _ => self.dice.one_of(&["German, DMY", "SQL, MDY", "ISO, YMD"]).to_owned(),
        };
        let quoted = if name == "search_path" { value.clone() } else { format!("'{value}'") };
        let set = format!("set {name} = {quoted}");
        match self.dice.roll(8) {
            0 => {
                self.any(&format!("reset {name}"), &[]);
                DEFAULTS[at].1.clone_into(&mut self.settings[at]);
            }
            1 => {
                let all = self.dice.one_of(&["reset all", "discard all"]);
                self.ask(&query(all), 1, &[]);
                self.settings = defaults();
            }
            2 | 3 => {
                self.any("begin", &[]);
                self.any(&set, &[]);
                self.any(&format!("select current_setting('{name}')"), &[&value]);
                let commits = self.dice.roll(2) == 0;
                self.any(if commits { "commit" } else { "rollback" }, &[]);
                if commits {
                    self.settings[at] = value;
                }
            }
            4 => self.any("set work_mem = 'nonsense'", &["22023"]),
            _ => {
                self.any(&set, &[]);
                self.settings[at] = value;
            }
        }
        self.seen.settings.fetch_add(1, Ordering::Relaxed);
        let shown: Vec<String> =
            DEFAULTS.iter().map(|(name, _)| format!("current_setting('{name}')")).collect();
        let want = format!("{a},{}", self.settings.join(","));
        self.any(&format!("select '{a}', {}", shown.join(", ")), &[&want]);
    }

    /// State that ties a session to its server, in a session of its own.
    fn apart(&mut self, a: &str) {
        let (mut raw, _) = login(self.proxy, self.number + self.round);
        for (sql, want) in [
            (format!("set my.token = '{a}'"), None),
            ("create temp table mine as select current_setting('my.token') as v".to_owned(), None),
            ("select v from mine".to_owned(), Some(a)),
            (format!("prepare mine as select '{a}'"), None),
            ("execute mine".to_owned(), Some(a)),
            (format!("listen \"{a}\""), None),
            // By itself: one that waits for another session, with a server in hand, may wait for ever.
            (format!("notify \"{a}\", '{a}'"), Some(a)),
        ] {
            let messages = raw.query(&sql);
            self.check(&messages, want.as_slice());
        }
        if self.dice.roll(2) == 0 {
            raw.query("begin");
        }
        // Whoever comes next has none of it.
        drop(raw);
        self.any("select coalesce(current_setting('my.token', true), '') || to_regclass('mine')", &["null"]);
    }

    /// A statement and a cancel for it that may come too early, in time, or too late: nobody else's is hit, and the
    /// statement behind it is not either.
    fn cancelled(&mut self, a: &str) {
        let nap = self.dice.one_of(&["0", "0.0005", "0.002", "0.02"]);
        self.raw.send(&query(&format!("select '{a}' from pg_sleep({nap})")));
        let mut cancel = Raw::connect(self.proxy.port());
        let mut request = Vec::new();
        frontend::cancel(&mut request, self.hello.pid, &self.hello.key);
        cancel.send(&request);
        self.seen.cancels.fetch_add(1, Ordering::Relaxed);
        let first = self.raw.until_ready(1);
        let got: Vec<String> = first.iter().filter_map(told).collect();
        // Its own cancel may also come between the row and the end of the statement.
        let hit = got == ["57014"] || got == [a, "57014"];
        assert!(hit || got == [a], "client {} in round {}: {got:?}", self.number, self.round);
        self.seen.cancelled.fetch_add(u64::from(hit), Ordering::Relaxed);
        // The proxy closes when the cancel has been dealt with.
        let (bytes, closed) = cancel.rest(PATIENCE);
        assert!(bytes.is_empty() && closed, "a cancel request gets no answer");
        self.any(&format!("select '{a}' || 'x'"), &[&format!("{a}x")]);
    }
}

/// What a message tells of an answer: the values of a row, a line of COPY, the code of an error, or what was notified.
#[must_use]
pub fn told(message: &Message) -> Option<String> {
    match message.tag {
        b'D' => Some(message.fields().join(",")),
        b'd' => Some(String::from_utf8_lossy(&message.body).trim_end().to_owned()),
        b'E' => Some(message.sqlstate()),
        b'A' => {
            let text = String::from_utf8_lossy(message.body.get(4..).unwrap_or_default()).into_owned();
            Some(text.split('\0').nth(1).unwrap_or_default().to_owned())
        }
        _ => None,
    }
}
