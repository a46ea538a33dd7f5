//! A store in etcd, which several control planes share. Every change is one transaction, guarded by the writing that it was
//! made from: whoever was slower, or slept, is refused. Owner of one thread with a runtime of its own, where the
//! [`session`] runs; the calls of [`Store`] send work there and wait, never longer than a few seconds.

mod hold;
mod keys;
mod session;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use etcd_client::{
    Client, Compare, CompareOp, Error, GetOptions, GetResponse, KeyValue, SortOrder, SortTarget, Txn, TxnOp,
};
use helios_proto::config::EtcdSettings;
use tokio::runtime::{self, Handle};
use tokio::sync::{Notify, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::Code;

use super::{
    Append, Document, Latch, Meta, Ops, Record, Store, StoreError, Versioned, View, stored, unix_ms,
};
use hold::Hold;
use keys::{Keys, Seen, document, document_to_json, json, version};

/// Longest wait for a talk between two members.
const BETWEEN: Duration = Duration::from_millis(500);
/// Longest wait for the answer to a call.
const CALL: Duration = Duration::from_secs(2);
/// Rounds without an answer between two lines in the log.
const QUIET: u64 = 30;
/// Keys read at once.
const PAGE: usize = 500;
/// etcd takes 1.5 MiB in one request; a revision is in it twice.
const LARGEST: usize = 700_000;

/// A store in etcd.
pub struct Etcd {
    shared: Arc<Shared>,
    runtime: Handle,
    stop: CancellationToken,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// What the session and the calls share.
struct Shared {
    keys: Keys,
    name: String,
    /// The client of the talk that goes on.
    link: watch::Sender<Option<Client>>,
    view: watch::Sender<Arc<View>>,
    hold: Hold,
    /// A call got no answer: the talk should move on.
    doubt: Notify,
    /// Lines of the audit log written; rounds in which no member answered.
    records: AtomicU64,
    rounds: AtomicU64,
}

impl Shared {
    fn show(&self, seen: &Seen) {
        let view = View { up: true, ..seen.view.clone() };
        self.rounds.store(0, Ordering::Relaxed);
        if !self.view.send_replace(Arc::new(view)).up {
            tracing::info!("the store answers");
        }
    }

    fn lost(&self, why: &str) {
        let was = self.view.borrow().up;
        if self.rounds.fetch_add(1, Ordering::Relaxed).is_multiple_of(QUIET) || was {
            tracing::warn!(reason = %why, "the store cannot be reached: nothing can be changed; trying again");
        }
        if was {
            self.view.send_modify(|view| *view = Arc::new(View { up: false, ..View::clone(view) }));
        }
    }

    fn leads(&self) -> bool {
        self.view.borrow().leader.as_ref().is_some_and(|(_, lease)| self.hold.is(*lease))
    }

    async fn client(&self) -> Result<Client, StoreError> {
        let mut link = self.link.subscribe();
        let wait = link.wait_for(Option::is_some);
        let patience = if self.view.borrow().up { BETWEEN } else { Duration::ZERO };
        let found = timeout(patience, wait).await.ok().and_then(Result::ok).and_then(|link| link.clone());
        found.ok_or_else(|| StoreError::Unreachable("no member of etcd answers".to_owned()))
    }

    async fn get(&self, key: String, options: Option<GetOptions>) -> Result<GetResponse, StoreError> {
        let mut client = self.client().await?;
        let why = match timeout(CALL, client.get(key, options)).await {
            Ok(Ok(found)) => return Ok(found),
            Ok(Err(error)) => words(&error),
            Err(_) => format!("no answer within {} s", CALL.as_secs()),
        };
        self.doubt.notify_waiters();
        Err(StoreError::Unreachable(why))
    }

    async fn one(&self, key: String) -> Result<Option<KeyValue>, StoreError> {
        Ok(self.get(key, None).await?.take_kvs().into_iter().next())
    }

    /// Keys under a prefix, last first, as many as `take` wants.
    async fn backwards(
        &self,
        prefix: String,
        mut take: impl FnMut(&KeyValue) -> bool,
    ) -> Result<(), StoreError> {
        // '0' follows '/', which every prefix ends with.
        let mut end = format!("{}0", prefix.trim_end_matches('/'));
        loop {
            let page = i64::try_from(PAGE).unwrap_or(i64::MAX);
            let options = GetOptions::new().with_range(end).with_limit(page);
            let options = options.with_sort(SortTarget::Key, SortOrder::Descend);
            let found = self.get(prefix.clone(), Some(options)).await?;
            let more = found.kvs().iter().all(&mut take);
            match found.kvs().last().filter(|_| more && found.kvs().len() >= PAGE) {
                Some(last) => end = String::from_utf8_lossy(last.key()).into_owned(),
                None => return Ok(()),
            }
        }
    }

    /// One guarded change: its revision, or `None` if the guard does not hold.
    async fn change(&self, guard: Compare, puts: Vec<TxnOp>) -> Result<Option<u64>, StoreError> {
        let mut client = self.client().await?;
        let txn = Txn::new().when(vec![guard]).and_then(puts);
        let why = match timeout(CALL, client.txn(txn)).await {
            Ok(Ok(done)) => {
                let revision = done.header().map_or(0, etcd_client::ResponseHeader::revision);
                return Ok(done.succeeded().then(|| u64::try_from(revision).unwrap_or(0)));
            }
            Ok(Err(Error::GRpcStatus(status))) if is_refusal(status.code()) => {
                return Err(StoreError::Refused(status.message().to_owned()));
            }
            Ok(Err(error)) => words(&error),
            Err(_) => format!("no answer within {} s", CALL.as_secs()),
        };
        self.doubt.notify_waiters();
        Err(StoreError::Uncertain(why))
    }

    fn record(&self, record: &Record) -> Result<TxnOp, StoreError> {
        let count = self.records.fetch_add(1, Ordering::Relaxed);
        let key = format!("{}{:020}-{}-{count:010}", self.keys.audit(), record.at_unix_ms, self.name);
        Ok(TxnOp::put(key, written("the audit log", serde_json::to_string(record))?, None))
    }
}

/// etcd has judged the request itself.
const fn is_refusal(code: Code) -> bool {
    matches!(
        code,
        Code::InvalidArgument | Code::ResourceExhausted | Code::PermissionDenied | Code::Unauthenticated
    )
}

/// What etcd or the way there says.
fn words(error: &Error) -> String {
    match error {
        Error::GRpcStatus(status) => status.message().to_owned(),
        other => other.to_string(),
    }
}

fn written(what: &str, text: serde_json::Result<String>) -> Result<String, StoreError> {
    text.map_err(|error| StoreError::Io { what: format!("write {what}"), source: error.into() })
}

/// Nobody has written the key since this version.
fn unchanged(key: String, version: u64) -> Compare {
    Compare::mod_revision(key, CompareOp::Equal, i64::try_from(version).unwrap_or(i64::MAX))
}

impl Etcd {
    /// This build has it.
    pub const BUILT: bool = true;

    /// Starts to look for etcd; whether it has been found shows in the view. `name` is how others see this process.
    ///
    /// # Errors
    /// There is no thread or runtime to be had.
    pub fn start(settings: &EtcdSettings, cluster: &str, name: &str) -> Result<Self, StoreError> {
        let failed = |source| StoreError::Io { what: "start the etcd client".to_owned(), source };
        let runtime = runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let shared = Arc::new(Shared {
            keys: Keys::new(&settings.prefix, cluster),
            name: name.to_owned(),
            link: watch::Sender::new(None),
            view: watch::Sender::new(Arc::default()),
            hold: Hold::default(),
            doubt: Notify::new(),
            records: AtomicU64::new(0),
            rounds: AtomicU64::new(0),
        });
        let (handle, stop) = (runtime.handle().clone(), CancellationToken::new());
        let session = session::run(Arc::clone(&shared), settings.clone(), stop.clone());
        let thread = std::thread::Builder::new().name("etcd".to_owned());
        let thread = thread.spawn(move || runtime.block_on(session)).map_err(failed)?;
        Ok(Self { shared, runtime: handle, stop, thread: Mutex::new(Some(thread)) })
    }

    /// Does work on the runtime of the session, and waits for it.
    fn run<T, F>(&self, work: impl FnOnce(Arc<Shared>) -> F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, StoreError>> + Send + 'static,
    {
        let (answer, answered) = mpsc::sync_channel(1);
        let work = work(Arc::clone(&self.shared));
        self.runtime.spawn(async move {
            // Nobody may wait for the answer any more.
            let _ = answer.send(work.await);
        });
        let stopped = || Err(StoreError::Unreachable("this control plane is stopping".to_owned()));
        answered.recv().unwrap_or_else(|_| stopped())
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Store for Etcd {
    fn is_durable(&self) -> bool {
        true
    }

    fn kind(&self) -> &'static str {
        "etcd"
    }

    fn shared(&self) -> Option<watch::Receiver<Arc<View>>> {
        Some(self.shared.view.subscribe())
    }

    fn leads(&self) -> bool {
        self.shared.leads()
    }

    fn close(&self) {
        self.stop.cancel();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // Ended by a panic: it has said so itself.
            let _ = thread.join();
        }
    }

    fn current(&self) -> Result<Option<Document>, StoreError> {
        self.run(async |shared: Arc<Shared>| {
            let found = shared.one(shared.keys.config()).await?;
            found.as_ref().map(document).transpose()
        })
    }

    fn read(&self, revision: u64) -> Result<Option<Document>, StoreError> {
        self.run(move |shared| async move {
            let found = shared.one(shared.keys.history(revision)).await?;
            found.as_ref().map(document).transpose()
        })
    }

    fn append(&self, change: &Append) -> Result<Meta, StoreError> {
        let change = change.clone();
        self.run(move |shared| async move { shared.append(change).await })
    }

    fn history(&self, limit: usize) -> Result<Vec<Meta>, StoreError> {
        self.run(move |shared| async move {
            let (mut metas, mut broken) = (Vec::new(), None);
            let keys = shared.keys.meta(0);
            let prefix = keys.trim_end_matches(|c: char| c.is_ascii_digit()).to_owned();
            let read = |kv: &KeyValue| {
                match json(kv) {
                    Ok(meta) => metas.push(meta),
                    Err(error) => broken = Some(error),
                }
                metas.len() < limit
            };
            shared.backwards(prefix, read).await?;
            if let Some(error) = broken {
                tracing::error!(%error, "a revision is left out of the history");
            }
            Ok(metas)
        })
    }

    fn ops(&self) -> Result<Versioned<Ops>, StoreError> {
        self.run(|shared| async move {
            let Some(kv) = shared.one(shared.keys.ops()).await? else { return Ok(Versioned::default()) };
            let text = String::from_utf8_lossy(kv.value());
            let damaged = |error: serde_json::Error| StoreError::Damaged {
                what: shared.keys.ops(),
                why: error.to_string(),
            };
            Ok(Versioned { value: stored::ops_from_json(&text).map_err(damaged)?, version: version(&kv) })
        })
    }

    fn save_ops(&self, expected: u64, ops: &Ops, record: Option<&Record>) -> Result<u64, StoreError> {
        let text = written("the marks", stored::ops_to_json(ops))?;
        let key = self.shared.keys.ops();
        let mut puts = vec![TxnOp::put(key.clone(), text, None)];
        puts.extend(record.map(|record| self.shared.record(record)).transpose()?);
        let guard = unchanged(key, expected);
        self.run(move |shared| async move { shared.change(guard, puts).await?.ok_or(StoreError::Stale) })
    }

    fn latch(&self) -> Result<Versioned<Latch>, StoreError> {
        self.run(|shared| async move {
            let Some(kv) = shared.one(shared.keys.latch()).await? else { return Ok(Versioned::default()) };
            Ok(Versioned { value: json(&kv)?, version: version(&kv) })
        })
    }

    fn save_latch(&self, before: &Versioned<Latch>, latch: &Latch) -> Result<u64, StoreError> {
        if latch.key() < before.value.key() {
            return Err(StoreError::Backwards);
        }
        let (key, text) = (self.shared.keys.latch(), written("the latch", serde_json::to_string(latch))?);
        let guard = unchanged(key.clone(), before.version);
        let puts = vec![TxnOp::put(key, text, None)];
        self.run(move |shared| async move { shared.change(guard, puts).await?.ok_or(StoreError::Stale) })
    }

    fn audit(&self, record: &Record) -> Result<(), StoreError> {
        let put = self.shared.record(record)?;
        let always = Compare::version(self.shared.keys.config(), CompareOp::Greater, -1);
        self.run(move |shared| async move { shared.change(always, vec![put]).await.map(drop) })
    }

    fn audited(&self, limit: usize, actor: &str) -> Result<Vec<Record>, StoreError> {
        let actor = actor.to_owned();
        self.run(move |shared| async move {
            let mut records: Vec<Record> = Vec::new();
            let read = |kv: &KeyValue| {
                let record = json::<Record>(kv).ok();
                records.extend(record.filter(|record| actor.is_empty() || record.actor == actor));
                records.len() < limit
            };
            shared.backwards(shared.keys.audit(), read).await?;
            Ok(records)
        })
    }
}

impl Shared {
    async fn append(&self, change: Append) -> Result<Meta, StoreError> {
        let Append { expected, actor, comment, text, record } = change;
        if text.len() > LARGEST {
            let why = format!("a configuration of {} bytes is more than etcd takes ({LARGEST})", text.len());
            return Err(StoreError::Refused(why));
        }
        let found = self.one(self.keys.config()).await?;
        let current = found.as_ref().map(document).transpose()?.map_or(0, |found| found.meta.revision);
        if current != expected {
            return Err(StoreError::Conflict { expected, current });
        }
        let meta = Meta { revision: current + 1, at_unix_ms: unix_ms(), actor, comment };
        let content = written("the configuration", document_to_json(&meta, &text))?;
        let about = written("the history", serde_json::to_string(&meta))?;
        let mut puts = vec![
            TxnOp::put(self.keys.config(), content.clone(), None),
            TxnOp::put(self.keys.history(meta.revision), content, None),
            TxnOp::put(self.keys.meta(meta.revision), about, None),
        ];
        let record = record.map(|record| Record { config_revision: meta.revision, ..record });
        puts.extend(record.as_ref().map(|record| self.record(record)).transpose()?);
        let guard = unchanged(self.keys.config(), found.as_ref().map_or(0, version));
        match self.change(guard, puts).await? {
            Some(_) => Ok(meta),
            None => {
                let found = self.one(self.keys.config()).await?;
                let current = found.as_ref().map(document).transpose()?.map_or(0, |d| d.meta.revision);
                Err(StoreError::Conflict { expected, current })
            }
        }
    }
}
