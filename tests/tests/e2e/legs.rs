//! TLS on the legs that speak PostgreSQL's protocol: every mode with stock clients and a real server, what crosses it, what
//! must not, new certificates without a restart.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use helios_proto::config::{LegTls, TlsMode};
use helios_tests::cluster::password;
use helios_tests::raw::{PATIENCE, startup};
use helios_tests::{Cluster, Config, Net, Pki, Proxy, eventually};
use helios_tls::Files;
use helios_tls::live::Live;
use helios_tls::postgres::Dialling;
use rustls::{ClientConnection, StreamOwned};

const SSL: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];
const HERE: &[&str] = &["localhost", "127.0.0.1"];

/// psql with these connection parameters and this statement; `prefix` stands before it.
fn psql(prefix: &[String], address: std::net::SocketAddr, how: &str, sql: &str) -> Output {
    let (host, port) = (address.ip(), address.port());
    let mut words = prefix.to_vec();
    words.push("psql".to_owned());
    let target = format!("host={host} port={port} user=app dbname=postgres connect_timeout=20 {how}");
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).args(["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-c", sql, &target]);
    command
        .env("PGPASSWORD", password("app"))
        .env("HOME", "/nonexistent")
        .env("LC_ALL", "C")
        .output()
        .unwrap()
}

/// What it printed, or how it failed.
fn said(output: &Output) -> Result<String, String> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

fn run(proxy: &Proxy, how: &str, sql: &str) -> Result<String, String> {
    said(&psql(&[], proxy.address, how, sql))
}

fn refused(proxy: &Proxy, how: &str, words: &str) {
    let why = run(proxy, how, "select 1").unwrap_err();
    assert!(why.contains(words), "{how}: {words}: {why}");
}

/// The client may be told before the line has come to us.
#[track_caller]
fn logs(proxy: &Proxy, words: &str) {
    eventually(PATIENCE, words, || !proxy.logged(words).is_empty());
}

fn listed() -> String {
    format!("password = \"{}\"", password("app"))
}

/// A primary with TLS, for which `hba` is the first line.
fn secure_cluster(pki: &Pki, hba: &str) -> Cluster {
    pki.issue("db", HERE, 2090);
    let cluster = Cluster::start(&[]);
    cluster.primary().with_tls(&pki.file("db.pem"), &pki.file("db.key"), &pki.file("ca.pem"), hba);
    cluster
}

#[test]
fn clients_are_encrypted_without_any_configuration_and_channel_binding_holds() {
    let proxy = Config::primary_only(Cluster::shared()).user("app", &listed()).start().ready();
    for how in
        ["sslmode=require", "sslmode=prefer", "sslmode=disable", "sslmode=require channel_binding=require"]
    {
        assert_eq!(run(&proxy, how, "select 41 + 1"), Ok("42".to_owned()), "{how}");
    }
    let shown = run(&proxy, "sslmode=require", "\\conninfo").unwrap();
    assert!(shown.contains("SSL connection (protocol: TLSv1.3"), "{shown}");
    let old = run(&proxy, "sslmode=require ssl_max_protocol_version=TLSv1.2", "\\conninfo").unwrap();
    assert!(old.contains("protocol: TLSv1.2"), "{old}");
    refused(&proxy, "sslmode=disable channel_binding=require", "channel binding");
    let wrong = "sslmode=require password=wrong";
    refused(&proxy, wrong, "password authentication failed for user \"app\"");
}

#[test]
fn every_mode_towards_clients() {
    let pki = Pki::new();
    pki.issue("proxy", HERE, 2090);
    pki.issue("app", &[], 2090);
    pki.issue("other", &[], 2090);
    let strangers = Pki::new();
    strangers.issue("app", &[], 2090);
    let start = |mode: &str, asks: bool| {
        let mut config = Config::primary_only(Cluster::shared()).user("app", &listed());
        config.more += &format!("\n[client_tls]\nmode = \"{mode}\"\n");
        if mode != "disable" {
            config.more += &pki.server("proxy", asks);
        }
        config.start().ready()
    };
    let ca = pki.file("ca.pem");
    let with = |pki: &Pki, name: &str| {
        let (cert, key) = (pki.file(&format!("{name}.pem")), pki.file(&format!("{name}.key")));
        format!("sslmode=verify-full sslrootcert={ca} sslcert={cert} sslkey={key}")
    };
    let bare = format!("sslmode=verify-full sslrootcert={ca}");
    let fine =
        |proxy: &Proxy, how: &str| assert_eq!(run(proxy, how, "select 1"), Ok("1".to_owned()), "{how}");

    let disable = start("disable", false);
    fine(&disable, "sslmode=prefer");
    refused(&disable, "sslmode=require", "server does not support SSL");

    let require = start("require", false);
    fine(&require, &bare);
    refused(&require, "sslmode=disable", "connection requires TLS");

    // A certificate that is shown is looked at, one that is not is not asked for.
    let prefer = start("prefer", true);
    fine(&prefer, "sslmode=disable");
    fine(&prefer, &bare);
    fine(&prefer, &with(&pki, "other"));
    assert!(run(&prefer, &with(&strangers, "app"), "select 1").is_err());

    let authority = start("verify-ca", true);
    fine(&authority, &with(&pki, "other"));
    assert!(run(&authority, &bare, "select 1").is_err());
    assert!(run(&authority, &with(&strangers, "app"), "select 1").is_err());
    refused(&authority, "sslmode=disable", "connection requires TLS");

    let full = start("verify-full", true);
    fine(&full, &with(&pki, "app"));
    refused(&full, &with(&pki, "other"), "certificate authentication failed for user \"app\"");
    refused(&full, &(with(&pki, "app") + " password=wrong"), "password authentication failed");
}

#[test]
fn a_client_on_another_machine_shows_its_password_over_tls_only() {
    let net = match Net::new(&[1]) {
        Ok(net) => net,
        Err(why) => return eprintln!("SKIPPED: no network namespaces here: {why}"),
    };
    let text = Config::primary_only(Cluster::shared()).text();
    let text = text.replacen("127.0.0.1:0", &format!("{}:0", net.at(1)), 1);
    let proxy = Proxy::start(&text).ready();
    let from_there = |how: &str, sql: &str| said(&psql(&net.prefix(), proxy.address, how, sql));
    let plain = from_there("sslmode=disable user=clear", "select 1").unwrap_err();
    assert!(plain.contains("cannot check this login over an unencrypted remote connection"), "{plain}");
    for _ in 0..2 {
        assert_eq!(from_there("sslmode=require", "select 7"), Ok("7".to_owned()));
    }
    // From now on the proxy knows what proves the role, and plain text will do.
    assert_eq!(from_there("sslmode=disable", "select 8"), Ok("8".to_owned()));
    let wrong = from_there("sslmode=require password=wrong", "select 1").unwrap_err();
    assert!(wrong.contains("password authentication failed"), "{wrong}");
    // A role for which the server asks nothing is not for everybody who has TLS.
    for how in ["sslmode=require user=trusty", "sslmode=disable user=trusty"] {
        let why = from_there(how, "select 1").unwrap_err();
        assert!(why.contains("FATAL"), "{how}: {why}");
    }
    assert_eq!(
        run(&proxy, "sslmode=disable user=trusty", "select 1").map_err(|_| ()),
        Err(()),
        "not loopback either"
    );
}

/// A client that begins TLS at once, with these names of protocols.
fn direct(port: u16, protocols: &[&str]) -> StreamOwned<ClientConnection, TcpStream> {
    let leg = LegTls { section: "server_tls", mode: TlsMode::Require, authorities: None, identity: None };
    let live = Live::<Dialling>::open(Files::of_leg(&leg).unwrap()).unwrap();
    let mut config = rustls::ClientConfig::clone(&live.current().config);
    config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
    let tls = ClientConnection::new(Arc::new(config), "localhost".try_into().unwrap()).unwrap();
    let io = TcpStream::connect(("127.0.0.1", port)).unwrap();
    io.set_read_timeout(Some(PATIENCE)).unwrap();
    StreamOwned::new(tls, io)
}

/// Everything up to the end of the connection.
fn rest(io: &mut impl std::io::Read) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    match io.read_to_end(&mut bytes) {
        // The end of TLS without a farewell is an end.
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(bytes),
        done => done.map(|_| bytes),
    }
}

#[test]
fn tls_without_a_request_needs_the_name_of_the_protocol() {
    let proxy = Config::primary_only(Cluster::shared()).start().ready();
    let hello = startup(0x0003_0000, &[("user", "app"), ("database", "postgres")]);
    let mut named = direct(proxy.port(), &["postgresql"]);
    named.write_all(&hello).unwrap();
    let mut first = [0; 1];
    named.read_exact(&mut first).unwrap();
    assert_eq!(first, *b"R", "asked for a password");
    // Nobody means PostgreSQL without saying so; another protocol is refused in the handshake.
    let mut unnamed = direct(proxy.port(), &[]);
    unnamed.write_all(&hello).unwrap();
    assert_eq!(rest(&mut unnamed).unwrap_or_default(), b"");
    let mut other = direct(proxy.port(), &["http/1.1"]);
    let why = other.write_all(&hello).and_then(|()| rest(&mut other)).unwrap_err();
    assert!(why.to_string().contains("NoApplicationProtocol"), "{why}");
}

#[test]
fn what_is_not_allowed_around_tls() {
    let proxy = Config::primary_only(Cluster::shared()).start().ready();
    let hello = startup(0x0003_0000, &[("user", "app"), ("database", "postgres")]);
    // Plain text behind the request does not cross into TLS.
    let mut stuffed = TcpStream::connect(proxy.address).unwrap();
    stuffed.set_read_timeout(Some(PATIENCE)).unwrap();
    stuffed.write_all(&[&SSL[..], &hello].concat()).unwrap();
    assert_eq!(rest(&mut stuffed).unwrap_or_else(|_| b"S".to_vec()), b"S");
    // No TLS in TLS: asked once, no; asked again, as after any answer.
    let mut twice = direct(proxy.port(), &["postgresql"]);
    let mut first = [0; 1];
    twice.write_all(&SSL).unwrap();
    twice.read_exact(&mut first).unwrap();
    assert_eq!(first, *b"N");
    twice.write_all(&SSL).unwrap();
    let answer = rest(&mut twice).unwrap();
    let text = String::from_utf8_lossy(&answer);
    assert!(answer.first() == Some(&b'E') && text.contains("0A000") && text.contains("1234.5679"), "{text}");
    // Noise in place of a handshake: an alert or nothing, and the end.
    let mut noise = TcpStream::connect(proxy.address).unwrap();
    noise.set_read_timeout(Some(PATIENCE)).unwrap();
    noise.write_all(&[0x16, 3, 1, 0, 4, 9, 9, 9, 9]).unwrap();
    let alert = rest(&mut noise).unwrap_or_default();
    assert!(matches!(alert.first(), None | Some(0x15)), "{alert:?}");
    // A handshake in pieces of one byte; one that never ends holds up nobody.
    let _stuck = TcpStream::connect(proxy.address).map(|mut io| io.write_all(&[0x16, 3, 1]).map(|()| io));
    assert_eq!(run(&proxy, "sslmode=require", "select 1"), Ok("1".to_owned()));
}

#[test]
fn every_mode_towards_servers() {
    let (pki, strangers) = (Pki::new(), Pki::new());
    pki.issue("proxy", &[], 2090);
    // Whoever comes without TLS is refused by the server.
    let cluster = secure_cluster(&pki, "hostnossl all all 127.0.0.1/32 reject");
    let start = |keys: &str| {
        let mut config = Config::primary_only(&cluster).user("app", &listed());
        config.more += &format!("\n[server_tls]\n{keys}");
        config.start()
    };
    let sealed =
        "select ssl::text || ' ' || coalesce(client_dn, '-') from pg_stat_ssl where pid = pg_backend_pid()";
    let ca = |pki: &Pki| format!("tls_ca_file = \"{}\"\n", pki.file("ca.pem"));
    let identity = pki.server("proxy", false);
    for (keys, told) in [
        (String::new(), "true -"),
        ("mode = \"require\"\n".to_owned() + &identity, "true /CN=proxy"),
        ("mode = \"verify-ca\"\n".to_owned() + &ca(&pki), "true -"),
        ("mode = \"verify-full\"\n".to_owned() + &ca(&pki), "true -"),
    ] {
        let proxy = start(&keys).ready();
        assert_eq!(run(&proxy, "", sealed).as_deref(), Ok(told), "{keys}");
        // Probes as well.
        assert!(proxy.logged("probe is misconfigured").is_empty(), "{keys}: {:#?}", proxy.tail());
    }
    for (keys, words) in [
        ("mode = \"disable\"\n".to_owned(), "no encryption"),
        ("mode = \"verify-ca\"\n".to_owned() + &ca(&strangers), "could not log in on node"),
        ("mode = \"verify-full\"\n".to_owned() + &ca(&strangers), "could not log in on node"),
    ] {
        let proxy = start(&keys);
        refused(&proxy, "", words);
        logs(&proxy, "probe is misconfigured");
        if keys.contains("verify") {
            logs(&proxy, "unknown authority");
        }
    }
    // A name that is not in the certificate.
    pki.issue("db", &["elsewhere"], 2090);
    cluster.primary().with_tls(&pki.file("db.pem"), &pki.file("db.key"), &pki.file("ca.pem"), "");
    let full = start(&("mode = \"verify-full\"\n".to_owned() + &ca(&pki)));
    refused(&full, "", "could not log in on node");
    logs(&full, "another name than");
    let authority = start(&("mode = \"verify-ca\"\n".to_owned() + &ca(&pki)));
    assert_eq!(run(&authority, "", sealed).as_deref(), Ok("true -"));
    // A server without TLS.
    let mut config = Config::primary_only(Cluster::shared()).user("app", &listed());
    assert_eq!(run(&config.start(), "", sealed).as_deref(), Ok("false -"));
    config.more += "\n[server_tls]\nmode = \"require\"\n";
    let require = config.start();
    refused(&require, "", "could not log in on node");
    logs(&require, "does not support TLS");
}

#[test]
fn large_values_copies_and_cancels_cross_both_legs() {
    let pki = Pki::new();
    let cluster = secure_cluster(&pki, "hostnossl all all 127.0.0.1/32 reject");
    cluster.execute("create table t (id int, v text); grant all on t to app");
    let mut config = Config::primary_only(&cluster);
    config.more += "\n[server_tls]\nmode = \"require\"\n";
    let proxy = config.start();
    let how = "sslmode=require";
    let wide = "select md5(string_agg(v, '')) from (select repeat(md5(i::text), 40000) v from generate_series(1, 5) i) s";
    let direct: String = cluster.primary().superuser().query_one(wide, &[]).unwrap().get(0);
    let through =
        run(&proxy, how, "select repeat(md5(i::text), 40000) from generate_series(1, 5) i").unwrap();
    assert_eq!(format!("{:032x}", md5_of(&through.replace('\n', ""))), direct);
    // In and out again, in one go of many megabytes.
    let rows: String = (0..200_000).map(|i| format!("{i}\tvalue of row {i}\n")).collect();
    let script = "set -e; psql -X -q -d \"$1\" -c '\\copy t from stdin'; psql -X -q -d \"$1\" -c '\\copy (select * from t order by id) to stdout' ";
    let target = format!("host=127.0.0.1 port={} user=app dbname=postgres {how}", proxy.port());
    let mut child = Command::new("sh")
        .args(["-c", script, "sh", &target])
        .env("PGPASSWORD", password("app"))
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let sent = rows.clone();
    let writer = std::thread::spawn(move || input.write_all(sent.as_bytes()));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert!(output.status.success());
    assert!(output.stdout == rows.as_bytes(), "{} bytes came back of {}", output.stdout.len(), rows.len());
    // A cancel goes to the server in TLS as well: it takes nothing else.
    let mut client = Command::new("psql")
        .args(["-X", "-c", "select pg_sleep(60)", &target])
        .env("PGPASSWORD", password("app"))
        .stderr(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let asleep =
        "select count(*) from pg_stat_activity where query = 'select pg_sleep(60)' and state = 'active'";
    eventually(PATIENCE, "the statement runs", || {
        cluster.primary().superuser().query_one(asleep, &[]).unwrap().get::<_, i64>(0) == 1
    });
    helios_tests::guard::signal("INT", &[client.id()]);
    let mut why = String::new();
    client.stderr.take().unwrap().read_to_string(&mut why).unwrap();
    assert!(why.contains("canceling statement due to user request"), "{why}");
    client.wait().unwrap();
}

fn md5_of(text: &str) -> u128 {
    let hex = helios_pgwire::md5::stored(b"", text.as_bytes());
    u128::from_str_radix(std::str::from_utf8(&hex).unwrap(), 16).unwrap()
}

#[test]
fn a_new_certificate_is_taken_and_a_bad_one_is_not() {
    let pki = Pki::new();
    pki.issue("proxy", HERE, 2090);
    let mut config = Config::primary_only(Cluster::shared()).user("app", &listed());
    config.more += &format!("\n[client_tls]\n{}", pki.server("proxy", false));
    let proxy = config.start().ready();
    let how = format!("sslmode=verify-full sslrootcert={}", pki.file("ca.pem"));
    let works = |how: &str| run(&proxy, how, "select 1").is_ok();
    let expiry = || proxy.metrics().sum("heliosproxy_tls_not_after_seconds", &[("section", "client_tls")]);
    let failures =
        || proxy.metrics().sum("heliosproxy_tls_reload_failures_total", &[("section", "client_tls")]);
    assert!(works(&how));
    let before = expiry().unwrap();
    let session = proxy.connect("app");
    // Of another key: refused, and the old one stays.
    let good = std::fs::read(pki.file("proxy.pem")).unwrap();
    pki.issue("other", HERE, 2090);
    std::fs::copy(pki.file("other.pem"), pki.file("proxy.pem")).unwrap();
    proxy.reload();
    eventually(Duration::from_secs(30), "the bad file is refused", || failures() == Some(1.0));
    assert!(works(&how));
    std::fs::write(pki.file("proxy.pem"), good).unwrap();
    // A new one: for new connections, and the old ones live.
    pki.issue("proxy", HERE, 2080);
    proxy.reload();
    eventually(Duration::from_secs(30), "the new file is taken", || {
        expiry().is_some_and(|now| now != before)
    });
    assert!(works(&how));
    let mut session = session;
    session.batch_execute("select 1").unwrap();
}

#[test]
fn a_certificate_is_proof_enough_where_a_rule_says_so() {
    let pki = Pki::new();
    for name in ["proxy", "app", "other"] {
        pki.issue(name, HERE, 2090);
    }
    let mut config = Config::primary_only(Cluster::shared()).user("app", &listed());
    config.more += &format!("\n[client_tls]\n{}", pki.server("proxy", true));
    config.more += "\n[[hba]]\ntls = true\nmethod = \"cert\"\n";
    let proxy = config.start().ready();
    let with = |name: &str| {
        let (cert, key) = (pki.file(&format!("{name}.pem")), pki.file(&format!("{name}.key")));
        format!("sslmode=require sslcert={cert} sslkey={key} password=wrong")
    };
    assert_eq!(run(&proxy, &with("app"), "select current_user").as_deref(), Ok("app"));
    refused(&proxy, &with("other"), "certificate authentication failed for user \"app\"");
    refused(&proxy, "sslmode=require", "certificate authentication failed");
    refused(&proxy, "sslmode=disable", "no [[hba]] entry for host");
    pki.issue("trusty", &[], 2090);
    refused(&proxy, &(with("trusty") + " user=trusty"), "has no password at hand for the server");
}
