//! Changes from request to snapshot, over real stores.

use super::*;
use crate::core::Core;
use crate::store::Memory;
use helios_proto::model::{NodeName, NodeOps};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

const TEXT: &str = "# ours\n[health]\ncheck_interval_secs = 3600\n[[users]]\nname = \"u\"\npassword = \"hush\"\n\
    [[nodes]]\nhost = \"127.0.0.1\"\nport = 1\nrole = \"primary\"\n\
    [[nodes]]\nhost = \"127.0.0.1\"\nport = 2\nrole = \"replica\"\n";

struct Stage {
    core: Core,
    _stop: tokio_util::sync::DropGuard,
}

fn start(store: Arc<dyn Store>, text: &str, follow: bool) -> Result<Stage, Refusal> {
    let (stop, tracker) = (CancellationToken::new(), TaskTracker::new());
    let core = Core::start((store, Arc::default()), (text, follow), &stop, &tracker)?;
    Ok(Stage { core, _stop: stop.drop_guard() })
}

fn stage() -> Stage {
    start(Arc::new(Memory::default()), TEXT, false).unwrap()
}

fn request(expected: Option<u64>, dry_run: bool) -> Request<'static> {
    Request { actor: "me", comment: "because", expected, dry_run, record: None }
}

#[tokio::test]
async fn a_change_is_stored_published_and_in_the_history() {
    let stage = stage();
    let keeper = &stage.core.keeper;
    let text = TEXT.replace("port = 2", "port = 3");
    let changed = keeper.apply(&request(Some(1), false), &text).await.unwrap();
    assert!(changed.changed && changed.config_revision == 2);
    assert_eq!(changed.warnings, ["this change ends with the process: there is no [store]"]);
    let snapshot = Arc::clone(&stage.core.snapshots.borrow());
    assert!(snapshot.revision >= changed.revision);
    assert_eq!((snapshot.config_revision, snapshot.nodes[1].node.port), (2, 3));
    let history = keeper.history(9).await.unwrap();
    let story: Vec<_> = history.iter().map(|m| (m.revision, m.actor.as_str(), m.comment.as_str())).collect();
    assert_eq!(story, [(2, "me", "because"), (1, "file", "read from the file")]);
    assert!(!keeper.apply(&request(None, false), &text).await.unwrap().changed, "nothing new");
    let back = keeper.rollback(&request(None, false), 0).await.unwrap();
    assert_eq!(back.config_revision, 3);
    assert_eq!(keeper.desired().await.text, TEXT);
}

#[tokio::test]
async fn what_is_wrong_or_unexpected_changes_nothing() {
    let stage = stage();
    let keeper = &stage.core.keeper;
    let text = TEXT.replace("port = 2", "port = 3");
    let conflict = keeper.apply(&request(Some(7), false), &text).await.unwrap_err();
    assert!(matches!(conflict, Refusal::Conflict { expected: 7, current: 1 }));
    let wrong = keeper.apply(&request(None, false), &format!("{text}colour = 3\n")).await.unwrap_err();
    assert_eq!(wrong.to_string(), "line 15: unknown key \"colour\" in [[nodes]]");
    let broken = keeper.apply(&request(None, false), "[[nodes").await.unwrap_err();
    assert!(broken.to_string().starts_with("line 1: not valid TOML"), "{broken}");
    assert!(keeper.apply(&request(None, true), &text).await.unwrap().changed, "a dry run says so");
    assert!(matches!(keeper.rollback(&request(None, false), 9).await, Err(Refusal::NotFound(_))));
    assert_eq!(keeper.desired().await.revision(), 1);
    assert_eq!(stage.core.snapshots.borrow().config_revision, 1);
}

#[tokio::test]
async fn dots_stand_for_the_secret_in_force_and_process_sections_stay_out() {
    let stage = stage();
    let keeper = &stage.core.keeper;
    let text = TEXT.replace("hush", "******").replace("# ours", "workers = 3\n");
    let changed = keeper.apply(&request(None, false), &text).await.unwrap();
    assert!(changed.warnings[0].contains("workers"), "{:?}", changed.warnings);
    let desired = keeper.desired().await.text;
    assert!(desired.contains("password = \"hush\"") && !desired.contains("workers"), "{desired}");
    let stranger = text.replace("name = \"u\"", "name = \"v\"");
    let refused = keeper.apply(&request(None, false), &stranger).await.unwrap_err();
    assert!(refused.to_string().contains("\"v\" is dots"), "{refused}");
}

#[tokio::test]
async fn marks_survive_a_new_configuration_but_not_their_node() {
    let stage = stage();
    let keeper = &stage.core.keeper;
    let mark = |name: &'static str| {
        move |_: &Spec, ops: &mut Ops| {
            ops.entry(NodeName::new(name)).or_default().drained = true;
            Ok(())
        }
    };
    assert!(keeper.mark(None, mark("replica-1")).await.unwrap().changed);
    assert!(!keeper.mark(None, mark("replica-1")).await.unwrap().changed, "again");
    let drained = || stage.core.snapshots.borrow().nodes.get(1).map(|node| node.ops.drained);
    assert_eq!(drained(), Some(true));
    keeper.apply(&request(None, false), &TEXT.replace("port = 2", "port = 3")).await.unwrap();
    assert_eq!(drained(), Some(true), "as an operator wants it");
    let (alone, _) = TEXT.rsplit_once("[[nodes]]").unwrap();
    keeper.apply(&request(None, false), alone).await.unwrap();
    keeper.apply(&request(None, false), TEXT).await.unwrap();
    assert_eq!(drained(), Some(false), "another node of the same name");
    let nobody = keeper.mark(None, |_, ops| {
        ops.insert(NodeName::new("primary"), NodeOps::default());
        Ok(())
    });
    assert!(!nobody.await.unwrap().changed, "marks that say nothing are none");
}

#[tokio::test]
async fn a_revision_that_somebody_else_made_is_taken_up_and_not_overwritten() {
    let store: Arc<dyn Store> = Arc::new(Memory::default());
    let stage = start(Arc::clone(&store), TEXT, false).unwrap();
    let text = TEXT.replace("port = 2", "port = 4");
    let theirs = Append { expected: 1, actor: "somebody".to_owned(), text, ..Append::default() };
    store.append(&theirs).unwrap();
    let keeper = &stage.core.keeper;
    let text = TEXT.replace("port = 2", "port = 3");
    let conflict = keeper.apply(&request(None, false), &text).await.unwrap_err();
    assert!(matches!(conflict, Refusal::Conflict { expected: 1, current: 2 }), "{conflict}");
    assert_eq!(stage.core.snapshots.borrow().nodes[1].node.port, 4);
    assert_eq!(keeper.apply(&request(Some(2), false), &text).await.unwrap().config_revision, 3);
}

#[tokio::test]
async fn the_file_seeds_an_empty_store_and_follows_only_where_it_is_told_to() {
    let store: Arc<dyn Store> = Arc::new(Memory::default());
    assert!(matches!(start(Arc::clone(&store), "nonsense = 1", false), Err(Refusal::Invalid(_))));
    assert!(store.current().unwrap().is_none(), "a wrong file leaves an empty store");
    let stage = start(Arc::clone(&store), TEXT, true).unwrap();
    let edited = TEXT.replace("port = 2", "port = 3");
    stage.core.keeper.apply(&request(None, false), &edited).await.unwrap();
    let again = |text: &str, follow| {
        let stage = start(Arc::clone(&store), text, follow).unwrap();
        let snapshot = Arc::clone(&stage.core.snapshots.borrow());
        (snapshot.config_revision, snapshot.nodes[1].node.port)
    };
    assert_eq!(again(TEXT, true), (2, 3), "the same file: what was changed since stays");
    let other = TEXT.replace("port = 2", "port = 9");
    assert_eq!(again(&other, false), (2, 3), "a fleet's store is not told by a file");
    assert_eq!(again(&other, true), (3, 9), "a standalone proxy's is");
}
