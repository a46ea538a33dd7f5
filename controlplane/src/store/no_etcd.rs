//! Stands for the etcd store in a build without it: refuses to start.

use std::io;

use helios_proto::config::EtcdSettings;

use super::{Memory, StoreError};

/// No store.
pub enum Etcd {}

impl Etcd {
    /// This build does not have it.
    pub const BUILT: bool = false;

    /// Refuses.
    ///
    /// # Errors
    /// Always.
    pub fn start(_: &EtcdSettings, _: &str, _: &str) -> Result<Memory, StoreError> {
        let why = "this program was built without it (cargo feature \"etcd\")";
        let source = io::Error::new(io::ErrorKind::Unsupported, why);
        Err(StoreError::Io { what: "use [store] with kind = \"etcd\"".to_owned(), source })
    }
}
