//! Files of PgBouncer and what becomes of them.

use super::*;
use helios_proto::config;

fn convert(ini: &str, users: Option<&str>) -> Result<Converted, String> {
    super::convert(&Ini::read(ini)?, users)
}

const INI: &str = "
; a comment
[databases]
shop = host=db1,db2 port=5433 pool_size=30 pool_mode=session
other = host=db1,db2 port=5433 dbname='an other'
[users]
app = pool_mode=transaction max_user_connections=5
[pgbouncer]
listen_addr = *
pool_mode = transaction
auth_type = scram-sha-256
auth_user = lookup
server_tls_sslmode = verify-full
server_tls_ca_file = /etc/ca.pem
idle_transaction_timeout = 1.5
admin_users = root, app
stats_users = pgbouncer
future_setting = 1
";
const USERS: &str =
    "\"app\" \"pa\"\"ss${x}\"\n\"pgbouncer\" \"watch\"\n\"old\" \"md5aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\"\n";

fn parsed(toml: &str) -> config::Config {
    config::parse(toml, "made", &|_| None).unwrap_or_else(|report| panic!("{report:?} in {toml}"))
}

#[test]
fn what_has_a_counterpart_is_converted_and_the_rest_is_noted() {
    let made = convert(INI, Some(USERS)).unwrap();
    let config = parsed(&made.toml);
    let nodes: Vec<_> =
        config.spec.nodes.iter().map(|node| (node.host.as_str(), node.port, node.role)).collect();
    let roles = [helios_proto::model::Role::Primary, helios_proto::model::Role::Standby];
    assert_eq!(nodes, [("db1", 5433, roles[0]), ("db2", 5433, roles[1])]);
    for line in [
        "listen_address = \"0.0.0.0:6432\"",
        "mode = \"transaction\"",
        "max_pool_size = 50",
        "acquire_timeout_secs = 120",
        "max_client_connections = 100",
        "idle_in_transaction_timeout_secs = 1.5",
        "password = 'pa\"ss$${x}'",
        "pool_size = 5",
        "auth_user = \"lookup\"",
        "tls_ca_file = \"/etc/ca.pem\"",
        "admin_users = [\"root\", \"app\"]",
        "stats_users = [\"pgbouncer\"]",
        "password = \"watch\"",
    ] {
        assert!(made.toml.lines().any(|made| made == line), "{line} in {}", made.toml);
    }
    for words in ["an other", "line 18: future_setting", "1 users", "auth_password", "max_pool_size = 50"] {
        assert!(made.notes.iter().any(|note| note.contains(words)), "{words} in {:#?}", made.notes);
    }
}

#[test]
fn only_who_cannot_prove_a_role_without_a_server_is_noted_for_the_console() {
    let ini = "[databases]\na = host=x\n[pgbouncer]\nadmin_users = ops\n";
    let noted = |ini: &str, users| {
        let made = convert(ini, users).unwrap();
        parsed(&made.toml);
        made.notes.iter().filter(|note| note.contains("console")).count()
    };
    assert_eq!(noted(ini, None), 1);
    assert_eq!(noted(ini, Some("\"ops\" \"secret\"")), 0);
    assert_eq!(noted(ini, Some("\"ops\" \"md5aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\"")), 1);
    assert_eq!(noted(&format!("{ini}auth_user = lookup\n"), None), 0);
}

#[test]
fn the_smallest_file_has_the_defaults_of_pgbouncer() {
    let made = convert("[databases]\n* = host=db\n[pgbouncer]\n", None).unwrap();
    parsed(&made.toml);
    for line in [
        "listen_address = \"127.0.0.1:6432\"",
        "mode = \"session\"",
        "max_pool_size = 20",
        "login_timeout_secs = 60",
    ] {
        assert!(made.toml.contains(line), "{line} in {}", made.toml);
    }
}

#[test]
fn what_cannot_be_converted_is_an_error_that_says_where() {
    for (ini, words) in [
        ("", "no entry in [databases]"),
        ("[databases]\na = host=x\n[nonsense]\nb = 1", "line 4: no section"),
        ("[databases]\na = host=x port=y", "line 2: port is no number: y"),
        ("[databases]\na = host='x", "line 2: a quote is left open"),
        ("[databases]\na = host=x\nb = host=y", "one proxy for each"),
        (
            "[databases]\na = host=x\n[users]\nb = query_timeout=soon",
            "line 4: query_timeout is no number: soon",
        ),
        ("%include other.ini", "line 1: put the text"),
        (
            "[databases]\na = host=x\n[pgbouncer]\nquery_timeout = soon",
            "line 4: query_timeout is no number: soon",
        ),
    ] {
        let error = convert(ini, None).unwrap_err();
        assert!(error.contains(words), "{error}");
    }
    assert!(convert("[databases]\na = host=x", Some("app secret")).unwrap_err().contains("line 1"));
    // A password with a space and without quotes is not shown.
    let error = convert("[databases]\na = host=x password=planted secret", None).unwrap_err();
    assert!(error.contains("line 2") && !error.contains("secret"), "{error}");
}
