//! Stands for the etcd store in a build without it: refuses to start.

use helios_proto::config::EtcdSettings;

use super::{Memory, StoreError};

/// No store.
pub enum Etcd {}

impl Etcd {
    /// Refuses.
    ///
    /// # Errors
    /// Always.
    pub fn start(_: &EtcdSettings, _: &str, _: &str) -> Result<Memory, StoreError> {
        Err(StoreError::Refused("this program was built without etcd (cargo feature \"etcd\")".to_owned()))
    }
}
