//! What every store of the control plane promises, held against all three: memory, a directory, and a real etcd; and what
//! etcd promises to several at once.

use std::sync::Arc;
use std::time::Duration;

use helios_controlplane::store::{
    Append, Directory, Etcd as EtcdStore, Latch, Memory, Meta, Ops, Record, Store, StoreError, Versioned,
};
use helios_proto::config::EtcdSettings;
use helios_proto::model::{Acceptance, HoldOrder, NodeName, NodeOps};
use helios_tests::controlplane::directory;
use helios_tests::{Etcd, eventually};

const LONG: Duration = Duration::from_secs(60);

fn record(actor: &str, verb: &str) -> Record {
    Record {
        at_unix_ms: helios_controlplane::store::unix_ms(),
        actor: actor.to_owned(),
        role: "admin".to_owned(),
        from: "127.0.0.1".to_owned(),
        verb: verb.to_owned(),
        detail: "two\nlines".to_owned(),
        outcome: "ok".to_owned(),
        config_revision: 1,
    }
}

fn append(store: &dyn Store, expected: u64, comment: &str, text: &str) -> Result<Meta, StoreError> {
    // The audit log of several writers is in the order of their clocks, which count in milliseconds.
    std::thread::sleep(Duration::from_millis(2));
    let record = Some(record("writer", "ApplyConfig"));
    let (actor, comment, text) = ("a".to_owned(), comment.to_owned(), text.to_owned());
    store.append(&Append { expected, actor, comment, text, record })
}

/// What every store promises to whoever uses it.
fn promises(store: &dyn Store) {
    assert!(store.current().unwrap().is_none());
    assert_eq!(append(store, 0, "first", "x = 1\n").unwrap().revision, 1);
    let conflict = append(store, 0, "", "");
    assert!(matches!(conflict, Err(StoreError::Conflict { expected: 0, current: 1 })));
    assert_eq!(append(store, 1, "a \"comment\"\nin lines", "x = 2").unwrap().revision, 2);
    let current = store.current().unwrap().unwrap();
    assert_eq!((current.meta.revision, current.text.as_str()), (2, "x = 2"));
    assert_eq!(current.meta.comment, "a \"comment\"\nin lines");
    assert_eq!(store.read(1).unwrap().unwrap().text, "x = 1\n");
    assert!(store.read(3).unwrap().is_none());
    let revisions: Vec<u64> = store.history(10).unwrap().iter().map(|meta| meta.revision).collect();
    assert_eq!(revisions, [2, 1]);
    assert_eq!(store.history(1).unwrap().len(), 1);
    promises_of_marks(store);
    promises_of_the_latch(store);
    for (actor, verb) in [("a", "AddNode"), ("b", "SetNode"), ("a", "PoolOp")] {
        std::thread::sleep(Duration::from_millis(2));
        store.audit(&record(actor, verb)).unwrap();
    }
    let verbs = |limit, actor| -> Vec<String> {
        store.audited(limit, actor).unwrap().into_iter().map(|record| record.verb).collect()
    };
    assert_eq!(verbs(2, ""), ["PoolOp", "SetNode"]);
    assert_eq!(verbs(9, "a"), ["PoolOp", "AddNode"]);
    let written = store.audited(9, "writer").unwrap();
    let story: Vec<_> = written.iter().map(|r| (r.verb.as_str(), r.config_revision)).collect();
    assert_eq!(story, [("Mark", 1), ("ApplyConfig", 2), ("ApplyConfig", 1)], "with the changes themselves");
}

fn promises_of_marks(store: &dyn Store) {
    let none = store.ops().unwrap();
    assert_eq!(none.value, Ops::new());
    let hold = Some(HoldOrder { given: 1, for_ms: 2 });
    let accepted = Some(Acceptance { from: (0, 6), to: (1, 5), system: u64::MAX });
    let marks = NodeOps {
        drained: true,
        weight: Some(3),
        paused: true,
        pool_size: None,
        reconnect: 4,
        hold,
        accepted,
    };
    let ops: Ops = [(NodeName::new("a"), marks), (NodeName::new("b"), NodeOps::default())].into();
    let line = record("writer", "Mark");
    let version = store.save_ops(none.version, &ops, Some(&line)).unwrap();
    assert_eq!(store.ops().unwrap(), Versioned { value: ops.clone(), version });
    let late = store.save_ops(none.version, &Ops::new(), Some(&line));
    assert!(matches!(late, Err(StoreError::Stale)), "made from what is not there any more");
    assert_eq!(store.ops().unwrap().value, ops);
}

fn promises_of_the_latch(store: &dyn Store) {
    let none = store.latch().unwrap();
    assert_eq!(none.value, Latch::default());
    let latch = Latch {
        snapshot: 9,
        epoch: 3,
        timeline: 2,
        incarnation: 1,
        system: Some(u64::MAX),
        primary: Some("a".to_owned()),
    };
    let version = store.save_latch(&none, &latch).unwrap();
    let held = store.latch().unwrap();
    assert_eq!(held, Versioned { value: latch.clone(), version });
    let late = store.save_latch(&none, &Latch { epoch: 9, ..latch.clone() });
    assert!(matches!(late, Err(StoreError::Stale)));
    let older = store.save_latch(&held, &Latch { timeline: 1, epoch: 9, ..latch.clone() });
    assert!(matches!(older, Err(StoreError::Backwards)));
    assert_eq!(store.latch().unwrap(), held);
}

/// A store over this etcd, once it has found it.
fn store(etcd: &Etcd, name: &str) -> EtcdStore {
    let settings = EtcdSettings { endpoints: etcd.urls(), prefix: "/helios/test".to_owned(), login: None };
    let store = EtcdStore::start(&settings, "fleet", name).unwrap();
    eventually(LONG, "the store answers", || store.shared().unwrap().borrow().up);
    store
}

#[test]
fn every_store_keeps_its_promises() {
    promises(&Memory::default());
    let path = directory("promises");
    promises(&Directory::open(path.as_ref()).unwrap());
    let _ = std::fs::remove_dir_all(path);
    let etcd = Etcd::start(1);
    let first = store(&etcd, "first");
    promises(&first);

    // Another process sees it all, and what is written from then on.
    let second = store(&etcd, "second");
    let view = second.shared().unwrap();
    assert_eq!(view.borrow().document.as_ref().unwrap().meta.revision, 2);
    assert_eq!(view.borrow().ops, first.ops().unwrap());
    assert_eq!(view.borrow().latch, second.latch().unwrap());
    append(&first, 2, "", "x = 3").unwrap();
    eventually(LONG, "the other one hears of it", || {
        view.borrow().document.as_ref().unwrap().text == "x = 3"
    });

    // Both write at once: one wins, the other is told.
    let stores = [Arc::new(first), Arc::new(second)];
    let writers: Vec<_> = stores
        .iter()
        .map(|store| {
            let store = Arc::clone(store);
            std::thread::spawn(move || append(store.as_ref(), 3, "", "x = 4"))
        })
        .collect();
    let results: Vec<_> = writers.into_iter().map(|writer| writer.join().unwrap()).collect();
    let lost =
        |r: &&Result<Meta, StoreError>| matches!(r, Err(StoreError::Conflict { expected: 3, current: 4 }));
    assert_eq!((results.iter().filter(|r| r.is_ok()).count(), results.iter().filter(lost).count()), (1, 1));
}

#[test]
fn one_of_them_leads_and_another_takes_over() {
    let etcd = Etcd::start(1);
    let (first, second) = (store(&etcd, "first"), store(&etcd, "second"));
    eventually(LONG, "one leads", || first.leads() != second.leads());
    let (leader, other) = if first.leads() { (first, second) } else { (second, first) };
    let view = other.shared().unwrap();
    eventually(LONG, "both are known", || view.borrow().members == ["first", "second"]);
    leader.close();
    eventually(LONG, "the other one takes over", || other.leads());
    assert!(!leader.leads());
    assert_eq!(view.borrow().members.len(), 1);

    // The leader removes what nobody asks for any more.
    for revision in 0..510 {
        append(&other, revision, "", "text").unwrap();
    }
    eventually(LONG, "old revisions are removed", || other.read(9).unwrap().is_none());
    assert_eq!(other.read(11).unwrap().unwrap().meta.revision, 11);
    assert_eq!(other.history(1_000).unwrap().len(), 500);
    assert_eq!(other.audited(1_000, "").unwrap().len(), 510);
}

#[test]
fn a_store_that_is_away_refuses_at_once_and_heals_alone() {
    let mut etcd = Etcd::start(1);
    let store = store(&etcd, "one");
    append(&store, 0, "", "x = 1").unwrap();
    etcd.kill(0);
    eventually(LONG, "the loss is seen", || !store.shared().unwrap().borrow().up);
    let refused = append(&store, 1, "", "x = 2").unwrap_err();
    assert!(matches!(refused, StoreError::Unreachable(_)), "{refused}");
    assert!(refused.to_string().contains("nothing was changed"), "{refused}");
    eventually(LONG, "its lease is over", || !store.leads());
    etcd.launch(0);
    eventually(LONG, "it heals", || store.shared().unwrap().borrow().up);
    assert_eq!(append(&store, 1, "", "x = 2").unwrap().revision, 2);
    eventually(LONG, "it leads again", || store.leads());
}
