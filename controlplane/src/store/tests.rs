//! Both stores keep the same promises; the directory keeps them over crashes.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use super::*;

/// A directory that is removed at the end.
struct Temporary(PathBuf);

impl Temporary {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("helios-store-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        Self(path)
    }

    fn open(&self) -> Directory {
        Directory::open(&self.0).unwrap()
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn record(actor: &str, verb: &str) -> Record {
    Record {
        at_unix_ms: 1,
        actor: actor.to_owned(),
        role: "admin".to_owned(),
        from: "127.0.0.1".to_owned(),
        verb: verb.to_owned(),
        detail: "two\nlines".to_owned(),
        outcome: "ok".to_owned(),
        config_revision: 1,
    }
}

fn promises(store: &dyn Store) {
    assert!(store.current().unwrap().is_none());
    assert_eq!(store.append(0, "a", "first", "x = 1\n").unwrap().revision, 1);
    assert!(matches!(store.append(0, "b", "", ""), Err(StoreError::Conflict { expected: 0, current: 1 })));
    assert_eq!(store.append(1, "b", "a \"comment\"\nin lines", "x = 2").unwrap().revision, 2);
    let current = store.current().unwrap().unwrap();
    assert_eq!((current.meta.revision, current.text.as_str()), (2, "x = 2"));
    assert_eq!(current.meta.comment, "a \"comment\"\nin lines");
    assert_eq!(store.read(1).unwrap().unwrap().text, "x = 1\n");
    assert!(store.read(3).unwrap().is_none());
    let revisions: Vec<u64> = store.history(10).unwrap().iter().map(|meta| meta.revision).collect();
    assert_eq!(revisions, [2, 1]);
    assert_eq!(store.history(1).unwrap().len(), 1);
    assert_eq!(store.ops().unwrap(), Ops::new());
    let marks = NodeOps { drained: true, weight: Some(3), paused: true, pool_size: None, reconnect: 4 };
    let ops: Ops = [(NodeName::new("a"), marks), (NodeName::new("b"), NodeOps::default())].into();
    store.save_ops(&ops).unwrap();
    assert_eq!(store.ops().unwrap(), ops);
    let latch = Latch {
        snapshot: 9,
        epoch: 3,
        timeline: 2,
        incarnation: 1,
        system: Some(u64::MAX),
        primary: Some("a".to_owned()),
    };
    store.save_latch(&latch).unwrap();
    assert_eq!(store.latch().unwrap(), latch);
    for (actor, verb) in [("a", "AddNode"), ("b", "SetNode"), ("a", "PoolOp")] {
        store.audit(&record(actor, verb)).unwrap();
    }
    let verbs = |limit, actor| -> Vec<String> {
        store.audited(limit, actor).unwrap().into_iter().map(|record| record.verb).collect()
    };
    assert_eq!(verbs(2, ""), ["PoolOp", "SetNode"]);
    assert_eq!(verbs(9, "a"), ["PoolOp", "AddNode"]);
}

#[test]
fn both_stores_keep_their_promises() {
    promises(&Memory::default());
    let temporary = Temporary::new("promises");
    promises(&temporary.open());
}

#[test]
fn a_directory_is_as_it_was_after_a_restart_and_only_its_owner_reads_it() {
    let temporary = Temporary::new("restart");
    promises(&temporary.open());
    let store = temporary.open();
    assert_eq!(store.current().unwrap().unwrap().meta.revision, 2);
    assert_eq!((store.ops().unwrap().len(), store.latch().unwrap().epoch), (2, 3));
    for file in ["current", "ops.json", "latch.json", "audit.jsonl", "revisions/000002.toml"] {
        let mode = fs::metadata(temporary.0.join(file)).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{file}");
    }
}

#[test]
fn one_process_at_a_time() {
    let temporary = Temporary::new("lock");
    let first = temporary.open();
    let second = Directory::open(&temporary.0).err().expect("refused");
    assert!(second.to_string().contains("another process has it"), "{second}");
    drop(first);
    temporary.open();
}

#[test]
fn a_crash_between_two_writes_leaves_the_old_revision() {
    let temporary = Temporary::new("crash");
    let store = temporary.open();
    store.append(0, "a", "", "old").unwrap();
    // Written, but not in force: as if the process had ended before `current` was renamed.
    fs::write(temporary.0.join("revisions/000002.toml"), "#! {}\nhalf").unwrap();
    fs::write(temporary.0.join("current.new"), "2").unwrap();
    assert_eq!(store.current().unwrap().unwrap().text, "old");
    assert_eq!(store.history(9).unwrap().len(), 1);
    assert_eq!(store.append(1, "a", "", "new").unwrap().revision, 2);
    assert_eq!(store.current().unwrap().unwrap().text, "new");
}

#[test]
fn damage_is_an_error_and_never_an_empty_store() {
    let temporary = Temporary::new("damage");
    let store = temporary.open();
    store.append(0, "a", "", "text").unwrap();
    fs::write(temporary.0.join("revisions/000001.toml"), "text").unwrap();
    assert!(matches!(store.current(), Err(StoreError::Damaged { .. })));
    fs::remove_file(temporary.0.join("revisions/000001.toml")).unwrap();
    assert!(matches!(store.current(), Err(StoreError::Damaged { .. })));
    fs::write(temporary.0.join("current"), "x").unwrap();
    assert!(matches!(store.current(), Err(StoreError::Damaged { .. })));
    fs::write(temporary.0.join("ops.json"), "{").unwrap();
    assert!(matches!(store.ops(), Err(StoreError::Damaged { .. })));
}

#[test]
fn half_a_line_in_the_audit_log_costs_only_itself() {
    let temporary = Temporary::new("audit");
    let store = temporary.open();
    store.audit(&record("a", "AddNode")).unwrap();
    let path = temporary.0.join("audit.jsonl");
    let mut text = fs::read_to_string(&path).unwrap();
    text.push_str("{\"at_unix");
    fs::write(&path, text).unwrap();
    store.audit(&record("a", "SetNode")).unwrap();
    let verbs: Vec<String> = store.audited(9, "").unwrap().into_iter().map(|r| r.verb).collect();
    assert_eq!(verbs, ["SetNode", "AddNode"]);
}
