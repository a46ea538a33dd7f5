//! Cancel requests that race with statements over few server connections: before, during and after the statement that
//! they are for, several at once, with keys of sessions that have ended and with wrong keys; beside them bystanders, who
//! cancel nothing. Panics at the first statement that a foreign cancel ends. Never says which of its own cancels hits.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use helios_pgwire::frontend;

use crate::dice::Dice;
use crate::proxy::Proxy;
use crate::raw::{Hello, Message, PATIENCE, Raw, extended, query};
use crate::soak::{Until, told};

/// What the races came to.
#[derive(Debug, Default)]
pub struct Races {
    /// Cancel requests sent, each at some statement.
    pub sent: AtomicU64,
    /// Of these, with a wrong key or that of a session that has ended.
    pub wrong: AtomicU64,
    /// Statements of the racers that were cancelled.
    pub hit: AtomicU64,
    /// Statements that no cancel was for, none of which was cancelled.
    pub spared: AtomicU64,
}

struct Racer<'a> {
    proxy: &'a Proxy,
    raw: Raw,
    hello: Hello,
    /// Of a session of its own that has ended.
    old: Hello,
    name: String,
    round: u64,
    dice: Dice,
    races: &'a Races,
    /// Cancel requests that nobody has waited for.
    pending: Vec<Raw>,
}

/// Runs `racers` racers and half as many bystanders, until so many cancel requests were sent, or until then.
///
/// # Panics
/// At a foreign cancel.
pub fn run(proxy: &Proxy, racers: u64, requests: u64, until: Until) -> Races {
    let races = Races::default();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (races, over) = (&races, &over);
        for number in 0..racers.div_ceil(2) {
            scope.spawn(move || bystander(proxy, number, over, races));
        }
        let all: Vec<_> = (0..racers)
            .map(|number| {
                scope.spawn(move || {
                    let _ends = Ends(over);
                    let mut racer = Racer::new(proxy, number, until.seed, races);
                    while until.goes_on(racer.round) && races.sent.load(Ordering::Relaxed) < requests {
                        racer.round += 1;
                        racer.race();
                    }
                    racer.wait();
                })
            })
            .collect();
        let failed: Vec<_> = all.into_iter().filter_map(|racer| racer.join().err()).collect();
        over.store(true, Ordering::Relaxed);
        if let Some(why) = failed.into_iter().next() {
            std::panic::resume_unwind(why);
        }
    });
    races
}

/// A racer that panics lets the bystanders go.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

/// Statements of somebody who cancels nothing.
fn bystander(proxy: &Proxy, number: u64, over: &AtomicBool, races: &Races) {
    let (mut raw, _) = if number.is_multiple_of(2) { proxy.raw("app") } else { proxy.raw_tls("app") };
    let mut dice = Dice(number);
    let mut round = 0_u64;
    while !over.load(Ordering::Relaxed) {
        round += 1;
        let token = format!("bystander-{number}-{round}");
        let nap = dice.one_of(&["0", "0.0003", "0.001"]);
        let sql = format!("select '{token}' from pg_sleep({nap})");
        raw.send(&if dice.roll(2) == 0 { query(&sql) } else { extended(&sql, &[]) });
        assert_eq!(values(&raw.until_ready(1)), [token], "a foreign cancel");
        races.spared.fetch_add(1, Ordering::Relaxed);
    }
}

fn values(messages: &[Message]) -> Vec<String> {
    messages.iter().filter_map(told).collect()
}

impl<'a> Racer<'a> {
    fn new(proxy: &'a Proxy, number: u64, seed: u64, races: &'a Races) -> Self {
        let (raw, hello) = if number.is_multiple_of(2) { proxy.raw("app") } else { proxy.raw_tls("app") };
        let old = proxy.raw("app").1;
        let dice = Dice(seed.wrapping_mul(999_983).wrapping_add(number));
        let name = format!("racer-{number}");
        Self { proxy, raw, hello, old, name, round: 0, dice, races, pending: Vec::new() }
    }

    fn cancel(&mut self) {
        let mut hello = self.hello.clone();
        let wrong = match self.dice.roll(8) {
            0 => {
                hello.key[0] ^= 1;
                true
            }
            1 => {
                hello = self.old.clone();
                true
            }
            _ => false,
        };
        let mut request = Vec::new();
        frontend::cancel(&mut request, hello.pid, &hello.key);
        let mut raw = Raw::connect(self.proxy.port());
        raw.send(&request);
        self.races.sent.fetch_add(1, Ordering::Relaxed);
        self.races.wrong.fetch_add(u64::from(wrong), Ordering::Relaxed);
        if wrong {
            // It hits nothing: nothing has to be waited for.
            return;
        }
        self.pending.push(raw);
    }

    /// Waits until every cancel has been dealt with: the proxy closes then.
    fn wait(&mut self) {
        for mut cancel in self.pending.drain(..) {
            let (bytes, closed) = cancel.rest(PATIENCE);
            assert!(bytes.is_empty() && closed, "a cancel request gets no answer");
        }
    }

    /// Waits, and runs a statement that no cancel is for any more.
    fn spared(&mut self, sql: &str, want: &[&str]) {
        self.wait();
        self.raw.send(&query(sql));
        assert_eq!(values(&self.raw.until_ready(1)), want, "{} in round {}", self.name, self.round);
        self.races.spared.fetch_add(1, Ordering::Relaxed);
    }

    fn race(&mut self) {
        let tokens: Vec<String> =
            (0..=self.dice.roll(2)).map(|part| format!("{}-{}-{part}", self.name, self.round)).collect();
        let in_block = self.dice.roll(4) == 0;
        if in_block {
            self.spared("begin", &[]);
        }
        let mut bytes = Vec::new();
        for token in &tokens {
            let nap = self.dice.one_of(&["0", "0", "0.0002", "0.001", "0.003"]);
            let sql = format!("select '{token}' from pg_sleep({nap})");
            bytes.extend(if self.dice.roll(2) == 0 { query(&sql) } else { extended(&sql, &[]) });
        }
        let requests = 1 + self.dice.roll(3) / 2;
        match self.dice.roll(3) {
            0 => {
                (0..requests).for_each(|_| self.cancel());
                self.raw.send(&bytes);
            }
            1 => {
                self.raw.send(&bytes);
                (0..requests).for_each(|_| self.cancel());
            }
            _ => {
                self.raw.send(&bytes);
                std::thread::sleep(Duration::from_micros(u64::try_from(self.dice.roll(1500)).unwrap()));
                (0..requests).for_each(|_| self.cancel());
            }
        }
        self.answers(&tokens, in_block);
        if in_block {
            self.spared("rollback", &[]);
        }
        if self.dice.roll(2) == 0 {
            let token = format!("{}-{}", self.name, self.round);
            self.spared(&format!("select '{token}'"), &[&token]);
        }
        if self.dice.roll(64) == 0 {
            self.wait();
            self.old = std::mem::take(&mut self.hello);
            (self.raw, self.hello) = self.proxy.raw("app");
        }
    }

    /// Each statement gave its row, or was cancelled by one of our own.
    fn answers(&mut self, tokens: &[String], in_block: bool) {
        let mut failed = false;
        for token in tokens {
            let got = values(&self.raw.until_ready(1));
            let hit = got == ["57014"] || got == [token.as_str(), "57014"];
            let right = if failed && in_block { got == ["25P02"] } else { got == [token.as_str()] };
            let ours = hit && !self.pending.is_empty();
            assert!(right || ours, "{} in round {}: {got:?} for {token}", self.name, self.round);
            failed |= hit;
            self.races.hit.fetch_add(u64::from(hit), Ordering::Relaxed);
        }
    }
}
