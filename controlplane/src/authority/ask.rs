//! The task that asks the authority outside: at once, in every interval, and often while something is wrong. Owner: the
//! coordinator, which takes the answers as events. Judges nothing.

use std::sync::Arc;
use std::time::Duration;

use helios_proto::model::Patroni;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::patroni::Rest;
use crate::cluster::Event;

/// The task; ends when dropped.
pub(crate) struct Asker {
    pub settings: Arc<Patroni>,
    hunt: watch::Sender<Option<Duration>>,
    _stop: DropGuard,
}

impl Asker {
    /// Starts asking. Answers go to `events`.
    pub fn start(
        settings: Arc<Patroni>,
        events: mpsc::Sender<Event>,
        (stop, tracker): (&CancellationToken, &TaskTracker),
    ) -> Self {
        let stop = stop.child_token();
        let (hunt, hunted) = watch::channel(None);
        let (rest, interval) = (Arc::new(Rest::new(Arc::clone(&settings))), settings.interval);
        let ended = stop.clone();
        tracker.spawn(async move {
            tokio::select! {
                biased;
                () = ended.cancelled() => {}
                () = run(rest, interval, hunted, events) => {}
            }
        });
        Self { settings, hunt, _stop: stop.drop_guard() }
    }

    /// Asks at once and with this pause, or in every interval again.
    pub fn hunt(&self, pause: Option<Duration>) {
        self.hunt.send_if_modified(|now| std::mem::replace(now, pause) != pause);
    }
}

async fn run(
    rest: Arc<Rest>,
    interval: Duration,
    mut hunt: watch::Receiver<Option<Duration>>,
    events: mpsc::Sender<Event>,
) {
    loop {
        let asked = std::time::Instant::now();
        let told = rest.holder().await.map_err(Into::into);
        if events.send(Event::Told { asked, told }).await.is_err() || !wait(interval, &mut hunt).await {
            return;
        }
    }
}

/// Waits until it is time to ask; false: nobody wants to know any more.
async fn wait(interval: Duration, hunt: &mut watch::Receiver<Option<Duration>>) -> bool {
    let asked = Instant::now();
    let mut hunting = *hunt.borrow_and_update();
    loop {
        let pause = hunting.map_or(interval, |pause| pause.min(interval));
        tokio::select! {
            biased;
            changed = hunt.changed() => {
                let before = hunting;
                hunting = *hunt.borrow_and_update();
                if changed.is_err() {
                    return false;
                }
                if hunting.is_some() && before.is_none() {
                    return true;
                }
            }
            () = sleep_until(asked + pause) => return true,
        }
    }
}
