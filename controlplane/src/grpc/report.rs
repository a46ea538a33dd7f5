//! Reports of data planes, apart from the stream that brings them topology. A call belongs to the stream of the same data
//! plane and ends with it. One that sends too much is read more slowly: it drops what does not fit, and nobody else waits.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use helios_proto::wire::v1::report_server::Report;
use helios_proto::wire::v1::{self, report_msg::Msg};
use tokio::time::timeout;
use tonic::{Request, Response, Status, Streaming};

use super::discovery::{HELLO, SILENCE};
use super::ear::{Ear, Ears};
use crate::counts::{Counts, Way, add};

/// Largest report: a thousand nodes and more.
pub(super) const LARGEST: usize = 256 << 10;
/// Each report takes this long of its data plane's time...
const EACH: Duration = Duration::from_millis(5);
/// ...of which so much may be used up ahead.
const AHEAD: Duration = Duration::from_secs(2);

/// The service.
pub(super) struct Service {
    pub ears: Arc<Ears>,
    pub counts: Arc<Counts>,
}

/// How much one data plane says.
struct Pace(Instant);

impl Pace {
    /// Counts a report; how long to wait before it is taken.
    fn take(&mut self, now: Instant) -> Duration {
        self.0 = self.0.max(now) + EACH;
        self.0.saturating_duration_since(now).saturating_sub(AHEAD)
    }
}

type Reply = Result<Response<v1::ReportReply>, Status>;

#[tonic::async_trait]
impl Report for Service {
    async fn stream(&self, request: Request<Streaming<v1::ReportMsg>>) -> Reply {
        let mut messages = request.into_inner();
        let first = timeout(HELLO, messages.message()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("no Reporter came"))??;
        let Some(v1::ReportMsg { msg: Some(Msg::Reporter(v1::Reporter { dp_id, boot_id })) }) = first else {
            return Err(Status::invalid_argument("the first message must be Reporter"));
        };
        let Some(ear) = self.ears.find(&dp_id, &boot_id) else {
            return Err(Status::failed_precondition("no stream of this data plane is open here"));
        };
        let (done, turn) = (ear.done.clone(), ear.turn());
        // The ear is the stream's: it must not be kept open from here.
        let ear = Arc::downgrade(&ear);
        tokio::select! {
            biased;
            () = done.cancelled() => Ok(Response::new(v1::ReportReply {})),
            () = turn.cancelled() => Err(Status::aborted("another call of the same data plane reports")),
            ended = self.listen(&ear, messages) => ended,
        }
    }
}

impl Service {
    async fn listen(&self, ear: &Weak<Ear>, mut messages: Streaming<v1::ReportMsg>) -> Reply {
        let mut pace = Pace(Instant::now());
        loop {
            let message = timeout(SILENCE, messages.message()).await;
            let message = message.map_err(|_| Status::deadline_exceeded("it is silent"))??;
            let (Some(message), Some(ear)) = (message, ear.upgrade()) else {
                return Ok(Response::new(v1::ReportReply {}));
            };
            let wait = pace.take(Instant::now());
            match message.msg {
                Some(Msg::Status(status)) => ear.status(status, Way::Report),
                Some(Msg::Evidence(evidence)) => ear.evidence(&evidence, Way::Report),
                // Said once already; or said by a newer version.
                Some(Msg::Reporter(_)) | None => {}
            }
            drop(ear);
            if !wait.is_zero() {
                add(&self.counts.slowed);
                tokio::time::sleep(wait).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_reports_at_the_usual_pace_never_waits_and_who_floods_does() {
        let start = Instant::now();
        let mut pace = Pace(start);
        for beat in 0..1_000 {
            let at = start + Duration::from_millis(20) * beat;
            assert_eq!(pace.take(at), Duration::ZERO, "the quickest beat is 20 ms");
        }
        let mut pace = Pace(start);
        let waits = (0..1_000).filter(|_| !pace.take(start).is_zero()).count();
        assert_eq!(waits, 600, "400 at once, and then one in 5 ms");
        assert_eq!(pace.take(start), Duration::from_millis(3_005));
    }
}
