//! The way to the workers: who gets a new client, and how sessions move when the load is uneven. Measures what each
//! worker's thread uses; the policy is in `spread`. Never reads a byte of a client.

use crate::limits::Counted;
use crate::session::Moving;
use crate::spread::{Sample, Spread};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

/// How often loads are measured.
const WINDOW: Duration = Duration::from_millis(100);

/// What comes to a worker.
pub enum Arrival {
    /// An accepted client.
    Accepted {
        /// Its socket.
        io: TcpStream,
        /// Its address.
        peer: SocketAddr,
        /// Its place in the counts.
        counted: Counted,
    },
    /// A session of another worker.
    Moved(Box<Moving>),
}

/// A worker as others see it.
pub struct Lane {
    arrivals: UnboundedSender<Arrival>,
    /// Sessions that the worker has, logins among them.
    sessions: AtomicUsize,
    /// Active sessions in the last window, and arrivals since.
    expected: AtomicU32,
    /// Where the kernel says how long the worker's thread ran.
    schedstat: OnceLock<PathBuf>,
    /// What the worker's sessions tell, and are told.
    pub pulse: Pulse,
}

/// What sessions tell their worker, and what it tells them.
#[derive(Default)]
pub struct Pulse {
    window: AtomicU32,
    active: AtomicU32,
    shed: AtomicU32,
}

/// All workers.
pub struct Lanes {
    lanes: Vec<Arc<Lane>>,
    open: AtomicUsize,
}

impl Pulse {
    /// A session has run a statement; `seen` is its own memory of the last window. Whether it should move.
    pub fn beat(&self, seen: &mut u32) -> bool {
        let window = self.window.load(Ordering::Relaxed);
        if *seen != window {
            *seen = window;
            self.active.fetch_add(1, Ordering::Relaxed);
        }
        let one_less = |shed: u32| shed.checked_sub(1);
        self.shed.load(Ordering::Relaxed) > 0
            && self.shed.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).is_ok()
    }
}

impl Lane {
    /// Called by the worker's own thread, once: from now on its load can be measured.
    pub fn started(&self) {
        if let Ok(thread) = std::fs::read_link("/proc/thread-self") {
            let _ = self.schedstat.set(Path::new("/proc").join(thread).join("schedstat"));
        }
    }

    /// A session has ended or moved away.
    pub fn left(&self) {
        self.sessions.fetch_sub(1, Ordering::Relaxed);
    }

    /// Nanoseconds that the thread ran since it started.
    fn ran(&self) -> Option<u64> {
        let text = std::fs::read_to_string(self.schedstat.get()?).ok()?;
        text.split_ascii_whitespace().next()?.parse().ok()
    }
}

impl Lanes {
    /// Ways to `count` workers, and their ends.
    #[must_use]
    pub fn new(count: usize) -> (Self, Vec<UnboundedReceiver<Arrival>>) {
        let (lanes, inboxes) = (0..count).map(|_| lane()).unzip();
        (Self { lanes, open: AtomicUsize::new(1) }, inboxes)
    }

    /// The worker with this number.
    #[must_use]
    pub fn lane(&self, worker: usize) -> Option<&Arc<Lane>> {
        self.lanes.get(worker)
    }

    /// Workers that get sessions now.
    #[must_use]
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// The worker that gets the next session.
    fn pick(&self) -> Option<(usize, &Arc<Lane>)> {
        let order =
            |lane: &Lane| (lane.expected.load(Ordering::Relaxed), lane.sessions.load(Ordering::Relaxed));
        self.lanes.iter().take(self.open()).enumerate().min_by_key(|(_, lane)| order(lane))
    }

    /// Whether a session of this worker that is to move would get another one.
    #[must_use]
    pub fn elsewhere(&self, worker: usize) -> bool {
        self.pick().is_some_and(|(at, _)| at != worker)
    }

    /// Hands a client to a worker.
    pub fn send(&self, arrival: Arrival) {
        let Some((_, lane)) = self.pick() else { return };
        lane.sessions.fetch_add(1, Ordering::Relaxed);
        lane.expected.fetch_add(1, Ordering::Relaxed);
        if matches!(arrival, Arrival::Accepted { .. }) {
            // A login is work as well: a storm of them is spread over the workers.
            lane.pulse.active.fetch_add(1, Ordering::Relaxed);
        }
        if lane.arrivals.send(arrival).is_err() {
            lane.left();
        }
    }

    /// Measures and evens out until stopped.
    pub async fn balance(self: Arc<Self>, stop: CancellationToken) {
        let mut spread = Spread::default();
        let mut before: Vec<Option<u64>> = vec![None; self.lanes.len()];
        let mut since = Instant::now();
        let mut ticks = tokio::time::interval(WINDOW);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            let took = since.elapsed();
            since = Instant::now();
            let Some(samples) = self.sample(&mut before, took) else {
                // Nothing can be measured here: all workers serve.
                self.open.store(self.lanes.len(), Ordering::Relaxed);
                continue;
            };
            let shed = spread.step(&samples);
            for (lane, sample) in self.lanes.iter().zip(samples) {
                lane.expected.store(sample.active, Ordering::Relaxed);
            }
            self.even_out(spread.open(), &shed);
        }
    }

    /// From now on the first `open` workers serve, and each worker hands over this many sessions as they come to rest.
    pub fn even_out(&self, open: usize, shed: &[u32]) {
        let before = self.open.swap(open, Ordering::Relaxed);
        if before != open {
            tracing::debug!(workers = open, before, "number of serving workers changed");
        }
        for (lane, shed) in self.lanes.iter().zip(shed) {
            lane.pulse.shed.store(*shed, Ordering::Relaxed);
        }
    }

    fn sample(&self, before: &mut [Option<u64>], took: Duration) -> Option<Vec<Sample>> {
        let window = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX).max(1);
        let share = |nanos: u64| {
            let share = nanos.saturating_mul(1000).checked_div(window).unwrap_or(0);
            u32::try_from(share).unwrap_or(u32::MAX)
        };
        let one = |(lane, last): (&Arc<Lane>, &mut Option<u64>)| {
            let active = lane.pulse.active.swap(0, Ordering::Relaxed);
            lane.pulse.window.fetch_add(1, Ordering::Relaxed);
            let now = lane.ran()?;
            Some(Sample { ran: share(now.saturating_sub(last.replace(now).unwrap_or(now))), active })
        };
        self.lanes.iter().zip(before).map(one).collect()
    }
}

fn lane() -> (Arc<Lane>, UnboundedReceiver<Arrival>) {
    let (arrivals, inbox) = unbounded_channel();
    let lane = Lane {
        arrivals,
        sessions: AtomicUsize::new(0),
        expected: AtomicU32::new(0),
        schedstat: OnceLock::new(),
        pulse: Pulse::default(),
    };
    (Arc::new(lane), inbox)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::Clients;

    #[test]
    fn clients_that_come_are_work_as_statements_are() {
        let text = "[[nodes]]\nhost = \"h\"\nrole = \"primary\"\n";
        let limits =
            helios_proto::config::parse(text, "test", &|_| None).unwrap().spec.settings.limits.clone();
        let clients = Arc::new(Clients::default());
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let peer = listener.local_addr().unwrap();
        let (lanes, _inboxes) = Lanes::new(2);
        lanes.lanes.iter().for_each(|lane| lane.started());
        let mut before = vec![None; 2];
        let mut active = || {
            let samples = lanes.sample(&mut before, WINDOW).unwrap();
            samples.iter().map(|sample| sample.active).collect::<Vec<_>>()
        };
        assert_eq!(active(), [0, 0]);
        for _ in 0..3 {
            let io = TcpStream::connect(peer).unwrap();
            let counted = clients.connect(&limits, peer.ip()).unwrap();
            lanes.send(Arrival::Accepted { io, peer, counted });
        }
        assert_eq!(active(), [3, 0]);
        assert_eq!(active(), [0, 0]);
    }
}
