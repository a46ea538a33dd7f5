//! The gRPC legs over TLS: a whole fleet with certificates on every side, every way to be refused, new certificates without
//! a restart.

use std::io::Write as _;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use helios_tests::controlplane::{directory, token};
use helios_tests::proxy::{check_by, program};
use helios_tests::{Cluster, Config, ControlPlane, Heliosctl, Pki, Proxy, eventually, free_port};

const LONG: Duration = Duration::from_secs(60);
/// What the server's certificate is for.
const HERE: &[&str] = &["localhost", "127.0.0.1"];

/// A control plane's file: TLS on both services, clients known by their certificates, one admin by a token as well.
fn control_plane(pki: &Pki, store: &str, discovery: u16) -> String {
    let (server, admin) = (pki.server("server", true), token("admin"));
    format!(
        "{}\n[store]\ndirectory = \"{store}\"\n[discovery]\nlisten_address = \"127.0.0.1:{discovery}\"\n{server}\
         [management]\nlisten_address = \"127.0.0.1:0\"\n{server}\
         [[management.tokens]]\nname = \"proxies\"\nrole = \"dataplane\"\ncertificate = \"dp.internal\"\n\
         [[management.tokens]]\nname = \"ops\"\nrole = \"operator\"\ncertificate = \"ops\"\n\
         [[management.tokens]]\nname = \"boss\"\nrole = \"admin\"\ntoken = \"{admin}\"\n",
        Config::primary_only(Cluster::shared()).text()
    )
}

fn data_plane(discovery: u16, tls: &str) -> String {
    format!(
        "listen_address = \"127.0.0.1:0\"\nadmin_address = \"127.0.0.1:0\"\n[control_plane]\n\
         endpoints = [\"127.0.0.1:{discovery}\"]\nname = \"dp-1\"\n{tls}"
    )
}

/// A command with the certificate of this name.
fn with<'a>(files: &'a [String; 3], command: &[&'a str]) -> Vec<&'a str> {
    let mut args = command.to_vec();
    args.extend(["--ca", &files[0], "--cert", &files[1], "--key", &files[2]]);
    args
}

fn files(pki: &Pki, name: &str) -> [String; 3] {
    ["ca.pem".to_owned(), format!("{name}.pem"), format!("{name}.key")].map(|file| pki.file(&file))
}

fn connected(proxy: &Proxy) -> bool {
    proxy.metrics().sum("heliosproxy_control_connected", &[]) == Some(1.0)
}

#[test]
fn a_whole_fleet_over_mutual_tls() {
    let (pki, theirs, store, discovery) = (Pki::new(), Pki::new(), directory("store"), free_port());
    pki.issue("server", HERE, 2090);
    pki.issue("dp", &["dp.internal"], 2090);
    pki.issue("ops", &["x.internal"], 2090);
    pki.issue("unknown", &["y.internal"], 2090);
    pki.issue("late", &["ops"], 2020);
    theirs.issue("ops", &["ops"], 2090);
    let mut plane = ControlPlane::start(&control_plane(&pki, &store, discovery));
    assert!(plane.logged("not encrypted").is_empty());
    let proxy = Proxy::start(&data_plane(discovery, &pki.client("dp"))).ready();
    proxy.connect("app").batch_execute("select 1").unwrap();

    // Who a certificate is decides what it may; a token beside it decides alone.
    let (ops, admin) = (files(&pki, "ops"), token("admin"));
    let ctl = Heliosctl::secure(plane.management);
    let _ = ctl.run(&with(&ops, &["status"])).code(0);
    let _ = ctl.run(&with(&ops, &["pool", "resize", "primary", "7"])).code(0);
    let denied = ctl.run(&with(&ops, &["audit"])).code(6);
    assert!(denied.err.contains("needs the role admin; \"ops\" has the role operator"), "{denied:?}");
    let boss = ctl.clone().token(&admin);
    let audit = boss.run(&with(&ops, &["audit", "-o", "json"])).code(0).json();
    assert_eq!(
        (&audit["entries"][0]["actor"], &audit["entries"][0]["verb"]),
        (&"ops".into(), &"PoolOp".into())
    );
    let wrong = ctl.clone().token("a-token-that-is-wrong").run(&with(&ops, &["status"])).code(6);
    assert!(wrong.err.contains("the token is not known"), "{wrong:?}");
    let nobody = ctl.run(&with(&files(&pki, "unknown"), &["status"])).code(6);
    assert!(nobody.err.contains("certificate of \"unknown\""), "{nobody:?}");

    // Every way to be refused says why.
    let refused = |args: &[&str], code, words: &str| {
        let ended = ctl.run(args).code(code);
        assert!(ended.err.contains(words), "{words}: {ended:?}");
    };
    let ca = ops[0].as_str();
    refused(&["status"], 2, "--ca");
    refused(&["status", "--ca", ca], 6, "a client certificate is required");
    refused(&["status", "--ca", &theirs.file("ca.pem")], 6, "unknown authority");
    refused(&with(&ops, &["status", "--server-name", "elsewhere"]), 6, "another name than \"elsewhere\"");
    let stranger = [ops[0].clone(), theirs.file("ops.pem"), theirs.file("ops.key")];
    refused(&with(&stranger, &["status"]), 6, "does not know the authority");
    refused(&with(&files(&pki, "late"), &["status"]), 6, "expired");
    let mixed = [ops[0].clone(), ops[1].clone(), pki.file("dp.key")];
    refused(&with(&mixed, &["status"]), 2, "not the key of the certificate");
    refused(&with(&[ops[0].clone(), ops[1].clone(), "/nonexistent".to_owned()], &["status"]), 2, "--key");
    let plain = Heliosctl::at(plane.management).run(&["status"]).code(5);
    assert!(plain.err.contains("with TLS write https://"), "{plain:?}");
    std::fs::set_permissions(&ops[2], std::fs::Permissions::from_mode(0o644)).unwrap();
    refused(&with(&ops, &["status"]), 2, "chmod 600");
    std::fs::set_permissions(&ops[2], std::fs::Permissions::from_mode(0o600)).unwrap();

    // A context keeps them.
    let set = ctl.run(&with(
        &ops,
        &["context", "set", "prod", "--endpoints", &format!("https://{}", plane.management)],
    ));
    assert_eq!(set.code, 0, "{set:?}");
    let _ = ctl.run(&["status", "--context", "prod"]).code(0);

    // A data plane that is not trusted says so, and serves nothing from there.
    for (tls, words) in [
        (theirs.client("ops"), "unknown authority"),
        (pki.client("unknown"), "a token is needed"),
        (format!("tls_ca_file = \"{ca}\"\n"), "a client certificate is required"),
        (pki.client("dp") + "tls_server_name = \"elsewhere\"\n", "another name"),
    ] {
        let proxy = Proxy::start(&data_plane(discovery, &tls));
        eventually(LONG, words, || {
            proxy.logged("control plane does not answer").iter().any(|l| l.contains(words))
        });
    }
    assert!(connected(&proxy));
    assert!(plane.terminate().success());
    let _ = std::fs::remove_dir_all(store);
}

#[test]
fn new_certificates_need_no_restart_and_bad_ones_change_nothing() {
    let (pki, store, discovery) = (Pki::new(), directory("store"), free_port());
    pki.issue("server", HERE, 2090);
    pki.issue("dp", &["dp.internal"], 2090);
    pki.issue("ops", &["ops"], 2090);
    let plane = ControlPlane::start(&control_plane(&pki, &store, discovery));
    let ops = files(&pki, "ops");
    let works = || drop(Heliosctl::secure(plane.management).run(&with(&ops, &["status", "-q"])).code(7));
    let expiry =
        |listener| plane.metric("heliosproxy_cp_tls_not_after_seconds", &[("section", listener)]).unwrap();
    let failures = || plane.metric("heliosproxy_cp_tls_reload_failures_total", &[]).unwrap();
    let first = expiry("management");
    // Strangers that say nothing, or no TLS, hold up nobody.
    let strangers: Vec<TcpStream> = (0..100)
        .map(|i| {
            let mut io = TcpStream::connect(plane.management).unwrap();
            if i % 2 == 0 {
                io.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
            }
            io
        })
        .collect();
    works();
    drop(strangers);

    pki.issue("server", HERE, 2020);
    plane.reload();
    let _ = plane.said("new certificate has expired");
    eventually(LONG, "both listeners have refused it", || failures() >= 2.0);
    works();
    let refused = failures();
    std::fs::write(pki.file("server.pem"), "damaged").unwrap();
    plane.reload();
    eventually(LONG, "a damaged one is refused", || failures() >= refused + 2.0);
    works();
    assert_eq!((expiry("management"), expiry("discovery")), (first, first));

    // Without a signal: it is seen.
    pki.issue("server", HERE, 2091);
    eventually(LONG, "a good one is taken", || expiry("management") > first && expiry("discovery") > first);
    works();
    let proxy = Proxy::start(&data_plane(discovery, &pki.client("dp"))).ready();
    let of_proxy = || proxy.metrics().sum("heliosproxy_tls_not_after_seconds", &[]).unwrap();
    let before = of_proxy();
    pki.issue("dp", &["dp.internal"], 2095);
    proxy.reload();
    eventually(LONG, "the data plane takes its own", || of_proxy() > before);
    let _ = std::fs::remove_dir_all(store);
}

#[test]
fn a_standalone_proxy_serves_operators_over_tls() {
    let pki = Pki::new();
    pki.issue("server", HERE, 2090);
    let port = free_port();
    let text = format!(
        "{}\n[management]\nlisten_address = \"0.0.0.0:{port}\"\n{}[[management.tokens]]\nname = \"a\"\nrole = \"admin\"\n\
         token = \"{}\"\n",
        Config::primary_only(Cluster::shared()).text(),
        pki.server("server", false),
        token("admin")
    );
    let proxy = Proxy::start(&text).ready();
    assert!(proxy.logged("not encrypted").is_empty());
    let ctl = Heliosctl::secure(([127, 0, 0, 1], port).into()).role("admin");
    let _ = ctl.run(&["status", "--ca", &pki.file("ca.pem")]).code(0);
    assert!(proxy.metrics().sum("heliosproxy_tls_not_after_seconds", &[("section", "management")]).is_some());
    drop(proxy);
    // Without TLS it says so.
    let open = text.replace(&pki.server("server", false), "");
    let _ = Proxy::start(&open).ready().said("[management] is not encrypted");
}

#[test]
fn check_looks_into_the_files() {
    let pki = Pki::new();
    pki.issue("server", HERE, 2090);
    pki.issue("dp", &["dp.internal"], 2090);
    let control = program().with_file_name("helios-controlplane");
    let good = control_plane(&pki, "/nonexistent/store", 9092);
    let said = |program: &std::path::Path, text: &str| {
        let output = check_by(program, text, &[]);
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert_eq!(said(&control, &good), (Some(0), String::new()));
    let (code, text) = said(&control, &good.replace("server.key", "dp.key"));
    assert_eq!(code, Some(78), "{text}");
    for word in ["tls_key_file in [management]", "tls_key_file in [discovery]", "dp.key", "not the key"] {
        assert!(text.contains(word), "{word}: {text}");
    }
    let (code, text) = said(&program(), &data_plane(9092, &pki.client("none")));
    assert!(code == Some(78) && text.contains("tls_cert_file in [control_plane]"), "{text}");
    std::fs::set_permissions(pki.file("dp.key"), std::fs::Permissions::from_mode(0o640)).unwrap();
    let (code, text) = said(&program(), &data_plane(9092, &pki.client("dp")));
    assert!(code == Some(0) && text.contains("mode 0640") && text.contains("dp.key"), "{text}");
    // What does not fit together.
    for (text, words) in [
        (good.replace("tls_client_ca_file", "# "), "needs tls_client_ca_file in [discovery]"),
        (good.replace("tls_key_file", "# "), "tls_cert_file needs tls_key_file"),
        (good.replace("certificate = \"ops\"", "certificate = \"ops\"\nsha256 = \"00\""), "takes one of"),
    ] {
        let (code, said) = said(&control, &text);
        assert!(code == Some(78) && said.contains(words), "{words}: {said}");
    }
    for (more, words) in [
        ("peer_listen_address = \"127.0.0.1:0\"", "needs token"),
        ("token = \"x\"\npeer_listen_address = \"0.0.0.0:1\"", "peer_advertise_address has to name one"),
        ("peer_advertise_address = \"a:1\"", "no effect without peer_listen_address"),
        ("tls_server_name = \"a\"", "no effect without tls_ca_file"),
    ] {
        let (code, said) = said(&program(), &data_plane(9092, more));
        assert!(code == Some(78) && said.contains(words), "{words}: {said}");
    }
}
