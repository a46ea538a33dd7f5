//! The directory over restarts, crashes and damage. What every store promises stands in the end-to-end tests, where there
//! is an etcd.

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

fn append(store: &dyn Store, expected: u64, comment: &str, text: &str) -> Result<Meta, StoreError> {
    let record = Some(record("writer", "ApplyConfig"));
    let (actor, comment, text) = ("a".to_owned(), comment.to_owned(), text.to_owned());
    store.append(&Append { expected, actor, comment, text, record })
}

#[test]
fn a_directory_is_as_it_was_after_a_restart_and_only_its_owner_reads_it() {
    let temporary = Temporary::new("restart");
    let store = temporary.open();
    append(&store, 0, "", "x = 1").unwrap();
    append(&store, 1, "", "x = 2").unwrap();
    let marks = NodeOps { drained: true, ..NodeOps::default() };
    let ops: Ops = [(NodeName::new("a"), marks), (NodeName::new("b"), marks)].into();
    store.save_ops(0, &ops, None).unwrap();
    let latch = Latch { epoch: 3, ..Latch::default() };
    store.save_latch(&store.latch().unwrap(), &latch).unwrap();
    store.audit(&record("a", "AddNode")).unwrap();
    drop(store);
    let store = temporary.open();
    assert_eq!(store.current().unwrap().unwrap().meta.revision, 2);
    assert_eq!((store.ops().unwrap().value.len(), store.latch().unwrap().value.epoch), (2, 3));
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
    append(&store, 0, "", "old").unwrap();
    // Written, but not in force: as if the process had ended before `current` was renamed.
    fs::write(temporary.0.join("revisions/000002.toml"), "#! {}\nhalf").unwrap();
    fs::write(temporary.0.join("current.new"), "2").unwrap();
    assert_eq!(store.current().unwrap().unwrap().text, "old");
    assert_eq!(store.history(9).unwrap().len(), 1);
    assert_eq!(append(&store, 1, "", "new").unwrap().revision, 2);
    assert_eq!(store.current().unwrap().unwrap().text, "new");
}

#[test]
fn damage_is_an_error_and_never_an_empty_store() {
    let temporary = Temporary::new("damage");
    let store = temporary.open();
    append(&store, 0, "", "text").unwrap();
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
