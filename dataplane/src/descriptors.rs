//! File descriptors: as many as the system allows, a few held back for the operators' port, and how to tell that they
//! have run out, which says nothing about the other side. Owner of the reserve: the HTTP shim.

use rustix::process::{Resource, getrlimit, setrlimit};
use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

/// Descriptors held back.
const RESERVE: usize = 8;

/// Raises the soft limit to the hard one (getrlimit(2), `RLIMIT_NOFILE`): each client and each server connection is a
/// descriptor, and the usual soft limit is 1,024. What cannot be raised stays.
pub fn raise_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::debug!(%error, "the limit of open files stays as it is");
    }
}

/// Whether an error says that this process or this machine has no descriptor left (`EMFILE`, `ENFILE`).
#[must_use]
pub fn ran_out(error: &io::Error) -> bool {
    use rustix::io::Errno;
    error
        .raw_os_error()
        .is_some_and(|code| [Errno::MFILE, Errno::NFILE].map(Errno::raw_os_error).contains(&code))
}

/// A few open files, to be closed when descriptors are needed and there are none.
#[derive(Clone, Default)]
pub struct Reserve(Arc<Mutex<Vec<File>>>);

impl Reserve {
    /// A full one, as far as there are descriptors.
    #[must_use]
    pub fn hold() -> Self {
        let reserve = Self::default();
        reserve.refill();
        reserve
    }

    /// Gives one descriptor back to the system; `false`: there is none.
    #[must_use]
    pub fn lend(&self) -> bool {
        self.files().pop().is_some()
    }

    /// Fills up, as far as there are descriptors.
    pub fn refill(&self) {
        let mut files = self.files();
        while files.len() < RESERVE {
            let Ok(file) = File::open("/dev/null") else { return };
            files.push(file);
        }
    }

    fn files(&self) -> std::sync::MutexGuard<'_, Vec<File>> {
        // A list of files is whole, whoever panicked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reserve_is_lent_and_filled_up() {
        let reserve = Reserve::hold();
        for _ in 0..RESERVE {
            assert!(reserve.lend());
        }
        assert!(!reserve.lend());
        reserve.refill();
        assert!(reserve.lend());
    }

    #[test]
    fn only_a_lack_of_descriptors_is_one() {
        for (code, out) in [(24, true), (23, true), (111, false), (13, false)] {
            assert_eq!(ran_out(&io::Error::from_raw_os_error(code)), out, "{code}");
        }
        assert!(!ran_out(&io::ErrorKind::ConnectionRefused.into()));
    }
}
