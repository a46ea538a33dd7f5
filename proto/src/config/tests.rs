//! Tests of the configuration file: the guide's files, the example, and every kind of problem word for word.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use super::keys::{Fallback, KEYS, Kind, Section};
use super::*;
use crate::model::{ConsoleAccess, Node, PoolMode, ReadStrategy, ReadYourWrites, UserProof};

const QUICK_START: &str = r#"listen_address = "127.0.0.1:5433"
admin_address = "127.0.0.1:9090"
[pool_mode]
mode = "transaction"
max_pool_size = 100
[load_balancer]
read_write_split = true
read_strategy = "least_connections"
[[nodes]]
host = "127.0.0.1"
port = 5432
role = "primary"
"#;

const MULTI_NODE: &str = r#"listen_address = "0.0.0.0:5433"
admin_address = "0.0.0.0:9090"
[pool_mode]
mode = "transaction"
max_pool_size = 50
[load_balancer]
read_write_split = true
read_strategy = "least_connections"
[health]
check_interval_secs = 5
failure_threshold = 3
# Primary node
[[nodes]]
host = "db-primary.internal"
port = 5432
role = "primary"
# Sync standby for failover
[[nodes]]
host = "db-standby.internal"
port = 5432
role = "standby"
# Read replicas for scaling
[[nodes]]
host = "db-replica-1.internal"
port = 5432
role = "replica"
weight = 100
[[nodes]]
host = "db-replica-2.internal"
port = 5432
role = "replica"
weight = 100
"#;

const KUBERNETES: &str = r#"listen_address = "0.0.0.0:5433"
admin_address = "0.0.0.0:9090"
[pool_mode]
mode = "transaction"
max_pool_size = 100
[[nodes]]
host = "heliosdb-primary.default.svc.cluster.local"
port = 5432
role = "primary"
[[nodes]]
host = "heliosdb-standby.default.svc.cluster.local"
port = 5432
role = "standby"
"#;

const EXAMPLE: &str = include_str!("../../../deploy/config.example.toml");

/// One good node, for texts that are about something else.
const NODE: &str = "[[nodes]]\nhost = \"db\"\nrole = \"primary\"\n";

fn env(name: &str) -> Option<String> {
    match name {
        "HOST" => Some("db1".to_owned()),
        "PASSWORD" => Some("s3cret".to_owned()),
        "SLY" => Some("x\"\nmode = \"session".to_owned()),
        _ => None,
    }
}

fn good(text: &str) -> Config {
    parse(text, "config.toml", &env).unwrap_or_else(|report| panic!("{report}\n{text}"))
}

/// The problems, without the file name.
fn problems(text: &str) -> Vec<String> {
    let report = parse(text, "config.toml", &env).expect_err(text);
    report
        .problems()
        .iter()
        .map(|p| p.to_string().replacen("config.toml:", "", 1).trim().to_owned())
        .collect()
}

fn names(config: &Config) -> Vec<&str> {
    config.spec.nodes.iter().map(|node| node.name.as_str()).collect()
}

#[test]
fn the_guides_quick_start_loads() {
    let config = good(QUICK_START);
    assert_eq!(config.listen.to_string(), "127.0.0.1:5433");
    assert_eq!(config.admin.to_string(), "127.0.0.1:9090");
    assert_eq!(config.spec.settings.pool.mode, PoolMode::Transaction);
    assert_eq!(config.spec.settings.pool.max_pool_size, 100);
    assert!(config.spec.settings.balancer.read_write_split);
    assert_eq!(config.spec.settings.balancer.read_strategy, ReadStrategy::LeastConnections);
    assert_eq!(names(&config), ["primary"]);
}

#[test]
fn the_guides_multi_node_and_kubernetes_files_load() {
    let config = good(MULTI_NODE);
    assert_eq!(names(&config), ["primary", "standby", "replica-1", "replica-2"]);
    assert_eq!(config.spec.health.check_interval, Duration::from_secs(5));
    assert_eq!(config.spec.health.failure_threshold, 3);
    assert_eq!(names(&good(KUBERNETES)), ["primary", "standby"]);
}

#[test]
fn a_file_with_one_node_gets_the_documented_defaults() {
    let config = good(NODE);
    assert_eq!(config.workers, None);
    assert_eq!((config.grace, config.drain_timeout), (Duration::ZERO, Duration::from_secs(60)));
    let settings = &config.spec.settings;
    assert_eq!(settings.write_timeout, Duration::from_secs(30));
    assert_eq!(settings.pool.idle_timeout, Some(Duration::from_secs(600)));
    assert_eq!(settings.pool.max_lifetime, Some(Duration::from_secs(3600)));
    assert_eq!(settings.pool.acquire_timeout, Duration::from_secs(5));
    assert_eq!(settings.pool.reset_query, "DISCARD ALL");
    assert_eq!(settings.balancer.read_strategy, ReadStrategy::RoundRobin);
    assert_eq!(settings.balancer.read_your_writes, ReadYourWrites::Off);
    assert_eq!(settings.balancer.slow_start, Duration::from_secs(30));
    assert_eq!(settings.balancer.max_lag_bytes, None);
    assert_eq!(settings.limits.max_clients, None);
    assert_eq!(settings.limits.query_timeout, None);
    assert_eq!(settings.limits.login_timeout, Duration::from_secs(15));
    assert!(!settings.auth.allow_backend_trust);
    assert_eq!(settings.auth.proof_ttl, Duration::from_secs(60));
    assert_eq!(config.spec.health.check_timeout, Duration::from_secs(3));
    assert_eq!(config.spec.health.success_threshold, 2);
    assert_eq!(config.spec.health.credential, None);
    assert_eq!((config.spec.nodes[0].port, config.spec.nodes[0].weight), (5432, 100));
}

const MANY_KEYS: &str = r#"
        listen_address = "localhost:5433"
        workers = 3
        shutdown_grace_secs = 2.5
        shutdown_drain_timeout_secs = 0
        [pool_mode]
        mode = "statement"
        idle_timeout_secs = 0
        acquire_timeout_secs = 0.5
        [load_balancer]
        read_your_writes = "time"
        read_your_writes_ms = 250
        max_lag_bytes = 0x10_0000
        max_lag_ms = 1_500
        [health]
        user = "probe"
        password = "${PASSWORD}"
        [limits]
        max_client_connections_per_user = 7
        query_timeout_secs = 1.25
        [console]
        admin_users = ["boss", "both"]
        stats_users = ["metrics", "both"]
        [[users]]
        name = "app"
        password = "pw$${x}"
        pool_size = 5
        query_timeout_secs = 0
        [[databases]]
        name = "big"
        mode = "session"
        idle_in_transaction_timeout_secs = 9
        [[nodes]]
        host = "${HOST}"
        role = "standby"
        [[nodes]]
        host = "::1"
        role = "standby"
        weight = 0
        [[nodes]]
        name = "spare.a-1_x"
        host = "db8"
        role = "replica"
        [[nodes]]
        host = "${NOBODY:-db9}"
        role = "replica"
    "#;

#[test]
fn every_key_does_what_it_says() {
    let config = good(MANY_KEYS);
    assert_eq!(config.listen.to_string(), "127.0.0.1:5433");
    assert_eq!((config.workers, config.drain_timeout), (Some(3), Duration::ZERO));
    assert_eq!(config.grace, Duration::from_millis(2500));
    let settings = &config.spec.settings;
    assert_eq!(settings.pool.mode, PoolMode::Statement);
    assert_eq!(settings.pool.idle_timeout, None);
    assert_eq!(settings.pool.acquire_timeout, Duration::from_millis(500));
    assert_eq!(settings.balancer.read_your_writes, ReadYourWrites::Time(Duration::from_millis(250)));
    assert_eq!(settings.balancer.max_lag_bytes, Some(1 << 20));
    assert_eq!(settings.balancer.max_lag, Some(Duration::from_millis(1_500)));
    let login = config.spec.health.credential.as_ref().expect("a credential");
    assert_eq!((login.user.as_str(), login.database.as_str()), ("probe", "postgres"));
    assert_eq!(login.password.as_ref().map(|p| p.expose()), Some("s3cret"));
    assert_eq!(settings.limits.max_clients_per_user, Some(7));
    assert_eq!(settings.limits.query_timeout, Some(Duration::from_millis(1_250)));
    let access = |role: &str| settings.console.access(role.as_bytes());
    assert_eq!([access("boss"), access("both")], [Some(ConsoleAccess::Admin); 2]);
    assert_eq!((access("metrics"), access("app"), access("Boss")), (Some(ConsoleAccess::Viewer), None, None));
    let user = &settings.users[0];
    assert!(matches!(&user.proof, Some(UserProof::Password(p)) if p.expose() == "pw${x}"));
    assert_eq!((user.overrides.pool_size, user.overrides.query_timeout), (Some(5), Some(None)));
    let database = &settings.databases[0].overrides;
    assert_eq!(database.mode, Some(PoolMode::Session));
    assert_eq!(database.idle_in_transaction_timeout, Some(Some(Duration::from_secs(9))));
    assert_eq!(names(&config), ["standby", "standby-2", "spare.a-1_x", "replica-2"]);
    assert_eq!((config.spec.nodes[0].host.as_str(), config.spec.nodes[3].host.as_str()), ("db1", "db9"));
}

/// Text and its one problem, word for word; a good node is added where the text has none.
const PROBLEMS: &[(&str, &str)] = &[
    (
        "[pool_mode]\nmax_pool_sze = 3",
        r#"2: unknown key "max_pool_sze" in [pool_mode]; did you mean "max_pool_size"?"#,
    ),
    ("[pool_mode]\nzzz = 3", r#"2: unknown key "zzz" in [pool_mode]"#),
    ("max_pool_size = 3", r#"1: unknown key "max_pool_size" at the top level; it belongs in [pool_mode]"#),
    (
        "[pool_mode]\nquery_timeout_secs = 3",
        r#"2: unknown key "query_timeout_secs" in [pool_mode]; it belongs in [limits], [[users]] or [[databases]]"#,
    ),
    (
        "[[nodes]]\nhost = \"a\"\nrole = \"replica\"\nwieght = 3",
        r#"4: unknown key "wieght" in [[nodes]]; did you mean "weight"?"#,
    ),
    ("[pool]\nmode = 3", "1: unknown section [pool]"),
    ("[pool_mod]", "1: unknown section [pool_mod]; did you mean [pool_mode]?"),
    ("[[node]]", "1: unknown section [node]; did you mean [[nodes]]?"),
    ("[[pool_mode]]", "1: pool_mode must be written [pool_mode]"),
    ("limits = 3", "1: limits must be written [limits]"),
    ("[users]\nname = \"a\"", "1: users must be written [[users]]"),
    (
        "[client_tls]\nmode = \"verify-ca\"",
        r#"2: mode = "verify-ca" in [client_tls] needs tls_client_ca_file"#,
    ),
    ("[server_tls]\nmode = \"verify-full\"", r#"2: mode = "verify-full" in [server_tls] needs tls_ca_file"#),
    (
        "[client_tls]\ntls_client_ca_file = \"ca\"",
        "2: tls_client_ca_file needs tls_cert_file and tls_key_file",
    ),
    (
        "[server_tls]\ntls_ca_file = \"ca\"",
        r#"2: tls_ca_file in [server_tls] has no effect without mode = "verify-ca" or "verify-full""#,
    ),
    (
        "[client_tls]\nmode = \"disable\"\ntls_cert_file = \"a\"\ntls_key_file = \"b\"",
        r#"3: tls_cert_file in [client_tls] has no effect with mode = "disable""#,
    ),
    ("[server_tls]\ntls_cert_file = \"a\"", "2: tls_cert_file needs tls_key_file"),
    ("[mirror]\nx = 1", "1: section [mirror] is not supported by this version"),
    ("[[hba]]\nmethod = \"cert\"", r#"2: method = "cert" in [[hba]] needs tls = true"#),
    (
        "[[hba]]\nmethod = \"auto\"\naddress = \"10.0.0.0/64\"",
        r#"3: address "10.0.0.0/64" in [[hba]] is not a network such as "10.0.0.0/8" or "::1/128""#,
    ),
    ("[[hba]]\nmethod = \"md5\"", r#"2: method in [[hba]] must be "auto", "cert" or "reject"; it is "md5""#),
    (
        "[control_plane]\nendpoints = []",
        "2: endpoints in [control_plane] must be a list of texts that are not empty, at least one; it is empty",
    ),
    ("[control_plane]", r#"1: [control_plane] without "endpoints""#),
    (
        "[control_plane]\nendpoints = [\"cp-1:9092\", \"cp-2\"]",
        r#"2: endpoint "cp-2" is not an address such as "cp-1:9092""#,
    ),
    (
        "[control_plane]\nendpoints = [3]",
        "2: endpoints in [control_plane] must be a list of texts that are not empty, at least one; it is a whole number",
    ),
    ("[store]", r#"1: [store] without "directory""#),
    (
        "[store]\nkind = \"redis\"\ndirectory = \"d\"",
        r#"2: kind in [store] must be "embedded" or "etcd"; it is "redis""#,
    ),
    (
        "[store]\nkind = \"etcd\"\nendpoints = [\"http://etcd:2379\"]\ndirectory = \"d\"",
        r#"4: directory in [store] has no effect without kind = "embedded""#,
    ),
    (
        "[store]\ndirectory = \"d\"\nendpoints = [\"http://etcd:2379\"]",
        r#"3: endpoints in [store] has no effect without kind = "etcd""#,
    ),
    ("[store]\nkind = \"etcd\"", r#"1: [store] with kind = "etcd" and without "endpoints""#),
    (
        "[store]\nkind = \"etcd\"\nendpoints = [\"etcd:2379\"]",
        r#"3: endpoint "etcd:2379" is not an address such as "http://etcd-1:2379""#,
    ),
    (
        "[store]\nkind = \"etcd\"\nendpoints = [\"http://root:password@etcd:2379\"]",
        r#"3: endpoint "***@etcd:2379" is not an address such as "http://etcd-1:2379""#,
    ),
    (
        "[store]\nkind = \"etcd\"\nendpoints = [\"https://etcd:2379\"]",
        r#"3: endpoint "https://etcd:2379": https is not supported by this version; use http in a trusted network"#,
    ),
    (
        "[store]\nkind = \"etcd\"\nendpoints = [\"http://etcd:2379\"]\nprefix = \"/a/\"",
        r#"4: prefix "/a/" must start with "/" and end without"#,
    ),
    (
        "[store]\nkind = \"etcd\"\nendpoints = [\"http://etcd:2379\"]\nuser = \"u\"",
        "4: user and password in [store] go together",
    ),
    (
        "[management]\ntoken = 1",
        r#"2: unknown key "token" in [management]; it belongs in [control_plane] or [[management.tokens]]"#,
    ),
    ("[management]\ntokens = 1", "2: management.tokens must be written [[management.tokens]]"),
    (
        "[[management.tokens]]\nname = \"a\"\nrole = \"admin\"",
        "1: [[management.tokens]] without token, sha256 or certificate",
    ),
    (
        "[[management.tokens]]\nname = \"a\"\nrole = \"admin\"\ntoken = \"short\"",
        "4: token is too short: at least 16 characters",
    ),
    (
        "[[management.tokens]]\nname = \"a\"\nrole = \"root\"\ntoken = \"${PASSWORD}${PASSWORD}${PASSWORD}\"",
        r#"3: role in [[management.tokens]] must be "viewer", "operator", "admin" or "dataplane"; it is "root""#,
    ),
    (
        "[auth]\nauth_query = \"x\"\nauth_user = \"u\"",
        "2: auth_query needs $1, which stands for the role's name",
    ),
    ("[auth]\nauth_query = \"$1\"", "2: auth_query needs auth_user, the role that runs it"),
    ("[auth]\nauth_password = \"x\"", "2: auth_password has no effect without auth_query"),
    (
        "[load_balancer]\nread_your_writes = \"lsn\"",
        r#"2: read_your_writes = "lsn" is not supported by this version"#,
    ),
    (
        "[pool_mode]\nmode = \"transactoin\"",
        r#"2: mode in [pool_mode] must be "session", "transaction" or "statement"; it is "transactoin"; did you mean "transaction"?"#,
    ),
    (
        "[pool_mode]\nmode = 3",
        r#"2: mode in [pool_mode] must be "session", "transaction" or "statement"; it is a whole number"#,
    ),
    (
        "[pool_mode]\nmode = \"${HOST}\"",
        r#"2: mode in [pool_mode] must be "session", "transaction" or "statement"; it is "${HOST}""#,
    ),
    ("[auth]\nmode = \"ldap\"", r#"2: mode in [auth] must be "auto"; it is "ldap""#),
    (
        "[pool_mode]\nmax_pool_size = 0",
        "2: max_pool_size in [pool_mode] must be a whole number (connections), 1 to 10000; it is 0",
    ),
    (
        "[pool_mode]\nmax_pool_size = -1",
        "2: max_pool_size in [pool_mode] must be a whole number (connections), 1 to 10000; it is -1",
    ),
    (
        "[pool_mode]\nmax_pool_size = \"10\"",
        "2: max_pool_size in [pool_mode] must be a whole number (connections), 1 to 10000; it is a text",
    ),
    (
        "[pool_mode]\nmax_pool_size = 1.5",
        "2: max_pool_size in [pool_mode] must be a whole number (connections), 1 to 10000; it is a number with a fraction",
    ),
    (
        "[pool_mode]\nmax_pool_size = 99999999999999999999999",
        "2: max_pool_size in [pool_mode] must be a whole number (connections), 1 to 10000; it is 99999999999999999999999",
    ),
    (
        "[pool_mode]\nacquire_timeout_secs = 0",
        "2: acquire_timeout_secs in [pool_mode] must be a number of seconds, 0.001 to 31536000; it is 0",
    ),
    (
        "[pool_mode]\nidle_timeout_secs = -0.5",
        "2: idle_timeout_secs in [pool_mode] must be a number of seconds, 0 to 31536000; it is -0.5",
    ),
    (
        "write_timeout_secs = nan",
        "1: write_timeout_secs must be a number of seconds, 0 to 31536000; it is nan",
    ),
    (
        "write_timeout_secs = inf",
        "1: write_timeout_secs must be a number of seconds, 0 to 31536000; it is inf",
    ),
    (
        "write_timeout_secs = 31536001",
        "1: write_timeout_secs must be a number of seconds, 0 to 31536000; it is 31536001",
    ),
    (
        "write_timeout_secs = \"5s\"",
        "1: write_timeout_secs must be a number of seconds, 0 to 31536000; it is a text",
    ),
    (
        "[pool_mode]\nreset_query = \"\"",
        r#"2: reset_query in [pool_mode] must be a text that is not empty; it is """#,
    ),
    ("[pool_mode]\nmin_idle = 5\nmax_pool_size = 4", "2: min_idle 5 is more than max_pool_size 4"),
    (
        "[load_balancer]\nread_write_split = \"yes\"",
        "2: read_write_split in [load_balancer] must be true or false; it is a text",
    ),
    (
        "[load_balancer]\nread_your_writes_ms = 5",
        "2: read_your_writes_ms has no effect without read_your_writes = \"time\"",
    ),
    (
        "[load_balancer]\nmax_lag_bytes = 5",
        "2: max_lag_bytes has no effect without user in [health]: only a probe that logs in sees lag",
    ),
    (
        "[load_balancer]\nmax_lag_ms = 5",
        "2: max_lag_ms has no effect without user in [health]: only a probe that logs in sees lag",
    ),
    (
        "[load_balancer]\nmax_lag_bytes = -5",
        "2: max_lag_bytes in [load_balancer] must be a whole number (bytes) of 0 or more; it is -5",
    ),
    ("[health]\npassword = \"x\"", "2: password in [health] has no effect without user"),
    ("[health]\ndatabase = \"x\"", "2: database in [health] has no effect without user"),
    (
        "[health]\nuser = \"a\"\npassword = 5",
        "3: password in [health] must be a text that is not empty; it is a whole number",
    ),
    (
        "[health]\nuser = \"${NOBODY}\"",
        r#"2: user in [health] uses the environment variable "NOBODY", which is not set"#,
    ),
    (
        "[health]\nuser = \"${NOBODY\"",
        r#"2: user in [health] uses "${" without a variable name and "}"; write "$${" for a literal"#,
    ),
    ("listen_address = \"5433\"", r#"1: listen_address "5433" is not an address such as "127.0.0.1:5433""#),
    (
        "listen_address = \"127.0.0.1:99999\"",
        r#"1: listen_address "127.0.0.1:99999" is not an address such as "127.0.0.1:5433""#,
    ),
    ("admin_address = \"127.0.0.1:5433\"", "1: admin_address and listen_address are the same"),
    ("[[users]]\npassword = \"x\"", r#"1: [[users]] without "name""#),
    ("[[users]]\nname = \"\"", r#"2: name in [[users]] must be a text that is not empty; it is """#),
    ("[[users]]\nname = \"a\"\n[[users]]\nname = \"a\"", r#"two [[users]] named "a""#),
    ("[[databases]]\nname = \"a\"\n[[databases]]\nname = \"a\"", r#"two [[databases]] named "a""#),
    (
        "[[users]]\nname = \"a\"\nscram_verifier = \"md5hush\"",
        "3: scram_verifier in [[users]] is not of the form SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>",
    ),
    (
        "[[users]]\nname = \"a\"\npool_size = 101",
        "3: pool_size 101 is more than max_pool_size 100 in [pool_mode]",
    ),
    ("[[nodes]]\nrole = \"replica\"", r#"1: [[nodes]] without "host""#),
    ("[[nodes]]\nhost = \"h\"", r#"1: [[nodes]] without "role""#),
    (
        "[[nodes]]\nhost = \"h\"\nrole = \"slave\"",
        r#"3: role in [[nodes]] must be "primary", "standby" or "replica"; it is "slave""#,
    ),
    (
        "[[nodes]]\nhost = \"h\"\nrole = \"replica\"\nport = 0",
        "4: port in [[nodes]] must be a whole number (a TCP port), 1 to 65535; it is 0",
    ),
    (
        "[[nodes]]\nhost = \"h\"\nrole = \"replica\"\nname = \"A b\"",
        r#"4: node name "A b" may hold only a-z, 0-9, "_", "." and "-", at most 63"#,
    ),
    (
        "[[nodes]]\nhost = \"h:5432\"\nrole = \"replica\"",
        r#"1: host "h:5432" has a port in it; write the port as port"#,
    ),
    ("[[nodes]]\nhost = \"h x\"\nrole = \"replica\"", r#"1: host "h x" is not a host name or an IP address"#),
    (
        "[[nodes]]\nhost = \"user:password@h\"\nrole = \"replica\"",
        r#"1: host "***@h" has a port in it; write the port as port"#,
    ),
];

#[test]
fn a_tokens_hash_is_64_hexadecimal_digits() {
    for wrong in ["é", "00", &"0g".repeat(32), &"é".repeat(32), &"+1".repeat(32), &"00".repeat(33)] {
        let text = token("admin").replace(&"0F".repeat(32), wrong);
        assert_eq!(
            problems(&format!("{text}{NODE}")),
            ["4: sha256 must be 64 hexadecimal digits"],
            "{wrong}"
        );
    }
}

#[test]
fn every_problem_is_said_in_these_words() {
    for (text, expected) in PROBLEMS {
        let text = if text.contains("[[nodes]]") { (*text).to_owned() } else { format!("{text}\n{NODE}") };
        assert_eq!(problems(&text), [*expected], "{text}");
    }
}

#[test]
fn nodes_are_checked_together() {
    let second = |rest: &str| format!("{NODE}[[nodes]]\n{rest}");
    for (text, expected) in [
        (String::new(), "config.toml: no [[nodes]]: at least one is needed"),
        ("nodes = []".to_owned(), "config.toml: no [[nodes]]: at least one is needed"),
        ("nodes = 3".to_owned(), "config.toml:1: nodes must be written [[nodes]]"),
        ("nodes = [3]".to_owned(), "config.toml:1: nodes must be written [[nodes]]"),
        (
            second("host = \"b\"\nrole = \"primary\""),
            "config.toml:4: two nodes with role = \"primary\"; one must be a standby or replica (the other stands in line 1)",
        ),
        (
            second("host = \"DB\"\nrole = \"standby\""),
            "config.toml:4: two nodes with host \"DB\" and port 5432 (the other stands in line 1)",
        ),
        (
            second("host = \"b\"\nrole = \"standby\"\nname = \"primary\""),
            "config.toml:4: two nodes named \"primary\"; give one another name (the other stands in line 1)",
        ),
        (
            format!(
                "{NODE}[[nodes]]\nhost = \"b\"\nrole = \"replica\"\nname = \"standby\"\n[[nodes]]\nhost = \"c\"\nrole = \"standby\""
            ),
            "config.toml:8: two nodes named \"standby\"; give one another name (the other stands in line 4)",
        ),
    ] {
        let report = parse(&text, "config.toml", &env).expect_err(&text);
        assert_eq!(report.to_string(), expected, "{text}");
    }
}

#[test]
fn all_problems_are_reported_at_once_in_line_order() {
    let text = "colour = 1\n[pool_mode]\nmode = \"x\"\n[health]\nfailure_threshold = 0\n";
    let found = problems(text);
    assert_eq!(found.len(), 4, "{found:?}");
    let starts: Vec<&str> = found.iter().filter_map(|text| text.split_once(": ").map(|(at, _)| at)).collect();
    assert_eq!(starts, ["no [[nodes]]", "1", "3", "5"]);
}

#[test]
fn broken_toml_is_one_problem_with_its_line() {
    for (text, line) in
        [("a = 1\nb = = 2\nc = = 3", 2), ("[pool_mode\n", 1), ("a = 1\na = 2", 2), ("x = \"abc", 1)]
    {
        let report = parse(text, "config.toml", &env).expect_err(text);
        let [problem] = report.problems() else { panic!("{report}") };
        assert_eq!(problem.line, Some(line), "{report}");
        assert!(problem.text.starts_with("not valid TOML: "), "{report}");
    }
}

#[test]
fn no_secret_is_ever_printed() {
    for text in [
        "[[users]]\nname = \"a\"\npassword = \"hush\"\nscram_verifier = \"hush\"",
        "[[users]]\nname = \"a\"\npassword = \"hush\\u0000\"",
        "[[management.tokens]]\nname = \"a\"\nrole = \"admin\"\ntoken = \"hush\"",
        "[control_plane]\ntoken = \"hush\"",
        "[health]\nuser = \"a\"\npasword = \"hush\"",
        "[health]\nuser = \"a\"\npassword = \"hush",
        "[health]\nuser = \"a\"\npassword = \"hush${NOBODY}\"",
        "[health]\nuser = \"a\"\npassword = [\"hush\"]",
        "[pool_mode]\nmode = \"${PASSWORD}\"",
    ] {
        let report = parse(&format!("{text}\n{NODE}"), "config.toml", &env).expect_err(text);
        let printed = format!("{report} {report:?}");
        assert!(!printed.contains("hush") && !printed.contains("s3cret"), "{printed}");
    }
    let config = good(&format!("[[users]]\nname = \"a\"\npassword = \"hush\"\n{NODE}"));
    assert!(!format!("{config:?}").contains("hush"));
}

#[test]
fn a_variable_cannot_add_toml() {
    let config = good(&format!("[[users]]\nname = \"${{SLY}}\"\n{NODE}"));
    assert_eq!(config.spec.settings.users[0].name, "x\"\nmode = \"session");
    assert_eq!(config.spec.settings.users[0].overrides.mode, None);
}

#[test]
fn a_readable_file_with_a_secret_warns() {
    let dir = std::env::temp_dir().join(format!("helios-config-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let path = dir.join("config.toml");
    let literal = format!("[[users]]\nname = \"a\"\npassword = \"hush\"\n{NODE}");
    let from_env = literal.replace("hush", "${PASSWORD}");
    for (text, mode, warnings) in [(&literal, 0o640, 1), (&literal, 0o600, 0), (&from_env, 0o644, 0)] {
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        let config = load(&path, &env).unwrap();
        assert_eq!(config.warnings.len(), warnings, "{mode:o} {:?}", config.warnings);
    }
    std::fs::write(&path, b"a = \"\xff\"").unwrap();
    assert!(load(&path, &env).unwrap_err().to_string().contains("not UTF-8 text"));
    std::fs::remove_dir_all(&dir).unwrap();
    let report = load(&path, &env).unwrap_err();
    assert!(report.to_string().contains("config.toml: cannot read: "), "{report}");
}

#[test]
fn the_command_line_makes_the_same_configuration() {
    let standbys = ["[::1]:6000".to_owned(), "db9".to_owned()];
    let config = from_args(Some("127.0.0.1:0"), None, Some("db:6432"), &standbys).unwrap();
    let nodes: Vec<_> =
        config.spec.nodes.iter().map(|n| (n.name.as_str(), n.host.as_str(), n.port, n.role.word())).collect();
    assert_eq!(
        nodes,
        [
            ("primary", "db", 6432, "primary"),
            ("standby", "::1", 6000, "standby"),
            ("standby-2", "db9", 5432, "standby"),
        ]
    );
    assert_eq!(config.listen.port(), 0);
    assert_eq!(good(config.text.expose()).spec, config.spec, "the text says the same");
    assert_eq!(config.admin.port(), 9090);
    for (listen, primary, expected) in [
        (None, None, "command line: no [[nodes]]: at least one is needed"),
        (None, Some("db:x"), "command line: primary \"db:x\" is not an address such as \"127.0.0.1:5432\""),
        (
            Some("x"),
            Some("db"),
            "command line: listen address \"x\" is not an address such as \"127.0.0.1:5433\"",
        ),
    ] {
        assert_eq!(from_args(listen, None, primary, &[]).unwrap_err().to_string(), expected);
    }
}

/// (section, key, value) of every line of the example, commented out or not.
fn example_lines() -> Vec<(String, String, String)> {
    let mut section = String::new();
    let mut found = Vec::new();
    for line in EXAMPLE.lines() {
        let line = line.strip_prefix("# ").unwrap_or(line);
        if line.starts_with('[') && line.ends_with(']') {
            section = line.trim_matches(['[', ']']).to_owned();
        } else if let Some((key, value)) = line.split_once(" = ")
            && key.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        {
            found.push((section.clone(), key.to_owned(), value.to_owned()));
        }
    }
    found
}

#[test]
fn the_example_loads_and_holds_every_key_with_its_default_and_nothing_else() {
    let config = good(EXAMPLE);
    assert_eq!(config, good(NODE).with_host("127.0.0.1"), "the example must be the defaults");
    let mut lines = example_lines();
    for key in KEYS {
        let at =
            lines.iter().position(|(section, name, _)| section == key.section.name() && name == key.name);
        let (_, _, value) =
            lines.remove(at.unwrap_or_else(|| panic!("{} {}", key.section.header(), key.name)));
        if let Some(default) = key.default_text() {
            assert_eq!(value, default, "{} {}", key.section.header(), key.name);
        }
        assert!(key.meaning.ends_with('.'), "{}", key.name);
    }
    assert_eq!(lines, [], "keys of the example that do not exist");
}

#[test]
fn the_examples_commented_keys_are_real_keys() {
    let lines: Vec<&str> = EXAMPLE
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            Some(rest)
                if rest.starts_with('[') || rest.split(" = ").next().is_some_and(|k| !k.contains(' ')) =>
            {
                rest
            }
            _ => line,
        })
        .filter(|line| {
            !line.starts_with("scram_verifier")
                && !line.starts_with("sha256")
                && !line.starts_with("certificate =")
        })
        // What goes with the other provider.
        .filter(|line| !["patroni_", "poll_interval_secs"].iter().any(|start| line.starts_with(start)))
        // What goes with the other kind of store.
        .filter(|line| {
            !["endpoints = [\"http", "prefix", "user = \"helios_store", "password = \"${HELIOS_STORE"]
                .iter()
                .any(|start| line.starts_with(start))
        })
        .collect();
    let text = lines
        .join("\n")
        .replace("= \"off\"", "= \"time\"")
        .replace("driver = \"sql\"", "driver = \"exec\"")
        .replace("invalidation = \"proxy\"", "invalidation = \"logical\"")
        .replace("mode = \"prefer\"", "mode = \"verify-ca\"");
    let config = parse(&text, "example", &|_| Some("secret of 16 letters".to_owned()))
        .unwrap_or_else(|r| panic!("{r}\n{text}"));
    assert_eq!(config.spec.settings.users.len() + config.spec.settings.databases.len(), 2);
    assert!(config.spec.health.credential.is_some());
    assert_eq!(config.control_plane.map(|plane| plane.endpoints.len()), Some(2));
    assert_eq!((config.management.tokens.len(), config.discovery.explicit), (1, true));
}

#[test]
fn patroni_as_the_provider_needs_what_it_needs_and_its_keys_nothing_else() {
    let probe = "[health]\nuser = \"probe\"\n";
    let one = "patroni_endpoints = [\"http://db-1:8008\"]\n";
    let text = |health: &str, keys: &str| format!("{health}[topology]\nprovider = \"patroni\"\n{keys}{NODE}");
    let patroni = |text: &str| good(text).spec.health.patroni.expect("it is the provider");
    let found = patroni(&text(probe, one));
    assert_eq!(found.endpoints, ["http://db-1:8008"]);
    assert_eq!((found.interval, found.timeout), (Duration::from_secs(1), Duration::from_secs(2)));
    assert_eq!((&found.ca, &found.login), (&None, &None));
    assert_eq!(good(NODE).spec.health.patroni, None);
    assert_eq!(good(&format!("[topology]\nprovider = \"postgres\"\n{NODE}")).spec.health.patroni, None);
    let login = "patroni_user = \"u\"\npatroni_password = \"${PASSWORD}\"\n";
    let found = patroni(&text(probe, &format!("{one}{login}")));
    assert_eq!(found.login, Some(("u".to_owned(), Secret::new("s3cret".to_owned()))));
    let secure = one.replace("http:", "https:");
    for (text, problem) in [
        (text(probe, ""), "provider = \"patroni\" in [topology] needs patroni_endpoints"),
        (text("", one), "provider = \"patroni\" in [topology] needs user in [health]"),
        (text(probe, &one.replace(":8008", "")), "endpoint \"http://db-1\" is not an address"),
        (text(probe, &one.replace("8008", "8008/patroni")), "is not an address such as"),
        (text(probe, &secure), "endpoint \"https://db-1:8008\" needs patroni_ca_file"),
        (text(probe, &format!("{one}patroni_ca_file = \"ca\"\n")), "no endpoint starts with https://"),
        (text(probe, &format!("{one}patroni_user = \"u\"\n")), "go together"),
        (text(probe, &format!("{one}patroni_endpoint = 1\n")), "did you mean \"patroni_endpoints\"?"),
        (format!("[topology]\n{one}{NODE}"), "has no effect without provider = \"patroni\""),
        (format!("[topology]\nprovider = \"petroni\"\n{NODE}"), "did you mean \"patroni\"?"),
        (
            format!("[switchover]\ndriver = \"patroni\"\nstop_command = \"x\"\n{NODE}"),
            "stop_command in [switchover] has no effect with driver = \"patroni\"",
        ),
    ] {
        let all = problems(&text);
        assert!(all.iter().any(|found| found.contains(problem)), "{problem}: {all:?}");
    }
}

/// A token with this role.
fn token(role: &str) -> String {
    let hash = "0F".repeat(32);
    format!("[[management.tokens]]\nname = \"{role}\"\nrole = \"{role}\"\nsha256 = \"{hash}\"\n")
}

#[test]
fn each_program_refuses_what_it_cannot_use() {
    let store = "[store]\ndirectory = \"/var/lib/x\"\n";
    let etcd = "[store]\nkind = \"etcd\"\nendpoints = [\"http://etcd-1:2379\", \"http://[::1]:2379\"]\n";
    let plane = "[control_plane]\nendpoints = [\"cp:9092\"]\n";
    let (admin, dataplane) = (token("admin"), token("dataplane"));
    let outside = "[management]\nlisten_address = \"0.0.0.0:9091\"\n";
    let named = |problems: Vec<String>, words: &[&str]| {
        assert_eq!(problems.len(), words.len(), "{problems:?}");
        problems.iter().zip(words).for_each(|(p, word)| assert!(p.contains(word), "{word}: {problems:?}"));
    };
    for (text, words) in [
        (String::new(), &[][..]),
        (store.to_owned(), &[]),
        (etcd.to_owned(), &["helios-controlplane only"]),
        (outside.to_owned(), &["loopback"]),
        (format!("{outside}{admin}"), &[]),
        (dataplane.clone(), &["dataplane"]),
        (format!("{plane}{store}{outside}"), &["[management]", "[store]"]),
        ("[discovery]".to_owned(), &["[discovery]"]),
    ] {
        named(good(&format!("{text}\n{NODE}")).problems_for_dataplane(), words);
    }
    for (text, words) in [
        (format!("{store}{admin}{dataplane}"), &[][..]),
        (format!("{etcd}{admin}{dataplane}"), &[]),
        (admin, &["[store]", "dataplane"]),
        (format!("{store}{dataplane}"), &["nobody"]),
        (format!("{plane}{store}{dataplane}[management]\nenabled = false"), &["[control_plane]"]),
    ] {
        named(good(&format!("{text}\n{NODE}")).problems_for_controlplane(), words);
    }
    assert_eq!(good(plane).spec.nodes, [], "a data plane of a fleet needs no nodes of its own");
}

impl Config {
    fn with_host(mut self, host: &str) -> Self {
        let node = Node { host: host.to_owned(), ..self.spec.nodes[0].as_ref().clone() };
        self.spec.nodes = vec![Arc::new(node)];
        self.text = Secret::new(EXAMPLE.to_owned());
        self
    }
}

#[test]
fn the_tables_words_and_defaults_are_what_the_types_know() {
    for key in KEYS {
        if let (Kind::Word(words), Fallback::Text(default)) = (key.kind, key.default) {
            assert!(words.contains(&default), "{}", key.name);
        }
    }
    let words = |section: Section, name| match section.key(name).map(|key| key.kind) {
        Some(Kind::Word(words)) => words.to_vec(),
        other => panic!("{other:?}"),
    };
    let modes: Vec<&str> = PoolMode::ALL.iter().map(|mode| mode.word()).collect();
    assert_eq!(words(Section::PoolMode, "mode"), modes);
    let strategies: Vec<&str> = ReadStrategy::ALL.iter().map(|strategy| strategy.word()).collect();
    assert_eq!(words(Section::LoadBalancer, "read_strategy"), strategies);
    let roles: Vec<&str> = Role::ALL.iter().map(|role| role.word()).collect();
    assert_eq!(words(Section::Nodes, "role"), roles);
    let access: Vec<&str> = Access::ALL.iter().map(|access| access.word()).collect();
    assert_eq!(words(Section::Tokens, "role"), access);
}

#[test]
fn no_input_panics() {
    let mut seed: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut next = |below: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        usize::try_from(seed % u64::try_from(below).unwrap()).unwrap()
    };
    let spice: &[&str] =
        &["\"", "[", "]", "=", "\n", "${", "}", "-1", "1e999", "''", "\u{0}", "é", "[[nodes]]", "{}", "."];
    for text in [QUICK_START, MULTI_NODE, EXAMPLE] {
        for _ in 0..400 {
            let mut bytes = text.as_bytes().to_vec();
            for _ in 0..=next(4) {
                let at = next(bytes.len());
                match next(4) {
                    0 => bytes[at] = u8::try_from(next(256)).unwrap(),
                    1 => drop(bytes.remove(at)),
                    2 => bytes.truncate(at.max(1)),
                    _ => drop(bytes.splice(at..at, spice[next(spice.len())].bytes())),
                }
            }
            match parse(&String::from_utf8_lossy(&bytes), "config.toml", &env) {
                Ok(config) => assert!(!config.spec.nodes.is_empty()),
                Err(report) => assert!(!report.problems().is_empty() && !report.to_string().is_empty()),
            }
        }
    }
}

#[test]
fn the_cache_says_what_does_not_go_together() {
    let text = |keys: &str| format!("[cache]\nenabled = true\n{keys}{NODE}");
    let logical = "invalidation = \"logical\"\nreplication_user = \"u\"\n";
    assert_eq!(good(&text("")).cache.logical, None);
    let found = good(&text(logical)).cache.logical.unwrap();
    assert_eq!((found.user.as_str(), found.password, found.publication.as_str()), ("u", None, "heliosproxy"));
    for (keys, problem) in [
        ("redis_url = \"rediss://x\"\n", "does not begin with redis://"),
        ("invalidation = \"logical\"\n", "needs replication_user"),
        ("invalidation = \"physical\"\n", "\"proxy\" or \"logical\""),
        ("replication_user = \"u\"\n", "replication_user in [cache] is for invalidation = \"logical\" only"),
        ("replication_password = \"p\"\n", "replication_password in [cache] is for invalidation"),
        ("publication = \"p\"\n", "publication in [cache] is for invalidation"),
        (&format!("{logical}publication = \"a b\"\n"), "has other characters than letters, digits and _"),
        (&format!("{logical}publication = \"a'b\"\n"), "has other characters than letters, digits and _"),
    ] {
        let found = problems(&text(keys));
        assert!(found.len() == 1 && found[0].contains(problem), "{keys}: {found:?}");
    }
    let plane = "[control_plane]\nendpoints = [\"http://127.0.0.1:1\"]\ncluster = \"c\"\ntoken = \"0123456789abcdef\"\n";
    assert!(
        problems(&text(plane)).iter().any(|p| p.contains("needs redis_url")),
        "{:?}",
        problems(&text(plane))
    );
}

#[test]
fn tracing_needs_a_collector_that_can_be_an_address() {
    let text = |keys: &str| format!("[tracing]\n{keys}{NODE}");
    let tracing = |keys: &str| good(&text(keys)).tracing;
    assert_eq!(tracing(""), None);
    for endpoint in ["http://127.0.0.1:4317", "http://otel:4317/", "http://[::1]:4317"] {
        let found = tracing(&format!("otlp_endpoint = \"{endpoint}\"\n")).unwrap();
        assert_eq!(
            (found.endpoint.as_str(), found.one_in, found.service.as_str()),
            (endpoint, 100, "heliosproxy")
        );
    }
    let form = "in [tracing] is not an address such as \"http://127.0.0.1:4317\" (TLS is not supported";
    for (keys, problem) in [
        ("otlp_endpoint = \"https://otel:4317\"\n", form),
        ("otlp_endpoint = \"otel:4317\"\n", form),
        ("otlp_endpoint = \"http://\"\n", form),
        ("otlp_endpoint = \"http://otel\"\n", form),
        ("otlp_endpoint = \"http://otel:4317/v1/traces\"\n", form),
        ("otlp_endpoint = \"http://a b:1\"\n", form),
        ("sample_one_in = 5\n", "sample_one_in in [tracing] does nothing without otlp_endpoint"),
        ("service_name = \"x\"\n", "service_name in [tracing] does nothing without otlp_endpoint"),
        ("otlp_endpoint = \"http://otel:4317\"\nsample_one_in = 0\n", "sample_one_in"),
        ("otlp_endpoint = \"http://otel:4317\"\nsample_one_in = 1000001\n", "sample_one_in"),
        ("otlp_endpiont = \"http://otel:4317\"\n", "did you mean \"otlp_endpoint\"?"),
    ] {
        let found = problems(&text(keys));
        assert!(found.len() == 1 && found[0].contains(problem), "{keys}: {found:?}");
    }
    // What holds a password is not shown.
    let found = problems(&text("otlp_endpoint = \"http://user:hunter2@otel:4317\"\n"));
    assert!(found.iter().all(|problem| !problem.contains("hunter2")), "{found:?}");
}
