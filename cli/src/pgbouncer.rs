//! From `pgbouncer.ini` and `userlist.txt` to a configuration of a standalone proxy, with a note for all that has no
//! counterpart or means something else here. Pure: reads and writes no file. Settings and defaults are those of PgBouncer's
//! manual (config.md, 1.18 to 1.25).

mod ini;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

pub use ini::Ini;
use ini::{Setting, number, pairs, read_users};

/// What came of a conversion.
#[derive(Debug, PartialEq, Eq)]
pub struct Converted {
    /// The configuration.
    pub toml: String,
    /// What a reader has to know, each with its line if it has one.
    pub notes: Vec<String>,
}

/// Keys of a section, and their values as TOML has them.
type Keys = BTreeMap<&'static str, String>;

/// Converts; `users` is the text of the file of users, if there is one.
///
/// # Errors
/// With the line, and what is wrong there or cannot be converted.
pub fn convert(ini: &Ini, users: Option<&str>) -> Result<Converted, String> {
    let mut out = Output::default();
    out.top(ini)?;
    out.pools(ini)?;
    out.limits(ini)?;
    out.auth(ini);
    out.console(ini);
    out.tls(ini);
    out.users(ini, users)?;
    out.databases(ini)?;
    out.leftovers(ini);
    Ok(Converted { toml: out.toml, notes: out.notes })
}

/// A text as TOML has it; what stands in `${}` is not for us to look up.
fn text(value: &str) -> String {
    toml::Value::String(value.replace("${", "$${")).to_string()
}

/// Settings that mean nothing here, or that every session has anyway.
const NEEDLESS: &[&str] = &[
    "max_prepared_statements",
    "ignore_startup_parameters",
    "application_name_add_host",
    "listen_backlog",
    "so_reuseport",
    "tcp_defer_accept",
    "tcp_socket_buffer",
    "tcp_keepalive",
    "tcp_keepcnt",
    "tcp_keepidle",
    "tcp_keepintvl",
    "tcp_user_timeout",
    "pkt_buf",
    "sbuf_loopcnt",
    "max_packet_size",
    "disable_pqexec",
    "dns_max_ttl",
    "dns_nxdomain_ttl",
    "dns_zone_check_period",
    "resolv_conf",
    "track_extra_parameters",
    "server_fast_close",
    "server_check_query",
    "server_check_delay",
    "server_login_retry",
    "server_connect_timeout",
    "auth_file",
    "user",
    "conffile",
    "service_name",
    "job_name",
    "query_wait_notify",
    "autodb_idle_timeout",
    "cancel_wait_timeout",
    "suspend_timeout",
];
/// Settings about logs and files of the process.
const PROCESS: &[&str] = &[
    "logfile",
    "pidfile",
    "syslog",
    "syslog_facility",
    "syslog_ident",
    "verbose",
    "log_connections",
    "log_disconnections",
    "log_pooler_errors",
    "log_stats",
    "stats_period",
    "unix_socket_dir",
    "unix_socket_mode",
    "unix_socket_group",
];
/// Settings that are converted.
const CONVERTED: &[&str] = &[
    "listen_addr",
    "listen_port",
    "pool_mode",
    "default_pool_size",
    "min_pool_size",
    "server_idle_timeout",
    "server_lifetime",
    "query_wait_timeout",
    "server_reset_query",
    "max_client_conn",
    "max_db_client_connections",
    "max_user_client_connections",
    "query_timeout",
    "idle_transaction_timeout",
    "client_idle_timeout",
    "client_login_timeout",
    "auth_query",
    "auth_user",
    "auth_dbname",
    "auth_type",
    "auth_hba_file",
    "client_tls_sslmode",
    "client_tls_key_file",
    "client_tls_cert_file",
    "client_tls_ca_file",
    "server_tls_sslmode",
    "server_tls_key_file",
    "server_tls_cert_file",
    "server_tls_ca_file",
    "max_db_connections",
    "max_user_connections",
    "admin_users",
    "stats_users",
];

#[derive(Default)]
struct Output {
    toml: String,
    notes: Vec<String>,
    /// Server connections to a node.
    size: u64,
}

impl Output {
    fn note(&mut self, line: usize, words: &str) {
        self.notes.push(if line == 0 { words.to_owned() } else { format!("line {line}: {words}") });
    }

    fn key(&mut self, key: &str, value: &str) {
        // Writing to memory does not fail.
        let _ = writeln!(self.toml, "{key} = {value}");
    }

    fn section(&mut self, name: &str) {
        let _ = writeln!(self.toml, "\n{name}");
    }

    /// A section of a list, which has a name.
    fn named(&mut self, section: &str, name: &str, keys: &Keys) {
        self.section(section);
        self.key("name", &text(name));
        keys.iter().for_each(|(key, value)| self.key(key, value));
    }

    /// Numbers under other names; what is not set is PgBouncer's default where that is not ours.
    fn numbers(&mut self, ini: &Ini, all: &[(&str, &str, Option<f64>)]) -> Result<(), String> {
        for (theirs, ours, default) in all {
            if let Some(number) = ini.number(theirs)?.or(*default) {
                self.key(ours, &number.to_string());
            }
        }
        Ok(())
    }

    fn top(&mut self, ini: &Ini) -> Result<(), String> {
        self.toml.push_str("# Made from pgbouncer.ini by heliosctl import.\n");
        let address = ini.value("listen_addr").unwrap_or("127.0.0.1");
        let first = address.split(',').next().unwrap_or(address).trim();
        if first != address {
            self.note(ini.line("listen_addr"), &format!("one address is listened on: {first}"));
        }
        let host = match first {
            "*" | "" => "0.0.0.0".to_owned(),
            v6 if v6.contains(':') => format!("[{v6}]"),
            host => host.to_owned(),
        };
        let port = ini.number("listen_port")?.unwrap_or(6432.0);
        self.key("listen_address", &text(&format!("{host}:{port}")));
        Ok(())
    }

    fn pools(&mut self, ini: &Ini) -> Result<(), String> {
        self.section("[pool_mode]");
        let mode = ini.value("pool_mode").unwrap_or("session");
        self.key("mode", &text(mode));
        let each = ini.number("default_pool_size")?.unwrap_or(20.0);
        let all = ini.databases.iter().try_fold(0.0, |sum, (_, entry)| {
            let own = pairs(entry)?
                .get("pool_size")
                .map(|size| number(size, "pool_size", entry.line))
                .transpose()?;
            Ok::<_, String>(sum + own.unwrap_or(each))
        })?;
        let size = all.clamp(1.0, 10_000.0);
        self.size = whole(size);
        self.key("max_pool_size", &size.to_string());
        self.note(
            ini.line("default_pool_size"),
            &format!(
                "max_pool_size = {size} is for one node, all users and databases together; PgBouncer has a pool for each pair of \
                 user and database"
            ),
        );
        self.numbers(
            ini,
            &[
                ("min_pool_size", "min_idle", None),
                ("server_idle_timeout", "idle_timeout_secs", None),
                ("server_lifetime", "max_lifetime_secs", None),
            ],
        )?;
        match ini.number("query_wait_timeout")?.unwrap_or(120.0) {
            0.0 => {
                self.key("acquire_timeout_secs", "86400");
                self.note(ini.line("query_wait_timeout"), "a wait without end is not supported: a day");
            }
            seconds => self.key("acquire_timeout_secs", &seconds.to_string()),
        }
        if let Some(query) = ini.value("server_reset_query") {
            self.key("reset_query", &text(query));
        }
        Ok(())
    }

    fn limits(&mut self, ini: &Ini) -> Result<(), String> {
        self.section("[limits]");
        self.numbers(
            ini,
            &[
                ("max_client_conn", "max_client_connections", Some(100.0)),
                ("max_db_client_connections", "max_client_connections_per_database", None),
                ("max_user_client_connections", "max_client_connections_per_user", None),
                ("query_timeout", "query_timeout_secs", None),
                ("idle_transaction_timeout", "idle_in_transaction_timeout_secs", None),
                ("client_idle_timeout", "client_idle_timeout_secs", None),
                ("client_login_timeout", "login_timeout_secs", Some(60.0)),
            ],
        )
    }

    fn auth(&mut self, ini: &Ini) {
        match ini.value("auth_type").unwrap_or("md5") {
            "trust" | "any" => self.note(
                ini.line("auth_type"),
                "clients always prove who they are: with a password here, or to PostgreSQL; there is no trust",
            ),
            "hba" => self.note(ini.line("auth_type"), "write the rules of auth_hba_file as [[hba]], see docs/login.md"),
            "pam" | "ldap" => self.note(ini.line("auth_type"), "PAM and LDAP are left to PostgreSQL's pg_hba.conf"),
            "cert" => self.note(ini.line("auth_type"), "add an [[hba]] rule with method = \"cert\", see docs/login.md"),
            _ => {}
        }
        let Some(user) = ini.value("auth_user") else { return };
        self.section("[auth]");
        let query =
            ini.value("auth_query").unwrap_or("SELECT usename, passwd FROM pg_shadow WHERE usename=$1");
        self.key("auth_query", &text(query));
        self.key("auth_user", &text(user));
        if let Some(database) = ini.value("auth_dbname") {
            self.key("auth_database", &text(database));
        }
        self.toml.push_str("# auth_password = \"${HELIOS_AUTH_PASSWORD}\"\n");
        self.note(
            ini.line("auth_user"),
            "set auth_password in [auth], unless PostgreSQL lets auth_user in without one",
        );
    }

    fn console(&mut self, ini: &Ini) {
        let given = ["admin_users", "stats_users"].map(|key| (key, names(ini, key)));
        if given.iter().all(|(_, names)| names.is_empty()) {
            return;
        }
        self.section("[console]");
        for (key, names) in given.iter().filter(|(_, names)| !names.is_empty()) {
            let names: Vec<String> = names.iter().map(|name| text(name)).collect();
            self.key(key, &format!("[{}]", names.join(", ")));
        }
    }

    /// The console asks no server: who uses it has to be known to the proxy.
    fn console_users(&mut self, ini: &Ini, users: &BTreeMap<String, Keys>) {
        let known = |name: &String| {
            users
                .get(name)
                .is_some_and(|keys| keys.contains_key("password") || keys.contains_key("scram_verifier"))
        };
        for key in ["admin_users", "stats_users"] {
            for name in names(ini, key).iter().filter(|name| !known(name) && ini.value("auth_user").is_none())
            {
                let words =
                    format!("{key}: {name} needs a password or verifier in [[users]] to use the console");
                self.note(ini.line(key), &words);
            }
        }
    }

    fn tls(&mut self, ini: &Ini) {
        for (side, section) in [("client", "[client_tls]"), ("server", "[server_tls]")] {
            let value = |name: &str| ini.value(&format!("{side}_tls_{name}"));
            let files = [("cert_file", "tls_cert_file"), ("key_file", "tls_key_file")];
            let ca = if side == "client" { "tls_client_ca_file" } else { "tls_ca_file" };
            let found: Vec<_> = files
                .into_iter()
                .chain([("ca_file", ca)])
                .filter_map(|(theirs, ours)| Some((ours, value(theirs)?)))
                .collect();
            let Some(mode) = value("sslmode").or((!found.is_empty()).then_some("prefer")) else { continue };
            self.section(section);
            if mode == "allow" {
                self.note(ini.line(&format!("{side}_tls_sslmode")), "allow becomes prefer");
            }
            self.key("mode", &text(if mode == "allow" { "prefer" } else { mode }));
            for (key, file) in found {
                self.key(key, &text(file));
            }
        }
    }

    fn users(&mut self, ini: &Ini, list: Option<&str>) -> Result<(), String> {
        let mut users: BTreeMap<String, Keys> = BTreeMap::new();
        for (name, entry) in &ini.users {
            let keys = users.entry(name.clone()).or_default();
            for (key, value) in pairs(entry)? {
                let seconds = || Ok::<_, String>(number(&value, &key, entry.line)?.to_string());
                match key.as_str() {
                    "pool_mode" => drop(keys.insert("mode", text(&value))),
                    "max_user_connections" | "pool_size" if value != "0" => {
                        let size = whole(number(&value, &key, entry.line)?).min(self.size);
                        keys.insert("pool_size", size.to_string());
                    }
                    "query_timeout" => drop(keys.insert("query_timeout_secs", seconds()?)),
                    "idle_transaction_timeout" => {
                        drop(keys.insert("idle_in_transaction_timeout_secs", seconds()?));
                    }
                    _ => self.note(entry.line, &format!("{key} of a user has no counterpart")),
                }
            }
        }
        let mut hashed = 0;
        for (name, secret) in list.map(read_users).transpose()?.unwrap_or_default() {
            // Only PgBouncer's own console has this user, unless it is given a part in ours.
            if name == "pgbouncer"
                && ["admin_users", "stats_users"].iter().all(|key| !names(ini, key).contains(&name))
            {
                continue;
            }
            let keys = users.entry(name).or_default();
            match secret.as_str() {
                verifier if verifier.starts_with("SCRAM-SHA-256$") => {
                    keys.insert("scram_verifier", text(verifier));
                }
                hash if hash.len() == 35 && hash.starts_with("md5") => hashed += 1,
                "" => {}
                password => drop(keys.insert("password", text(password))),
            }
        }
        self.console_users(ini, &users);
        for (name, keys) in users.iter().filter(|(_, keys)| !keys.is_empty()) {
            self.named("[[users]]", name, keys);
        }
        if hashed > 0 {
            self.note(
                0,
                &format!(
                    "{hashed} users of the file of users have an MD5 hash, which proves nothing to a server with SCRAM: they are \
                     left out, and log in against PostgreSQL"
                ),
            );
        }
        Ok(())
    }

    fn databases(&mut self, ini: &Ini) -> Result<(), String> {
        let mut servers: BTreeMap<(String, String), Vec<&str>> = BTreeMap::new();
        for (name, entry) in &ini.databases {
            let entry_pairs = pairs(entry)?;
            let get = |key: &str| entry_pairs.get(key).map(String::as_str);
            let host = get("host").unwrap_or("").to_owned();
            let port = number(get("port").unwrap_or("5432"), "port", entry.line)?.to_string();
            servers.entry((host, port)).or_default().push(name);
            self.database(name, entry, &entry_pairs)?;
        }
        let Some(((hosts, port), _)) = servers.iter().max_by_key(|(_, names)| names.len()) else {
            return Ok(());
        };
        if servers.len() > 1 {
            let all: Vec<String> = servers
                .iter()
                .map(|((host, port), names)| format!("{host}:{port} has {}", names.join(", ")))
                .collect();
            return Err(format!(
                "a proxy serves one cluster, and [databases] names several: {}; divide the file, one proxy for each",
                all.join("; ")
            ));
        }
        let mut seen = BTreeSet::new();
        for host in hosts.split(',').map(str::trim) {
            if !seen.insert(host) {
                continue;
            }
            self.section("[[nodes]]");
            let host = if host.is_empty() || host.starts_with('/') {
                self.note(0, "nodes are reached over TCP, not by a unix socket: host = \"127.0.0.1\"");
                "127.0.0.1"
            } else {
                host
            };
            self.key("host", &text(host));
            self.key("port", port);
            self.key("role", if seen.len() == 1 { "\"primary\"" } else { "\"standby\"" });
        }
        Ok(())
    }

    fn database(
        &mut self,
        name: &str,
        entry: &Setting,
        pairs: &BTreeMap<String, String>,
    ) -> Result<(), String> {
        let mut keys = Keys::new();
        for (key, value) in pairs {
            match key.as_str() {
                "host" | "port" => {}
                "dbname" if value == name => {}
                "dbname" => self.note(
                    entry.line,
                    &format!(
                        "clients must ask for {value}, not for {name}: databases have no other names here"
                    ),
                ),
                "pool_mode" => drop(keys.insert("mode", text(value))),
                "pool_size" | "max_db_connections" if value != "0" => {
                    let size = whole(number(value, key, entry.line)?).clamp(1, self.size);
                    keys.insert("pool_size", size.to_string());
                }
                "user" | "password" => {
                    self.note(
                        entry.line,
                        &format!("{key}: sessions always have the role that the client logs in as"),
                    );
                }
                _ => self.note(entry.line, &format!("{key} of a database has no counterpart")),
            }
        }
        if name == "*" {
            if !keys.is_empty() {
                self.note(entry.line, "what stands at * is for all databases: set it in [pool_mode]");
            }
        } else if !keys.is_empty() {
            self.named("[[databases]]", name, &keys);
        }
        Ok(())
    }

    fn leftovers(&mut self, ini: &Ini) {
        for (name, setting) in &ini.general {
            let name = name.as_str();
            if CONVERTED.contains(&name) || NEEDLESS.contains(&name) {
                continue;
            }
            let words = match name {
                _ if PROCESS.contains(&name) => {
                    "logs go to standard error, and there is no unix socket".to_owned()
                }
                _ => "no counterpart".to_owned(),
            };
            self.note(setting.line, &format!("{name}: {words}"));
        }
    }
}

/// The names in a list with commas.
fn names(ini: &Ini, key: &str) -> Vec<String> {
    let listed = ini.value(key).unwrap_or_default().split(',').map(str::trim);
    listed.filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

/// A number of connections.
fn whole(number: f64) -> u64 {
    format!("{:.0}", number.clamp(0.0, 1e9)).parse().unwrap_or(0)
}
