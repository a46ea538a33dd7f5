//! A switchover as operators ask for it: begun here, written down when it ends, told as it goes. Never carries one out.

use std::time::Duration;

use helios_proto::wire::v1;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::changes::Change;
use super::management::{Reply, Service};
use super::show;
use crate::switchover::{Ask, Word};

/// Longest drain timeout that a request may ask for.
const LONGEST_DRAIN: Duration = Duration::from_secs(50);

impl Service {
    /// Begins a switchover, which goes on when the caller leaves.
    pub(super) fn hand_over(
        &self,
        request: Request<v1::SwitchoverRequest>,
    ) -> Reply<ReceiverStream<Result<v1::SwitchoverEvent, Status>>> {
        let (change, sent) = Change::of(request, "Switchover", |sent: &v1::SwitchoverRequest| {
            let to = if sent.to.is_empty() { "the standby" } else { &sent.to };
            (format!("to {to}"), None)
        })?;
        let v1::SwitchoverRequest { to, dry_run, drain_timeout_ms } = sent;
        let drain_timeout = Some(Duration::from_millis(drain_timeout_ms)).filter(|limit| !limit.is_zero());
        if drain_timeout.is_some_and(|limit| limit > LONGEST_DRAIN) {
            return Err(Status::invalid_argument(format!(
                "drain timeout: at most {} s",
                LONGEST_DRAIN.as_secs()
            )));
        }
        let begun = self.desk.begin(Ask { to, dry_run, drain_timeout });
        let (walk, mut said) =
            begun.ok_or_else(|| Status::failed_precondition("another switchover is on its way"))?;
        let (keeper, feed) = (self.keeper.clone(), self.feed.clone());
        self.tracker.spawn(async move {
            let result = walk.await;
            if !dry_run {
                let outcome = if result.ok { "ok" } else { &result.why };
                change.note(&keeper, &feed, (outcome, false)).await;
            }
        });
        let (to_caller, outgoing) = mpsc::channel(16);
        self.tracker.spawn(async move {
            while let Some(word) = said.recv().await {
                if to_caller.send(Ok(event(word))).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(outgoing)))
    }
}

fn event(Word { step, state, text, at, result }: Word) -> v1::SwitchoverEvent {
    v1::SwitchoverEvent { step: step.into(), state: state.into(), text, at_ms: show::millis(at), result }
}
