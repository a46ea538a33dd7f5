//! Secrets planted wherever there is a place for one, and then looked for wherever a program of ours says anything: its log at
//! every level and in both forms, HTTP, errors to clients, what it says of a broken file, heliosctl. Never looks at what
//! PostgreSQL itself says: that is between it and the client.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use helios_pgwire::frontend;
use helios_tests::controlplane::directory;
use helios_tests::proxy::{Logging, check, check_by, program};
use helios_tests::raw::{PATIENCE, SSL_REQUEST, call, extended, message, parse, query, startup, sync};
use helios_tests::{
    Cluster, Config, ControlPlane, Etcd, Heliosctl, Message, Pki, Proxy, Raw, Role, eventually, free_port,
    http,
};

/// In every secret that is a text.
const MARK: &str = "planted5ecret";
const FORMS: [Logging; 2] =
    [Logging { filter: "trace", format: "text" }, Logging { filter: "trace", format: "json" }];
const LONG: Duration = Duration::from_secs(60);
/// Files that are wrong where a secret stands.
const BROKEN: [&str; 8] = [
    "[[users]]\nname = \"x\"\npassword = \"planted5ecret\n",
    "[[users]]\nname = \"x\"\npassword = planted5ecret\n",
    "[[users]]\nname = \"x\"\npassword = \"planted5ecret\\q\"\n",
    "[[users]]\nname = \"x\"\npasswrod = \"planted5ecret\"\nscram_verifier = \"SCRAM-planted5ecret\"\n",
    "[auth]\nauth_password = [\"planted5ecret\"]\n[health]\npassword = { a = \"planted5ecret\" }\n",
    "[[management.tokens]]\nname = \"a\"\nrole = \"admin\"\ntoken = \"planted5ecret\"\nsha256 = \"planted5ecret\"\n",
    "[store]\nkind = \"etcd\"\nendpoints = [\"http://root:planted5ecret@etcd:2379\"]\npassword = \"planted5ecret\"\n",
    "[topology]\nprovider = \"patroni\"\npatroni_endpoints = [\"http://api:planted5ecret@h:8008\"]\n\
     [[nodes]]\nhost = \"app:planted5ecret@h\"\nrole = \"primary\"\n",
];

/// What must not be said, and what was said, by whom.
#[derive(Default)]
struct Hunt {
    secrets: BTreeSet<String>,
    said: Vec<(String, String)>,
}

impl Hunt {
    fn new() -> Self {
        let mut hunt = Self::default();
        hunt.text(MARK);
        hunt
    }

    /// A secret as text, and in the forms that a program could print its bytes in.
    fn text(&mut self, secret: &str) {
        self.secrets.insert(secret.to_owned());
        self.bytes(secret.as_bytes());
    }

    fn bytes(&mut self, secret: &[u8]) {
        let hex = |upper: bool| {
            secret.iter().fold(String::new(), |mut out, byte| {
                let _ = if upper { write!(out, "{byte:02X}") } else { write!(out, "{byte:02x}") };
                out
            })
        };
        let list = format!("{secret:?}");
        self.secrets.extend([hex(true), hex(false), list.trim_matches(['[', ']']).to_owned()]);
    }

    fn heard(&mut self, by: &str, text: impl Into<String>) {
        self.said.push((by.to_owned(), text.into()));
    }

    /// Logs, none of them empty.
    fn logs<const N: usize>(&mut self, logs: [(&str, Vec<String>); N]) {
        for (by, log) in logs {
            assert!(!log.is_empty(), "{by} does say something");
            self.heard(by, log.join("\n"));
        }
    }

    /// The errors and notices among these, all of them the proxy's own.
    fn words(&mut self, by: &str, messages: &[Message]) {
        let told = messages.iter().filter(|m| matches!(m.tag, b'E' | b'N'));
        let told: Vec<String> = told.map(|m| String::from_utf8_lossy(&m.body).into_owned()).collect();
        assert!(!told.is_empty(), "{by}: {messages:?}");
        self.heard(by, told.join("\n"));
    }

    fn ran(&mut self, ctl: &Heliosctl, command: &[&str]) {
        let ended = ctl.run(command);
        self.heard(&format!("{command:?}"), ended.out + &ended.err);
    }

    /// Panics if any of it was said.
    fn over(&self) {
        assert!(self.said.len() > 20, "a lot was said");
        let found: Vec<_> = self
            .said
            .iter()
            .flat_map(|(by, text)| text.lines().map(move |line| (by, line)))
            .filter(|(_, line)| self.secrets.iter().any(|secret| line.contains(secret.as_str())))
            .collect();
        assert!(found.is_empty(), "{found:#?}");
    }
}

/// What the proxy itself says to a client whose login it refuses.
fn refused(port: u16, user: &str, password: &str, parameters: &[(&str, &str)]) -> String {
    let mut raw = Raw::connect(port);
    let mut all = vec![("user", user), ("database", "postgres")];
    all.extend_from_slice(parameters);
    raw.send(&startup(0x0003_0000, &all));
    match raw.finish_login(user, password) {
        Ok(_) => panic!("{user} is let in"),
        Err(message) => String::from_utf8_lossy(&message.body).into_owned(),
    }
}

/// Lines of a private key that stand nowhere else.
fn key_lines(path: &str) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().filter(|line| !line.starts_with('-')).map(str::to_owned).collect()
}

/// Roles with a secret each, and what PostgreSQL keeps of it.
fn roles(cluster: &Cluster, hunt: &mut Hunt) -> String {
    let role = |name: &str, what: &str| format!("create role {name} {what} login password '{MARK}-{name}'; ");
    cluster.execute(
        &(role("planted", "superuser")
            + &role("planted_a", "")
            + &role("planted_b", "")
            + &role("planted_c", "")),
    );
    let rows = cluster
        .primary()
        .superuser()
        .query("select rolname::text, rolpassword from pg_authid where rolname like 'planted%'", &[])
        .unwrap();
    let mut verifier = String::new();
    for row in rows {
        let (name, stored): (String, String) = (row.get(0), row.get(1));
        // Salt and count are told to whoever asks; the keys are not.
        hunt.secrets.extend(stored.rsplit('$').next().unwrap().split(':').map(str::to_owned));
        if name == "planted_b" {
            verifier = stored;
        }
    }
    assert!(verifier.starts_with("SCRAM-SHA-256$"));
    verifier
}

/// A standalone proxy's file with a secret in every place for one.
fn planted(cluster: &Cluster, verifier: &str, pki: &Pki, management: u16) -> String {
    let mut config = Config::primary_only(cluster)
        .user("planted_a", &format!("password = \"{MARK}-planted_a\""))
        .user("planted_b", &format!("scram_verifier = \"{verifier}\""));
    config.pool = 3;
    config.more = config.more.replace(
        "user = \"app\"\npassword = \"app-secret\"",
        "user = \"planted\"\npassword = \"planted5ecret-planted\"",
    );
    let _ = write!(
        config.more,
        "\n[auth]\nauth_query = \"select rolname, rolpassword from pg_authid where rolname = $1 and rolname <> 'planted_c'\"\n\
         auth_user = \"planted\"\nauth_password = \"{MARK}-planted\"\n\
         [switchover]\nuser = \"planted\"\npassword = \"{MARK}-planted\"\n\
         [client_tls]\nmode = \"prefer\"\n{}\
         [management]\nlisten_address = \"127.0.0.1:{management}\"\n\
         [[management.tokens]]\nname = \"boss\"\nrole = \"admin\"\ntoken = \"{MARK}-token-of-the-boss\"\n",
        pki.server("proxy", false)
    );
    "write_timeout_secs = 1\n".to_owned() + &config.text()
}

/// A client of `planted_a` with the longest cancel key, in whose statements everything is a secret.
fn statements(proxy: &Proxy, hunt: &mut Hunt) {
    let mut raw = Raw::connect(proxy.port());
    let secret = format!("{MARK}-application");
    let parameters = [
        ("user", "planted_a"),
        ("database", "postgres"),
        ("application_name", &secret),
        ("options", "-c my.secret=planted5ecret"),
    ];
    raw.send(&startup(0x0003_0002, &parameters));
    let hello = raw.finish_login("planted_a", &format!("{MARK}-planted_a")).unwrap();
    assert_eq!(hello.key.len(), 32);
    hunt.bytes(&hello.key);
    // What works, and what PostgreSQL refuses: its words are its own, ours are in the log.
    for sql in [
        format!("select '{MARK}-literal' /* helios:route={MARK} node={MARK} {MARK}={MARK} */"),
        format!("select '{MARK}'::int"),
        format!("select {MARK}"),
        format!("set my.secret = '{MARK}-setting'"),
        format!("set application_name = '{MARK}-setting'"),
        format!("set no_such_setting = '{MARK}-setting'"),
        format!("prepare x as select '{MARK}-prepared'"),
        format!("listen {MARK}"),
        format!("notify {MARK}, '{MARK}'"),
        format!("do $$ begin raise '{MARK}'; end $$"),
        format!("insert into no_such_table values ('{MARK}')"),
        format!("unterminated '{MARK}"),
    ] {
        raw.query(&sql);
    }
    raw.send(&extended("select $1::text", &[&format!("{MARK}-parameter")]));
    raw.until_ready(1);
    raw.send(&extended("select $1::int", &[&format!("{MARK}-parameter")]));
    raw.until_ready(1);
    raw.send(
        &[
            query("copy copy_target from stdin"),
            message(b'd', format!("{MARK}\n").as_bytes()),
            message(b'c', b""),
        ]
        .concat(),
    );
    raw.until_ready(1);
    // A wrong key, and its own.
    for key in [MARK.as_bytes(), &hello.key] {
        let mut request = Vec::new();
        frontend::cancel(&mut request, hello.pid, key);
        let mut other = Raw::connect(proxy.port());
        other.send(&request);
        other.rest(PATIENCE);
    }
    // What no server of ours understands.
    raw.send(&message(b'@', MARK.as_bytes()));
    let (said, _) = raw.rest(PATIENCE);
    hunt.heard("a message of no type", String::from_utf8_lossy(&said));
}

/// Statements that the proxy itself refuses or ends.
fn refusals(proxy: &Proxy, hunt: &mut Hunt) {
    let (mut raw, hello) = Raw::login(proxy.port(), "planted_a", &format!("{MARK}-planted_a"));
    hunt.bytes(&hello.key);
    raw.send(&[call("", &[&format!("{MARK}-refused")]), sync()].concat());
    hunt.words("no unnamed statement", &raw.until_ready(1));
    raw.send(
        &[parse("", &format!("select $1 || '{MARK}'")), message(b'B', MARK.as_bytes()), sync()].concat(),
    );
    raw.rest(Duration::from_secs(1));
    let (mut raw, _) = Raw::login(proxy.port(), "planted_a", &format!("{MARK}-planted_a"));
    let ended = format!("select pg_terminate_backend(pg_backend_pid()) where '{MARK}-lost' <> ''");
    raw.send(&query(&ended));
    hunt.heard("a lost server", String::from_utf8_lossy(&raw.rest(Duration::from_secs(2)).0));
}

fn logins(proxy: &Proxy, hunt: &mut Hunt) {
    let wrong = format!("{MARK}-wrong");
    for user in ["planted_a", "planted_b", "planted_c", "planted", "nobody", "app", "md5user"] {
        hunt.heard(user, refused(proxy.port(), user, &wrong, &[]));
    }
    let nowhere = [("database", "no_such_database"), ("options", "-c my.secret=planted5ecret")];
    hunt.heard("no such database", refused(proxy.port(), "app", "app-secret", &nowhere));
    // Known by its password, known by its verifier, looked up.
    for user in ["planted_a", "planted_b", "planted"] {
        let (mut raw, hello) = Raw::login(proxy.port(), user, &format!("{MARK}-{user}"));
        hunt.bytes(&hello.key);
        raw.query("select 1");
        let (mut raw, hello) = Raw::login_tls(proxy.port(), user, &format!("{MARK}-{user}"));
        hunt.bytes(&hello.key);
        raw.query("select 1");
    }
    // Neither TLS nor a StartupMessage.
    for bytes in [[&SSL_REQUEST[..], MARK.as_bytes()].concat(), MARK.as_bytes().to_vec()] {
        let mut raw = Raw::connect(proxy.port());
        raw.send(&bytes);
        raw.half_close();
        hunt.heard("garbage", String::from_utf8_lossy(&raw.rest(PATIENCE).0));
    }
}

fn operators(address: SocketAddr, token: &str, hunt: &mut Hunt) {
    let ctl = Heliosctl::at(address).token(token);
    for command in [
        &["status"][..],
        &["config", "get"],
        &["config", "get", "-o", "json"],
        &["config", "history"],
        &["config", "diff", "/dev/null"],
        &["node", "list", "-o", "json"],
        &["pool", "list", "-o", "wide"],
        &["pool", "list", "-o", "json"],
        &["dataplane", "list", "-o", "yaml"],
        &["topology", "show", "-o", "json"],
        &["audit"],
        &["events"],
        &["check"],
        &["explain", "select 1"],
        &["switchover", "--dry-run"],
        &["no-such-command"],
    ] {
        hunt.ran(&ctl, command);
    }
    for broken in BROKEN {
        for command in ["validate", "diff", "apply"] {
            let file = directory("broken");
            std::fs::write(&file, broken).unwrap();
            hunt.ran(&ctl, &["config", command, &file]);
            std::fs::remove_file(file).unwrap();
        }
    }
    let wrong = Heliosctl::at(address).token(&format!("{MARK}-of-nobody-at-all"));
    hunt.ran(&wrong, &["status"]);
    hunt.ran(&wrong, &["config", "get"]);
}

fn web(admin: SocketAddr, hunt: &mut Hunt) {
    for path in ["/metrics", "/nodes", "/pool/stats", "/health", "/health/ready", "/no/such/path"] {
        hunt.heard(path, http::get(admin, path).unwrap().body);
    }
}

#[test]
fn a_standalone_proxy_says_nothing_secret() {
    for form in FORMS {
        let cluster = Cluster::start(&[]);
        let pki = Pki::new();
        pki.issue("proxy", &["localhost"], 2090);
        let mut hunt = Hunt::new();
        hunt.secrets.extend(key_lines(&pki.file("proxy.key")));
        let verifier = roles(&cluster, &mut hunt);
        let management = free_port();
        let text = planted(&cluster, &verifier, &pki, management);
        let proxy = Proxy::start_logging(&text, form).ready();
        logins(&proxy, &mut hunt);
        statements(&proxy, &mut hunt);
        refusals(&proxy, &mut hunt);
        web(proxy.admin, &mut hunt);
        operators(
            SocketAddr::from(([127, 0, 0, 1], management)),
            &format!("{MARK}-token-of-the-boss"),
            &mut hunt,
        );
        // Broken files, and one that is fine.
        for broken in BROKEN {
            let said = check(&(text.clone() + broken));
            assert!(!said.status.success(), "{broken}");
            hunt.heard(broken.split('=').next().unwrap(), String::from_utf8_lossy(&said.stderr));
            let before = proxy.logged("ERROR").len();
            proxy.rewrite(&(text.clone() + broken));
            proxy.reload();
            eventually(LONG, "the broken file is refused", || proxy.logged("ERROR").len() > before);
        }
        proxy.rewrite(&text.replace("max_pool_size = 3", "max_pool_size = 4"));
        proxy.reload();
        // A dead server, with somebody on it.
        let (mut raw, _) = Raw::login(proxy.port(), "planted_a", &format!("{MARK}-planted_a"));
        raw.query("select 1");
        cluster.primary().stop("immediate");
        hunt.words("no primary", &raw.query(&format!("insert into t values ('{MARK}')")));
        web(proxy.admin, &mut hunt);
        let log = proxy.log();
        assert!(log.len() > 300, "it does say something: {}", log.len());
        hunt.heard("the log", log.join("\n"));
        hunt.over();
    }
}

#[test]
fn a_fleet_says_nothing_secret() {
    let cluster = Cluster::start(&[]);
    let mut hunt = Hunt::new();
    let verifier = roles(&cluster, &mut hunt);
    for form in FORMS {
        let (discovery, store, state) = (free_port(), directory("store"), directory("state"));
        let mut config = Config::primary_only(&cluster)
            .user("planted_a", &format!("password = \"{MARK}-planted_a\""))
            .user("planted_b", &format!("scram_verifier = \"{verifier}\""));
        config.more = config.more.replace(
            "user = \"app\"\npassword = \"app-secret\"",
            "user = \"planted\"\npassword = \"planted5ecret-planted\"",
        );
        let mut text = config.text();
        let _ = write!(
            text,
            "\n[store]\ndirectory = \"{store}\"\n[discovery]\nlisten_address = \"127.0.0.1:{discovery}\"\n\
             [management]\nlisten_address = \"127.0.0.1:0\"\n"
        );
        for role in ["admin", "dataplane"] {
            let _ = write!(
                text,
                "[[management.tokens]]\nname = \"{role}\"\nrole = \"{role}\"\ntoken = \"{MARK}-token-of-{role}\"\n"
            );
        }
        let plane = ControlPlane::start_logging(&text, form);
        let dataplane = |token: &str| {
            format!(
                "listen_address = \"127.0.0.1:0\"\nadmin_address = \"127.0.0.1:0\"\n[control_plane]\n\
                 endpoints = [\"127.0.0.1:{discovery}\"]\nname = \"dp-1\"\nstate_dir = \"{state}\"\n\
                 token = \"{MARK}-token-of-{token}\"\n"
            )
        };
        let proxy = Proxy::start_logging(&dataplane("dataplane"), form).ready();
        let stranger = Proxy::start_logging(
            &dataplane("nobody").replace("dp-1", "dp-2").replace(&state, &directory("state")),
            form,
        );
        // The last one is learnt from its login.
        for user in ["planted_a", "planted_b", "planted_c"] {
            let (mut raw, hello) = Raw::login(proxy.port(), user, &format!("{MARK}-{user}"));
            hunt.bytes(&hello.key);
            raw.query(&format!("select '{MARK}'"));
            hunt.heard(user, refused(proxy.port(), user, &format!("{MARK}-wrong"), &[]));
        }
        for broken in BROKEN {
            let said =
                check_by(&program().with_file_name("helios-controlplane"), &(text.clone() + broken), &[]);
            assert!(!said.status.success(), "{broken}");
            hunt.heard(broken.split('=').next().unwrap(), String::from_utf8_lossy(&said.stderr));
        }
        operators(plane.management, &format!("{MARK}-token-of-admin"), &mut hunt);
        looked_at(&proxy, &plane, &state, &mut hunt);
        only_for_their_owner(&store);
        eventually(LONG, "the stranger was refused", || stranger.log().len() > 20);
        hunt.logs([("proxy", proxy.log()), ("stranger", stranger.log()), ("control plane", plane.log())]);
        hunt.over();
        drop((proxy, plane));
        for directory in [state, store] {
            let _ = std::fs::remove_dir_all(directory);
        }
    }
}

/// A REST API of Patroni of which these nodes are the members, the first one the leader. It refuses whatever is to change
/// something, and tells whether that was asked.
fn patroni(cluster: &Cluster) -> (u16, mpsc::Receiver<String>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let member = |(at, node): (usize, &helios_tests::cluster::Node)| {
        let role = if at == 0 { "leader" } else { "replica" };
        serde_json::json!({
            "name": node.name, "role": role, "state": "running", "timeline": 1, "lag": 0,
            "host": "127.0.0.1", "port": node.port, "api_url": format!("http://127.0.0.1:{port}/patroni"),
        })
    };
    let members: Vec<_> = cluster.nodes.iter().enumerate().map(member).collect();
    let view = serde_json::json!({"members": members}).to_string();
    let (told, asked) = mpsc::channel();
    std::thread::spawn(move || {
        while let Ok((mut io, _)) = listener.accept() {
            let mut request = [0; 4096];
            let n = io.read(&mut request).unwrap_or(0);
            let request = String::from_utf8_lossy(&request[..n]).into_owned();
            let (code, body) =
                if request.starts_with("GET") { ("200 OK", &*view) } else { ("503 No", "not now") };
            let _ = write!(
                io,
                "HTTP/1.1 {code}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            );
            if !request.starts_with("GET") {
                let _ = told.send(request);
            }
        }
    });
    (port, asked)
}

#[test]
fn a_fleet_over_etcd_and_patroni_says_nothing_secret() {
    let cluster = Cluster::start(&[Role::Standby]);
    let mut hunt = Hunt::new();
    let verifier = roles(&cluster, &mut hunt);
    let etcd = Etcd::start(1);
    etcd.demand_password("planted5ecret-etcd");
    let (api, asked) = patroni(&cluster);
    // As HTTP has it: base64 of "api:planted5ecret-patroni".
    let header = "YXBpOnBsYW50ZWQ1ZWNyZXQtcGF0cm9uaQ==";
    hunt.text(header);
    let (discovery, state) = (free_port(), directory("state"));
    let config = Config::new(&cluster)
        .user("planted_a", &format!("password = \"{MARK}-planted_a\""))
        .user("planted_b", &format!("scram_verifier = \"{verifier}\""));
    let mut text = config.text();
    let _ = write!(
        text,
        "\n[store]\nkind = \"etcd\"\nendpoints = {}\nuser = \"root\"\npassword = \"{MARK}-etcd\"\n\
         [topology]\nprovider = \"patroni\"\npoll_interval_secs = 0.5\n\
         patroni_endpoints = [\"http://127.0.0.1:{api}\"]\npatroni_user = \"api\"\n\
         patroni_password = \"{MARK}-patroni\"\n\
         [discovery]\nlisten_address = \"127.0.0.1:{discovery}\"\n[management]\nlisten_address = \"127.0.0.1:0\"\n",
        etcd.endpoints()
    );
    for role in ["admin", "dataplane"] {
        let _ = write!(
            text,
            "[[management.tokens]]\nname = \"{role}\"\nrole = \"{role}\"\ntoken = \"{MARK}-token-of-{role}\"\n"
        );
    }
    let plane = ControlPlane::start_logging(&text, FORMS[0]).ready();
    let wrong = text
        .replace(&format!("{MARK}-etcd"), &format!("{MARK}-wrong"))
        .replace(&format!("127.0.0.1:{discovery}"), &format!("127.0.0.1:{}", free_port()));
    let shut_out = ControlPlane::start_logging(&wrong, FORMS[1]);
    let dataplane = format!(
        "listen_address = \"127.0.0.1:0\"\nadmin_address = \"127.0.0.1:0\"\n[control_plane]\n\
         endpoints = [\"127.0.0.1:{discovery}\"]\nname = \"dp-1\"\nstate_dir = \"{state}\"\n\
         token = \"{MARK}-token-of-dataplane\"\n"
    );
    let proxy = Proxy::start_logging(&dataplane, FORMS[1]).ready();
    let (mut raw, hello) = Raw::login(proxy.port(), "planted_b", &format!("{MARK}-planted_b"));
    hunt.bytes(&hello.key);
    raw.query(&format!("select '{MARK}'"));
    operators(plane.management, &format!("{MARK}-token-of-admin"), &mut hunt);
    let ctl = Heliosctl::at(plane.management).token(&format!("{MARK}-token-of-admin"));
    hunt.ran(&ctl, &["switchover", "--to", "standby", "--yes"]);
    let request = asked.recv_timeout(LONG).expect("Patroni is asked");
    assert!(request.contains(header), "with the login: {request}");
    looked_at(&proxy, &plane, &state, &mut hunt);
    eventually(LONG, "the wrong password is noticed", || {
        !shut_out.logged("a member does not answer").is_empty()
    });
    hunt.logs([("proxy", proxy.log()), ("control plane", plane.log()), ("shut out", shut_out.log())]);
    hunt.over();
    drop((proxy, plane, shut_out));
    let _ = std::fs::remove_dir_all(state);
}

/// What the HTTP of both programs says, and who may read the snapshot that the data plane keeps.
fn looked_at(proxy: &Proxy, plane: &ControlPlane, state: &str, hunt: &mut Hunt) {
    web(proxy.admin, hunt);
    for path in ["/metrics", "/health", "/health/ready"] {
        hunt.heard(path, http::get(plane.admin, path).unwrap().body);
    }
    eventually(LONG, "the last good snapshot is kept", || {
        Path::new(state).join("last-good-snapshot").exists()
    });
    only_for_their_owner(state);
}

/// Whether each file below can be read by its owner only.
fn only_for_their_owner(directory: &str) {
    let mut left = vec![Path::new(directory).to_owned()];
    let mut secrets = 0;
    while let Some(path) = left.pop() {
        if path.is_dir() {
            left.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            continue;
        }
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        let bytes = std::fs::read(&path).unwrap();
        let secret = bytes.windows(MARK.len()).any(|part| part == MARK.as_bytes());
        secrets += usize::from(secret);
        assert_eq!(mode & 0o077, 0, "{}", path.display());
    }
    assert!(secrets > 0, "{directory} holds the configuration");
}
