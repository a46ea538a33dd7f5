//! The reply ledger: for every message sent to a server, which replies are owed, so that "clean" is a fact and
//! not a guess. One per session while it holds a server connection. Sans-IO; never injects a message; when the
//! server says something that was not owed, the ledger stays unsettled for good and the connection is closed.
//!
//! Rules: manual "Message Flow", and `reliability.md` B1 to B7 (measured on PostgreSQL 15 and 18).

use helios_pgwire::backend::TxStatus;
use std::collections::VecDeque;

/// A reply, or a run of replies, that the server owes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owed {
    /// This many extended-protocol messages, each with a reply of its own.
    Extended(u32),
    /// A simple Query: anything, then ReadyForQuery.
    Query,
    /// A FunctionCall: a result or an error, then ReadyForQuery.
    FunctionCall,
    /// A Sync: ReadyForQuery.
    Sync,
    /// A CopyDone or CopyFail sent while no COPY was known to run: nothing, unless a COPY starts before it.
    CopyEnd,
}

/// What is owed by one server connection.
#[derive(Debug)]
pub struct Ledger {
    owed: VecDeque<Owed>,
    status: TxStatus,
    /// The server reads COPY data now.
    copy_in: bool,
    /// Extended messages went out since the last Sync: a portal or an implicit transaction may be open.
    unsynced: bool,
    /// The server discards everything up to the next Sync.
    skipping: bool,
    /// Something came that was not owed.
    broken: bool,
    /// Syncs sent where the server ignores them, if it reads them while it still copies.
    eaten: u32,
    /// A COPY has failed behind which such Syncs stood: each of them may be answered, or not.
    doubtful: bool,
    /// The ReadyForQuery of the Query whose COPY has failed is still to come.
    own_ready: bool,
    /// Number of the last message with a Flush behind it.
    flushed: u32,
    /// Extended-protocol messages sent that have a reply of their own, and those of them answered or skipped.
    asked: u32,
    done: u32,
    /// Those of them that stand before the last Sync: their answers come without anything more of the client.
    synced: u32,
}

impl Ledger {
    /// A ledger for a server connection that is idle and clean.
    #[must_use]
    pub fn new() -> Self {
        Self {
            owed: VecDeque::new(),
            status: TxStatus::Idle,
            copy_in: false,
            unsynced: false,
            skipping: false,
            broken: false,
            eaten: 0,
            doubtful: false,
            own_ready: false,
            flushed: 0,
            asked: 0,
            done: 0,
            synced: 0,
        }
    }

    /// Forgets everything: for the next server connection.
    pub fn reset(&mut self) {
        self.owed.clear();
        self.status = TxStatus::Idle;
        (self.copy_in, self.unsynced, self.skipping, self.broken) = (false, false, false, false);
        (self.eaten, self.doubtful, self.own_ready) = (0, false, false);
        (self.asked, self.done, self.synced, self.flushed) = (0, 0, 0, 0);
    }

    /// Transaction status of the last ReadyForQuery.
    #[must_use]
    pub fn status(&self) -> TxStatus {
        self.status
    }

    /// Whether every reply has come and nothing is half done. Clean is this and [`TxStatus::Idle`].
    #[must_use]
    pub fn settled(&self) -> bool {
        self.owed.is_empty() && !self.copy_in && !self.unsynced && !self.skipping && !self.broken
    }

    /// Whether an implicit transaction may be open: extended messages without their Sync.
    #[must_use]
    pub fn unsynced(&self) -> bool {
        self.unsynced || self.skipping
    }

    /// How many ReadyForQuery are owed.
    #[must_use]
    pub fn readies(&self) -> usize {
        let ready = |owed: &&Owed| matches!(owed, Owed::Query | Owed::FunctionCall | Owed::Sync);
        self.owed.iter().filter(ready).count()
    }

    /// Whether COPY data is expected from the client.
    #[must_use]
    pub fn copy_in(&self) -> bool {
        self.copy_in
    }

    /// Whether answers are on their way for which the client has asked with a Flush.
    #[must_use]
    pub fn flushes(&self) -> bool {
        self.flushed > self.done && !self.skipping && !self.broken
    }

    /// Whether more may come than is owed, which is for this session only. Over with the next answer.
    #[must_use]
    pub fn doubtful(&self) -> bool {
        self.doubtful
    }

    /// Whether the server broke the protocol.
    #[must_use]
    pub fn broken(&self) -> bool {
        self.broken
    }

    /// Whether the server acts on what is sent now: it neither skips up to a Sync nor reads COPY data.
    #[must_use]
    pub fn listens(&self) -> bool {
        !self.skipping && !self.copy_in && !self.broken
    }

    /// Whether the server throws away what is sent now, up to a Sync.
    #[must_use]
    pub fn skips(&self) -> bool {
        self.skipping && !self.broken
    }

    /// Number of the last extended-protocol message sent, counted from 1 since the last reset.
    #[must_use]
    pub fn asked(&self) -> u32 {
        self.asked
    }

    /// Number of the last extended-protocol message that was answered or skipped.
    #[must_use]
    pub fn done(&self) -> u32 {
        self.done
    }

    /// Number of the last extended-protocol message with a Sync behind it.
    #[must_use]
    pub fn synced(&self) -> u32 {
        self.synced
    }

    /// A frontend message of this type was (or is about to be) sent to the server.
    pub fn sent(&mut self, tag: u8) {
        if self.copy_in {
            return self.sent_in_copy(tag);
        }
        match tag {
            b'S' => {
                self.skipping = false;
                self.unsynced = false;
                self.synced = self.asked;
                self.owed.push_back(Owed::Sync);
            }
            _ if self.skipping => {}
            b'Q' | b'F' => {
                // It commits what stands before it; if that has failed, the server skips it as well.
                self.unsynced = false;
                self.owed.push_back(if tag == b'Q' { Owed::Query } else { Owed::FunctionCall });
            }
            b'P' | b'B' | b'D' | b'E' | b'C' => {
                self.unsynced = true;
                self.asked = self.asked.wrapping_add(1);
                match self.owed.back_mut() {
                    Some(Owed::Extended(n)) => *n = n.saturating_add(1),
                    _ => self.owed.push_back(Owed::Extended(1)),
                }
            }
            b'c' | b'f' if !self.owed.is_empty() => self.owed.push_back(Owed::CopyEnd),
            b'H' => self.flushed = self.asked,
            _ => {}
        }
    }

    /// While a COPY runs the server ignores Sync and Flush, and takes anything else as a protocol violation.
    fn sent_in_copy(&mut self, tag: u8) {
        match tag {
            b'd' | b'H' => {}
            b'S' => self.eaten = self.eaten.saturating_add(1),
            b'c' | b'f' => self.copy_in = false,
            _ => self.broken = true,
        }
    }

    /// A backend message of this type came. `status` is the byte of a ReadyForQuery.
    pub fn received(&mut self, tag: u8, status: Option<TxStatus>) {
        match tag {
            b'Z' => self.ready(status),
            b'E' => self.error(),
            b'G' => {
                self.be_certain();
                self.copy_starts();
            }
            b'1' | b'2' | b'3' | b'n' | b'C' | b'I' | b's' | b'T' => {
                if self.eaten > 0 {
                    self.be_certain();
                }
                self.answered(tag);
            }
            b'V' => self.be_certain(),
            b'D' | b't' | b'H' | b'd' | b'c' | b'A' | b'N' | b'S' => {}
            _ => self.broken = true,
        }
    }

    fn answered(&mut self, tag: u8) {
        match self.owed.front_mut() {
            Some(Owed::Extended(n)) => {
                *n = n.saturating_sub(1);
                self.done = self.done.wrapping_add(1);
                if *n == 0 {
                    self.pop();
                }
            }
            Some(Owed::Query) if !matches!(tag, b'1' | b'2' | b'3' | b'n' | b's') => {}
            _ => self.broken = true,
        }
    }

    fn ready(&mut self, status: Option<TxStatus>) {
        if self.doubtful
            && let Some(status) = status
            && self.extra(status)
        {
            return;
        }
        match (self.owed.front(), status) {
            (Some(Owed::Query | Owed::Sync | Owed::FunctionCall), Some(status)) => {
                self.status = status;
                self.pop();
            }
            _ => self.broken = true,
        }
    }

    /// Whether a ReadyForQuery that comes now answers a Sync which the server need not have answered: nothing else ends
    /// without a word before it.
    #[cold]
    fn extra(&mut self, status: TxStatus) -> bool {
        if std::mem::take(&mut self.own_ready) || self.owed.front() == Some(&Owed::Sync) {
            return false;
        }
        self.status = status;
        self.eaten = self.eaten.saturating_sub(1);
        self.doubtful = self.eaten > 0;
        if self.owed.is_empty() {
            (self.skipping, self.unsynced) = (false, false);
        }
        true
    }

    /// Something came that stands behind all that was in doubt.
    #[cold]
    fn be_certain(&mut self) {
        (self.eaten, self.doubtful, self.own_ready) = (0, false, false);
    }

    /// An error in the extended protocol makes the server discard everything up to the next Sync.
    fn error(&mut self) {
        self.copy_in = false;
        if self.doubtful {
            self.be_certain();
        } else if self.eaten > 0 {
            (self.doubtful, self.own_ready) = (true, self.owed.front() == Some(&Owed::Query));
        }
        match self.owed.front() {
            Some(Owed::Extended(_)) => {
                while let Some(&owed) = self.owed.front().filter(|&&owed| owed != Owed::Sync) {
                    self.owed.pop_front();
                    if let Owed::Extended(skipped) = owed {
                        self.done = self.done.wrapping_add(skipped);
                    }
                }
                self.skipping = self.owed.is_empty();
            }
            Some(_) => {}
            None if self.unsynced => self.skipping = true,
            None => self.broken = true,
        }
    }

    /// The server starts to read COPY data: of what is already on its way it ignores Sync, and ends at CopyEnd.
    fn copy_starts(&mut self) {
        if !matches!(self.owed.front(), Some(Owed::Query | Owed::Extended(1))) {
            self.broken = true;
            return;
        }
        let mut eaten = false;
        self.copy_in = true;
        while let Some(&next) = self.owed.get(1) {
            match next {
                Owed::Sync => {
                    eaten = true;
                    self.eaten = self.eaten.saturating_add(1);
                }
                Owed::CopyEnd => self.copy_in = false,
                Owed::Query | Owed::FunctionCall | Owed::Extended(_) => self.broken = true,
            }
            if self.broken {
                return;
            }
            self.owed.remove(1);
            if !self.copy_in {
                break;
            }
        }
        // What ends the run is behind the COPY, or still to come.
        let ends = |owed: &Owed| matches!(owed, Owed::Sync | Owed::Query | Owed::FunctionCall);
        if eaten && !self.owed.iter().any(ends) {
            self.unsynced = true;
        }
    }

    fn pop(&mut self) {
        self.owed.pop_front();
        while self.owed.front() == Some(&Owed::CopyEnd) {
            self.owed.pop_front();
        }
    }
}

impl Default for Ledger {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lower half of the script: `>` frontend types, `<` backend types; `Z` is `ZI`, `ZT` or `ZE`.
    fn play(script: &str) -> Ledger {
        let mut ledger = Ledger::new();
        for word in script.split_whitespace() {
            let (side, tags) = word.split_at(1);
            let mut tags = tags.bytes().peekable();
            while let Some(tag) = tags.next() {
                match side {
                    ">" => ledger.sent(tag),
                    _ if tag == b'Z' => ledger.received(tag, TxStatus::from_byte(tags.next().unwrap())),
                    _ => ledger.received(tag, None),
                }
            }
        }
        ledger
    }

    #[test]
    fn a_sync_that_a_copy_may_have_eaten_is_in_doubt_until_something_comes_behind_it() {
        for (script, settled, doubtful) in [
            // As drivers do it: the first Sync is eaten, or the COPY failed before it was read.
            (">PBES <12G >dcS <C", false, false),
            (">PBES <12G >dcS <CZI", true, false),
            (">PBES <12G >dcS <EZI", true, true),
            (">PBES <12G >dcS <EZIZI", true, false),
            (">PBES <12G >dcS <EZI >Q <TDCZI", true, false),
            (">PBES <12G >dcS <EZI >Q <EZI", true, false),
            (">PBES <12G >dcS <EZI >Q <ZI", false, false),
            (">PBES <12G >dcS <EZI >Q <ZITDCZI", true, false),
            (">PBES <12G >dcS <EZI >PBES <ZI12CZI", true, false),
            (">PBES <12G >dcS <EZI >PBES <12CZI", true, false),
            (">PBES <12G >dcS <EZI >F <ZIVZI", true, false),
            (">PBES <12G >dcS <EZI >F <VZI", true, false),
            (">PBES <12G >dcS <EZI >Q <G >dc <CZI", true, false),
            (">PBES <12G >dcS <EZI >Q <G >dSc <EZI", true, true),
            // It ended before the client had said anything.
            (">PBES <12GEZI", true, false),
            // A Sync in a COPY of the simple protocol.
            (">Q <G >dSc <EZI", true, true),
            (">Q <G >dSc <EZIZI", true, false),
            (">Q <G >dSSc <EZIZI", true, true),
            (">Q <G >dSc <CZI", true, false),
            (">Q <G >dc <EZI", true, false),
        ] {
            let ledger = play(script);
            assert_eq!((ledger.settled(), ledger.doubtful()), (settled, doubtful), "{script}");
            assert!(!ledger.broken(), "{script}");
        }
        assert!(play(">PBES <12G >dcS <EZIZIZI").broken(), "more than there were");
    }

    #[test]
    fn settled_exactly_when_nothing_is_owed() {
        for (script, settled) in [
            (">Q", false),
            (">Q <TDDC", false),
            (">Q <TDDCZI", true),
            (">Q <ICZT", true),
            (">PBDES <12TDCZI", true),
            (">PBDES <12TDC", false),
            (">PBDE <12TDC", false),
            (">PBEH <12DC", false),
            (">PBE <12DDs >ES <CZI", true),
            // B1: an error drops the rest of the batch, and only that batch.
            (">PBES PBES <1E ZI", false),
            (">PBESPBES <1EZI12CZI", true),
            (">PBES <1E >Q", false),
            (">PB <E >BE >S <ZI", true),
            // B3: a Query after un-Synced messages; skipped if they failed.
            (">PBEQS <12CTDCZIZI", true),
            (">PBEQS <1EZI", true),
            (">PBEQ <E >S <ZI", true),
            (">PBEQ <12CTDCZI", true),
            (">PHF <1VZI", true),
            // A Flush by itself opens nothing.
            (">QHc <GCZI", true),
            (">H", true),
            (">PBEQ <1E", false),
            (">PBEQB <12CTDCZI", false),
            // B4: several ReadyForQuery.
            (">QQQ <CZICZI", false),
            (">QQQ <CZICZICZI", true),
            (">SSS <ZIZIZI", true),
            // B6: Close and Describe.
            (">CDS <3tTZI", true),
            (">DS <EZI", true),
            // B8.
            (">F <VZI", true),
            (">F <EZI", true),
            // Errors of a Query and at Sync (deferred constraint).
            (">Q <EZE", true),
            (">PBES <12CEZI", true),
            // Anything unasked.
            ("<ZI", false),
            ("<E", false),
            (">Q <CZI <Z?", false),
            (">Q <1", false),
        ] {
            let script = script.replace("Z?", "ZI").replace(" PBES", " >PBES").replace(" ZI", " <ZI");
            assert_eq!(play(&script).settled(), settled, "{script}");
        }
    }

    #[test]
    fn copy_in() {
        for (script, settled) in [
            (">Q <G", false),
            (">Q <G >ddc <CZI", true),
            (">Q <G >ddf <EZI", true),
            (">Q <G >d <EZI >ddc", true),
            (">Q <G >d <E >ddc <ZI", true),
            // Two COPYs in one Query.
            (">Q <G >dc <CG >dc <CZI", true),
            // Extended: the Sync sent before the data is eaten by the COPY, the one after it answers.
            (">PBES <12G >dc", false),
            (">PBES <12G >dcS <CZI", true),
            (">PBES <12G >dSc <C", false),
            (">PBES <12G >d <E >cS <ZI", true),
            // Everything pipelined before the server said that it copies.
            (">PBEdcS <12GCZI", true),
            (">PBESdSScS <12GCZI", true),
            (">PBESdSSc <12GC", false),
            (">PBESdcQ <12GCTDCZI", true),
            // A Query inside a COPY breaks the connection.
            (">Q <G >Q <EE", false),
            // Stray CopyDone is swallowed.
            (">cQ <CZI", true),
            (">Qc <CZI", true),
            (">Qcd", false),
        ] {
            assert_eq!(play(script).settled(), settled, "{script}");
        }
    }

    #[test]
    fn numbers_of_extended_messages() {
        for (script, asked, done) in [
            (">PBDES", 4, 0),
            (">PBDES <12", 4, 2),
            (">PBDES <12TC", 4, 4),
            (">PBDES <E", 4, 4),
            (">PBESPBES <1E", 6, 3),
            (">Q <TC", 0, 0),
            (">PB <E >BE", 2, 2),
        ] {
            let ledger = play(script);
            assert_eq!((ledger.asked(), ledger.done()), (asked, done), "{script}");
        }
    }

    #[test]
    fn status_is_that_of_the_last_ready() {
        assert_eq!(play(">Q <CZT").status(), TxStatus::InTransaction);
        assert_eq!(play(">QQ <CZTCZE").status(), TxStatus::Failed);
        let mut ledger = play(">Q <CZE >PB");
        ledger.reset();
        assert!(ledger.settled());
        assert_eq!(ledger.status(), TxStatus::Idle);
    }
}
