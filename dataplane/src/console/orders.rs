//! What the console changes. Orders for all databases go the way of `heliosctl pool`, and outlive the process where that
//! has a store; orders for one database hold for this process, as PgBouncer's do. Each one stands in the audit log. Never
//! given up half way: only the wait behind it can be left.

use super::command::Change;
use super::{Caller, Desk, Order, Ordered, is_console};
use crate::pool::View;
use crate::pool::database::DatabaseState;
use crate::registry::ClientKind;
use crate::worker::Shared;
use helios_pgwire::PgError;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// How often a pause looks whether everything has come to rest.
const TICK: Duration = Duration::from_millis(20);

type Done<T = ()> = Result<T, Box<PgError>>;

/// PgBouncer's code for everything that it refuses.
fn refuse<T>(text: impl Into<String>) -> Done<T> {
    Err(Box::new(PgError::error("08P01", text)))
}

/// A database by the name that an operator gives it.
struct Named {
    name: String,
    state: Arc<DatabaseState>,
}

/// Carries changes out for a caller.
pub struct Orders<'a> {
    /// What all workers share.
    pub shared: &'a Arc<Shared>,
    /// Where orders go.
    pub desk: &'a Desk,
    /// Who gives them.
    pub caller: &'a Caller,
}

impl Orders<'_> {
    /// Carries a change out, with the wait that belongs to it. The tag that tells of it.
    pub async fn carry_out(&self, change: Change) -> Done<&'static str> {
        match change {
            Change::Pause(None) => self.pause().await.map(|()| "PAUSE"),
            Change::Pause(Some(name)) => self.pause_one(&self.find("pause", name)?).await.map(|()| "PAUSE"),
            Change::Resume(None) => self.resume().await.map(|()| "RESUME"),
            Change::Resume(Some(name)) => self.resume_one(name).await.map(|()| "RESUME"),
            Change::Reconnect(None) => {
                let done = self.obey(Order::Reconnect, "RECONNECT", String::new()).await;
                done.map(|_| "RECONNECT")
            }
            Change::Reconnect(Some(name)) => {
                let database = self.find("reconnect", name)?;
                self.note("RECONNECT", &database.name).await?;
                self.renew(&database);
                Ok("RECONNECT")
            }
            Change::Kill(None) => refuse("a database is required"),
            Change::Kill(Some(name)) => self.kill(&self.find("kill", name)?).await.map(|()| "KILL"),
            Change::KillClient(client) => self.kill_client(client).await.map(|()| "KILL_CLIENT"),
            Change::Reload => self.reload().await.map(|()| "RELOAD"),
            Change::Elsewhere(verb, how) => {
                Err(Box::new(PgError::error("0A000", format!("{verb} is not supported")).hint(how)))
            }
        }
    }

    /// Gives an order, and waits until it is in force. It goes on when whoever asked for it has left.
    async fn obey(&self, order: Order, verb: &'static str, detail: String) -> Done {
        let ordered = Ordered { order, caller: self.caller.clone(), verb, detail };
        let given = self.shared.cleanups.spawn((self.desk.obey)(ordered)).await;
        let revision = given.unwrap_or_else(|_| refuse("the order was not carried out"))?;
        self.shared.pools.newer_than(revision.saturating_sub(1)).await;
        Ok(())
    }

    /// Writes down what this process does by itself.
    async fn note(&self, verb: &'static str, detail: &str) -> Done {
        self.obey(Order::Own("ok".to_owned()), verb, detail.to_owned()).await
    }

    fn find(&self, what: &str, name: String) -> Done<Named> {
        if is_console(name.as_bytes()) {
            return refuse(format!("cannot {what} admin db: {name}"));
        }
        let identities = &self.shared.identities;
        let configured = || {
            let view = self.shared.pools.view();
            view.settings().databases.iter().any(|database| database.name == name)
        };
        match identities.kept_databases().remove(name.as_bytes()) {
            Some(state) => Ok(Named { name, state }),
            None if configured() => Ok(Named { state: identities.keep_database(name.as_bytes()), name }),
            None => {
                let error = PgError::error("08P01", format!("no such database: {name}"));
                Err(Box::new(
                    error
                        .hint("Databases are known once a client has used them, and those of [[databases]]."),
                ))
            }
        }
    }

    async fn pause(&self) -> Done {
        if is_paused(&self.shared.pools.view()) {
            return refuse("already suspended/paused");
        }
        self.obey(Order::Pause, "PAUSE", String::new()).await?;
        self.rest(|| {
            let view = self.shared.pools.view();
            (is_paused(&view), view.pools.iter().all(|pool| pool.busy() == 0))
        })
        .await
    }

    async fn pause_one(&self, database: &Named) -> Done {
        self.note("PAUSE", &database.name).await?;
        database.state.set_paused(true);
        self.renew(database);
        self.rest(|| (database.state.paused(), database.state.places() == 0)).await
    }

    /// Waits until what is paused has come to rest.
    async fn rest(&self, look: impl Fn() -> (bool, bool)) -> Done {
        let mut ticks = tokio::time::interval(TICK);
        loop {
            ticks.tick().await;
            match look() {
                (true, true) => return Ok(()),
                (true, false) => {}
                (false, _) => {
                    let text = "the pause was ended before all server connections were free";
                    return Err(Box::new(PgError::error("55000", text)));
                }
            }
        }
    }

    async fn resume(&self) -> Done {
        if !self.shared.pools.view().snapshot.nodes.iter().any(|state| state.ops.paused) {
            return refuse("pooler is not paused/suspended");
        }
        self.obey(Order::Resume, "RESUME", String::new()).await
    }

    async fn resume_one(&self, name: String) -> Done {
        let not_paused = |name: &str| refuse(format!("database {name} is not paused"));
        if is_console(name.as_bytes()) {
            return not_paused(&name);
        }
        let database = self.find("resume", name)?;
        if !database.state.paused() {
            return not_paused(&database.name);
        }
        self.note("RESUME", &database.name).await?;
        database.state.set_paused(false);
        self.shared.pools.view().pools.iter().for_each(|pool| pool.serve_queue(true));
        Ok(())
    }

    /// Connections of now close: those that rest at once, those in use as they come back.
    fn renew(&self, database: &Named) {
        database.state.renew();
        let view = self.shared.pools.view();
        view.pools.iter().for_each(|pool| pool.flush_database(database.name.as_bytes()));
    }

    async fn kill(&self, database: &Named) -> Done {
        self.note("KILL", &database.name).await?;
        database.state.set_paused(true);
        self.renew(database);
        for seen in self.shared.registry.seen() {
            let its = |client: &crate::registry::ClientFacts| {
                client.kind != ClientKind::Console && client.identity.database == database.name.as_bytes()
            };
            if seen.handle.client().is_some_and(its) {
                seen.handle.kill();
            }
        }
        Ok(())
    }

    async fn kill_client(&self, client: Option<String>) -> Done {
        let Some(name) = client else { return refuse("a client is required: its ptr in SHOW CLIENTS") };
        let pid = name.strip_prefix("0x").and_then(|hex| u32::from_str_radix(hex, 16).ok());
        let seen = self.shared.registry.seen();
        let Some(seen) = seen.iter().find(|seen| Some(seen.handle.pid) == pid) else {
            return refuse(format!("no such client: {name}"));
        };
        self.note("KILL_CLIENT", &name).await?;
        seen.handle.kill();
        Ok(())
    }

    async fn reload(&self) -> Done {
        let (asked, answer) = oneshot::channel();
        let stopping = || "the proxy is stopping".to_owned();
        let sent = self.desk.reload.send(asked).await;
        let reloaded = match sent {
            Ok(()) => answer.await.unwrap_or_else(|_| Err(stopping())),
            Err(_) => Err(stopping()),
        };
        let outcome = reloaded.as_ref().map_or_else(String::clone, |()| "ok".to_owned());
        self.obey(Order::Own(outcome), "RELOAD", String::new()).await?;
        reloaded.map_err(|why| {
            let text = "configuration not reloaded, the old one stays";
            Box::new(PgError::error("F0000", text).detail(why))
        })
    }
}

fn is_paused(view: &View) -> bool {
    let nodes = &view.snapshot.nodes;
    !nodes.is_empty() && nodes.iter().all(|state| state.ops.paused)
}
