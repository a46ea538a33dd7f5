//! What can be said on the console: one command a text, keywords in any case, a name in double quotes or without, one
//! semicolon at the end. The grammar is PgBouncer's. Pure.

/// A command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Look at something.
    Show(Subject),
    /// Change something; for administrators.
    Change(Change),
}

/// What can be looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// What there is to say.
    Help,
    /// The configuration in force.
    Config,
    /// Databases.
    Databases,
    /// Connections by database and user.
    Pools,
    /// Connections of clients.
    Clients,
    /// Connections to servers.
    Servers,
    /// Both, with what is buffered.
    Sockets,
    /// The same.
    ActiveSockets,
    /// Roles that are known.
    Users,
    /// The program's version.
    Version,
    /// How many there are of what.
    Lists,
    /// Caches of memory, which there are none of.
    Mem,
    /// Host names, which are not kept.
    DnsHosts,
    /// Zones, which are not kept.
    DnsZones,
    /// Counts and averages by database.
    Stats,
    /// Counts by database.
    StatsTotals,
    /// Averages by database.
    StatsAverages,
    /// Counts and averages of all databases.
    Totals,
    /// A setting that drivers ask for.
    Setting(Setting),
    /// File descriptors to be taken over: for administrators, and not here.
    Fds,
}

/// A setting of the console's own sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setting {
    /// `client_encoding`
    ClientEncoding,
    /// `datestyle`
    DateStyle,
    /// `timezone`
    TimeZone,
    /// `standard_conforming_strings`
    StandardStrings,
}

/// What can be changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Nobody gets a server connection: to one database, or at all.
    Pause(Option<String>),
    /// The end of a pause.
    Resume(Option<String>),
    /// Server connections close as they come back.
    Reconnect(Option<String>),
    /// Clients and servers of a database go at once, and it pauses; without a database: an error.
    Kill(Option<String>),
    /// One client goes at once.
    KillClient(Option<String>),
    /// The configuration is read again.
    Reload,
    /// What PgBouncer can do and this proxy does in another way: the verb, and that way.
    Elsewhere(&'static str, &'static str),
}

/// Reads a command; `None`: it is none.
pub fn parse(text: &[u8]) -> Option<Command> {
    let text = std::str::from_utf8(text).ok()?;
    let words = words(text);
    match words {
        Some((verb, name)) => of_words(&verb.to_ascii_lowercase(), name),
        None => is_set(text).then_some(Command::Change(SET)),
    }
}

const SET: Change = Change::Elsewhere("SET", "Change the configuration file and send RELOAD.");
const DISABLE: &str = "Refuse its clients by [[hba]] with method = \"reject\", or use PAUSE.";
const STOP: &str = "Send the process SIGTERM: it drains, and stops.";
const WAIT: &str = "PAUSE waits until server connections are free.";

fn of_words(verb: &str, name: Option<&str>) -> Option<Command> {
    let owned = name.map(str::to_owned);
    let change = match (verb, name) {
        ("show", Some(subject)) => return Some(Command::Show(subject_of(&subject.to_ascii_lowercase())?)),
        ("pause", _) => Change::Pause(owned),
        ("resume", _) => Change::Resume(owned),
        ("reconnect", _) => Change::Reconnect(owned),
        ("kill", _) => Change::Kill(owned),
        ("kill_client", _) => Change::KillClient(owned),
        ("reload", None) => Change::Reload,
        ("disable", _) => Change::Elsewhere("DISABLE", DISABLE),
        ("enable", _) => Change::Elsewhere("ENABLE", DISABLE),
        ("suspend", None) => Change::Elsewhere("SUSPEND", STOP),
        ("shutdown", _) => Change::Elsewhere("SHUTDOWN", STOP),
        ("wait_close", _) => Change::Elsewhere("WAIT_CLOSE", WAIT),
        _ => return None,
    };
    Some(Command::Change(change))
}

fn subject_of(word: &str) -> Option<Subject> {
    Some(match word {
        "help" => Subject::Help,
        "config" => Subject::Config,
        "databases" => Subject::Databases,
        "pools" => Subject::Pools,
        "clients" => Subject::Clients,
        "servers" => Subject::Servers,
        "sockets" => Subject::Sockets,
        "active_sockets" => Subject::ActiveSockets,
        "users" => Subject::Users,
        "version" => Subject::Version,
        "lists" => Subject::Lists,
        "mem" => Subject::Mem,
        "dns_hosts" => Subject::DnsHosts,
        "dns_zones" => Subject::DnsZones,
        "stats" => Subject::Stats,
        "stats_totals" => Subject::StatsTotals,
        "stats_averages" => Subject::StatsAverages,
        "totals" => Subject::Totals,
        "client_encoding" => Subject::Setting(Setting::ClientEncoding),
        "datestyle" => Subject::Setting(Setting::DateStyle),
        "timezone" => Subject::Setting(Setting::TimeZone),
        "standard_conforming_strings" => Subject::Setting(Setting::StandardStrings),
        "fds" => Subject::Fds,
        _ => return None,
    })
}

const fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r')
}

/// A word at the front: of letters, digits and underscores, or anything between double quotes.
fn word(text: &str) -> Option<(&str, &str)> {
    if let Some(quoted) = text.strip_prefix('"') {
        return quoted.split_once('"').filter(|(word, _)| !word.is_empty());
    }
    let end = text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(text.len());
    text.split_at_checked(end).filter(|(word, _)| !word.is_empty())
}

/// Nothing more, but for one semicolon.
fn is_end(rest: &str) -> bool {
    let rest = rest.trim_matches(is_space);
    rest.is_empty() || rest == ";"
}

/// One or two words, and the end.
fn words(text: &str) -> Option<(&str, Option<&str>)> {
    let (verb, rest) = word(text.trim_start_matches(is_space))?;
    if is_end(rest) {
        return Some((verb, None));
    }
    let (name, rest) = word(rest.strip_prefix(is_space)?.trim_start_matches(is_space))?;
    is_end(rest).then_some((verb, Some(name)))
}

/// `SET name = value`, or `TO`.
fn is_set(text: &str) -> bool {
    let set = || {
        let (verb, rest) = word(text.trim_start_matches(is_space))?;
        let (_, rest) = word(rest.strip_prefix(is_space)?.trim_start_matches(is_space))?;
        let rest = rest.trim_start_matches(is_space);
        let rest = match rest.strip_prefix('=') {
            Some(rest) => rest,
            None => {
                rest.get(2..).filter(|_| rest.get(..2).is_some_and(|to| to.eq_ignore_ascii_case("to")))?
            }
        };
        let value = rest.trim_start_matches(is_space);
        let rest = match value.strip_prefix('\'') {
            Some(quoted) => after_quoted(quoted)?,
            None => word(value)?.1,
        };
        Some(verb.eq_ignore_ascii_case("set") && is_end(rest))
    };
    set().unwrap_or(false)
}

/// What stands behind a text in single quotes, of which two stand for one.
fn after_quoted(text: &str) -> Option<&str> {
    let mut rest = text;
    loop {
        rest = rest.split_once('\'')?.1;
        match rest.strip_prefix('\'') {
            Some(more) => rest = more,
            None => return Some(rest),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(subject: Subject) -> Option<Command> {
        Some(Command::Show(subject))
    }

    fn change(change: Change) -> Option<Command> {
        Some(Command::Change(change))
    }

    #[test]
    fn commands_are_read_as_pgbouncer_reads_them() {
        let name = |name: &str| Some(name.to_owned());
        let cases = [
            ("SHOW POOLS", show(Subject::Pools)),
            ("  show \t\n pools \r\n ; ", show(Subject::Pools)),
            ("sHoW \"Version\";", show(Subject::Version)),
            ("\"show\" VERSION", show(Subject::Version)),
            ("SHOW client_encoding", show(Subject::Setting(Setting::ClientEncoding))),
            ("PAUSE", change(Change::Pause(None))),
            ("pause App;", change(Change::Pause(name("App")))),
            ("PAUSE \"my db; drop\"", change(Change::Pause(name("my db; drop")))),
            ("resume app", change(Change::Resume(name("app")))),
            ("RECONNECT", change(Change::Reconnect(None))),
            ("KILL", change(Change::Kill(None))),
            ("kill app", change(Change::Kill(name("app")))),
            ("KILL_CLIENT 0x1f", change(Change::KillClient(name("0x1f")))),
            ("RELOAD ;", change(Change::Reload)),
            ("SET a = b", change(SET)),
            ("set a to 'it''s'; ", change(SET)),
            ("SHUTDOWN", change(Change::Elsewhere("SHUTDOWN", STOP))),
        ];
        for (text, expected) in cases {
            assert_eq!(parse(text.as_bytes()), expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_command_is_none() {
        for text in [
            "",
            ";",
            "SHOW",
            "SHOW nothing",
            "SHOW POOLS x",
            "SHOW POOLS;;",
            "SHOW POOLS; SHOW POOLS",
            "SHOW 'pools'",
            "SHOW \"\"",
            "SHOW \"pools",
            "/* x */ SHOW POOLS",
            "SHOW POOLS -- x",
            "SELECT 1",
            "RELOAD x",
            "VERSION",
            "SET",
            "SET a",
            "SET a b",
            "SET a = 'b",
            "SET a = b c",
            "PAUSE 'app'",
            "pause app-1",
            "SHOW\u{a0}POOLS",
        ] {
            assert_eq!(parse(text.as_bytes()), None, "{text}");
        }
        assert_eq!(parse(b"SHOW \xff"), None);
    }
}
