//! The ledger against the model of a server, and against a server that answers anything. With honest answers it is
//! settled exactly when the server rests and everything has been read; with any others it never calls clean what the
//! server has not finished.

use crate::script::Script;
use crate::session::shown;
use crate::source::Source;
use helios_pgwire::backend::TxStatus;
use helios_pgwire::frame::Header;
use heliosdb_proxy::server::Ledger;

fn messages(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut out = Vec::new();
    while let Ok(Some(Header { size, .. })) = Header::parse(bytes, |_| Ok(1 << 20)) {
        let (message, rest) = bytes.split_at(size);
        out.push(message);
        bytes = rest;
    }
    out
}

/// The client's messages go out some time before the answers come.
fn honest(source: &mut Source<'_>) {
    let mut ledger = Ledger::new();
    let steps = 1 + source.below(30);
    let mut script = Script::new(source, 1, true);
    script.write(steps);
    let (sent, rests) = (std::mem::take(&mut script.sent), script.direct.rests());
    let (mut server, mut said, mut heard) = (crate::model::Server::new(false), Vec::new(), 0);
    let mut answers = |ledger: &mut Ledger, said: &[u8], most: usize| {
        for message in messages(said).into_iter().skip(heard).take(most) {
            heard += 1;
            let status = message.get(5).copied().and_then(TxStatus::from_byte);
            ledger.received(message[0], status.filter(|_| message[0] == b'Z'));
            assert!(!ledger.broken(), "not owed: number {heard} of {} for {}", shown(said), shown(&sent));
        }
        messages(said).len() == heard
    };
    let mut tags = String::new();
    for message in messages(&sent) {
        ledger.sent(message[0]);
        tags.push(char::from(message[0]));
        server.feed(message, &mut said);
        let most = source.below(4);
        let all = answers(&mut ledger, &said, most);
        if ledger.settled() {
            assert!(all && server.rests(), "settled while something is owed after {tags}: {}", shown(&said));
        }
        if all {
            assert_eq!(ledger.settled(), server.rests(), "{ledger:?} after {tags}: {}", shown(&said));
            assert_eq!(ledger.copy_in(), server.copies());
        }
    }
    assert!(answers(&mut ledger, &said, usize::MAX));
    assert_eq!((ledger.settled(), rests), (true, true));
    assert_eq!((ledger.asked(), ledger.readies()), (ledger.done(), 0));
}

/// Any messages both ways: settled is never said while something is open, and broken is for good.
fn hostile(source: &mut Source<'_>) {
    let mut ledger = Ledger::new();
    while !source.is_empty() {
        if source.one_in(2) {
            let tag = *source.pick(b"QPBDESHCFdcf");
            ledger.sent(tag);
        } else {
            let tag = *source.pick(b"123CDTZEAGHNSWnstIVdcK");
            let status = TxStatus::from_byte(*source.pick(b"ITEx"));
            ledger.received(tag, status);
        }
        if ledger.settled() {
            assert!(!ledger.broken() && ledger.readies() == 0 && !ledger.unsynced() && !ledger.copy_in());
        }
        if ledger.broken() {
            // For good, whatever comes.
            for tag in *b"ZCE123" {
                ledger.received(tag, Some(TxStatus::Idle));
            }
            assert!(!ledger.settled());
            return;
        }
    }
}

/// The target.
///
/// # Panics
/// When a rule is broken.
pub fn run(data: &[u8]) {
    let mut source = Source::new(data);
    if source.one_in(4) { hostile(&mut source) } else { honest(&mut source) }
}
