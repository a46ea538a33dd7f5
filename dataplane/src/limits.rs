//! How many clients there are, in total and by user, database and address (`[limits]`). Counting is a guard: a
//! session that ends in any way is counted out.

use helios_pgwire::PgError;
use helios_proto::model::Limits;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

/// What clients are counted by.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    All,
    Replication,
    Address(IpAddr),
    User(Vec<u8>),
    Database(Vec<u8>),
}

/// Clients now.
#[derive(Default)]
pub struct Clients {
    counts: Mutex<HashMap<Key, u32>>,
}

/// One client, counted.
pub struct Counted {
    clients: Arc<Clients>,
    keys: Vec<Key>,
}

impl Clients {
    /// Clients in all, those that are logging in included.
    #[must_use]
    pub fn connected(&self) -> usize {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.get(&Key::All).map_or(0, |n| usize::try_from(*n).unwrap_or(usize::MAX))
    }

    /// Counts a connection that was just accepted.
    ///
    /// # Errors
    /// 53300 above `max_client_connections` or `max_client_connections_per_address`.
    pub fn connect(self: &Arc<Self>, limits: &Limits, address: IpAddr) -> Result<Counted, Box<PgError>> {
        let mut counted = Counted { clients: Arc::clone(self), keys: Vec::new() };
        counted.add(Key::All, limits.max_clients, "sorry, too many clients already")?;
        let text = "too many connections from this address";
        counted.add(Key::Address(address), limits.max_clients_per_address, text)?;
        Ok(counted)
    }
}

impl Counted {
    /// Counts the client for its user and database, once both are proved.
    ///
    /// # Errors
    /// 53300 above `max_client_connections_per_user` or `max_client_connections_per_database`.
    pub fn login(&mut self, limits: &Limits, user: &[u8], database: &[u8]) -> Result<(), Box<PgError>> {
        let shown = |name: &[u8]| String::from_utf8_lossy(name).into_owned();
        let text = format!("too many connections for role \"{}\"", shown(user));
        self.add(Key::User(user.to_vec()), limits.max_clients_per_user, &text)?;
        let text = format!("too many connections for database \"{}\"", shown(database));
        self.add(Key::Database(database.to_vec()), limits.max_clients_per_database, &text)
    }

    /// Counts the client as one of the replication protocol.
    ///
    /// # Errors
    /// 53300 above `max_replication_connections`.
    pub fn replication(&mut self, limits: &Limits) -> Result<(), Box<PgError>> {
        self.add(Key::Replication, Some(limits.max_replication), "too many replication connections")
    }

    fn add(&mut self, key: Key, limit: Option<u32>, text: &str) -> Result<(), Box<PgError>> {
        let mut counts = self.clients.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let now = counts.get(&key).copied().unwrap_or(0);
        if limit.is_some_and(|limit| now >= limit) {
            return Err(Box::new(PgError::fatal("53300", text)));
        }
        counts.insert(key.clone(), now.saturating_add(1));
        self.keys.push(key);
        Ok(())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut counts = self.clients.counts.lock().unwrap_or_else(PoisonError::into_inner);
        for key in self.keys.drain(..) {
            let left = counts.get(&key).map_or(0, |n| n.saturating_sub(1));
            if left == 0 {
                counts.remove(&key);
            } else {
                counts.insert(key, left);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn limits_hold_and_are_given_back() {
        let limits = Limits {
            max_clients: Some(2),
            max_clients_per_user: Some(1),
            max_clients_per_database: None,
            max_clients_per_address: None,
            query_timeout: None,
            idle_in_transaction_timeout: None,
            client_idle_timeout: None,
            login_timeout: Duration::from_secs(1),
            failed_login_delay: Duration::ZERO,
            max_replication: 0,
        };
        let clients = Arc::new(Clients::default());
        let home = IpAddr::from([127, 0, 0, 1]);
        let mut a = clients.connect(&limits, home).unwrap();
        let mut b = clients.connect(&limits, home).unwrap();
        assert_eq!(clients.connect(&limits, home).err().unwrap().code, "53300");
        assert!(a.login(&limits, b"u", b"d").is_ok());
        assert_eq!(b.login(&limits, b"u", b"d").err().unwrap().code, "53300");
        drop(a);
        assert!(b.login(&limits, b"u", b"d").is_ok());
        assert!(clients.connect(&limits, home).is_ok());
        drop(b);
        assert!(clients.counts.lock().unwrap().is_empty());
    }
}
