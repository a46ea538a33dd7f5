//! From a run of good and failed probes to a verdict. Pure: no clock, no IO.

use helios_proto::model::{Health, HealthSettings};

/// The verdict on one node, and the run of probes that may change it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Verdict {
    health: Health,
    failures: u32,
    successes: u32,
}

impl Verdict {
    /// Nothing known yet.
    pub const fn new() -> Self {
        Self { health: Health::Unknown, failures: 0, successes: 0 }
    }

    /// A verdict that somebody else has spoken.
    pub const fn resume(health: Health) -> Self {
        Self { health, failures: 0, successes: 0 }
    }

    pub const fn health(self) -> Health {
        self.health
    }

    /// Takes one probe into account. The first good probe of an unknown node makes it up; a node that was down
    /// needs `success_threshold` of them; any node is down after `failure_threshold` failures in a row.
    pub fn observe(&mut self, good: bool, settings: &HealthSettings) {
        if good {
            self.failures = 0;
            self.successes = self.successes.saturating_add(1);
        } else {
            self.successes = 0;
            self.failures = self.failures.saturating_add(1);
        }
        self.health = match self.health {
            Health::Unknown if good => Health::Up,
            Health::Down if self.successes >= settings.success_threshold => Health::Up,
            Health::Unknown | Health::Up if self.failures >= settings.failure_threshold => Health::Down,
            same => same,
        };
    }

    /// Whether the last probe agrees with the verdict; if not, more probes should follow soon.
    pub const fn is_settled(self) -> bool {
        match self.health {
            Health::Unknown | Health::Up => self.failures == 0,
            Health::Down => self.successes == 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn after(probes: &str) -> (Health, bool) {
        let settings = HealthSettings {
            check_interval: Duration::from_secs(5),
            check_timeout: Duration::from_secs(3),
            failure_threshold: 3,
            success_threshold: 2,
            credential: None,
            patroni: None,
        };
        let mut verdict = Verdict::new();
        probes.chars().for_each(|probe| verdict.observe(probe == '+', &settings));
        (verdict.health(), verdict.is_settled())
    }

    #[test]
    fn thresholds_decide() {
        for (probes, health, settled) in [
            ("", Health::Unknown, true),
            ("+", Health::Up, true),
            ("-", Health::Unknown, false),
            ("---", Health::Down, true),
            ("--+", Health::Up, true),
            ("+--", Health::Up, false),
            ("+--+--", Health::Up, false),
            ("+---", Health::Down, true),
            ("---+", Health::Down, false),
            ("---+-", Health::Down, true),
            ("---+-+", Health::Down, false),
            ("---++", Health::Up, true),
        ] {
            assert_eq!(after(probes), (health, settled), "{probes}");
        }
    }
}
