//! Where PostgreSQL's server programs are: the newest that Debian has installed, or another version that `tools/setup` has
//! fetched. Never installs anything.

use std::path::PathBuf;

/// Where `tools/setup` puts what Debian does not have.
pub const FETCHED: &str = "/usr/local/lib/helios-tests";

/// The server programs of one version.
#[derive(Debug, Clone)]
pub struct Programs(PathBuf);

impl Programs {
    /// Those of the newest version that Debian has installed.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn newest() -> Self {
        let versions =
            std::fs::read_dir("/usr/lib/postgresql").expect("PostgreSQL is installed (make setup)");
        let mut found: Vec<(u32, PathBuf)> = versions
            .flatten()
            .filter_map(|e| Some((e.file_name().to_str()?.parse().ok()?, e.path().join("bin"))))
            .filter(|(_, bin)| bin.join("initdb").exists())
            .collect();
        found.sort();
        Self(found.pop().expect("initdb (make setup)").1)
    }

    /// Those of PostgreSQL 18. Where it could not be installed, says so on standard error.
    #[must_use]
    pub fn eighteen() -> Option<Self> {
        let places = ["/usr/lib/postgresql/18/bin".to_owned(), format!("{FETCHED}/postgresql/18/bin")];
        let found = places.iter().map(|bin| Self(bin.into())).find(|programs| programs.has("initdb"));
        if found.is_none() {
            crate::loudly("SKIPPED: no PostgreSQL 18 on this machine (tools/setup fetches it where npm can)");
        }
        found
    }

    /// The path of a program.
    #[must_use]
    pub fn path(&self, program: &str) -> PathBuf {
        self.0.join(program)
    }

    /// The directory with all of them.
    #[must_use]
    pub fn directory(&self) -> &std::path::Path {
        &self.0
    }

    pub(crate) fn has(&self, program: &str) -> bool {
        self.path(program).exists()
    }
}
