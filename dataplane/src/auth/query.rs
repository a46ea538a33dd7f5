//! `auth_query`: looks up the verifier of a role that `[[users]]` does not have, on a connection of its own. Nothing of a
//! client reaches that connection but the role's name, as a parameter. Keeps no answer: each login asks anew, so that a
//! changed password counts at once.

use crate::pool::{NodePool, View};
use crate::server::Credential;
use crate::server::ask::{Row, ask_with};
use crate::server::dial::{DialError, Who, dial};
use crate::stream::Stream;
use helios_pgwire::scram::Verifier;
use helios_proto::model::{AuthQuery, Secret};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::timeout;
use zeroize::Zeroizing;

/// Longest look-up on one node, the connection to it included.
const LONGEST: Duration = Duration::from_secs(5);

/// What was found of a role.
pub enum Found {
    /// A SCRAM verifier.
    Scram(Secret),
    /// `md5(password || user)` in hex.
    Md5(Zeroizing<Vec<u8>>),
    /// No such role, or one that may not log in.
    Nobody,
}

/// The connection for look-ups.
#[derive(Default)]
pub struct LookUp {
    connection: Mutex<Option<Connection>>,
}

struct Connection {
    query: AuthQuery,
    /// The node that it goes to.
    place: (String, u16),
    io: Stream,
}

/// Why a look-up has no answer.
#[derive(Debug, thiserror::Error)]
pub enum LookUpError {
    /// No node is there to be asked.
    #[error("no node is up")]
    NoNode,
    /// No connection.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The query failed, or the connection.
    #[error("auth_query: {0}")]
    Query(#[from] io::Error),
}

impl LookUpError {
    /// Whether there may be an answer in a moment.
    #[must_use]
    pub fn is_for_now(&self) -> bool {
        match self {
            Self::NoNode => true,
            Self::Dial(error) => error.is_for_now(),
            Self::Query(_) => false,
        }
    }
}

impl LookUp {
    /// Asks the primary, and if it has no answer the other nodes that are up.
    ///
    /// # Errors
    /// See [`LookUpError`]; of the last node that was asked.
    pub async fn find(&self, query: &AuthQuery, view: &View, user: &[u8]) -> Result<Found, LookUpError> {
        if std::str::from_utf8(user).is_err() {
            // No server could be asked for it.
            return Ok(Found::Nobody);
        }
        let mut failed = LookUpError::NoNode;
        for node in view.askable() {
            match self.ask(query, view, node, user).await {
                Ok(rows) => return Ok(read(rows, user)),
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    async fn ask(
        &self,
        query: &AuthQuery,
        view: &View,
        node: usize,
        user: &[u8],
    ) -> Result<Vec<Row>, LookUpError> {
        let pool = view.pools.get(node).ok_or(LookUpError::NoNode)?;
        let place = (pool.node.host.clone(), pool.node.port);
        // Whoever asks waits for who asked before; each has its own time.
        let mut held = self.connection.lock().await;
        let slow = |_| Err(LookUpError::Query(io::ErrorKind::TimedOut.into()));
        timeout(LONGEST, ask_on(&mut held, query, (pool, place), user)).await.unwrap_or_else(slow)
    }
}

async fn ask_on(
    held: &mut Option<Connection>,
    query: &AuthQuery,
    (pool, place): (&NodePool, (String, u16)),
    user: &[u8],
) -> Result<Vec<Row>, LookUpError> {
    // A connection that is in the middle of something is not put back, however this ends.
    let kept = held.take().filter(|kept| kept.query == *query && kept.place == place);
    if let Some(mut kept) = kept
        && let Ok(rows) = ask_with(&mut kept.io, &query.sql, user).await
    {
        *held = Some(kept);
        return Ok(rows);
    }
    let credential = Arc::new(Credential::configured(query.password.as_ref()));
    let params = [("application_name", "helios-auth"), ("search_path", "pg_catalog")];
    let params = params.map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec()));
    let who = Who { user: query.user.as_bytes(), database: query.database.as_bytes(), params: &params };
    let ((mut io, _), _) = dial((&pool.node, &pool.leg), who, &credential).await?;
    let rows = ask_with(&mut io, &query.sql, user).await?;
    *held = Some(Connection { query: query.clone(), place, io });
    Ok(rows)
}

/// What the rows say of a role. Anything but its own name and a verifier says that there is no such role.
fn read(rows: Vec<Row>, user: &[u8]) -> Found {
    let mut own = rows.into_iter().filter(|row| row.first().and_then(Option::as_deref) == Some(user));
    let Some(verifier) = own.next().and_then(|row| row.into_iter().nth(1).flatten()) else {
        return Found::Nobody;
    };
    let verifier = Zeroizing::new(verifier);
    let hex = |digits: &&[u8]| digits.len() == 32 && digits.iter().all(u8::is_ascii_hexdigit);
    if let Some(digits) = verifier.strip_prefix(b"md5").filter(hex) {
        return Found::Md5(Zeroizing::new(digits.to_vec()));
    }
    match std::str::from_utf8(&verifier) {
        Ok(text) if Verifier::parse(text).is_some() => Found::Scram(Secret::new(text.to_owned())),
        _ => {
            tracing::warn!("auth_query gave something that is no SCRAM or MD5 verifier");
            Found::Nobody
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_verifier_of_the_role_itself_counts() {
        let scram = "SCRAM-SHA-256$4096:c2FsdA==$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:\
                     AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
        let md5 = format!("md5{}", "0f".repeat(16));
        let row = |columns: &[Option<&str>]| {
            columns.iter().map(|c| c.map(|c| c.as_bytes().to_vec())).collect::<Row>()
        };
        let kind = |rows: Vec<Row>| match read(rows, b"app") {
            Found::Scram(_) => "scram",
            Found::Md5(_) => "md5",
            Found::Nobody => "nobody",
        };
        for (rows, expected) in [
            (vec![], "nobody"),
            (vec![row(&[Some("app"), Some(scram)])], "scram"),
            (vec![row(&[Some("app"), Some(&md5), Some("more")])], "md5"),
            (vec![row(&[Some("other"), Some(scram)])], "nobody"),
            (vec![row(&[Some("other"), Some(scram)]), row(&[Some("app"), Some(scram)])], "scram"),
            (vec![row(&[Some("app"), None])], "nobody"),
            (vec![row(&[Some("app")])], "nobody"),
            (vec![row(&[None, Some(scram)])], "nobody"),
            (vec![row(&[Some("app"), Some("secret")])], "nobody"),
            (vec![row(&[Some("app"), Some("md5xyz")])], "nobody"),
        ] {
            assert_eq!(kind(rows.clone()), expected, "{rows:?}");
        }
    }
}
