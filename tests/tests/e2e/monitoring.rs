//! The dashboard and the rules that the project ships, in a real Prometheus that scrapes a real fleet: no panel is empty, no
//! rule names a metric that is not there, and alerts fire when they should. Never judges how a panel looks.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use helios_tests::cluster::password;
use helios_tests::controlplane::{directory, sections, token};
use helios_tests::prometheus::{promtool, rules};
use helios_tests::{
    Cluster, Config, ControlPlane, Load, Pki, Prometheus, Proxy, Redis, Role, eventually, free_port,
};
use serde_json::Value;

const LONG: Duration = Duration::from_secs(60);

fn file(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name);
    std::fs::read_to_string(path).unwrap()
}

/// What every panel of the dashboard asks, with what the variables stand for by default.
fn questions(dashboard: &Value) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let asked = target["expr"].as_str().unwrap();
            let asked = asked.replace("$__rate_interval", "5s");
            let asked =
                ["$job", "$instance", "$node"].iter().fold(asked, |text, name| text.replace(name, ".+"));
            assert!(!asked.contains('$'), "a variable is left in {asked}");
            found.push((panel["title"].as_str().unwrap().to_owned(), asked));
        }
    }
    found
}

/// Names of our metrics in a text; what is recorded by rules has a colon.
fn metrics(text: &str) -> BTreeSet<String> {
    let letter = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let words = text.split(|c| !letter(c)).filter(|word| word.starts_with("heliosproxy_"));
    words.filter(|word| !word.ends_with(':')).map(str::to_owned).collect()
}

#[test]
fn no_panel_is_empty_and_no_rule_names_what_is_not_there() {
    let cluster = Cluster::start(&[Role::Standby, Role::Replica]);
    cluster.primary().restart_with("alter system set wal_level = logical");
    Load::prepare(&cluster);
    cluster.execute("create publication heliosproxy for all tables");
    cluster.execute(&format!("create role listener login replication password '{}'", password("listener")));
    let (pki, discovery, store) = (Pki::new(), free_port(), directory("store"));
    pki.issue("proxy", &["127.0.0.1"], 2090);
    // The last node has a budget.
    let text = Config::new(&cluster).text() + "max_connections = 20\n" + &sections(&store, discovery);
    let plane = ControlPlane::start(&text);
    let redis = Redis::start();
    let dataplane = |name: &str| {
        Proxy::start(&format!(
            "listen_address = \"127.0.0.1:0\"\nadmin_address = \"127.0.0.1:0\"\n[control_plane]\n\
             endpoints = [\"127.0.0.1:{discovery}\"]\nname = \"{name}\"\ntoken = \"{}\"\n\
             [cache]\nenabled = true\nredis_url = \"{}\"\ninvalidation = \"logical\"\n\
             replication_user = \"listener\"\nreplication_password = \"{}\"\n\
             [client_tls]\nmode = \"prefer\"\ntls_cert_file = \"{}\"\ntls_key_file = \"{}\"\n",
            token("dataplane"),
            redis.url(),
            password("listener"),
            pki.file("proxy.pem"),
            pki.file("proxy.key")
        ))
        .ready()
    };
    let proxies = [dataplane("dp-1"), dataplane("dp-2")];
    let admins = [proxies[0].admin, proxies[1].admin];
    let prometheus =
        Prometheus::start(&[("heliosproxy", &admins), ("heliosproxy-control-plane", &[plane.admin])]);
    let load = Load::start(4, &[&proxies[0], &proxies[1]]);
    load.go_on(100);

    let dashboard: Value = serde_json::from_str(&file("docs/monitoring/grafana-dashboard.json")).unwrap();
    let questions = questions(&dashboard);
    assert!(questions.len() > 30, "the dashboard has panels");
    for (title, asked) in &questions {
        eventually(LONG, &format!("the panel {title:?} shows something for {asked}"), || {
            let values = prometheus.values(asked);
            !values.is_empty() && values.iter().all(|value| value.is_finite())
        });
    }
    let sessions = prometheus.values("sum(heliosproxy_sessions)");
    assert_eq!(sessions, [4.0], "what is shown is what is there");
    let grants = prometheus.values("sum(heliosproxy_budget_granted{node=\"replica\"})");
    assert!(grants.iter().all(|grant| *grant >= 1.0 && *grant <= 20.0), "{grants:?}");

    // Every metric that a rule or the dashboard names exists, those that rules record included.
    let annotations = dashboard["annotations"].to_string() + &dashboard["templating"].to_string();
    let named: String = questions.iter().map(|(_, asked)| asked.as_str()).collect::<Vec<_>>().join(" ");
    for metric in metrics(&(file("docs/monitoring/rules.yml") + &named + &annotations)) {
        eventually(LONG, &metric, || prometheus.values(&format!("count({metric})")).first() > Some(&0.0));
    }
    let groups = prometheus.ask("rules");
    let all: Vec<&Value> =
        groups["groups"].as_array().unwrap().iter().flat_map(|g| g["rules"].as_array().unwrap()).collect();
    assert!(all.len() > 10, "there are rules");
    for rule in all {
        assert_eq!(rule["health"], "ok", "{rule}");
        assert_ne!(rule["state"], "firing", "an alert about a healthy fleet: {rule}");
    }
    load.finish().nothing_failed();

    // And one that should fire does.
    drop(proxies);
    let gone = || prometheus.values("ALERTS{alertname=\"HeliosProxyDown\"}").len() == 2;
    eventually(LONG, "the alert about data planes that are gone", gone);
    let _ = std::fs::remove_dir_all(&store);
}

#[test]
fn alerts_fire_when_they_should_and_not_before() {
    promtool(&["check", "rules", rules().to_str().unwrap()]);
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/monitoring/rules.test.yml");
    promtool(&["test", "rules", tests.to_str().unwrap()]);
    // Every alert has its line in the document.
    let document = file("docs/monitoring.md");
    let rules = file("docs/monitoring/rules.yml");
    let alerts: Vec<&str> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    let tested = std::fs::read_to_string(&tests).unwrap();
    for alert in &alerts {
        assert!(document.contains(&format!("| `{alert}` |")), "{alert} is not in docs/monitoring.md");
        assert!(tested.contains(&format!("alertname: {alert}\n")), "{alert} is not tested");
    }
    assert!(alerts.len() > 10);
}
