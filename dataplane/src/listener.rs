//! Accepts clients, counts them, and hands each socket to the worker with the fewest. Never reads a byte.

use crate::limits::Counted;
use crate::metrics::Counters;
use crate::server::dial::tune;
use crate::session::serve;
use crate::worker::{Shared, Worker};
use std::net::{SocketAddr, TcpStream as StdStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio_util::sync::CancellationToken;

/// Pause after an accept failed, as it does without file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);
/// An accept that fails again and again is told once in this time.
const TELL_AGAIN: Duration = Duration::from_secs(5);

/// An accepted client on its way to a worker.
struct Accepted {
    io: StdStream,
    peer: SocketAddr,
    counted: Counted,
}

/// A worker's thread, as the listener sees it.
pub struct WorkerThread {
    clients: UnboundedSender<Accepted>,
    load: Arc<AtomicUsize>,
    /// The worker's counts.
    pub counters: Arc<Counters>,
    thread: Option<thread::JoinHandle<()>>,
}

/// Starts worker number `id` on a thread of its own. It ends when `stop` is cancelled.
///
/// # Errors
/// What the system says about threads and reactors.
pub fn start_worker(
    id: usize,
    shared: &Arc<Shared>,
    stop: CancellationToken,
) -> std::io::Result<WorkerThread> {
    // Two blocking threads: enough for name look-ups, and a bound on how many SCRAM derivations run at once.
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(2).build()?;
    let counters = Arc::new(Counters::default());
    let worker = Worker::new(id, Arc::clone(shared), Arc::clone(&counters));
    let (clients, inbox) = unbounded_channel();
    let load = Arc::new(AtomicUsize::new(0));
    let served = Arc::clone(&load);
    let body = move || {
        runtime.block_on(run_worker(worker, inbox, served, stop));
        runtime.shutdown_timeout(Duration::from_secs(1));
    };
    let thread = thread::Builder::new().name(format!("worker-{id}")).spawn(body)?;
    Ok(WorkerThread { clients, load, counters, thread: Some(thread) })
}

async fn run_worker(
    worker: Arc<Worker>,
    mut inbox: UnboundedReceiver<Accepted>,
    load: Arc<AtomicUsize>,
    stop: CancellationToken,
) {
    let sessions = tokio_util::task::TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            accepted = inbox.recv() => accepted,
        };
        let Some(Accepted { io, peer, counted }) = accepted else { return };
        let Ok(io) = TcpStream::from_std(io) else { continue };
        let worker = Arc::clone(&worker);
        let load = Arc::clone(&load);
        sessions.spawn(async move {
            let _load = Load(load);
            serve(worker, io, peer, counted).await;
        });
    }
}

/// Counts a session out of its worker's load, however it ends.
struct Load(Arc<AtomicUsize>);

impl Drop for Load {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl WorkerThread {
    /// Waits until the thread has ended.
    pub fn join(&mut self) {
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("a worker ended by a panic");
        }
    }
}

/// Accepts until stopped.
pub async fn accept(
    listener: TcpListener,
    shared: Arc<Shared>,
    workers: Arc<Vec<WorkerThread>>,
    stop: CancellationToken,
) {
    let mut told: Option<Instant> = None;
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((io, peer)) => hand_over(io, peer, &shared, &workers),
            Err(error) => {
                if told.is_none_or(|at| at.elapsed() >= TELL_AGAIN) {
                    told = Some(Instant::now());
                    tracing::warn!(%error, "could not accept a client");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn hand_over(mut io: TcpStream, peer: SocketAddr, shared: &Arc<Shared>, workers: &[WorkerThread]) {
    let limits = shared.pools.view().settings().limits.clone();
    let counted = match shared.clients.connect(&limits, peer.ip()) {
        Ok(counted) => counted,
        Err(error) => {
            shared.cleanups.spawn(async move {
                let _ = io.write_all(&error.to_bytes()).await;
            });
            return;
        }
    };
    let Some(worker) = workers.iter().min_by_key(|worker| worker.load.load(Ordering::Relaxed)) else {
        return;
    };
    let io = tune(&io).and_then(|()| io.into_std());
    let Ok(io) = io else { return };
    worker.load.fetch_add(1, Ordering::Relaxed);
    if worker.clients.send(Accepted { io, peer, counted }).is_err() {
        worker.load.fetch_sub(1, Ordering::Relaxed);
    }
}
