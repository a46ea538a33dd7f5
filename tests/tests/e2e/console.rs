//! The admin console: compared with PgBouncer's own, message by message; used by psql and by Debian's exporter; what may be
//! done there by whom, and that it does what it says.

mod fleet;
mod oracle;
mod orders;

use std::collections::BTreeMap;
use std::process::{Command, Output};
use std::time::Duration;

use helios_tests::cluster::password;
use helios_tests::raw::{Hello, Next, startup};
use helios_tests::{Cluster, Config, Exporter, Message, Proxy, Raw, eventually};

const LONG: Duration = Duration::from_secs(30);
const CONSOLE: &str = "[console]\nadmin_users = [\"ops\", \"stranger\"]\nstats_users = [\"watch\"]\n";

/// A proxy with a console for `ops` (who administers) and `watch` (who looks); `other` is known to the proxy as well.
fn with_console(cluster: &Cluster) -> Config {
    let mut config = Config::primary_only(cluster);
    config.more.push_str(CONSOLE);
    ["ops", "watch", "other"]
        .iter()
        .fold(config, |config, role| config.user(role, &format!("password = \"{}\"", password(role))))
}

/// A login on the console.
fn login(port: u16, database: &str, role: &str) -> Result<(Raw, Hello), Message> {
    let mut raw = Raw::connect(port);
    raw.send(&startup(0x0003_0000, &[("user", role), ("database", database)]));
    let hello = raw.finish_login(role, &password(role))?;
    Ok((raw, hello))
}

fn console(port: u16, role: &str) -> Raw {
    let logged_in = login(port, "pgbouncer", role);
    logged_in.unwrap_or_else(|e| panic!("login of {role}: {:?}", e.error())).0
}

/// The tag of a command that succeeds.
#[track_caller]
fn tag(raw: &mut Raw, command: &str) -> String {
    let said = raw.query(command);
    let done = said.iter().find(|message| message.tag == b'C');
    let done = done
        .unwrap_or_else(|| panic!("{command}: {:?}", said.iter().map(Message::error).collect::<Vec<_>>()));
    String::from_utf8_lossy(&done.body).trim_end_matches('\0').to_owned()
}

/// SQLSTATE and text of a command that fails.
#[track_caller]
fn failure(raw: &mut Raw, command: &str) -> (String, String) {
    let said = raw.query(command);
    let error = said.iter().find(|message| message.tag == b'E');
    let error = error.unwrap_or_else(|| panic!("{command} did not fail: {said:?}"));
    (error.sqlstate(), error.error().1)
}

/// The names of a RowDescription's columns.
fn columns(description: &Message) -> Vec<String> {
    let mut rest = &description.body[2..];
    let mut names = Vec::new();
    while !rest.is_empty() {
        let end = rest.iter().position(|b| *b == 0).unwrap();
        names.push(String::from_utf8(rest[..end].to_vec()).unwrap());
        rest = &rest[end + 19..];
    }
    names
}

/// The rows of a SHOW, each by the names of its columns.
#[track_caller]
fn rows(raw: &mut Raw, command: &str) -> Vec<BTreeMap<String, String>> {
    let said = raw.query(command);
    let description = said.iter().find(|message| message.tag == b'T');
    let names = columns(description.unwrap_or_else(|| panic!("{command}: {said:?}")));
    let of = |row: &Message| names.iter().cloned().zip(row.fields()).collect();
    said.iter().filter(|message| message.tag == b'D').map(of).collect()
}

/// The one row in which these columns have these values.
#[track_caller]
fn row(raw: &mut Raw, command: &str, keys: &[(&str, &str)]) -> BTreeMap<String, String> {
    let mut found = rows(raw, command);
    found.retain(|row| keys.iter().all(|(name, value)| row[*name] == *value));
    assert_eq!(found.len(), 1, "{command}: {keys:?}");
    found.remove(0)
}

/// The row of the pool of `app` on `postgres`; `None`: there is none.
fn pool(raw: &mut Raw) -> Option<BTreeMap<String, String>> {
    rows(raw, "SHOW POOLS").into_iter().find(|row| row["database"] == "postgres" && row["user"] == "app")
}

fn psql(proxy: &Proxy, role: &str, database: &str, command: &str) -> Output {
    Command::new("psql")
        .args(["-XAt", "-h", "127.0.0.1", "-p", &proxy.port().to_string(), "-U", role, "-d", database])
        .args(["-c", command])
        .env("PGPASSWORD", password(role))
        .output()
        .expect("psql (make setup)")
}

#[test]
fn psql_finds_the_console_under_both_names() {
    let proxy = with_console(Cluster::shared()).start().ready();
    let text = |output: &[u8]| String::from_utf8_lossy(output).into_owned();
    for database in ["pgbouncer", "helios"] {
        let said = psql(&proxy, "watch", database, "show version;");
        assert!(said.status.success() && text(&said.stdout).starts_with("HeliosProxy "), "{said:?}");
        let said = psql(&proxy, "watch", database, "SHOW HELP");
        let told = text(&said.stderr);
        assert!(
            said.status.success() && told.contains("Console usage") && told.contains("KILL <db>"),
            "{said:?}"
        );
        let said = psql(&proxy, "watch", database, "PAUSE");
        assert!(!said.status.success() && text(&said.stderr).contains("admin access needed"), "{said:?}");
        let said = psql(&proxy, "ops", database, "RECONNECT");
        assert!(said.status.success() && text(&said.stdout).contains("RECONNECT"), "{said:?}");
    }
}

#[test]
fn the_console_is_for_who_is_named_and_proves_it() {
    let cluster = Cluster::shared();
    let proxy = with_console(cluster).start().ready();
    let refused = |role: &str, secret: &str| {
        let mut raw = Raw::connect(proxy.port());
        raw.send(&startup(0x0003_0000, &[("user", role), ("database", "helios")]));
        let error = raw.finish_login(role, secret).expect_err("no login");
        (error.sqlstate(), error.error().1)
    };
    let wrong =
        |role: &str| ("28P01".to_owned(), format!("password authentication failed for user \"{role}\""));
    assert_eq!(refused("ops", "wrong"), wrong("ops"));
    assert_eq!(refused("other", &password("other")), ("08P01".to_owned(), "not allowed".to_owned()));
    assert_eq!(refused("other", "wrong"), wrong("other"), "who is not named has to prove itself as well");
    // Roles that only the server can judge: one that is named is told what is missing, another one nothing.
    assert_eq!(refused("app", &password("app")), wrong("app"));
    let (code, text) = refused("stranger", "any");
    assert_eq!(
        (code.as_str(), text.as_str()),
        ("28000", "role \"stranger\" cannot be verified without a server")
    );
    assert!(login(proxy.port(), "pgbouncer", "ops").is_ok());
}

#[test]
fn without_anybody_in_it_there_is_no_console_and_a_reload_makes_and_ends_one() {
    let cluster = Cluster::shared();
    let config = with_console(cluster);
    let without = config.text().replace(CONSOLE, "");
    let proxy = Proxy::start(&without).ready();
    let refused = login(proxy.port(), "pgbouncer", "ops").map(drop).expect_err("a database like any other");
    assert_ne!(refused.sqlstate(), "08P01", "{:?}", refused.error());
    proxy.rewrite(&config.text());
    proxy.reload();
    eventually(LONG, "there is a console", || login(proxy.port(), "pgbouncer", "ops").is_ok());
    let mut ops = console(proxy.port(), "ops");
    assert_eq!(tag(&mut ops, "SHOW VERSION"), "SHOW");
    proxy.rewrite(&config.text().replace("\"ops\", ", ""));
    assert_eq!(tag(&mut ops, "RELOAD"), "RELOAD");
    let mut last = String::new();
    eventually(LONG, "who may no longer is sent away", || {
        ops.send(&helios_tests::raw::query("SHOW VERSION"));
        while let Next::Message(message) = ops.next(LONG) {
            if message.tag == b'Z' {
                return false;
            }
            last = if message.tag == b'E' { message.error().1 } else { last.clone() };
        }
        true
    });
    assert_eq!(last, "not allowed");
}

#[test]
fn rules_of_hba_are_for_the_console_as_well() {
    let mut config = with_console(Cluster::shared());
    config.more.push_str("[[hba]]\nusers = [\"ops\"]\ndatabases = [\"pgbouncer\"]\nmethod = \"reject\"\n[[hba]]\nmethod = \"auto\"\n");
    let proxy = config.start().ready();
    let refused = login(proxy.port(), "pgbouncer", "ops").map(drop).expect_err("rejected");
    assert_eq!(refused.sqlstate(), "28000");
    assert!(login(proxy.port(), "pgbouncer", "watch").is_ok());
}

#[test]
fn what_is_shown_of_clients_and_servers_is_what_postgresql_sees() {
    let cluster = Cluster::shared();
    let proxy = with_console(cluster).start().ready();
    let mut client = proxy.config("app").application_name("shown").connect(postgres::NoTls).unwrap();
    let mut watch = console(proxy.port(), "watch");
    let idle = row(&mut watch, "SHOW CLIENTS", &[("application_name", "shown")]);
    assert_eq!((idle["state"].as_str(), idle["link"].as_str()), ("active", ""));
    let mut open = client.transaction().unwrap();
    let seen =
        open.query_one("select pg_backend_pid(), inet_client_port(), inet_server_port()", &[]).unwrap();
    let [pid, port, at]: [i32; 3] = [0, 1, 2].map(|column| seen.get(column));
    let server = row(&mut watch, "SHOW SERVERS", &[("remote_pid", &pid.to_string())]);
    let held = row(&mut watch, "SHOW CLIENTS", &[("application_name", "shown")]);
    assert_eq!((&held["link"], &server["link"]), (&server["ptr"], &held["ptr"]));
    assert_eq!((&server["local_port"], &server["port"]), (&port.to_string(), &at.to_string()));
    for (name, value) in [("type", "S"), ("state", "active"), ("user", "app"), ("database", "postgres")] {
        assert_eq!(server[name], value, "{name}");
    }
    assert_eq!(held["local_port"], proxy.port().to_string());
    assert!(
        held["connect_time"] <= held["request_time"] && held["connect_time"].ends_with(" UTC"),
        "{held:?}"
    );
    open.commit().unwrap();
    eventually(LONG, "the connection rests", || {
        let server = row(&mut watch, "SHOW SERVERS", &[("remote_pid", &pid.to_string())]);
        (server["state"].as_str(), server["link"].as_str()) == ("idle", "")
    });
    drop(client);
    eventually(LONG, "who has left is not shown", || {
        !rows(&mut watch, "SHOW CLIENTS").iter().any(|row| row["application_name"] == "shown")
    });
    let own = row(&mut watch, "SHOW CLIENTS", &[("user", "watch")]);
    assert_eq!((own["database"].as_str(), own["state"].as_str()), ("pgbouncer", "active"));
}

#[test]
fn counts_are_those_of_the_statements_that_ran() {
    let cluster = Cluster::shared();
    let proxy = with_console(cluster).start().ready();
    let mut watch = console(proxy.port(), "watch");
    let mut client = proxy.connect("app");
    for _ in 0..5 {
        client.simple_query("select 1").unwrap();
    }
    client.batch_execute("begin").unwrap();
    client.simple_query("select repeat('x', 10000)").unwrap();
    client.batch_execute("commit").unwrap();
    let count = |row: &BTreeMap<String, String>, name: &str| row[name].parse::<u64>().unwrap();
    let mut stats = BTreeMap::new();
    eventually(LONG, "all is counted", || {
        stats = row(&mut watch, "SHOW STATS", &[("database", "postgres")]);
        count(&stats, "total_query_count") == 8
    });
    assert_eq!((count(&stats, "total_xact_count"), count(&stats, "total_requests")), (6, 8));
    assert!(count(&stats, "total_sent") > 10_000 && count(&stats, "total_received") > 100, "{stats:?}");
    assert!(count(&stats, "total_xact_time") >= count(&stats, "total_query_time"), "{stats:?}");
    assert!(count(&stats, "total_query_time") > 0, "{stats:?}");
    let total = row(&mut watch, "SHOW STATS_TOTALS", &[("database", "postgres")]);
    assert_eq!((count(&total, "xact_count"), count(&total, "query_count")), (6, 8));
}

#[test]
fn debians_exporter_sees_the_truth_under_load() {
    let cluster = Cluster::shared();
    let mut config = with_console(cluster);
    config.pool = 1;
    config.more.push_str("[[databases]]\nname = \"spare\"\npool_size = 1\n");
    let proxy = config.start().ready();
    let exporter = Exporter::start(proxy.port(), "watch");
    let value = |name: &str, labels: &[(&str, &str)]| {
        exporter.scrape().expect("it understands the console").sum(name, labels)
    };
    let (postgres, pool) = ([("database", "postgres")], [("database", "postgres"), ("user", "app")]);
    let mut busy = proxy.connect("app");
    for _ in 0..20 {
        busy.simple_query("select 1").unwrap();
    }
    eventually(LONG, "twenty statements", || value("pgbouncer_requests_total", &postgres) == Some(20.0));
    let sent = value("pgbouncer_sent_bytes_total", &postgres).unwrap();
    assert!(sent > 20.0 * 50.0 && value("pgbouncer_query_microseconds_total", &postgres).unwrap() > 0.0);
    busy.batch_execute("begin; select 1").unwrap();
    let more: Vec<_> = (0..3)
        .map(|_| {
            let mut client = proxy.connect("app");
            std::thread::spawn(move || client.batch_execute("select 1"))
        })
        .collect();
    eventually(LONG, "three wait for the one connection", || {
        value("pgbouncer_waiting_clients", &pool) == Some(3.0)
            && value("pgbouncer_active_clients", &pool) == Some(1.0)
    });
    assert_eq!(value("pgbouncer_used_servers", &[]), Some(1.0));
    assert_eq!(value("pgbouncer_pool_size", &[("database", "spare")]), Some(1.0));
    // Four clients and the exporter; what is on its way in is counted apart.
    assert_eq!(value("pgbouncer_used_clients", &[]), Some(5.0));
    busy.batch_execute("commit").unwrap();
    more.into_iter().for_each(|waiting| waiting.join().unwrap().unwrap());
    eventually(LONG, "nobody waits", || value("pgbouncer_waiting_clients", &pool) == Some(0.0));
    let shown = proxy.metrics();
    let counted = shown.sum("heliosproxy_queries_total", &[]).unwrap();
    assert_eq!(value("pgbouncer_requests_total", &postgres), Some(counted), "as /metrics has it");
}
