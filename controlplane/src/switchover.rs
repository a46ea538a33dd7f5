//! A planned change of primary over the whole fleet: preflight, drain, stop, catch up, promote, resume, rejoin. Every step
//! has a deadline; what fails before the promotion is taken back, what is past it goes on. Owner: one task per switchover,
//! one switchover at a time. It outlives its caller. Decides nothing about who is primary: that is the cluster's.
//!
//! What holds the fleet is a mark in the store, which every control plane passes on, and which ends by itself: should this
//! process die, data planes go on.

mod command;
pub mod preflight;
mod sql;

use std::sync::Arc;
use std::time::{Duration, Instant};

use helios_proto::config::{Driver, Switchover as Settings};
use helios_proto::model::{Evidence, HoldOrder, Node, Patroni, Snapshot};
use helios_proto::wire::v1::SwitchoverResult;
pub use helios_proto::wire::v1::switchover_event::{State, Step};
use tokio::sync::{Mutex, OwnedMutexGuard, mpsc, watch};
use tokio::time::{sleep, timeout};

use self::preflight::{Plan, Running, Seen};
use self::sql::{Lsn, Server};
use crate::authority::patroni::Rest;
use crate::core::Core;
use crate::feed::Kind;
use crate::store::unix_ms;

/// Pause between two looks at what still runs, and at how far a standby is.
const LOOK: Duration = Duration::from_millis(10);
/// Longest wait for every data plane to know the new primary.
const TOLD: Duration = Duration::from_secs(5);
/// Data planes of other control planes have heard of a hold after this.
const HEARD: Duration = Duration::from_millis(300);
/// What a hold lasts beyond the deadline of the step that it is for.
const SPARE: Duration = Duration::from_secs(5);
/// Words that may wait for a slow reader; more are lost to it.
const WORDS: usize = 256;

/// What is asked for.
#[derive(Debug, Clone, Default)]
pub struct Ask {
    /// Name of the next primary; empty: the only standby that can.
    pub to: String,
    /// Look only.
    pub dry_run: bool,
    /// Instead of the configured one.
    pub drain_timeout: Option<Duration>,
}

/// Something that happened.
#[derive(Debug, Clone)]
pub struct Word {
    /// At what.
    pub step: Step,
    /// How far.
    pub state: State,
    /// In words.
    pub text: String,
    /// Since the beginning.
    pub at: Duration,
    /// With the last one.
    pub result: Option<SwitchoverResult>,
}

/// Where switchovers are asked for.
pub struct Desk {
    core: Core,
    settings: Settings,
    busy: Arc<Mutex<()>>,
}

/// The old primary, as far as it takes no writes any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fence {
    /// It takes them.
    None,
    /// By SQL: can be taken back.
    Sql,
    /// It was stopped by a command.
    Stopped,
}

/// One switchover.
struct Walk {
    core: Core,
    settings: Settings,
    driver: Driver,
    /// Where it is asked, with [`Driver::Patroni`].
    patroni: Option<Arc<Rest>>,
    ask: Ask,
    words: mpsc::Sender<Word>,
    began: Instant,
    held: Option<Instant>,
    fence: Fence,
    _busy: OwnedMutexGuard<()>,
}

/// Both servers.
struct Pair {
    old: Server,
    new: Server,
}

impl Desk {
    /// A desk over a core.
    #[must_use]
    pub fn new(core: &Core, settings: Settings) -> Arc<Self> {
        Arc::new(Self { core: core.clone(), settings, busy: Arc::default() })
    }

    /// Begins a switchover: what it does, and what it says. `None`: one is on its way.
    pub fn begin(
        &self,
        ask: Ask,
    ) -> Option<(impl Future<Output = SwitchoverResult> + Send + use<>, mpsc::Receiver<Word>)> {
        let busy = Arc::clone(&self.busy).try_lock_owned().ok()?;
        let (words, said) = mpsc::channel(WORDS);
        let walk = Walk {
            core: self.core.clone(),
            settings: self.settings.clone(),
            driver: self.settings.driver.unwrap_or(Driver::Sql),
            patroni: None,
            ask,
            words,
            began: Instant::now(),
            held: None,
            fence: Fence::None,
            _busy: busy,
        };
        Some((walk.run(), said))
    }
}

impl Walk {
    async fn run(mut self) -> SwitchoverResult {
        let mut result = SwitchoverResult::default();
        let walked = self.walk(&mut result).await;
        if let Err(why) = walked {
            result.why = why;
        }
        result.ok = result.why.is_empty();
        result.held_ms = self.held.map_or(0, |since| millis(since.elapsed())).max(result.held_ms);
        let (step, state) = match result.ok {
            true => (Step::Resume, State::Done),
            false => (Step::Abort, State::Done),
        };
        let text = match (result.ok, self.ask.dry_run) {
            (true, true) => format!("{} could take over from {}", result.to, result.from),
            (true, false) => format!("{} is the primary, new work waited {} ms", result.to, result.held_ms),
            (false, _) => format!("no switchover: {}", result.why),
        };
        let word = Word { step, state, text, at: self.began.elapsed(), result: Some(result.clone()) };
        // Nobody may listen any more.
        let _ = timeout(TOLD, self.words.send(word)).await;
        result
    }

    async fn walk(&mut self, result: &mut SwitchoverResult) -> Result<(), String> {
        let (plan, pair) = self.preflight(result).await?;
        if self.ask.dry_run {
            return Ok(());
        }
        if let Err(why) = self.hand_over(&plan, &pair).await {
            self.take_back(&plan, &pair, &why).await;
            result.held_ms = self.held.take().map_or(0, |since| millis(since.elapsed()));
            return Err(why);
        }
        let snapshot = self.resume(&plan).await?;
        result.held_ms = self.held.take().map_or(0, |since| millis(since.elapsed()));
        (result.epoch, result.timeline) = (snapshot.epoch, snapshot.timeline);
        self.rejoin(&plan).await;
        Ok(())
    }

    async fn preflight(&mut self, result: &mut SwitchoverResult) -> Result<(Plan, Pair), String> {
        self.say(Step::Preflight, State::Begun, "looking".to_owned());
        let snapshot = Arc::clone(&self.core.snapshots.borrow());
        let plan = preflight::plan(&snapshot, &self.core.fleet.list(), &self.ask.to);
        let plan = plan.map_err(|problems| problems.join("; "))?;
        (result.from, result.to) = (plan.from.name.to_string(), plan.to.name.to_string());
        let health = self.core.keeper.desired().await.spec.health;
        self.choose_driver(health.patroni.as_ref())?;
        let credential = self.settings.credential.clone().or(health.credential);
        let credential = credential.ok_or("there is no login: [health] or [switchover] needs a user")?;
        let to = &self.core.servers;
        let (old, new) =
            tokio::join!(Server::open(&plan.from, to, &credential), Server::open(&plan.to, to, &credential));
        let pair = Pair { old: old?, new: new? };
        let (may_promote, superuser) = pair.new.rights().await?;
        if self.driver == Driver::Sql {
            if !may_promote {
                let grant = "grant execute on function pg_promote to it, or use another driver";
                return Err(format!("the login may not call pg_promote: {grant}"));
            }
            if self.settings.stop.is_none() && !superuser {
                return Err(
                    "the old primary could not be fenced: set stop_command in [switchover], or a superuser \
                            as its user"
                        .to_owned(),
                );
            }
        }
        let (written, reached) = (pair.old.written().await?, pair.new.reached().await?);
        let lag = written.saturating_sub(reached.replayed);
        let oldest = pair.old.oldest_transaction().await?;
        preflight::servers(&plan, &Seen { lag, streams: reached.streams, oldest }, self.drain_timeout())?;
        // Patroni points replicas at the new primary.
        let left = plan.left.iter().filter(|_| self.driver != Driver::Patroni);
        for note in plan.notes.iter().chain(left) {
            self.say(Step::Preflight, State::Note, note.clone());
        }
        let count = plan.dataplanes.len();
        let ms = oldest.as_millis();
        let text = format!(
            "{} -> {}: lag {lag} bytes, oldest transaction {ms} ms, {count} data planes",
            result.from, result.to
        );
        self.say(Step::Preflight, State::Done, text);
        Ok((plan, pair))
    }

    /// Where Patroni leads, nobody else may promote by SQL: it would take that for a failure.
    fn choose_driver(&mut self, patroni: Option<&Arc<Patroni>>) -> Result<(), String> {
        self.driver = match (self.settings.driver, patroni) {
            (Some(Driver::Sql), Some(_)) => {
                let instead = "set driver = \"patroni\" in [switchover], or run patronictl switchover";
                return Err(format!(
                    "Patroni leads this cluster and would undo a promotion by SQL: {instead}"
                ));
            }
            (Some(Driver::Patroni), None) => {
                return Err(
                    "driver = \"patroni\" in [switchover] needs provider = \"patroni\" in [topology]"
                        .to_owned(),
                );
            }
            (None, Some(_)) => Driver::Patroni,
            (given, _) => given.unwrap_or(Driver::Sql),
        };
        let needed = patroni.filter(|_| self.driver == Driver::Patroni);
        self.patroni = needed.map(|settings| Arc::new(Rest::new(Arc::clone(settings))));
        Ok(())
    }

    async fn ask_patroni(&self, plan: &Plan) -> Result<(), String> {
        let rest = self.patroni.as_ref().ok_or("Patroni is not the provider")?;
        let name = async |node: &Node| rest.name_of((node.name.as_str(), &node.host, node.port)).await;
        let (from, to) = (name(&plan.from).await?, name(&plan.to).await?);
        rest.switchover(&from, &to, self.settings.promote_timeout).await
    }

    /// Everything up to the promotion.
    async fn hand_over(&mut self, plan: &Plan, pair: &Pair) -> Result<(), String> {
        self.drain(plan, pair).await?;
        let written = pair.old.written().await?;
        self.hold(plan, self.settings.promote_timeout).await?;
        // Near at first, so that the old one is not stopped for long.
        self.caught_up(pair, written, false).await?;
        self.stop(plan, pair).await?;
        self.say(Step::CatchUp, State::Begun, format!("{} replays", plan.to.name));
        self.hold(plan, self.settings.promote_timeout).await?;
        let written = match self.fence {
            Fence::Stopped => written,
            Fence::None | Fence::Sql => pair.old.written().await?,
        };
        self.caught_up(pair, written, self.fence == Fence::Stopped).await?;
        self.say(Step::CatchUp, State::Done, format!("{} has everything", plan.to.name));
        self.promote(plan, pair).await
    }

    /// Asks every data plane to hold new work back for this long at most.
    async fn hold(&self, plan: &Plan, patience: Duration) -> Result<u64, String> {
        let order = HoldOrder { given: unix_ms(), for_ms: millis(patience + SPARE) };
        self.mark(plan, Some(order)).await
    }

    /// Gives or takes back the order, at every control plane; the revision of the snapshot that says so.
    async fn mark(&self, plan: &Plan, order: Option<HoldOrder>) -> Result<u64, String> {
        let name = &plan.from.name;
        let marked = self.core.keeper.mark(None, |_, ops| {
            ops.entry(name.clone()).or_default().hold = order;
            Ok(())
        });
        marked.await.map(|changed| changed.revision).map_err(|refusal| refusal.to_string())
    }

    fn drain_timeout(&self) -> Duration {
        self.ask.drain_timeout.unwrap_or(self.settings.drain_timeout)
    }

    /// Whether nothing runs on the old primary that came through data planes of other control planes, as far as can be
    /// seen: only the server knows. They need a moment to hear of the hold.
    async fn others_rest(&self, pair: &Pair, began: Instant) -> Result<bool, String> {
        let others = self.core.keeper.store().shared().map_or(0, |view| view.borrow().members.len()) > 1;
        if !others {
            return Ok(true);
        }
        Ok(began.elapsed() >= HEARD && pair.old.open_transactions().await? == 0)
    }

    async fn drain(&mut self, plan: &Plan, pair: &Pair) -> Result<(), String> {
        let patience = self.drain_timeout();
        self.say(Step::Drain, State::Begun, format!("new work for {} waits", plan.from.name));
        let began = Instant::now();
        self.held = Some(began);
        let revision = self.hold(plan, patience).await?;
        loop {
            let running = preflight::running(plan, &self.core.fleet.list(), revision);
            let running = running.map_err(|id| format!("data plane {id} has gone away"))?;
            if running.unheard == 0 && running.busy == 0 && self.others_rest(pair, began).await? {
                if running.resting > 0 {
                    let text = format!(
                        "{} sessions are tied to their server connection and will be ended",
                        running.resting
                    );
                    self.say(Step::Drain, State::Note, text);
                }
                break;
            }
            if began.elapsed() >= patience {
                let Running { unheard, busy, .. } = running;
                return Err(format!(
                    "after {} s {busy} server connections to {} are in use and {unheard} data planes have not answered",
                    patience.as_secs_f32(),
                    plan.from.name
                ));
            }
            sleep(LOOK).await;
        }
        let (count, ms) = (plan.dataplanes.len(), began.elapsed().as_millis());
        self.say(Step::Drain, State::Done, format!("{count} data planes in {ms} ms"));
        Ok(())
    }

    /// The old primary takes no more writes.
    async fn stop(&mut self, plan: &Plan, pair: &Pair) -> Result<(), String> {
        let name = &plan.from.name;
        match (&self.settings.stop, self.driver) {
            (_, Driver::Patroni) => {
                self.say(Step::Stop, State::Note, format!("Patroni stops {name}"));
            }
            (Some(stop), _) => {
                self.say(Step::Stop, State::Begun, format!("stopping {name}"));
                // Whatever comes of it, it may have stopped.
                self.fence = Fence::Stopped;
                command::run(stop, (&plan.from, &plan.to), self.settings.promote_timeout).await?;
                self.say(Step::Stop, State::Done, format!("{name} is stopped"));
            }
            (None, Driver::Sql) => {
                self.say(Step::Stop, State::Begun, format!("{name} becomes read-only"));
                self.fence = Fence::Sql;
                pair.old.fence().await?;
                self.say(Step::Stop, State::Done, format!("{name} is read-only"));
            }
            (None, Driver::Exec | Driver::Manual) => {
                let text = format!("{name} is not stopped: there is no stop_command in [switchover]");
                self.say(Step::Stop, State::Note, text);
            }
        }
        Ok(())
    }

    /// Waits until the new one has replayed up to `position`; `all`: and everything that it has received from a primary
    /// that is gone.
    async fn caught_up(&self, pair: &Pair, position: Lsn, all: bool) -> Result<(), String> {
        let end = Instant::now() + self.settings.promote_timeout;
        loop {
            let reached = pair.new.reached().await?;
            let drained = !all || (!reached.streams && reached.replayed >= reached.received);
            if reached.replayed >= position && drained {
                return Ok(());
            }
            if Instant::now() >= end {
                let behind = position.saturating_sub(reached.replayed);
                return Err(format!("the new primary is still {behind} bytes behind"));
            }
            sleep(LOOK).await;
        }
    }

    async fn promote(&mut self, plan: &Plan, pair: &Pair) -> Result<(), String> {
        let (name, limit) = (plan.to.name.clone(), self.settings.promote_timeout);
        self.hold(plan, limit).await?;
        self.say(Step::Promote, State::Begun, format!("promoting {name} ({})", self.driver));
        let promoted = match self.driver {
            Driver::Patroni => self.ask_patroni(plan).await,
            Driver::Sql => pair.new.promote(limit).await,
            Driver::Exec => {
                let promote = self.settings.promote.as_deref().unwrap_or_default();
                command::run(promote, (&plan.from, &plan.to), limit).await
            }
            Driver::Manual => {
                self.say(Step::Promote, State::Note, format!("promote {name} now"));
                Ok(())
            }
        };
        // Probes go there now, whatever was said.
        self.core.keeper.events().evidence(name.clone(), Evidence::InHotStandby(false));
        if let Err(why) = promoted
            && !pair.new.is_promoted().await
        {
            return Err(why);
        }
        self.say(Step::Promote, State::Done, format!("{name} answers"));
        Ok(())
    }

    /// Waits until the new primary is seen and every data plane knows.
    async fn resume(&mut self, plan: &Plan) -> Result<Arc<Snapshot>, String> {
        self.say(Step::Resume, State::Begun, format!("looking at {}", plan.to.name));
        let limit = self.settings.promote_timeout;
        let mut snapshots = self.core.snapshots.clone();
        let seen = timeout(limit, primary_is(&mut snapshots, &plan.to)).await;
        let snapshot = match seen {
            Ok(Some(snapshot)) => snapshot,
            Ok(None) => return Err("the control plane is stopping".to_owned()),
            Err(_) => {
                self.let_go(plan).await;
                return Err(format!(
                    "{} was promoted, and is not seen as the primary after {limit:?}",
                    plan.to.name
                ));
            }
        };
        // Another primary has ended the hold already; this is for the store.
        self.let_go(plan).await;
        let (all, told) = self.core.fleet.acknowledged(snapshot.revision, TOLD).await;
        let (epoch, timeline) = (snapshot.epoch, snapshot.timeline);
        self.say(
            Step::Resume,
            State::Note,
            format!("epoch {epoch}, timeline {timeline}, {told} of {all} data planes know"),
        );
        Ok(snapshot)
    }

    async fn rejoin(&mut self, plan: &Plan) {
        if self.driver == Driver::Patroni {
            let text = format!("Patroni makes {} a standby", plan.from.name);
            return self.say(Step::Rejoin, State::Note, text);
        }
        let Some(rejoin) = self.settings.rejoin.clone() else {
            let text =
                format!("{} is no standby yet: rebuild it, for instance with pg_rewind", plan.from.name);
            return self.say(Step::Rejoin, State::Note, text);
        };
        self.say(Step::Rejoin, State::Begun, format!("{} becomes a standby", plan.from.name));
        match command::run(&rejoin, (&plan.from, &plan.to), self.settings.promote_timeout).await {
            Ok(()) => self.say(Step::Rejoin, State::Done, "done".to_owned()),
            Err(why) => self.say(Step::Rejoin, State::Failed, why),
        }
    }

    /// Something failed before the new one was promoted.
    async fn take_back(&mut self, plan: &Plan, pair: &Pair, why: &str) {
        self.say(Step::Abort, State::Begun, why.to_owned());
        let name = &plan.from.name;
        match self.fence {
            Fence::None => {}
            Fence::Sql => match pair.old.release().await {
                Ok(()) => self.say(Step::Abort, State::Note, format!("{name} takes writes again")),
                Err(error) => {
                    let fix = "run ALTER SYSTEM RESET default_transaction_read_only there and reload";
                    self.say(
                        Step::Abort,
                        State::Failed,
                        format!("{name} is still read-only ({error}): {fix}"),
                    );
                }
            },
            Fence::Stopped => {
                let text = format!("{name} may be stopped: start it again, or promote {}", plan.to.name);
                self.say(Step::Abort, State::Note, text);
            }
        }
        self.let_go(plan).await;
    }

    async fn let_go(&self, plan: &Plan) {
        if let Err(error) = self.mark(plan, None).await {
            tracing::warn!(%error, "a hold is not taken back; it ends by itself");
        }
    }

    fn say(&self, step: Step, state: State, text: String) {
        let at = self.began.elapsed();
        tracing::info!(step = step.as_str_name(), state = state.as_str_name(), %text, "switchover");
        if state != State::Begun {
            self.core.feed.tell(Kind::Change, "switchover", &text);
        }
        // A reader that is too slow misses words, not the end.
        let _ = self.words.try_send(Word { step, state, text, at, result: None });
    }
}

/// The first snapshot in which a node is the primary; `None`: there will be none.
async fn primary_is(snapshots: &mut watch::Receiver<Arc<Snapshot>>, node: &Node) -> Option<Arc<Snapshot>> {
    let is = |snapshot: &Arc<Snapshot>| snapshot.primary().is_some_and(|state| state.node.name == node.name);
    snapshots.wait_for(is).await.ok().map(|found| Arc::clone(&found))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
