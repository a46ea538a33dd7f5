//! Numbers as people read them: sizes, durations, times; and the other way round for arguments. Pure.

use std::time::Duration;

use helios_proto::wire::{self, v1};

/// `64 kB`, as PostgreSQL writes sizes.
#[must_use]
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let mut left = bytes;
    let mut unit = UNITS.iter();
    let mut name = unit.next().copied().unwrap_or_default();
    for next in unit {
        if left < 10 * 1024 {
            break;
        }
        left /= 1024;
        name = next;
    }
    format!("{left} {name}")
}

/// `4d2h`, `3m05s`, `12s`.
#[must_use]
pub fn span(ms: u64) -> String {
    let seconds = ms / 1000;
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m{:02}s", seconds % 60),
        (0, _, _) => format!("{hours}h{:02}m", minutes % 60),
        _ => format!("{days}d{}h", hours % 24),
    }
}

/// `0.4 ms`, `12 ms`, `3.1 s`.
#[must_use]
pub fn millis(ms: f64) -> String {
    if ms >= 10_000.0 {
        format!("{:.0} s", ms / 1e3)
    } else if ms >= 1000.0 {
        format!("{:.1} s", ms / 1e3)
    } else if ms >= 10.0 || ms == 0.0 {
        format!("{ms:.0} ms")
    } else {
        format!("{ms:.1} ms")
    }
}

/// `2026-03-01 12:00:05Z`.
#[must_use]
pub fn time(unix_ms: u64) -> String {
    let seconds = unix_ms / 1000;
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Years from March on, in eras of 400 years: leap days come last.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

/// `10s`, `500ms`, `2m`, `1h`; a plain number is seconds.
///
/// # Errors
/// It is none of these, or longer than a day.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a duration such as 10s, 500ms or 2m");
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let factor: u64 = match unit {
        "ms" => 1,
        "" | "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(wrong()),
    };
    let ms = number.checked_mul(factor).filter(|ms| *ms <= 86_400_000).ok_or("a day is the longest")?;
    Ok(Duration::from_millis(ms))
}

/// Milliseconds of a duration.
#[must_use]
pub fn as_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// `one data plane`, `3 data planes`.
#[must_use]
pub fn count(number: u32, thing: &str) -> String {
    if number == 1 { format!("1 {thing}") } else { format!("{number} {thing}s") }
}

/// A role's word; `-` for one that this version does not know.
#[must_use]
pub fn role(number: i32) -> &'static str {
    wire::to_role(number).map_or("-", helios_proto::model::Role::word)
}

/// A health's word.
#[must_use]
pub fn health(number: i32) -> &'static str {
    wire::to_health(number).map_or("-", helios_proto::model::Health::word)
}

/// A pool mode's word.
#[must_use]
pub fn mode(number: i32) -> &'static str {
    wire::to_pool_mode(number).map_or("-", helios_proto::model::PoolMode::word)
}

/// An event kind's word.
#[must_use]
pub fn event(number: i32) -> &'static str {
    use v1::event::Kind;
    match Kind::try_from(number).unwrap_or(Kind::Unspecified) {
        Kind::Unspecified => "-",
        Kind::Topology => "topology",
        Kind::Health => "health",
        Kind::Change => "change",
        Kind::Dataplane => "dataplane",
        Kind::Gap => "gap",
        Kind::Watching => "watching",
    }
}

/// What is granted of a budget; a line where there is none.
#[must_use]
pub fn budget(granted: u32, limit: u32) -> String {
    if limit == 0 { "-".to_owned() } else { format!("{granted}/{limit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_spans_and_times() {
        for (bytes, text) in [(0, "0 B"), (9000, "9000 B"), (65_536, "64 kB"), (1 << 30, "1024 MB")] {
            assert_eq!(size(bytes), text);
        }
        for (ms, text) in
            [(0, "0s"), (59_999, "59s"), (185_000, "3m05s"), (3_720_000, "1h02m"), (352_800_000, "4d2h")]
        {
            assert_eq!(span(ms), text);
        }
        for (ms, text) in [(0.0, "0 ms"), (0.44, "0.4 ms"), (12.2, "12 ms"), (3100.0, "3.1 s")] {
            assert_eq!(millis(ms), text);
        }
        for (ms, text) in [
            (0, "1970-01-01 00:00:00Z"),
            (951_782_400_000, "2000-02-29 00:00:00Z"),
            (1_772_366_405_999, "2026-03-01 12:00:05Z"),
            (4_102_444_799_000, "2099-12-31 23:59:59Z"),
        ] {
            assert_eq!(time(ms), text);
        }
    }

    #[test]
    fn durations_are_read() {
        for (text, ms) in [("10s", 10_000), ("500ms", 500), ("2m", 120_000), ("1h", 3_600_000), ("7", 7000)] {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)));
        }
        for text in ["", "s", "1.5s", "-1s", "3 s", "2d", "99h", "99999999999999999999"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
