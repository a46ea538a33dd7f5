//! `[switchover]`: how a planned change of primary is carried out. It belongs to the process that carries it out, never
//! travels in a snapshot and cannot be changed from outside: it names commands. Pure.

use std::time::Duration;

use toml::de::DeTable;

use super::keys::Section;
use super::reader::Reader;
use crate::model::{ProbeCredential, Secret, words};

/// `[switchover]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Switchover {
    /// Who promotes; `None`: Patroni where it is the provider, else `pg_promote()`.
    pub driver: Option<Driver>,
    /// Login for what SQL does; `None`: that of `[health]`.
    pub credential: Option<ProbeCredential>,
    /// Stops the old primary.
    pub stop: Option<String>,
    /// Promotes the new one; always there with [`Driver::Exec`].
    pub promote: Option<String>,
    /// Makes the old primary a standby.
    pub rejoin: Option<String>,
    /// Longest wait for open transactions.
    pub drain_timeout: Duration,
    /// Longest wait for one step of PostgreSQL or of a command.
    pub promote_timeout: Duration,
    /// The section stands in the file.
    pub explicit: bool,
}

/// Who promotes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Driver {
    /// `pg_promote()`
    Sql,
    /// A command.
    Exec,
    /// An operator, while everybody waits.
    Manual,
    /// Patroni, which also stops the old primary and makes it a standby.
    Patroni,
}

words!(Driver: Sql = "sql", Exec = "exec", Manual = "manual", Patroni = "patroni");

pub(super) fn switchover(reader: &mut Reader<'_>, root: &DeTable<'_>) -> Switchover {
    let explicit = root.iter().any(|(key, _)| key.get_ref() == Section::Switchover.name());
    let mut part = reader.part(root, Section::Switchover);
    let driver = part.word("driver", Driver::from_word);
    let (user, password) = (part.text("user"), part.secret("password"));
    if user.is_none() && password.is_some() {
        let line = part.given("password");
        part.problem(line, "password in [switchover] without user".to_owned());
    }
    let promote = part.text("promote_command");
    match (driver, promote.is_some()) {
        (Some(Driver::Exec), false) => {
            let line = part.given("driver");
            part.problem(line, "driver = \"exec\" in [switchover] needs promote_command".to_owned());
        }
        (None | Some(Driver::Sql | Driver::Manual | Driver::Patroni), true) => {
            let line = part.given("promote_command");
            part.problem(line, "promote_command in [switchover] is only for driver = \"exec\"".to_owned());
        }
        _ => {}
    }
    if driver == Some(Driver::Patroni) {
        for name in ["stop_command", "rejoin_command"] {
            let line = part.given(name);
            if line.is_some() {
                part.problem(line, format!("{name} in [switchover] has no effect with driver = \"patroni\""));
            }
        }
    }
    Switchover {
        driver,
        credential: user.map(|user| credential(user, password)),
        stop: part.text("stop_command"),
        promote,
        rejoin: part.text("rejoin_command"),
        drain_timeout: part.seconds("drain_timeout_secs"),
        promote_timeout: part.seconds("promote_timeout_secs"),
        explicit,
    }
}

fn credential(user: String, password: Option<Secret>) -> ProbeCredential {
    ProbeCredential { user, password, database: "postgres".to_owned() }
}
