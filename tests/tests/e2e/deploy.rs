//! What stands in deploy/: manifests are valid by the schemas of their makers, the configurations in them load, what they
//! promise of the programs is so. No image is built and no cluster is run: there is none here.

use std::path::{Path, PathBuf};
use std::process::Command;

use helios_tests::programs::FETCHED;
use helios_tests::proxy::{check_by, program};
use helios_tests::{Cluster, Config, loudly};
use serde_json::Value;

/// A file of deploy/.
pub(crate) fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").canonicalize().unwrap().join(name)
}

/// The documents of a YAML file of deploy/.
fn yaml(name: &str) -> Vec<Value> {
    documents(&path(name))
}

/// The documents of a YAML file.
pub(crate) fn documents(file: &Path) -> Vec<Value> {
    let script = "import json, sys, yaml; print(json.dumps(list(yaml.safe_load_all(open(sys.argv[1])))))";
    let output = Command::new("/usr/bin/python3").args(["-c", script]).arg(file).output().unwrap();
    assert!(output.status.success(), "{}: {output:?}", file.display());
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Runs a validator that `tools/setup` has fetched on a file of deploy/, or elsewhere by its whole path; where it could not be
/// fetched, says so.
pub(crate) fn validate(tool: &str, arguments: &[&str], file: &str) {
    let program = PathBuf::from(FETCHED).join("validators/bin").join(tool);
    if !program.exists() {
        return loudly(&format!(
            "SKIPPED {file}: no {tool} on this machine (tools/setup fetches it from PyPI)"
        ));
    }
    let output = Command::new(program).args(arguments).arg(path(file)).output().unwrap();
    assert!(output.status.success(), "{tool} {file}: {output:?}");
}

/// Checks a configuration by the program that it is for.
pub(crate) fn loads(at: &str, text: &str) {
    let by = if text.contains("[discovery]") { "helios-controlplane" } else { "heliosdb-proxy" };
    let secrets = [
        ("HELIOS_DATAPLANE_TOKEN", "a-token-of-more-than-sixteen-bytes"),
        ("HELIOS_ADMIN_TOKEN", "another-token-of-more-than-sixteen-bytes"),
        ("HELIOS_PROBE_PASSWORD", "secret"),
        ("HELIOS_ETCD_PASSWORD", "secret"),
        ("POD_IP", "10.0.0.1"),
    ];
    let output = check_by(&program().with_file_name(by), text, &secrets);
    assert!(output.status.success(), "{at}: {}", String::from_utf8_lossy(&output.stderr));
}

const MANIFESTS: [&str; 2] = ["kubernetes/proxy.yaml", "kubernetes/fleet.yaml"];

#[test]
fn manifests_are_valid() {
    MANIFESTS.iter().for_each(|file| validate("kubernetes-validate", &["--strict"], file));
    validate("check-jsonschema", &["--builtin-schema", "vendor.compose-spec"], "compose/docker-compose.yml");
    for unit in ["heliosdb-proxy", "helios-controlplane"] {
        // The programs where they are here, in place of where a package puts them.
        let text = std::fs::read_to_string(path(&format!("systemd/{unit}.service"))).unwrap();
        let here = program().with_file_name(unit);
        let text = text.replace(&format!("/usr/bin/{unit}"), here.to_str().unwrap());
        let text: String = text
            .lines()
            .filter(|l| !l.starts_with("Documentation="))
            .fold(String::new(), |a, l| a + l + "\n");
        let copy = std::env::temp_dir().join(format!("{unit}-{}.service", std::process::id()));
        std::fs::write(&copy, text).unwrap();
        let output = Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&copy).output();
        std::fs::remove_file(&copy).unwrap();
        match output {
            Ok(output) => assert!(output.status.success() && output.stderr.is_empty(), "{unit}: {output:?}"),
            Err(_) => loudly(&format!("SKIPPED {unit}.service: no systemd-analyze on this machine")),
        }
    }
}

#[test]
fn the_configurations_in_deploy_load() {
    loads("compose", &std::fs::read_to_string(path("compose/config.toml")).unwrap());
    let mut found = 0;
    for document in MANIFESTS.iter().flat_map(|file| yaml(file)) {
        if let Some(text) = document["data"]["config.toml"].as_str() {
            loads(document["metadata"]["name"].as_str().unwrap(), text);
            found += 1;
        }
    }
    assert_eq!(found, 3, "ConfigMaps with a configuration");
}

#[test]
fn what_the_image_leaves_out_is_no_part_of_the_workspace() {
    let root = path("..");
    let read = |name: &str| std::fs::read_to_string(root.join(name)).unwrap();
    let manifest = read("Cargo.toml");
    let members = manifest.lines().find_map(|line| line.strip_prefix("members = ")).unwrap();
    let members: Vec<String> = serde_json::from_str(members).unwrap();
    assert!(members.len() > 5, "{members:?}");
    for left in read(".dockerignore").lines() {
        let within = |member: &String| Path::new(member).starts_with(left);
        assert!(!members.iter().any(within), "cargo build in the image needs {left}");
    }
}

/// What a Deployment says of its one container.
fn containers(document: &Value) -> impl Iterator<Item = &Value> {
    document["spec"]["template"]["spec"]["containers"].as_array().into_iter().flatten()
}

#[test]
fn manifests_say_of_the_programs_what_is_so() {
    let proxy = Config::primary_only(Cluster::shared()).start().ready();
    let all: Vec<Value> = MANIFESTS.iter().flat_map(|file| yaml(file)).collect();
    let ours = |container: &&Value| container["image"].as_str().unwrap().starts_with("heliosdb/");
    let mut probes = 0;
    for container in all.iter().flat_map(containers).filter(ours) {
        for probe in ["livenessProbe", "readinessProbe"] {
            let get = &container[probe]["httpGet"];
            assert_eq!(get["port"], "admin", "{container}");
            assert_eq!(proxy.get(get["path"].as_str().unwrap()).status, 200, "{container}");
            probes += 1;
        }
        let image = container["image"].as_str().unwrap();
        assert!(image.ends_with(":v1.0.0"), "{image}: the version of this repository");
    }
    assert_eq!(probes, 6);
    MANIFESTS.iter().for_each(|file| pods_live_as_long_as_they_may_need(&yaml(file)));
    services_find_their_pods(&all);
}

/// A pod lives longer than its sessions may take to end, and lets clients in until Services know that it stops: no preStop
/// hook is needed.
fn pods_live_as_long_as_they_may_need(documents: &[Value]) {
    let of = |kind: &str, name: &str| {
        documents.iter().find(|d| d["kind"] == kind && d["metadata"]["name"] == name).unwrap()
    };
    let text = of("ConfigMap", "heliosproxy-config")["data"]["config.toml"].as_str().unwrap();
    let number = |key: &str| -> Option<u64> {
        text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(" = ")?.parse().ok())
    };
    let grace = number("shutdown_grace_secs").unwrap();
    assert!(grace >= 5, "{text}");
    let needed = grace + number("shutdown_drain_timeout_secs").unwrap_or(60);
    let pod = &of("Deployment", "heliosproxy")["spec"]["template"]["spec"];
    assert!(pod["terminationGracePeriodSeconds"].as_u64() > Some(needed), "more than {needed}: {pod}");
}

/// Every Service selects pods that there are, at ports that they have.
pub(crate) fn services_find_their_pods(all: &[Value]) {
    for service in all.iter().filter(|d| d["kind"] == "Service") {
        let wanted = &service["spec"]["selector"];
        let there = |d: &&Value| {
            let labels = &d["spec"]["template"]["metadata"]["labels"];
            wanted.as_object().unwrap().iter().all(|(name, value)| labels[name] == *value)
        };
        let pods: Vec<&Value> = all.iter().filter(there).collect();
        assert!(!pods.is_empty(), "{service}");
        for port in service["spec"]["ports"].as_array().unwrap() {
            let target = if port["targetPort"].is_null() { &port["port"] } else { &port["targetPort"] };
            let has = |pod: &&Value| {
                let ports = containers(pod).flat_map(|c| c["ports"].as_array().unwrap());
                ports.into_iter().any(|p| p["containerPort"] == *target || p["name"] == *target)
            };
            assert!(pods.iter().all(has), "{target} of {service}");
        }
    }
}
