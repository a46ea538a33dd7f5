//! `switchover`: asks for it, tells what happens as it happens, and ends with how it ended. Words go to standard error,
//! the result to standard output; with `-o json` or `yaml` every event goes there, one after another.

use std::time::Duration;

use helios_proto::wire::v1;
use helios_proto::wire::v1::switchover_event::{State, Step};

use super::Done;
use crate::args::Format;
use crate::client::Session;
use crate::failure::{Exit, Failure};
use crate::out::Out;
use crate::tree;
use crate::words;

/// How it was asked for.
pub(super) struct Ask {
    pub(super) to: Option<String>,
    pub(super) drain_timeout: Option<Duration>,
    pub(super) dry_run: bool,
    pub(super) yes: bool,
}

pub(super) async fn run(out: Out, session: &mut Session, ask: Ask) -> Done {
    let Ask { to, drain_timeout, dry_run, yes } = ask;
    if !dry_run {
        let to = to.as_deref().unwrap_or("the standby");
        out.confirm(yes, &format!("{to} will become the primary, and new work will wait meanwhile"))?;
    }
    let request = v1::SwitchoverRequest {
        to: to.unwrap_or_default(),
        dry_run,
        drain_timeout_ms: drain_timeout.map_or(0, words::as_ms),
    };
    let mut events = session.call(async |c| c.switchover(request).await).await?;
    while let Some(event) = events.message().await.map_err(|status| session.failure(&status))? {
        if matches!(out.format, Format::Json | Format::Yaml) {
            out.one(&tree::of(&event), "")?;
        }
        match &event.result {
            None => out.note(&line(&event)),
            Some(result) => return end(out, &event, result),
        }
    }
    let text = format!("{} ended the stream; see heliosctl events and heliosctl status", session.endpoint);
    Err(Failure::new(Exit::Unavailable, text))
}

fn end(out: Out, event: &v1::SwitchoverEvent, result: &v1::SwitchoverResult) -> Done {
    match out.format {
        Format::Table | Format::Wide if result.ok => out.data(&event.text)?,
        Format::Name if result.ok => out.data(&result.to)?,
        _ => {}
    }
    if result.ok { Ok(Exit::Ok) } else { Err(Failure::new(Exit::Degraded, event.text.clone())) }
}

/// `  0.14 s  drain      done   2 data planes in 14 ms`
fn line(event: &v1::SwitchoverEvent) -> String {
    let word =
        |name: &str, prefix: &str| name.trim_start_matches(prefix).to_ascii_lowercase().replace('_', " ");
    let step = Step::try_from(event.step).unwrap_or_default();
    let state = State::try_from(event.state).unwrap_or_default();
    let (step, state) = (word(step.as_str_name(), "STEP_"), word(state.as_str_name(), "STATE_"));
    let seconds = Duration::from_millis(event.at_ms).as_secs_f64();
    format!("{seconds:6.2} s  {step:<9}  {state:<6}  {}", event.text)
}
