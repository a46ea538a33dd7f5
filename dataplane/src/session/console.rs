//! Logging in to the admin console: the client proves itself to the proxy, which asks no server, and must be among the
//! users of `[console]`. Never opens a server connection.

use super::login::{Login, Refusal};
use crate::console::{Caller, Talk, is_console};
use crate::limits::Counted;
use crate::pool::View;
use crate::registry::{ClientFacts, ClientKind};
use helios_pgwire::PgError;
use helios_pgwire::backend;
use helios_pgwire::startup::{Startup, agreed};
use helios_proto::model::{ConsoleAccess, HbaMethod};
use std::sync::Arc;
use std::time::Instant;

impl Login<'_> {
    /// Whether the client has asked for the console, and there is one. Otherwise its name is a database like any other.
    pub(super) fn wants_console(&self) -> bool {
        let view = self.worker.shared.pools.view();
        view.settings().console.is_open() && is_console(&self.startup.database)
    }

    /// Logs the client in to the console.
    ///
    /// # Errors
    /// See [`Refusal`]; what must be told has not been sent.
    pub(super) async fn console(mut self, counted: &mut Counted) -> Result<Talk, Refusal> {
        let view = self.view().await?;
        let Startup { user, database, params, version, .. } = self.startup;
        let access = view.settings().console.access(user);
        self.prove_for_console(&view, access).await?;
        if access.is_none() {
            return Err(PgError::fatal("08P01", "not allowed")
                .hint("Add the role to admin_users or stats_users in [console].")
                .into());
        }
        counted.login(&view.settings().limits, user, database)?;
        let shared = &self.worker.shared;
        let registered = shared.registry.register(agreed(*version));
        registered.handle.describe(ClientFacts {
            identity: shared.identities.provisional(user, database, params.clone()),
            kind: ClientKind::Console,
            peer: self.from,
            local: self.lobby.io.tcp().local_addr().ok(),
            tls: self.lobby.io.tls_words(),
            since: Instant::now(),
        });
        let mut out = Vec::new();
        backend::auth(&mut out, 0, b"");
        crate::console::greet(&mut out, params, &registered.handle);
        self.lobby.send(&out).await?;
        let caller = Caller { user: String::from_utf8_lossy(user).into_owned(), from: self.from };
        Ok(Talk::new(Arc::clone(shared), registered, caller))
    }

    /// A proof that needs no server. Who has nothing to do here learns no more from it than who has a wrong password.
    async fn prove_for_console(
        &mut self,
        view: &Arc<View>,
        access: Option<ConsoleAccess>,
    ) -> Result<(), Refusal> {
        if self.admitted(view)? == HbaMethod::Cert {
            return self.check_certificate();
        }
        if self.by_knowledge(view).await?.is_some() {
            return Ok(());
        }
        let user = &self.startup.user;
        if access.is_none() {
            let _ = self.scram(self.worker.shared.auth.nobody(user)).await?;
            return Err(self.wrong());
        }
        let text = format!("role \"{}\" cannot be verified without a server", String::from_utf8_lossy(user));
        Err(PgError::fatal("28000", text)
            .hint("Add the role to [[users]] with its password or verifier, or set auth_query in [auth].")
            .into())
    }
}
