//! Where a run gets its answer from: the cache, or a server. Never decides what may be kept: that is `cache`.

use super::drive::{Session, Step};
use crate::cache::{Asker, Found};
use crate::worker::Tools;
use std::task::Context;
use std::time::Instant;

impl Session {
    /// Answers the core's run from the cache, or takes a server connection for it: `true`. Otherwise the session stands in a
    /// queue.
    pub(super) fn find_answer(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[u8],
        tools: &mut Tools,
    ) -> Result<bool, Step> {
        self.traced.asked(bytes.get(..self.core.run().len()).unwrap_or_default());
        match self.ask_cache(bytes, tools) {
            Found::Answer(answer) => {
                let sent = self.to_client.send(&mut self.client, cx, &answer);
                self.answered();
                sent.map_err(|_| Step::ClientGone)?;
                Ok(true)
            }
            Found::Fetch => Err(Step::Acquire),
            Found::Primary | Found::Nothing => self.take_server(tools),
        }
    }

    /// Whether the run that needs a server has an answer already.
    fn ask_cache(&mut self, bytes: &[u8], tools: &mut Tools) -> Found {
        if !self.desk.is_open() || !self.core.may_be_answered() || self.alone {
            return Found::Nothing;
        }
        let view = tools.view();
        let run = self.core.run();
        let asker = Asker {
            identity: &self.identity,
            settings: self.core.settings().in_force(),
            snapshot: &view.snapshot,
            greeting: &self.greeting,
            prepared: &|name| self.core.tail_of(name),
        };
        let whole = bytes.get(..run.len()).unwrap_or_default();
        let found = self.desk.look_up(whole, run.verdict(), &asker, &mut tools.readings);
        if matches!(found, Found::Fetch | Found::Primary) {
            self.core.ask_for_primary();
        }
        found
    }

    /// Answers without a server wait for the client: no more of them are made.
    pub(super) fn is_choked(&self) -> bool {
        self.desk.is_open() && self.server.is_none() && self.to_client.blocked()
    }

    /// The session's run has been answered without a server.
    pub(super) fn answered(&mut self) {
        self.core.answered();
        self.traced.cached();
        let _ = self.note_counts();
        self.rested = Instant::now();
        self.look = true;
    }
}
