//! Accepts clients, counts them, and hands each socket to a worker; the workers' threads. Never reads a byte.

use crate::lanes::{Arrival, Lane};
use crate::metrics::Counters;
use crate::server::dial::tune;
use crate::session::{resume, serve};
use crate::worker::{Shared, Worker};
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio_util::sync::CancellationToken;

/// Pause after an accept failed, as it does without file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);
/// How long a client may take nothing of its answer, and so hold a server connection (`reliability.md` B20).
const CLIENT_PATIENCE: Duration = Duration::from_secs(60);
/// An accept that fails again and again is told once in this time.
const TELL_AGAIN: Duration = Duration::from_secs(5);

/// A worker's thread, as the app sees it.
pub struct WorkerThread {
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
    inbox: UnboundedReceiver<Arrival>,
    stop: CancellationToken,
) -> std::io::Result<WorkerThread> {
    // Two blocking threads: enough for name look-ups, and a bound on how many SCRAM derivations run at once.
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(2).build()?;
    let counters = Arc::new(Counters::default());
    let worker = Worker::new(id, Arc::clone(shared), Arc::clone(&counters));
    let body = move || {
        runtime.block_on(run_worker(worker, inbox, stop));
        runtime.shutdown_timeout(Duration::from_secs(1));
    };
    let thread = thread::Builder::new().name(format!("worker-{id}")).spawn(body)?;
    Ok(WorkerThread { counters, thread: Some(thread) })
}

async fn run_worker(worker: Arc<Worker>, mut inbox: UnboundedReceiver<Arrival>, stop: CancellationToken) {
    let sessions = tokio_util::task::TaskTracker::new();
    let Some(lane) = worker.shared.lanes.lane(worker.id).cloned() else { return };
    lane.started();
    loop {
        let arrival = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            arrival = inbox.recv() => arrival,
        };
        let Some(arrival) = arrival else { return };
        let here = Here(Arc::clone(&lane));
        let worker = Arc::clone(&worker);
        match arrival {
            Arrival::Accepted { io, peer, counted } => {
                let Ok(io) = TcpStream::from_std(io) else { continue };
                sessions.spawn(async move {
                    let _here = here;
                    serve(worker, io, peer, counted).await;
                });
            }
            Arrival::Moved(moving) => {
                sessions.spawn(async move {
                    let _here = here;
                    resume(worker, moving).await;
                });
            }
        }
    }
}

/// Counts a session out of its worker, however it ends.
struct Here(Arc<Lane>);

impl Drop for Here {
    fn drop(&mut self) {
        self.0.left();
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
pub async fn accept(listener: TcpListener, shared: Arc<Shared>, stop: CancellationToken) {
    let mut told: Option<Instant> = None;
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((io, peer)) => hand_over(io, peer, &shared),
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

fn hand_over(mut io: TcpStream, peer: SocketAddr, shared: &Arc<Shared>) {
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
    if let Ok(io) = tune(&io, CLIENT_PATIENCE).and_then(|()| io.into_std()) {
        shared.lanes.send(Arrival::Accepted { io, peer, counted });
    }
}
