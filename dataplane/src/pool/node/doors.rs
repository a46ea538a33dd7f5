//! Whether a server may be asked for one more connection. After it has refused one because it is full, or because it starts
//! or stops, one attempt a second goes to it, however many sessions wait. A limit of a role or of a database keeps nobody
//! else out. Pure: the time is passed in. Never dials, never waits.

use crate::pool::identity::Identity;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Pause between two attempts.
const PAUSE: Duration = Duration::from_secs(1);
/// First pause for a server that starts or stops: that may take a moment only. Doubles up to [`PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Pause after one of our own connections has ended: the server needs a moment to notice.
const ENDING: Duration = Duration::from_millis(100);
/// A server that was full lets them in one after the other, until as many were let in.
const ONE_BY_ONE: u32 = 8;
/// What a server refused once is forgotten when nobody has asked again for so long.
const FORGOTTEN: Duration = Duration::from_secs(60);

/// Whose limit it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// Of the server.
    Server,
    /// Of the role.
    Role,
    /// Of the database.
    Database,
}

/// Why a server refuses a connection for now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// It has no connection left.
    Full(Limit),
    /// It starts, stops or recovers.
    Away,
}

/// Whether an identity may ask for a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// Nothing speaks against it.
    Open,
    /// The server has refused some; it is time for the next attempt.
    Turn,
    /// Not now: the server is full.
    Full,
    /// Not now: the server starts, stops or recovers.
    Away,
}

/// What refused, and when it is asked again.
#[derive(Debug)]
struct Door {
    away: bool,
    pause: Duration,
    next: Instant,
    /// An attempt is under way.
    trying: bool,
    /// How many were let in since the last refusal.
    admitted: u32,
}

/// What a server refuses.
#[derive(Debug, Default)]
pub(super) struct Doors {
    server: Option<Door>,
    roles: HashMap<Vec<u8>, Door>,
    databases: HashMap<Vec<u8>, Door>,
}

impl Refused {
    /// What an ErrorResponse to a login says of it; `None`: it is no matter of time. The routine that reports it tells whose
    /// limit it is, in every language.
    #[must_use]
    pub const fn read(sqlstate: &[u8], routine: Option<&[u8]>) -> Option<Self> {
        match (sqlstate, routine) {
            (b"53300", Some(b"InitializeSessionUserId")) => Some(Self::Full(Limit::Role)),
            (b"53300", Some(b"CheckMyDatabase")) => Some(Self::Full(Limit::Database)),
            (b"53300", _) => Some(Self::Full(Limit::Server)),
            (b"57P01" | b"57P03", _) => Some(Self::Away),
            _ => None,
        }
    }
}

fn after(now: Instant, pause: Duration) -> Instant {
    now.checked_add(pause).unwrap_or(now)
}

impl Door {
    fn shut(away: bool, now: Instant) -> Self {
        let pause = if away { FIRST_PAUSE } else { PAUSE };
        Self { away, pause, next: after(now, pause), trying: false, admitted: 0 }
    }

    fn attempt(&mut self, now: Instant) {
        self.trying = true;
        self.next = after(now, PAUSE);
    }

    /// Attempts that were under way before do not count.
    fn refused(&mut self, away: bool, now: Instant) {
        if self.away != away {
            *self = Self::shut(away, now);
        } else if self.trying {
            self.trying = false;
            self.admitted = 0;
            self.pause = self.pause.saturating_mul(2).min(PAUSE);
            self.next = after(now, self.pause);
        }
    }

    /// Whether it stays.
    fn admitted(&mut self, now: Instant) -> bool {
        self.trying = false;
        self.next = now;
        self.admitted = self.admitted.saturating_add(1);
        !self.away && self.admitted < ONE_BY_ONE
    }

    fn ended(&mut self, now: Instant) {
        self.trying = false;
        self.next = self.next.min(after(now, ENDING));
    }

    fn is_forgotten(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.next) > FORGOTTEN
    }
}

impl Doors {
    /// Whether nothing is refused.
    pub fn all_open(&self) -> bool {
        self.server.is_none() && self.roles.is_empty() && self.databases.is_empty()
    }

    /// Whether an identity may ask for a connection.
    pub fn ask(&self, identity: &Identity, now: Instant) -> Answer {
        let doors =
            [self.server.as_ref(), self.roles.get(&identity.user), self.databases.get(&identity.database)];
        let answer = |door: &Door| match (now >= door.next, door.away) {
            (true, _) => Answer::Turn,
            (false, true) => Answer::Away,
            (false, false) => Answer::Full,
        };
        let mut worst = Answer::Open;
        for door in doors.into_iter().flatten() {
            match (worst, answer(door)) {
                (Answer::Open | Answer::Turn, told) => worst = told,
                (Answer::Full, Answer::Away) => worst = Answer::Away,
                (Answer::Full | Answer::Away, _) => {}
            }
        }
        worst
    }

    /// Whose limit keeps an identity out: the narrowest.
    pub fn limit(&self, identity: &Identity) -> Limit {
        if self.roles.contains_key(&identity.user) {
            Limit::Role
        } else if self.databases.contains_key(&identity.database) {
            Limit::Database
        } else {
            Limit::Server
        }
    }

    /// Whether a session in the queue may have its attempt.
    pub fn admits(&self, identity: &Identity, now: Instant) -> bool {
        match self.ask(identity, now) {
            Answer::Open | Answer::Turn => true,
            Answer::Full | Answer::Away => false,
        }
    }

    fn of(&mut self, identity: &Identity) -> impl Iterator<Item = &mut Door> {
        let own = [self.roles.get_mut(&identity.user), self.databases.get_mut(&identity.database)];
        self.server.iter_mut().chain(own.into_iter().flatten())
    }

    /// An attempt begins.
    pub fn attempt(&mut self, identity: &Identity, now: Instant) {
        self.of(identity).for_each(|door| door.attempt(now));
    }

    /// The server has refused a connection.
    pub fn refused(&mut self, identity: &Identity, refused: Refused, now: Instant) {
        let shut = |door: Option<&mut Door>, away: bool| match door {
            Some(door) => {
                door.refused(away, now);
                None
            }
            None => Some(Door::shut(away, now)),
        };
        match refused {
            Refused::Away => self.server = shut(self.server.as_mut(), true).or(self.server.take()),
            Refused::Full(Limit::Server) => {
                self.server = shut(self.server.as_mut(), false).or(self.server.take());
            }
            Refused::Full(Limit::Role) => {
                if let Some(door) = shut(self.roles.get_mut(&identity.user), false) {
                    self.roles.insert(identity.user.clone(), door);
                }
            }
            Refused::Full(Limit::Database) => {
                if let Some(door) = shut(self.databases.get_mut(&identity.database), false) {
                    self.databases.insert(identity.database.clone(), door);
                }
            }
        }
        // What did not refuse waits no longer for this attempt.
        self.of(identity).filter(|door| door.trying).for_each(|door| door.ended(now));
    }

    /// The server has let somebody in.
    pub fn admitted(&mut self, identity: &Identity, now: Instant) {
        if self.server.as_mut().is_some_and(|door| !door.admitted(now)) {
            self.server = None;
        }
        for (doors, name) in [(&mut self.roles, &identity.user), (&mut self.databases, &identity.database)] {
            if doors.get_mut(name).is_some_and(|door| !door.admitted(now)) {
                doors.remove(name);
            }
        }
    }

    /// A connection that was open has ended.
    pub fn ended(&mut self, identity: &Identity, now: Instant) {
        self.of(identity).for_each(|door| door.ended(now));
    }

    /// The server is known to let clients in again, or is not asked any more.
    pub fn back(&mut self) {
        self.server = self.server.take().filter(|door| !door.away);
    }

    /// Drops what nobody has asked about for long.
    pub fn forget(&mut self, now: Instant) {
        self.server = self.server.take().filter(|door| !door.is_forgotten(now));
        self.roles.retain(|_, door| !door.is_forgotten(now));
        self.databases.retain(|_, door| !door.is_forgotten(now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::Identities;
    use crate::server::Credential;
    use std::sync::Arc;

    fn identity(all: &Identities, user: &str, database: &str) -> Arc<Identity> {
        all.get(user.as_bytes(), database.as_bytes(), Vec::new(), 0, &Arc::new(Credential::Nothing))
    }

    #[test]
    fn what_is_a_matter_of_time_and_whose_limit_it_is() {
        let role: &[u8] = b"InitializeSessionUserId";
        for (sqlstate, routine, expected) in [
            ("53300", Some(role), Some(Refused::Full(Limit::Role))),
            ("53300", Some(b"CheckMyDatabase"), Some(Refused::Full(Limit::Database))),
            ("53300", Some(b"InitPostgres"), Some(Refused::Full(Limit::Server))),
            ("53300", None, Some(Refused::Full(Limit::Server))),
            ("57P03", Some(b"ProcessStartupPacket"), Some(Refused::Away)),
            ("57P01", None, Some(Refused::Away)),
            ("28P01", Some(b"auth_failed"), None),
            ("28000", Some(role), None),
            ("", None, None),
        ] {
            assert_eq!(Refused::read(sqlstate.as_bytes(), routine), expected, "{sqlstate} {routine:?}");
        }
    }

    /// Plays steps: milliseconds since the start, and what the server does (`full`, `away`, `admits`), what we do (`tries`,
    /// `ends`), or what is to be the answer (`=Turn`).
    fn play(what: &str, steps: &str) {
        let (all, start, mut doors) = (Identities::default(), Instant::now(), Doors::default());
        let app = identity(&all, "app", "db");
        for step in steps.split(", ") {
            let (at, did) = step.split_once(' ').unwrap();
            let now = start + Duration::from_millis(at.parse().unwrap());
            match did {
                "full" => doors.refused(&app, Refused::Full(Limit::Server), now),
                "away" => doors.refused(&app, Refused::Away, now),
                "admits" => doors.admitted(&app, now),
                "tries" => doors.attempt(&app, now),
                "ends" => doors.ended(&app, now),
                answer => assert_eq!(format!("={:?}", doors.ask(&app, now)), answer, "{what}: {step}"),
            }
        }
    }

    #[test]
    fn one_attempt_a_second_goes_to_a_server_that_refuses() {
        for (what, steps) in [
            (
                "full: a second after each refusal",
                "0 =Open, 0 full, 1 full, 999 =Full, 1000 =Turn, 1000 tries, 1000 =Full, 1020 full, 2019 =Full, \
                 2020 =Turn",
            ),
            ("one that hangs is not waited for", "0 full, 1000 tries, 1999 =Full, 2000 =Turn"),
            (
                "one that was let in makes room for the next",
                "0 full, 1000 tries, 1010 admits, 1010 =Turn, 1011 tries, 1011 =Full, 1020 full, 2000 =Full, \
                 2020 =Turn",
            ),
            ("our own end makes room, soon", "0 full, 200 ends, 299 =Full, 300 =Turn"),
            (
                "away: sooner, then less and less often",
                "0 away, 1 away, 99 =Away, 100 =Turn, 100 tries, 100 =Away, 110 away, 309 =Away, 310 tries, \
                 320 away, 719 =Away, 720 tries, 730 away, 1529 =Away, 1530 tries, 1540 away, 2539 =Away, \
                 2540 tries, 2550 away, 3549 =Away, 3550 tries, 3560 admits, 3560 =Open",
            ),
            (
                "another reason counts anew",
                "0 full, 10 away, 109 =Away, 110 tries, 120 full, 1119 =Full, 1120 =Turn",
            ),
        ] {
            play(what, steps);
        }
    }

    #[test]
    fn a_limit_keeps_out_only_whom_it_is_for() {
        let (all, now) = (Identities::default(), Instant::now());
        let names = [("a", "x"), ("a", "y"), ("b", "x"), ("b", "y")].map(|(u, d)| identity(&all, u, d));
        for (limit, kept_out) in [
            (Limit::Server, [true, true, true, true]),
            (Limit::Role, [true, true, false, false]),
            (Limit::Database, [true, false, true, false]),
        ] {
            let mut doors = Doors::default();
            doors.refused(&names[0], Refused::Full(limit), now);
            let out = names.each_ref().map(|identity| !doors.admits(identity, now));
            assert_eq!(out, kept_out, "{limit:?}");
        }
    }

    #[test]
    fn a_server_that_was_full_is_trusted_again_and_what_it_refused_is_forgotten() {
        let (all, now) = (Identities::default(), Instant::now());
        let app = identity(&all, "app", "db");
        let mut doors = Doors::default();
        for limit in [Limit::Server, Limit::Role, Limit::Database] {
            doors.refused(&app, Refused::Full(limit), now);
        }
        for admitted in 0..ONE_BY_ONE {
            assert!(!doors.all_open(), "after {admitted}");
            doors.admitted(&app, now);
        }
        assert!(doors.all_open());
        doors.refused(&app, Refused::Full(Limit::Role), now);
        doors.refused(&app, Refused::Away, now);
        doors.back();
        assert_eq!(doors.ask(&app, now), Answer::Full, "a limit of the role is another matter");
        doors.forget(now + PAUSE + FORGOTTEN);
        assert!(!doors.all_open());
        doors.forget(now + PAUSE + FORGOTTEN + PAUSE);
        assert!(doors.all_open());
    }
}
