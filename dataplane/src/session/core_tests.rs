//! The session core driven without a socket: scripted bytes in any split, what it forwards, replies and decides.

use super::core::{ClientStep, Core, Cut, Ending, ServerOutcome};
use super::run::Judge;
use crate::route::{Class, NoFunctions, Pins, VerdictCache};
use crate::statements::{Interner, Prepared, Scope};
use helios_pgwire::PgError;
use helios_pgwire::backend::{TxStatus, ready_for_query};
use helios_pgwire::frame::put;
use helios_proto::model::PoolMode;

fn query(sql: &str) -> Vec<u8> {
    let mut out = Vec::new();
    helios_pgwire::frontend::query(&mut out, sql);
    out
}

fn parse(name: &str, sql: &str) -> Vec<u8> {
    let mut out = Vec::new();
    put(&mut out, b'P', |b| b.extend_from_slice(format!("{name}\0{sql}\0\0\0").as_bytes()));
    out
}

fn bind(statement: &str) -> Vec<u8> {
    let mut out = Vec::new();
    put(&mut out, b'B', |b| b.extend_from_slice(format!("\0{statement}\0\0\0\0\0\0\0").as_bytes()));
    out
}

fn bare(tag: u8) -> Vec<u8> {
    let mut out = Vec::new();
    put(&mut out, tag, |_| {});
    out
}

fn extended(sql: &str) -> Vec<u8> {
    [parse("", sql), bind(""), bare(b'E'), bare(b'S')].concat()
}

fn ready(status: TxStatus) -> Vec<u8> {
    let mut out = Vec::new();
    ready_for_query(&mut out, status);
    out
}

/// A core with a client's inbox, in the role of the driver.
struct Play {
    core: Core,
    cache: VerdictCache,
    statements: Interner,
    edit: Vec<u8>,
    inbox: Vec<u8>,
    forwarded: Vec<u8>,
    replied: Vec<u8>,
}

/// What made the player stop.
#[derive(Debug, PartialEq, Eq)]
enum Stop {
    Wait,
    Stall,
    Acquire,
    Close(Ending),
}

impl Play {
    fn new(mode: PoolMode) -> Self {
        let cache = VerdictCache::new();
        let (core, statements) = (Core::new(mode), Interner::new(Scope::new([0; 16])));
        Self { core, cache, statements, edit: vec![], inbox: vec![], forwarded: vec![], replied: vec![] }
    }

    fn client(&mut self, bytes: &[u8]) -> Stop {
        self.inbox.extend_from_slice(bytes);
        loop {
            let mut judge = Judge {
                cache: &mut self.cache,
                standard_strings: true,
                known: &NoFunctions,
                readable: true,
                statements: &mut self.statements,
                watching: &mut (),
                edit: &mut self.edit,
            };
            match self.core.client(&self.inbox, &mut judge, &mut self.replied) {
                ClientStep::Wait => return Stop::Wait,
                ClientStep::Stall => return Stop::Stall,
                ClientStep::Acquire => return Stop::Acquire,
                ClientStep::Close(ending) => return Stop::Close(ending),
                ClientStep::Forward(n) => self.forwarded.extend(self.inbox.drain(..n)),
                ClientStep::Rewritten(n) => {
                    self.inbox.drain(..n);
                    self.forwarded.append(&mut self.edit);
                }
                ClientStep::Consume(n) => drop(self.inbox.drain(..n)),
            }
        }
    }

    /// Like `client`, with a server connection at hand whenever one is needed.
    fn client_bound(&mut self, bytes: &[u8], standby: bool) -> Stop {
        let mut stop = self.client(bytes);
        while stop == Stop::Acquire {
            self.core.bind(standby, Prepared::default());
            stop = self.client(&[]);
        }
        stop
    }

    fn server(&mut self, bytes: &[u8]) -> (usize, ServerOutcome) {
        let mut bytes = bytes.to_vec();
        loop {
            let step = self.core.server(&bytes, &[]);
            match step.outcome {
                ServerOutcome::Cut(Cut { at, len, insert }) => drop(bytes.splice(at..at + len, insert)),
                outcome => return (step.forward, outcome),
            }
        }
    }
}

#[test]
fn a_statement_is_forwarded_untouched_and_frees_its_server() {
    let mut play = Play::new(PoolMode::Transaction);
    let sql = query("select 1");
    assert_eq!(play.client(&sql), Stop::Acquire);
    assert_eq!(play.core.run().verdict().class, Class::Read);
    assert_eq!(play.client_bound(&[], false), Stop::Wait);
    assert_eq!(play.forwarded, sql);
    assert!(!play.core.may_release());
    let answer = [bare(b'T'), bare(b'D'), bare(b'C'), ready(TxStatus::Idle)].concat();
    assert_eq!(play.server(&answer), (answer.len(), ServerOutcome::Settled));
    assert!(play.core.may_release());
}

#[test]
fn a_server_that_says_what_was_not_asked_is_lost_and_nothing_of_that_is_forwarded() {
    let answer = [bare(b'T'), bare(b'D'), bare(b'C'), ready(TxStatus::Idle)].concat();
    for more in [bare(b'T'), bare(b'1'), bare(b'R'), bare(b'!'), bare(b'G'), ready(TxStatus::Idle)] {
        let mut play = Play::new(PoolMode::Transaction);
        play.client_bound(&query("update t set i = 1"), false);
        let both = [answer.clone(), more].concat();
        assert_eq!(play.server(&both), (answer.len(), ServerOutcome::Fatal));
        assert!(!play.core.may_release());
    }
}

#[test]
fn any_split_of_the_clients_bytes_forwards_the_same() {
    let script = [query("begin"), extended("insert into t values (1)"), query("commit"), bare(b'F')].concat();
    for size in 1..=script.len() {
        let mut play = Play::new(PoolMode::Transaction);
        for chunk in script.chunks(size) {
            play.client_bound(chunk, false);
        }
        assert_eq!(play.forwarded, script, "in chunks of {size}");
        assert!(play.inbox.is_empty() && play.replied.is_empty());
    }
}

#[test]
fn any_split_of_the_servers_bytes_forwards_the_same_and_settles_once() {
    let answer =
        [bare(b'1'), bare(b'2'), vec![b'D', 0, 0, 0, 9, 1, 2, 3, 4, 5], bare(b'C'), ready(TxStatus::Idle)]
            .concat();
    for size in 1..=answer.len() {
        for standby in [false, true] {
            let mut play = Play::new(PoolMode::Transaction);
            play.client_bound(&extended("select 1"), standby);
            let (mut inbox, mut forwarded, mut settled) = (Vec::new(), Vec::new(), 0);
            for chunk in answer.chunks(size) {
                inbox.extend_from_slice(chunk);
                let (n, outcome) = play.server(&inbox);
                forwarded.extend(inbox.drain(..n));
                settled += usize::from(outcome == ServerOutcome::Settled);
            }
            assert_eq!((forwarded, settled), (answer.clone(), 1), "in chunks of {size}");
            assert!(play.core.may_release());
        }
    }
}

#[test]
fn a_standbys_refusal_is_not_forwarded_and_the_run_comes_again_as_a_write() {
    let mut play = Play::new(PoolMode::Transaction);
    let run = extended("select f()");
    play.client_bound(&run, true);
    let head = [bare(b'1'), bare(b'2')].concat();
    assert_eq!(play.server(&head), (0, ServerOutcome::More));
    let refusal = PgError::error("25006", "cannot execute INSERT in a read-only transaction").to_bytes();
    assert_eq!(play.server(&[head.clone(), refusal].concat()), (0, ServerOutcome::Refused));
    assert_eq!(play.core.held(), head.len());
    play.core.abandon();
    play.core.replay();
    play.cache.learn_write(b"select f()");
    play.forwarded.clear();
    assert_eq!(play.client(&run), Stop::Acquire);
    assert_eq!(play.core.run().verdict().class, Class::Write);
}

#[test]
fn a_failed_checkout_drops_the_run_and_nothing_else() {
    let error = PgError::error("53300", "connection acquire timeout");
    for (run, answers) in [(query("select 1"), 1), (extended("select 1"), 1)] {
        let mut play = Play::new(PoolMode::Transaction);
        assert_eq!(play.client(&[run, query("select 2")].concat()), Stop::Acquire);
        let mut out = Vec::new();
        play.core.fail(&error, &mut out);
        play.replied.extend(out);
        assert_eq!(play.client(&[]), Stop::Acquire, "the next statement is served");
        assert_eq!(play.inbox, query("select 2"));
        let want = [error.to_bytes(), ready(TxStatus::Idle)].concat();
        assert_eq!((play.replied, answers), (want, 1));
    }
}

#[test]
fn statement_mode_refuses_blocks_in_every_form() {
    for run in [query("begin"), query("select 1; begin"), extended("start transaction")] {
        let mut play = Play::new(PoolMode::Statement);
        assert_eq!(play.client(&run), Stop::Wait);
        assert!(play.inbox.is_empty() && play.forwarded.is_empty());
        assert!(
            play.replied.windows(5).any(|w| w == b"0A000") && play.replied.ends_with(&ready(TxStatus::Idle))
        );
    }
}

#[test]
fn the_unnamed_statement_of_another_client_cannot_be_bound() {
    let mut play = Play::new(PoolMode::Transaction);
    assert_eq!(play.client(&[bind(""), bare(b'E'), bare(b'S')].concat()), Stop::Wait);
    assert!(play.replied.windows(5).any(|w| w == b"26000") && play.forwarded.is_empty());
}

#[test]
fn state_left_behind_pins_until_discarded() {
    for (run, pin) in [
        (query("listen a"), Pins::LISTEN),
        (query("create temp table t ()"), Pins::TEMP_TABLE),
        (extended("set a.b = '1'"), Pins::SETTING),
        ([parse("", "select 1"), bare(b'S')].concat(), Pins::PREPARE),
    ] {
        let mut play = Play::new(PoolMode::Transaction);
        play.client_bound(&run, false);
        assert!(play.core.pins().contains(pin));
    }
    let mut play = Play::new(PoolMode::Transaction);
    play.client_bound(&[parse("s1", "select 1"), bare(b'S')].concat(), false);
    assert!(play.core.pins().is_empty(), "a named statement works on any server");
    let mut play = Play::new(PoolMode::Transaction);
    play.client_bound(&query("listen a"), false);
    play.server(&[bare(b'C'), ready(TxStatus::Idle)].concat());
    assert!(!play.core.may_release());
    play.client_bound(&query("discard all"), false);
    play.server(&[bare(b'C'), ready(TxStatus::Idle)].concat());
    assert!(play.core.may_release());
}

#[test]
fn without_a_server_only_what_needs_one_asks_for_it() {
    let mut play = Play::new(PoolMode::Transaction);
    assert_eq!(play.client(&[bare(b'S'), bare(b'H'), bare(b'c'), bare(b'S')].concat()), Stop::Wait);
    assert_eq!(play.replied, [ready(TxStatus::Idle), ready(TxStatus::Idle)].concat());
    assert_eq!(play.client(b"X\0\0\0\x04"), Stop::Close(Ending::Terminate));
    assert_eq!(Play::new(PoolMode::Transaction).client(b"Q\0\0\0\x03"), Stop::Close(Ending::Cut));
    let Stop::Close(Ending::Error(error)) = Play::new(PoolMode::Transaction).client(b"z") else { panic!() };
    assert_eq!((error.code, error.message.as_str()), ("08P01", "invalid frontend message type 122"));
}

#[test]
fn a_statement_behind_one_on_a_standby_waits_for_its_own_choice() {
    let mut play = Play::new(PoolMode::Transaction);
    let (first, second) = (query("select 1"), query("insert into t values (1)"));
    assert_eq!(play.client_bound(&[first.clone(), second.clone()].concat(), true), Stop::Stall);
    assert_eq!((play.forwarded.clone(), play.inbox.clone()), (first, second));
    play.server(&[bare(b'T'), bare(b'C'), ready(TxStatus::Idle)].concat());
    assert!(play.core.may_release());
    drop(play.core.released());
    assert_eq!(play.client(&[]), Stop::Acquire);
    assert_eq!(play.core.run().verdict().class, Class::Write);
}

#[test]
fn bytes_of_strangers_do_not_panic() {
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    for _ in 0..20_000 {
        let tags = b"QPBDESHCFXdcfpz123CDTZEAGHNSWnstIV";
        let mut bytes = Vec::new();
        for _ in 0..next() % 6 {
            let tag = tags[usize::try_from(next()).unwrap() % tags.len()];
            put(&mut bytes, tag, |b| b.extend((0..next() % 12).map(|_| u8::try_from(next() % 128).unwrap())));
        }
        bytes.truncate(usize::try_from(next()).unwrap() % (bytes.len() + 1));
        let mut play = Play::new(PoolMode::Transaction);
        if next() % 2 == 0 {
            play.client_bound(&query("select 1"), next() % 2 == 0);
        }
        play.client_bound(&bytes, next() % 2 == 0);
        play.server(&bytes);
    }
}

#[test]
fn a_text_that_cannot_be_read_goes_to_the_primary_and_pins() {
    let mut cache = VerdictCache::new();
    let mut judge = Judge {
        cache: &mut cache,
        standard_strings: true,
        known: &NoFunctions,
        readable: false,
        statements: &mut Interner::new(Scope::new([0; 16])),
        watching: &mut (),
        edit: &mut Vec::new(),
    };
    let mut core = Core::new(PoolMode::Transaction);
    assert_eq!(core.client(&query("select 1"), &mut judge, &mut Vec::new()), ClientStep::Acquire);
    assert_eq!(core.run().verdict().class, Class::Write);
    core.bind(false, Prepared::default());
    assert!(core.pins().contains(Pins::SETTING));
}

#[test]
fn a_changed_encoding_is_noticed_and_its_return_too() {
    let mut core = Core::new(PoolMode::Transaction);
    let baseline = [(b"client_encoding".to_vec(), b"UTF8".to_vec())];
    for (value, differs) in [(&b"client_encoding\0SJIS\0"[..], true), (b"client_encoding\0UTF8\0", false)] {
        let mut report = Vec::new();
        put(&mut report, b'S', |b| b.extend_from_slice(value));
        core.server(&report, &baseline);
        assert_eq!(core.reads_differently(), differs);
    }
}

fn function_call(oid: u32) -> Vec<u8> {
    let mut out = Vec::new();
    put(&mut out, b'F', |b| {
        b.extend_from_slice(&oid.to_be_bytes());
        b.extend_from_slice(&[0; 6]);
    });
    out
}

#[test]
fn a_called_function_may_leave_anything_behind_unless_it_is_one_for_large_objects() {
    const PG_ADVISORY_LOCK: u32 = 2880;
    const LO_OPEN: u32 = 952;
    let answer = [bare(b'V'), ready(TxStatus::Idle)].concat();
    for (oid, free) in [(PG_ADVISORY_LOCK, false), (LO_OPEN, true)] {
        let mut play = Play::new(PoolMode::Transaction);
        assert_eq!(play.client_bound(&function_call(oid), false), Stop::Wait);
        play.server(&answer);
        assert_eq!(play.core.may_release(), free, "{oid}");
        // Behind a statement on the same connection as well, and a DISCARD ALL before it does not free it.
        let mut play = Play::new(PoolMode::Transaction);
        assert_eq!(
            play.client_bound(&[query("discard all"), function_call(oid)].concat(), false),
            Stop::Stall
        );
        play.server(&[bare(b'C'), ready(TxStatus::Idle)].concat());
        assert_eq!(play.client(&[]), Stop::Wait);
        assert!(play.core.take_wrote());
        play.server(&answer);
        assert_eq!(play.core.may_release(), free, "{oid}");
    }
}

#[test]
fn a_statement_prepared_behind_a_large_object_call_pins_nothing() {
    const LO_OPEN: u32 = 952;
    for (before, pinned) in [(function_call(LO_OPEN), false), (query("set local work_mem = '1MB'"), true)] {
        let mut play = Play::new(PoolMode::Transaction);
        assert_eq!(play.client_bound(&query("begin"), false), Stop::Wait);
        play.server(&[bare(b'C'), ready(TxStatus::InTransaction)].concat());
        assert_eq!(play.client(&before), Stop::Wait);
        let answer = if before.first() == Some(&b'F') { b'V' } else { b'C' };
        play.server(&[bare(answer), ready(TxStatus::InTransaction)].concat());
        assert_eq!(play.client(&[parse("s", "select 1"), bare(b'S')].concat()), Stop::Wait);
        assert_eq!(play.core.pins().contains(Pins::SETTING), pinned);
    }
}

#[test]
fn the_unnamed_statement_of_another_client_cannot_be_reached_behind_a_flush() {
    let mut close = Vec::new();
    put(&mut close, b'C', |b| b.extend_from_slice(b"Sx\0"));
    let mut describe = Vec::new();
    put(&mut describe, b'D', |b| b.extend_from_slice(b"S\0"));
    let mut large = Vec::new();
    put(&mut large, b'B', |b| b.extend_from_slice(&[0; 200_000]));
    for use_it in [bind(""), describe, large] {
        for cut in [5, 6, 7, use_it.len()] {
            let mut play = Play::new(PoolMode::Transaction);
            let begun = [close.clone(), bare(b'H')].concat();
            assert_eq!(play.client_bound(&begun, false), Stop::Wait);
            let mut stop = play.client(use_it.get(..cut).unwrap());
            if stop == Stop::Wait {
                stop = play.client(use_it.get(cut..).unwrap());
            }
            let Stop::Close(Ending::Error(error)) = stop else { panic!("{stop:?}") };
            assert_eq!(error.code, "26000");
            assert_eq!(play.forwarded, begun);
        }
    }
    let mut play = Play::new(PoolMode::Transaction);
    play.client_bound(&[parse("", "select 1"), bare(b'H')].concat(), false);
    assert_eq!(play.client(&[bind(""), bare(b'E'), bare(b'S')].concat()), Stop::Wait, "its own may be used");
}

#[test]
fn a_large_bind_of_which_only_the_header_came_is_not_sent_unseen() {
    let mut large = Vec::new();
    put(&mut large, b'B', |b| b.extend_from_slice(&[0; 200_000]));
    let mut play = Play::new(PoolMode::Transaction);
    assert_eq!(play.client_bound(large.get(..5).unwrap(), false), Stop::Wait);
    play.client_bound(large.get(5..).unwrap(), false);
    assert!(play.forwarded.is_empty());
    assert_eq!(play.replied.get(..1), Some(&b"E"[..]));
}

#[test]
fn a_named_statement_does_what_its_text_says_when_it_is_bound() {
    let mut play = Play::new(PoolMode::Transaction);
    for (sql, writes, pins) in [
        ("select 1", false, Pins::NONE),
        ("insert into t values (1)", true, Pins::NONE),
        ("listen a", false, Pins::LISTEN),
    ] {
        let mut run = |bytes: &[u8], replies: &[u8]| {
            play.client_bound(bytes, false);
            let replies: Vec<u8> = replies.iter().flat_map(|tag| bare(*tag)).collect();
            play.server(&[replies, ready(TxStatus::Idle)].concat());
            let seen = (play.core.take_wrote(), play.core.pins());
            if play.core.may_release() {
                drop(play.core.released());
            }
            seen
        };
        assert_eq!(run(&[parse(sql, sql), bare(b'S')].concat(), b"1"), (false, Pins::NONE), "{sql}");
        // Another server: the proxy's own Parse is answered first.
        assert_eq!(run(&[bind(sql), bare(b'E'), bare(b'S')].concat(), b"12C"), (writes, pins), "{sql}");
    }
}

#[test]
fn a_session_whose_isolation_a_standby_refuses_stays_on_the_primary() {
    let mut refusal = Vec::new();
    put(&mut refusal, b'E', |b| {
        b.extend_from_slice(b"SERROR\0C0A000\0Mlocalised\0RGetSerializableTransactionSnapshot\0\0");
    });
    let mut play = Play::new(PoolMode::Transaction);
    play.client_bound(&query("select 1"), true);
    assert_eq!(play.server(&refusal), (0, ServerOutcome::Refused));
    play.core.replay();
    assert_eq!(play.client(&query("select 1")), Stop::Acquire);
    assert_eq!(play.core.run().verdict().hint.route, Some(crate::route::RouteHint::Primary));
    let mut other = Vec::new();
    put(&mut other, b'E', |b| b.extend_from_slice(b"SERROR\0C0A000\0Mnot supported\0Rf\0\0"));
    let mut play = Play::new(PoolMode::Transaction);
    play.client_bound(&query("select 1"), true);
    assert_eq!(play.server(&other).1, ServerOutcome::More);
}

#[test]
fn statement_mode_refuses_blocks_behind_a_flush() {
    for block in [query("begin"), parse("", "begin")] {
        let mut play = Play::new(PoolMode::Statement);
        let begun = [parse("", "select 1"), bind(""), bare(b'E'), bare(b'H')].concat();
        assert_eq!(play.client_bound(&begun, false), Stop::Wait);
        let Stop::Close(Ending::Error(error)) = play.client(&block) else { panic!("not refused") };
        assert_eq!((error.code, play.forwarded), ("0A000", begun));
    }
}

#[test]
fn a_write_that_a_standby_refuses_too_late_for_a_replay_finds_the_primary_at_the_next_try() {
    let mut refusal = Vec::new();
    put(&mut refusal, b'E', |b| b.extend_from_slice(b"SERROR\0C25006\0Mread-only\0\0"));
    let late = [bare(b'T'), bare(b'D'), bare(b'C'), bare(b'T'), refusal].concat();
    for (status, primary) in [(TxStatus::Idle, true), (TxStatus::InTransaction, false)] {
        let mut play = Play::new(PoolMode::Transaction);
        play.client_bound(&query("begin read only"), true);
        play.server(&[bare(b'C'), ready(status)].concat());
        play.client_bound(&query("select 1; select * from v"), true);
        assert_eq!(play.server(&late).1, ServerOutcome::More);
        play.server(&ready(TxStatus::Idle));
        drop(play.core.released());
        assert_eq!(play.client(&query("select 1; select * from v")), Stop::Acquire);
        let hint = play.core.run().verdict().hint.route;
        assert_eq!(hint == Some(crate::route::RouteHint::Primary), primary);
    }
}

fn lost_error() -> PgError {
    PgError::error("40003", "lost")
}

/// A transaction in a session whose server then breaks.
fn open_transaction(play: &mut Play) {
    play.client_bound(&query("begin"), false);
    play.server(&[bare(b'C'), ready(TxStatus::InTransaction)].concat());
}

#[test]
fn a_name_in_pieces_is_replaced_inside_a_transaction_as_well() {
    let about = |tag: u8| {
        let mut out = Vec::new();
        put(&mut out, tag, |body| body.extend_from_slice(b"Sa_name_of_some_length\0"));
        out
    };
    for message in [about(b'D'), about(b'C'), bind("a_name_of_some_length")] {
        let mut whole = None;
        for cut in (1..message.len()).rev() {
            let mut play = Play::new(PoolMode::Transaction);
            open_transaction(&mut play);
            play.client_bound(&[parse("a_name_of_some_length", "select 1"), bare(b'S')].concat(), false);
            play.server(&[bare(b'1'), ready(TxStatus::InTransaction)].concat());
            play.forwarded.clear();
            play.client(message.get(..cut).unwrap());
            play.client(&[message.get(cut..).unwrap(), &bare(b'S')].concat());
            let whole = whole.get_or_insert_with(|| play.forwarded.clone());
            assert_eq!(&play.forwarded, whole, "cut at {cut}");
        }
    }
}

#[test]
fn a_commit_with_more_behind_it_is_in_doubt_when_the_server_is_lost() {
    let mut play = Play::new(PoolMode::Transaction);
    open_transaction(&mut play);
    play.client(&[query("commit"), query("begin"), query("insert into t values (1)")].concat());
    let mut out = Vec::new();
    assert!(play.core.lost(&lost_error(), false, &mut out));
    let codes = |code: &[u8]| out.windows(code.len()).filter(|part| *part == code).count();
    assert_eq!((codes(b"08007"), codes(b"40001")), (3, 0));
    // The next transaction is another one.
    let mut play = Play::new(PoolMode::Transaction);
    open_transaction(&mut play);
    play.client(&query("commit"));
    play.server(&[bare(b'C'), ready(TxStatus::Idle)].concat());
    drop(play.core.released());
    open_transaction(&mut play);
    play.client(&query("insert into t values (1)"));
    let mut out = Vec::new();
    assert!(play.core.lost(&lost_error(), false, &mut out));
    assert!(out.windows(5).any(|part| part == b"40001"));
}

#[test]
fn a_lost_transaction_is_over_for_no_statement_but_its_end() {
    let mut play = Play::new(PoolMode::Transaction);
    open_transaction(&mut play);
    play.client_bound(&[parse("s", "select 1"), bare(b'S')].concat(), false);
    play.server(&[bare(b'1'), ready(TxStatus::InTransaction)].concat());
    assert!(play.core.lost(&lost_error(), false, &mut Vec::new()));
    for (sql, code, status) in [
        ("deallocate s", "40001", TxStatus::Failed),
        ("deallocate all", "25P02", TxStatus::Failed),
        ("rollback to savepoint a", "25P02", TxStatus::Failed),
        ("commit and chain", "25P02", TxStatus::Failed),
        ("commit", "ROLLBACK", TxStatus::Idle),
    ] {
        play.replied.clear();
        assert_eq!(play.client(&query(sql)), Stop::Wait, "{sql}");
        let told = play.replied.windows(code.len()).any(|part| part == code.as_bytes());
        assert!(told && play.replied.ends_with(&ready(status)), "{sql}");
    }
    assert_eq!(play.core.sql_of(b"s"), Some(&b"select 1"[..]), "what failed has not happened");
}

#[test]
fn a_deallocate_by_the_extended_protocol_drops_a_stand_in_and_the_next_run_waits_for_it() {
    let mut play = Play::new(PoolMode::Transaction);
    open_transaction(&mut play);
    play.client_bound(&[parse("s", "select 1"), bare(b'S')].concat(), false);
    play.server(&[bare(b'1'), ready(TxStatus::InTransaction)].concat());
    play.forwarded.clear();
    let next = [bind("s"), bare(b'E'), bare(b'S')].concat();
    assert_eq!(play.client(&[extended("DEALLOCATE s"), next].concat()), Stop::Stall);
    let sent = String::from_utf8_lossy(&play.forwarded).into_owned();
    assert!(sent.contains("DEALLOCATE hp_deallocated\0") && !sent.contains("DEALLOCATE s"), "{sent:?}");
    assert_eq!(play.core.sql_of(b"s"), None);
    // It fails: the name is still there, and what waited finds it.
    let mut error = Vec::new();
    PgError::error("25P02", "current transaction is aborted").encode(&mut error);
    play.server(&[bare(b'3'), bare(b'1'), error, ready(TxStatus::Failed)].concat());
    assert_eq!(play.core.sql_of(b"s"), Some(&b"select 1"[..]));
    play.forwarded.clear();
    assert_eq!(play.client(&[]), Stop::Wait);
    assert!(String::from_utf8_lossy(&play.forwarded).contains("hp_"), "renamed");
}

#[test]
fn deallocate_all_however_it_is_asked_for_forgets_names_and_doubts_copies() {
    let done = |play: &mut Play| {
        let mut complete = Vec::new();
        put(&mut complete, b'C', |body| body.extend_from_slice(b"DEALLOCATE ALL\0"));
        play.server(&[bare(b'1'), bare(b'2'), complete, ready(TxStatus::InTransaction)].concat());
    };
    for sql in ["deallocate all", "deallocate /* by a comment */ all"] {
        let mut play = Play::new(PoolMode::Transaction);
        open_transaction(&mut play);
        play.client_bound(&[parse("s", "select 1"), bare(b'S')].concat(), false);
        play.server(&[bare(b'1'), ready(TxStatus::InTransaction)].concat());
        play.client(&extended(sql));
        done(&mut play);
        assert_eq!(play.core.sql_of(b"s"), None, "{sql}");
        play.client_bound(&[parse("t", "select 1"), bare(b'S')].concat(), false);
        play.server(&[bare(b'3'), bare(b'1'), ready(TxStatus::InTransaction)].concat());
        assert_eq!(play.core.sql_of(b"t"), Some(&b"select 1"[..]), "{sql}");
    }
}

#[test]
fn an_unnamed_statement_whose_parse_was_skipped_is_not_this_sessions() {
    let mut play = Play::new(PoolMode::Transaction);
    let run = [bind("missing"), parse("", "select 1"), bare(b'S')].concat();
    assert_eq!(play.client_bound(&run, false), Stop::Wait);
    // Pipelined behind it, before its answer is known.
    let use_it = [bind(""), bare(b'E'), bare(b'S')].concat();
    assert_eq!(play.client(&use_it), Stop::Stall);
    assert!(play.core.waits_for_name() && !play.forwarded.ends_with(&use_it));
    let error = PgError::error("26000", "prepared statement \"missing\" does not exist").to_bytes();
    play.server(&error);
    let Stop::Close(Ending::Error(error)) = play.client(&[]) else { panic!("reached") };
    assert_eq!(error.code, "26000");
}

#[test]
fn a_name_parsed_anew_behind_a_parse_that_fails_has_the_new_text() {
    let mut play = Play::new(PoolMode::Transaction);
    let first = [bind("missing"), parse("s", "select 1"), bare(b'S')].concat();
    assert_eq!(play.client_bound(&first, false), Stop::Wait);
    let second = [parse("s", "select 2"), bind("s"), bare(b'E'), bare(b'S')].concat();
    assert_eq!(play.client(&second), Stop::Stall);
    play.forwarded.clear();
    play.server(&PgError::error("26000", "missing").to_bytes());
    assert_eq!(play.client(&[]), Stop::Wait);
    let has = |text: &[u8]| play.forwarded.windows(text.len()).any(|part| part == text);
    assert!(has(b"select 2") && !has(b"select 1"));
    assert_eq!(play.core.sql_of(b"s"), Some(&b"select 2"[..]));
}

#[test]
fn discard_all_in_a_pipeline_is_noticed() {
    let mut play = Play::new(PoolMode::Transaction);
    play.client_bound(&[parse("s", "select 1"), bare(b'S')].concat(), false);
    play.server(&[bare(b'1'), ready(TxStatus::Idle)].concat());
    drop(play.core.released());
    let all = [query("discard all"), parse("s", "select 2"), bare(b'S')].concat();
    assert_eq!(play.client_bound(&all, false), Stop::Stall);
    play.server(&[bare(b'C'), ready(TxStatus::Idle)].concat());
    assert_eq!(play.core.sql_of(b"s"), None);
    assert_eq!(play.client_bound(&[], false), Stop::Wait);
    assert_eq!(play.core.sql_of(b"s"), Some(&b"select 2"[..]));
}

#[test]
fn what_the_server_skips_pins_nothing() {
    let mut play = Play::new(PoolMode::Transaction);
    play.client_bound(&[bind("missing"), bare(b'H')].concat(), false);
    play.server(&PgError::error("26000", "missing").to_bytes());
    assert_eq!(play.client(&[query("listen a"), bare(b'S')].concat()), Stop::Wait);
    play.server(&ready(TxStatus::Idle));
    assert!(play.core.may_release());
}

#[test]
fn a_discard_all_that_was_lost_with_its_server_discards_nothing_later() {
    let mut play = Play::new(PoolMode::Transaction);
    play.client_bound(&query("discard all"), false);
    assert!(play.core.lost(&lost_error(), false, &mut Vec::new()));
    play.client_bound(&[parse("s", "select 1"), bare(b'S')].concat(), false);
    play.server(&[bare(b'1'), ready(TxStatus::Idle)].concat());
    assert_eq!(play.core.sql_of(b"s"), Some(&b"select 1"[..]));
}

#[test]
fn a_run_whose_server_was_dead_before_it_was_sent_goes_to_another_whole_and_once() {
    let long = query(&"x".repeat(super::core::TEXT_MAX + 100));
    let begun = long.get(..super::core::TEXT_MAX).unwrap();
    let runs = [
        (query("insert into t values (1)"), true),
        (extended("insert into t values (1)"), true),
        (query("set lock_timeout = 1"), true),
        (query("set local lock_timeout = 1; select set_config('a.b', 'c', false)"), true),
        (query("begin"), true),
        (begun.to_vec(), false),
    ];
    for mode in [PoolMode::Transaction, PoolMode::Session] {
        for (run, whole) in &runs {
            let mut play = Play::new(mode);
            let behind = if *whole { query("select 2") } else { Vec::new() };
            assert_eq!(play.client(&[&run[..], &behind].concat()), Stop::Acquire);
            play.core.bind(false, Prepared::default());
            assert!(play.core.unsent());
            play.core.take_back();
            assert!(!play.core.unsent() && play.core.pins().is_empty() && !play.core.take_wrote());
            assert_eq!(play.client(&[]), Stop::Acquire, "it asks again");
            play.core.bind(false, Prepared::default());
            play.client(&[]);
            assert!(!play.core.unsent() && play.forwarded.starts_with(run), "{mode:?}");
            let counts = play.core.take_counts();
            assert_eq!(counts.reads + counts.writes, 1 + u32::from(*whole), "counted once");

            // Or it is given up, and only it.
            let mut play = Play::new(mode);
            assert_eq!(play.client(&[&run[..], &behind].concat()), Stop::Acquire);
            play.core.bind(false, Prepared::default());
            play.core.unbind();
            play.core.fail(&lost_error(), &mut play.replied);
            assert!(play.core.pins().is_empty() && !play.core.take_wrote());
            assert_eq!(
                play.replied,
                [lost_error().to_bytes(), ready(TxStatus::Idle)].concat().get(..play.replied.len()).unwrap()
            );
            if *whole {
                assert_eq!(play.client(&[]), Stop::Acquire);
                assert_eq!(play.inbox, behind);
            } else {
                let (_, rest) = long.split_at(begun.len());
                assert_eq!(play.client(&[rest, &query("select 2")].concat()), Stop::Acquire);
                assert_eq!(play.inbox, query("select 2"));
            }
        }
    }
}

fn tags(mut bytes: &[u8]) -> String {
    let mut out = String::new();
    while bytes.len() >= 5 {
        out.push(char::from(bytes[0]));
        let len = usize::try_from(u32::from_be_bytes(bytes[1..5].try_into().unwrap())).unwrap();
        bytes = &bytes[(len + 1).min(bytes.len())..];
    }
    out
}

#[test]
fn what_was_let_go_is_not_replayed() {
    for tag in [b'T', b'N'] {
        let mut play = Play::new(PoolMode::Transaction);
        play.client_bound(&query("select 1"), false);
        let mut long = Vec::new();
        put(&mut long, tag, |b| b.extend_from_slice(&[0; 20_000]));
        let (n, _) = play.server(&long[..17_000]);
        assert!(
            n == 0 || !play.core.replayable(),
            "{n} bytes of '{}' given and still replayable",
            char::from(tag)
        );
    }
}

#[test]
fn a_named_parse_whose_reply_was_held_back_is_new_in_the_replay() {
    let refusal = PgError::error("25006", "cannot execute INSERT in a read-only transaction").to_bytes();
    let fatal = PgError::fatal("57P01", "terminating").to_bytes();
    for (end, outcome) in [(refusal, ServerOutcome::Refused), (fatal, ServerOutcome::Fatal)] {
        let mut play = Play::new(PoolMode::Transaction);
        let run = [parse("s", "select * from v"), bind("s"), bare(b'E'), bare(b'S')].concat();
        play.client_bound(&run, true);
        assert_eq!(tags(&play.forwarded), "PBES");
        assert_eq!(play.server(&[bare(b'1'), bare(b'2'), end].concat()), (0, outcome));
        drop(play.core.abandon());
        play.core.replay();
        play.forwarded.clear();
        play.client_bound(&run, false);
        assert_eq!(tags(&play.forwarded), "PBES", "the server would answer 42P05 to the second Parse");
    }
}

#[test]
fn a_name_outlives_a_change_of_the_mode() {
    let mut play = Play::new(PoolMode::Transaction);
    play.client_bound(&[parse("s", "select 1"), bare(b'S')].concat(), false);
    play.server(&[bare(b'1'), ready(TxStatus::Idle)].concat());
    drop(play.core.released());
    play.core.set_mode(PoolMode::Session);
    play.forwarded.clear();
    play.client_bound(&[bind("s"), bare(b'E'), bare(b'S')].concat(), false);
    assert!(play.forwarded.windows(3).any(|w| w == b"hp_"), "{:?}", String::from_utf8_lossy(&play.forwarded));
}

#[test]
fn a_sync_among_copy_data_that_fail_may_be_answered_and_nobody_else_gets_that() {
    let mut play = Play::new(PoolMode::Transaction);
    let mut data = Vec::new();
    put(&mut data, b'd', |b| b.extend_from_slice(b"x\n"));
    play.client_bound(&query("copy t from stdin"), false);
    play.server(&bare(b'G'));
    play.client(&[data, bare(b'S'), bare(b'c')].concat());
    // The server: the data is bad, Query ends; then it reads the Sync.
    play.server(&[PgError::error("22P02", "invalid input").to_bytes(), ready(TxStatus::Idle)].concat());
    assert!(!play.core.may_release(), "a ReadyForQuery is still to come");
}

#[test]
fn the_commit_of_a_write_counts_as_a_write() {
    let mut play = Play::new(PoolMode::Transaction);
    open_transaction(&mut play);
    play.client(&query("insert into t values (1)"));
    play.server(&[bare(b'C'), ready(TxStatus::InTransaction)].concat());
    assert!(play.core.take_wrote());
    play.client(&query("commit"));
    play.server(&[bare(b'C'), ready(TxStatus::Idle)].concat());
    assert!(play.core.take_wrote(), "the window of read-your-writes begins with the commit");
}

#[test]
fn a_copy_that_ends_before_its_data_owes_nothing() {
    let mut play = Play::new(PoolMode::Transaction);
    play.client_bound(&extended("copy v from stdin"), false);
    let error = PgError::error("42809", "cannot copy to view").to_bytes();
    let got = play.server(&[bare(b'1'), bare(b'2'), bare(b'G'), error, ready(TxStatus::Idle)].concat());
    assert_eq!(got.1, ServerOutcome::Settled);
}

#[test]
fn an_answer_of_ours_behind_a_flush_is_given() {
    let mut play = Play::new(PoolMode::Transaction);
    open_transaction(&mut play);
    play.client_bound(&[parse("s", "select 1"), bare(b'S')].concat(), false);
    play.server(&[bare(b'1'), ready(TxStatus::InTransaction)].concat());
    play.forwarded.clear();
    play.client(&[bare(b'H'), query("deallocate s")].concat());
    assert_eq!(tags(&play.forwarded), "H", "answered here: {:?}", tags(&play.replied));
}

#[test]
fn a_parse_too_long_to_be_read_may_leave_any_state_behind_inside_a_transaction_as_well() {
    for name in ["", "s"] {
        let mut play = Play::new(PoolMode::Transaction);
        open_transaction(&mut play);
        let sql = format!("set search_path to x /* {} */", "x".repeat(super::core::TEXT_MAX));
        let long = parse(name, &sql);
        let (front, rest) = long.split_at(10_000);
        play.client(front);
        play.client(&[rest, &bind(name), &bare(b'E'), &bare(b'S')].concat());
        play.server(&[bare(b'1'), bare(b'2'), bare(b'C'), ready(TxStatus::InTransaction)].concat());
        play.client(&query("commit"));
        play.server(&[bare(b'C'), ready(TxStatus::Idle)].concat());
        assert!(!play.core.may_release(), "{name:?}: {:?}", play.core.pins());
    }
}

#[test]
fn the_unnamed_statement_of_another_client_is_not_reached_by_a_long_portal_name() {
    let mut large = Vec::new();
    put(&mut large, b'B', |b| {
        b.extend_from_slice(&[b'p'; 70_000]);
        b.extend_from_slice(b"\0\0\0\0\0\0\0\0");
    });
    let mut play = Play::new(PoolMode::Transaction);
    let (front, rest) = large.split_at(66_000);
    play.client_bound(front, false);
    play.client_bound(rest, false);
    assert!(play.forwarded.is_empty(), "{} bytes", play.forwarded.len());
}

#[test]
fn a_query_that_the_server_skips_gives_no_right_to_the_unnamed_statement() {
    let mut close = Vec::new();
    put(&mut close, b'C', |b| b.extend_from_slice(b"Sx\0"));
    let mut play = Play::new(PoolMode::Transaction);
    let begun = [close, bare(b'H'), bind("missing"), query("select 1"), bare(b'S')].concat();
    play.client_bound(&begun, false);
    let error = PgError::error("26000", "missing").to_bytes();
    play.server(&[bare(b'3'), error, ready(TxStatus::Idle)].concat());
    if play.core.may_release() {
        drop(play.core.released());
    }
    // The same in one go, before the error is known.
    let mut play = Play::new(PoolMode::Transaction);
    play.client_bound(&begun, false);
    play.forwarded.clear();
    play.client_bound(&[bind(""), bare(b'E'), bare(b'S')].concat(), false);
    assert_eq!(tags(&play.forwarded), "", "another client's statement is reached");
}

#[test]
fn one_name_more_than_there_is_room_for_stays_with_its_session() {
    let mut play = Play::new(PoolMode::Transaction);
    let text = |n: usize| format!("select {n} /* {} */", "x".repeat(250_000));
    for n in 0..67 {
        play.client_bound(&[parse(&format!("s{n}"), &text(n)), bare(b'S')].concat(), false);
        play.server(&[bare(b'1'), ready(TxStatus::Idle)].concat());
        if !play.core.may_release() {
            panic!("{n}");
        }
        drop(play.core.released());
    }
    play.forwarded.clear();
    play.client_bound(&[parse("a", &text(98)), parse("b", "select 99"), bare(b'S')].concat(), false);
    play.server(&[bare(b'1'), bare(b'1'), ready(TxStatus::Idle)].concat());
    let raw = play.forwarded.windows(3).any(|w| w == b"b\0s");
    assert!(!raw || !play.core.may_release(), "a statement of the client's name is left on a shared server");
}

#[test]
fn what_stands_behind_a_lost_begin_is_not_run_outside_of_it() {
    let insert = || query("insert into t values (1)");
    let end = |out: &[u8]| char::from(*out.last().unwrap());
    for (sent, more, status) in [
        (vec![query("begin"), insert()], false, 'E'),
        (vec![insert(), query("begin")], true, 'E'),
        (vec![insert(), query("begin")], false, 'E'),
        // Its client has seen that it failed.
        (vec![extended("begin; select 1")], false, 'I'),
        (vec![insert(), insert()], true, 'I'),
        (vec![query("begin"), insert(), query("commit")], true, 'I'),
        (vec![query("begin"), insert(), query("commit"), query("begin")], true, 'E'),
        (vec![query("begin"), query("rollback"), insert()], true, 'I'),
    ] {
        let mut play = Play::new(PoolMode::Transaction);
        play.client_bound(&sent.concat(), false);
        let mut out = Vec::new();
        assert!(play.core.lost(&lost_error(), more, &mut out));
        assert_eq!(end(&out), status, "{sent:?} {more}");
        if status == 'E' {
            assert_eq!(play.client(&insert()), Stop::Wait, "it is refused here");
            assert!(play.replied.windows(5).any(|part| part == b"25P02"));
            play.client(&query("commit"));
            assert_eq!(play.client(&insert()), Stop::Acquire, "over");
        }
    }
}

#[test]
fn what_stands_behind_a_begin_that_got_no_server_is_not_run_outside_of_it() {
    let insert = query("insert into t values (1)");
    for (run, fails) in
        [(query("begin"), true), (extended("start transaction"), true), (query("select 1"), false)]
    {
        let mut play = Play::new(PoolMode::Transaction);
        assert_eq!(play.client(&[&run[..], &insert].concat()), Stop::Acquire);
        play.core.doom_what_follows();
        play.core.fail(&lost_error(), &mut play.replied);
        let stop = play.client(&[]);
        if !fails {
            assert_eq!(stop, Stop::Acquire);
            continue;
        }
        assert_eq!(stop, Stop::Wait, "the insert is refused here");
        assert!(play.replied.windows(5).any(|part| part == b"25P02"));
        assert!(play.replied.ends_with(&ready(TxStatus::Failed)) && play.forwarded.is_empty());
        play.client(&query("commit"));
        assert!(play.replied.ends_with(&ready(TxStatus::Idle)));
        assert_eq!(play.client(&insert), Stop::Acquire, "over");
    }
}
