//! The operator's tool as a process, against a standalone proxy, and against a control plane with a data plane.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use helios_tests::controlplane::{directory, sections, token};
use helios_tests::{Cluster, Config, ControlPlane, Heliosctl, Proxy, Redis, eventually, free_port, proxy};

const LONG: Duration = Duration::from_secs(30);
const PORT: &str = "select setting from pg_settings where name = 'port'";

/// A standalone proxy in front of every node, and a shell beside it.
fn standalone() -> (Proxy, Heliosctl) {
    let text = Config { strategy: "round_robin", ..Config::new(Cluster::shared()) }.text();
    let port = free_port();
    let proxy =
        Proxy::start(&format!("{text}\n[management]\nlisten_address = \"127.0.0.1:{port}\"\n")).ready();
    (proxy, Heliosctl::at(SocketAddr::from(([127, 0, 0, 1], port))))
}

/// Which servers answer plain reads, over a few of them.
fn readers(proxy: &Proxy) -> Vec<u16> {
    let mut client = proxy.connect("app");
    let one = |_| client.query_typed(PORT, &[]).unwrap()[0].get::<_, String>(0).parse().unwrap();
    let mut ports: Vec<u16> = (0..24).map(one).collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

#[test]
fn caches_are_seen_and_emptied() {
    let cluster = Cluster::start(&[]);
    cluster.execute("create table kept (n int); insert into kept values (1); grant all on kept to public");
    let redis = Redis::start();
    let port = free_port();
    let text = |more: &str| {
        let cache =
            format!("[cache]\nenabled = true\nttl_secs = 3600\nredis_url = \"{}\"\n{more}", redis.url());
        format!("{}\n{cache}", Config::primary_only(&cluster).text())
    };
    let first =
        Proxy::start(&text(&format!("[management]\nlisten_address = \"127.0.0.1:{port}\"\n"))).ready();
    let second = Proxy::start(&text("")).ready();
    let ctl = Heliosctl::at(SocketAddr::from(([127, 0, 0, 1], port)));
    let stats = || ctl.run(&["cache", "stats", "-o", "json"]).code(0).json()["caches"][0]["status"].clone();
    let (mut here, mut there) = (first.connect("app"), second.connect("app"));
    let read = |client: &mut postgres::Client| -> i64 {
        let sql = "select count(*) from kept";
        let messages = client.simple_query(sql).unwrap();
        let rows = messages.iter().find_map(|message| match message {
            postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        });
        rows.unwrap().parse().unwrap()
    };
    eventually(LONG, "an answer is kept", || {
        let _ = read(&mut here);
        stats()["entries"] == 1 && stats()["hits"].as_u64() > Some(0)
    });
    eventually(LONG, "by the other one too", || {
        let _ = read(&mut there);
        second.metrics().sum("heliosproxy_cache_entries", &[]) == Some(1.0)
    });
    assert_eq!((&stats()["up"], &stats()["shared"]), (&true.into(), &true.into()));
    let table = ctl.run(&["cache", "stats"]).code(0).out;
    assert!(table.contains("shared") && table.contains(" %"), "{table}");
    // Nobody hears of this one.
    cluster.execute("insert into kept values (2)");
    assert_eq!((read(&mut here), read(&mut there)), (1, 1));
    let flushed = ctl.run(&["cache", "flush"]).code(0);
    assert!(flushed.out.starts_with("result caches of every data plane emptied: "), "{}", flushed.out);
    assert_eq!(read(&mut here), 2, "at once");
    eventually(LONG, "the other one has heard of it", || read(&mut there) == 2);
    let _ = ctl.run(&["cache", "flush", "--wait", "idle"]).code(2);
    let audit = ctl.run(&["audit", "-o", "json"]).code(0).json();
    assert_eq!(audit["entries"][0]["verb"], "FlushCaches", "{audit:#}");

    // One without a cache.
    let (proxy, ctl) = standalone();
    let table = ctl.run(&["cache", "stats"]).code(0).out;
    assert!(table.contains("none"), "{table}");
    let flushed = ctl.run(&["cache", "flush"]).code(0);
    assert!(flushed.err.contains("note: no data plane has reported a result cache"), "{}", flushed.err);
    drop(proxy);
}

#[test]
fn a_standalone_proxy_is_seen_and_operated() {
    let (proxy, ctl) = standalone();
    let status = ctl.run(&["status"]).code(0);
    assert!(status.out.contains("standalone") && status.out.ends_with("all is well\n"), "{}", status.out);
    assert!(!status.out.contains('\x1b') && status.err.is_empty(), "{status:?}");
    let json = ctl.run(&["status", "-o", "json"]).code(0).json();
    assert_eq!(
        (&json["primary"], &json["nodes"], &json["standalone"]),
        (&"primary".into(), &4.into(), &true.into())
    );
    let checks = ctl.run(&["check", "-o", "json"]).code(0).json();
    assert_eq!(checks["ok"], true, "{checks:#}");
    let names = ctl.run(&["node", "list", "-o", "name"]).code(0).out;
    assert_eq!(names.lines().next(), Some("primary"));

    // Drained: no read goes there; undrained: they do again.
    let replica = Cluster::shared().node("replica-1").port;
    let drained = ctl.run(&["node", "drain", "replica-1", "--wait", "idle"]).code(0);
    let line = drained.out.trim_end();
    assert!(line.starts_with("node replica-1 drained: configuration 1, revision "), "{line}");
    assert!(line.ends_with("1/1 data plane acknowledged"), "{line}");
    assert!(drained.err.contains("note: this change ends with the process"), "{}", drained.err);
    assert!(!readers(&proxy).contains(&replica));
    let node = ctl.run(&["node", "get", "replica-1", "-o", "json"]).code(0).json();
    assert_eq!(
        (&node["ops"]["drained"], &node["role"], &node["health"]),
        (&true.into(), &"replica".into(), &"up".into())
    );
    assert!(ctl.run(&["node", "list"]).code(0).out.contains("drained"));
    assert_eq!(ctl.run(&["-q", "node", "undrain", "replica-1"]).code(0).err, "");
    eventually(LONG, "reads go there again", || readers(&proxy).contains(&replica));
    assert!(ctl.run(&["node", "undrain", "replica-1"]).code(0).out.contains("undrained already"));

    assert!(ctl.run(&["node", "set-weight", "replica-1", "7"]).code(0).out.contains("has weight 7"));
    let yaml = ctl.run(&["node", "get", "replica-1", "-o", "yaml"]).code(0).out;
    assert!(yaml.contains("\nweight: 7\n") && yaml.contains("\n  weight: 7\n"), "{yaml}");
    let change = ctl.run(&["node", "set-weight", "replica-1", "--reset", "-o", "json"]).code(0).json();
    assert_eq!(
        (&change["acknowledged"], &change["dataplanes"], &change["changed"]),
        (&1.into(), &1.into(), &true.into())
    );

    // Pools.
    let pool = |args: &[&str]| ctl.run(args).code(0).out;
    assert!(pool(&["pool", "resize", "replica-1", "3"]).starts_with("pool of replica-1 set to size 3: "));
    eventually(LONG, "the pool tells its size", || {
        ctl.run(&["pool", "get", "replica-1", "-o", "json"]).json()["pools"][0]["status"]["max"] == 3
    });
    assert!(pool(&["pool", "pause", "--all"]).starts_with("pools of every node paused"));
    let degraded = ctl.run(&["status"]).code(7);
    assert!(degraded.out.contains("! The pool of node primary is paused."), "{}", degraded.out);
    let _ = ctl.run(&["check"]).code(7);
    let _ = pool(&["pool", "resume", "--all"]);
    let _ = pool(&["pool", "reconnect", "primary"]);
    assert!(pool(&["pool", "resize", "replica-1", "--reset"]).contains("set to the configured size"));
    assert_eq!(pool(&["pool", "list"]).lines().count(), 5);
    assert_eq!(pool(&["dp", "list"]).lines().count(), 2);
    let id = pool(&["dataplane", "list", "-o", "name"]);
    assert!(pool(&["dataplane", "get", id.trim()]).contains("in step"));

    // Explain, topology, what happened, who did it.
    let explained = ctl.run(&["explain", "delete from counter", "-o", "json"]).code(0).json();
    assert_eq!((&explained["node"], &explained["reason"]), (&"primary".into(), &"write_query".into()));
    assert!(pool(&["explain", "select 1"]).contains("reason     read_query"));
    let topology = ctl.run(&["topology", "show", "-o", "json"]).code(0).json();
    assert_eq!((&topology["primary"], topology["nodes"].as_array().unwrap().len()), (&"primary".into(), 4));
    assert!(pool(&["events"]).contains("SetNode replica-1 drain (by local)"));
    let audit = ctl.run(&["audit", "--limit", "1", "-o", "json"]).code(0).json();
    assert_eq!(
        (&audit["entries"][0]["verb"], &audit["entries"][0]["actor"]),
        (&"PoolOp".into(), &"local".into())
    );
    let screen = pool(&["top", "--once", "--interval", "200ms"]);
    assert!(
        screen.contains("reads/s") && screen.contains("replica-1") && !screen.contains('\x1b'),
        "{screen}"
    );
    assert!(pool(&["version"]).contains("heliosdb-proxy"));
}

#[test]
fn exit_codes_say_what_went_wrong() {
    let (_proxy, ctl) = standalone();
    for (args, code, said) in [
        (&["node", "drain"][..], 2, "Usage:"),
        (&["node", "remove", "replica-2"], 2, "needs --yes"),
        (&["config", "rollback", "1"], 2, "needs --yes"),
        (&["config", "diff", "/nonexistent.toml"], 2, "cannot read"),
        (&["--endpoints", "https://127.0.0.1:1", "status"], 2, "--ca"),
        (&["node", "get", "nobody"], 3, "known: primary, "),
        (&["node", "drain", "nobody"], 3, "there is no node"),
        (&["pool", "get", "nobody"], 3, "there is no node"),
        (&["dp", "get", "nobody"], 3, "there is no data plane"),
        (&["config", "get", "99"], 3, "no revision 99"),
        (&["--context", "nobody", "status"], 3, "no context"),
        (&["node", "drain", "primary"], 4, "writes have nowhere else to go"),
        (&["node", "add", "127.0.0.1:1", "--name", "primary", "--role", "replica"], 4, "already"),
        (&["--endpoints", "http://127.0.0.1:1", "status"], 5, "[management]"),
        (&["--token", "a-token-that-is-wrong", "status"], 6, "token is not known"),
        (&["node", "add", "not a host", "--role", "replica"], 8, "host"),
        (&["node", "set-weight", "replica-1", "10001"], 8, "0 to 10000"),
    ] {
        let ended = ctl.run(args);
        assert!(ended.code == code && ended.err.contains(said), "{args:?}: {code} {said:?} but {ended:#?}");
        assert_eq!(ended.out, "", "{args:?}");
    }
    let other =
        ctl.run(&["--endpoints", "http://127.0.0.1:1,http://127.0.0.1:2", "version", "--client"]).code(0);
    assert!(other.out.starts_with("heliosctl"), "{}", other.out);
    let would = ctl.run(&["node", "add", "127.0.0.1:1", "--role", "replica", "--dry-run"]).code(1);
    assert!(would.out.contains("would be done"), "{would:?}");
}

/// A control plane with a data plane that has everything from it.
fn fleet() -> (ControlPlane, Proxy, String) {
    let (discovery, store) = (free_port(), directory("store"));
    let config = Config { strategy: "round_robin", ..Config::new(Cluster::shared()) };
    let plane = ControlPlane::start(&(config.text() + &sections(&store, discovery)));
    let proxy = Proxy::start(&format!(
        "listen_address = \"127.0.0.1:0\"\nadmin_address = \"127.0.0.1:0\"\n[control_plane]\n\
         endpoints = [\"127.0.0.1:{discovery}\"]\nname = \"dp-1\"\ntoken = \"{}\"\n",
        token("dataplane")
    ));
    (plane, proxy.ready(), store)
}

#[test]
fn a_configuration_is_compared_applied_and_taken_back() {
    let (plane, proxy, store) = fleet();
    let ctl = Heliosctl::at(plane.management).role("admin");
    let text = ctl.run(&["config", "get"]).code(0).out;
    assert!(text.contains("password = \"******\"") && !text.contains("-secret"), "{text}");
    assert_eq!(ctl.run_with(&["config", "diff", "-"], &text).code(0).out, "");
    let more = text.replace("max_pool_size = 10", "max_pool_size = 12");
    let diff = ctl.run_with(&["config", "diff", "-"], &more).code(1).out;
    assert!(diff.contains("-max_pool_size = 10\n+max_pool_size = 12"), "{diff}");
    let json = ctl.run_with(&["config", "diff", "-", "-o", "json"], &more).code(1).json();
    assert_eq!((&json["against"], json["removed_nodes"].as_array().unwrap().len()), (&1.into(), 0));
    assert_eq!(
        ctl.run_with(&["config", "apply", "-", "--dry-run"], &more).code(1).err.matches("+max").count(),
        1
    );

    let args = ["config", "apply", "-", "--comment", "more", "--expect", "1"];
    let applied = ctl.run_with(&args, &more).code(0).out;
    assert!(applied.starts_with("- applied: configuration 2, revision "), "{applied}");
    assert!(applied.ends_with("1/1 data plane acknowledged\n"), "{applied}");
    assert!(proxy.get("/pool/stats").body.contains("\"max\":12"));
    let _ = ctl.run_with(&args, &more).code(4);

    // A wrong one is refused with its lines, and changes nothing.
    let wrong = more.replace("max_pool_size = 12", "max_pool_sice = 12");
    let refused = ctl.run_with(&["config", "apply", "-"], &wrong).code(8).err;
    assert!(refused.contains("max_pool_size"), "{refused}");
    let _ = ctl.run_with(&["config", "validate", "-", "--server"], &wrong).code(8);

    // Taking a node out is confirmed first.
    let node = text.rfind("[[nodes]]").unwrap();
    let fewer = &more[..more.len() - (text.len() - node)];
    let asked = ctl.run_with(&["config", "apply", "-"], fewer).code(2).err;
    assert!(asked.contains("takes out node") && asked.contains("--yes"), "{asked}");
    let _ = ctl.run_with(&["config", "apply", "-", "--yes"], fewer).code(0);
    assert_eq!(ctl.run(&["node", "list", "-o", "name"]).code(0).out.lines().count(), 3);

    let history = ctl.run(&["config", "history", "-o", "json"]).code(0).json();
    let revisions = history["revisions"].as_array().unwrap();
    assert_eq!(
        (revisions.len(), &revisions[0]["current"], &revisions[1]["comment"]),
        (3, &true.into(), &"more".into())
    );
    assert!(ctl.run(&["config", "rollback", "2", "--dry-run"]).code(1).err.contains("+[[nodes]]"));
    let back = ctl.run(&["config", "rollback", "2", "--yes"]).code(0).out;
    assert!(back.starts_with("rolled back to revision 2: configuration 4, "), "{back}");
    assert_eq!(ctl.run(&["config", "diff", "--against", "2"]).code(0).out, "");
    assert_eq!(ctl.run(&["node", "list", "-o", "name"]).code(0).out.lines().count(), 4);

    // Nodes come and go one by one as well.
    let port = Cluster::shared().node("replica-2").port.to_string();
    assert!(ctl.run(&["node", "remove", "replica-2", "--yes"]).code(0).out.contains("configuration 5"));
    let added = ["node", "add", &format!("127.0.0.1:{port}"), "--role", "replica", "--name", "replica-2"];
    assert!(ctl.run(&added).code(0).out.contains("configuration 6"));
    let audit = ctl.run(&["audit", "--actor", "admin"]).code(0).out;
    assert!(audit.contains("Rollback") && audit.contains("to revision 2"), "{audit}");
    let _ = std::fs::remove_dir_all(store);
}

#[test]
fn a_fleet_is_watched_and_each_role_may_do_its_own() {
    let (mut plane, proxy, store) = fleet();
    let ctl = |role| Heliosctl::at(plane.management).role(role);
    let viewer = ctl("viewer");
    assert!(viewer.run(&["dp", "list", "-o", "wide"]).code(0).out.contains("dp-1"));
    for (role, args, code) in [
        ("viewer", &["node", "drain", "replica-1"][..], 6),
        ("viewer", &["audit"], 6),
        ("operator", &["node", "remove", "replica-2", "--yes"], 6),
        ("operator", &["node", "set-weight", "replica-1", "50"], 0),
        ("dataplane", &["status"], 6),
    ] {
        let _ = ctl(role).run(args).code(code);
    }
    let refused = Heliosctl::at(plane.management).run(&["status"]).code(6).err;
    assert!(refused.contains("a token is needed") && refused.contains("HELIOSCTL_TOKEN"), "{refused}");
    let wrong = Heliosctl::at(plane.management).token("wrong-token-of-mine").run(&["status"]).code(6);
    assert!(!wrong.err.contains("wrong-token-of-mine") && wrong.out.is_empty(), "{wrong:?}");
    let unsupported = viewer.run(&["explain", "select 1"]).code(5).err;
    assert!(unsupported.contains("standalone"), "{unsupported}");

    let list = viewer.start(&["node", "list", "--watch", "--interval", "100ms", "-o", "json"]);
    let events = viewer.start(&["events", "--watch", "-o", "json"]);
    eventually(LONG, "the watch shows every node", || list.lines().len() == 4);
    let _ = ctl("operator").run(&["node", "drain", "replica-1"]).code(0);
    eventually(LONG, "the watch shows the drain", || {
        list.lines().iter().any(|line| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            line["change"] == "changed"
                && line["name"] == "replica-1"
                && line["item"]["ops"]["drained"] == true
        })
    });
    eventually(LONG, "the event is told", || {
        events.lines().iter().any(|line| line.contains("SetNode replica-1 drain"))
    });

    // Without the data plane, nothing acknowledges.
    drop(proxy);
    eventually(LONG, "the loss is seen", || viewer.run(&["status"]).code == 7);
    assert!(viewer.run(&["check"]).code(7).out.contains("none is connected"));
    let changed = ctl("operator").run(&["node", "undrain", "replica-1"]).code(0).out;
    assert!(changed.contains("0/0 data planes"), "{changed}");
    let _ = plane.terminate();
    let _ = std::fs::remove_dir_all(store);
}

#[test]
fn contexts_are_kept_and_hide_their_tokens() {
    let (plane, _proxy, store) = fleet();
    let bare = Heliosctl::bare();
    let (endpoint, secret) = (format!("http://{}", plane.management), token("viewer"));
    let set = bare.run(&["context", "set", "fleet", "--endpoints", &endpoint, "--token", &secret]).code(0);
    let file = bare.home().join("heliosctl/contexts.toml");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(bare.run(&["--context", "fleet", "status"]).code(0).out.contains("cluster"));
    let used = bare.run(&["context", "use", "fleet"]).code(0);
    assert!(bare.run(&["node", "list"]).code(0).out.contains("replica-1"));
    let list = bare.run(&["context", "list"]).code(0);
    assert!(list.out.contains(&endpoint) && list.out.contains("******"), "{}", list.out);
    let json = bare.run(&["context", "list", "-o", "json"]).code(0);
    for said in [set, used, list, json] {
        assert!(!said.out.contains(&secret) && !said.err.contains(&secret), "{said:?}");
    }
    let token_file = bare.home().join("token");
    std::fs::write(&token_file, format!("{secret}\n")).unwrap();
    let args = ["--endpoints", &endpoint, "--token-file", token_file.to_str().unwrap(), "version"];
    assert!(bare.run(&args).code(0).out.contains("helios-controlplane"));
    let _ = std::fs::remove_dir_all(bare.home());
    let _ = std::fs::remove_dir_all(store);
}

#[test]
fn a_file_is_validated_as_the_proxy_checks_it() {
    let bare = Heliosctl::bare();
    let good = Config::primary_only(Cluster::shared()).text();
    assert_eq!(bare.run_with(&["config", "validate", "-"], &good).code(0).out, "configuration is valid\n");
    let bad = good.replace("mode = \"transaction\"", "mode = \"transactional\"\nmax_pool_sice = 1");
    let ended = bare.run_with(&["config", "validate", "-"], &bad).code(8);
    // The same words; only the name of the file is another.
    let problems = |text: &str| -> Vec<String> {
        text.lines()
            .filter_map(|line| line.split_once(':'))
            .map(|(_, after)| after.trim().to_owned())
            .collect()
    };
    let checked = proxy::check(&bad);
    let expected = problems(&String::from_utf8(checked.stderr).unwrap());
    let said = ended.err.strip_prefix("error: ").unwrap();
    assert!(expected.len() >= 2 && problems(said) == expected, "{said} but {expected:?}");
    let json = bare.run_with(&["config", "validate", "-", "-o", "json"], &bad).code(8).json();
    assert_eq!(json["valid"], false);
    assert!(json["problems"][0]["line"].as_u64().unwrap() > 0, "{json:#}");
}

#[test]
fn completion_and_manual_need_nobody() {
    let bare = Heliosctl::bare();
    for shell in ["bash", "zsh", "fish"] {
        assert!(bare.run(&["completion", shell]).code(0).out.contains("set-weight"), "{shell}");
    }
    assert!(bare.run(&["man"]).code(0).out.contains(".TH heliosctl"));
    let help = bare.run(&["--help"]).code(0).out;
    assert!(help.contains("Exit codes:") && help.contains("8 rejected by validation"), "{help}");
}
