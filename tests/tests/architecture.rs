//! The edges between crates and modules (DESIGN, section 1: "Dependencies point one way"), read from the sources
//! themselves. Never builds or runs anything; comments do not count.
// Test code: a broken assumption has to stop the test, loudly and where it happens.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Every module of the data plane and the modules that it may use. A new edge is a decision: add it here on purpose.
const DATA_PLANE: &[(&str, &[&str])] = &[
    (
        "app",
        &[
            "auth",
            "cache",
            "spans",
            "console",
            "control",
            "http",
            "lanes",
            "legs",
            "limits",
            "listener",
            "pool",
            "registry",
            "standalone",
            "statements",
            "worker",
        ],
    ),
    ("auth", &["pool", "registry", "server", "stream"]),
    ("cache", &["metrics", "pool", "route", "server", "session", "stream", "worker"]),
    ("cache_off", &["pool", "route", "server", "session", "worker"]),
    ("cli", &["logging"]),
    ("console", &["pool", "registry", "server", "stream", "worker"]),
    ("control", &["listener", "metrics", "pool", "registry", "worker"]),
    ("descriptors", &[]),
    ("http", &["cache", "control", "descriptors", "listener", "metrics", "pool", "route", "spans", "worker"]),
    ("lanes", &["limits", "session", "spread"]),
    ("legs", &["stream"]),
    ("lib", &[]),
    ("limits", &[]),
    ("listener", &["lanes", "limits", "metrics", "server", "session", "worker"]),
    ("logging", &[]),
    ("main", &[]),
    ("metrics", &["control", "pool", "route"]),
    ("pool", &["legs", "route", "server", "statements", "stream"]),
    ("registry", &["pool", "server"]),
    ("route", &[]),
    ("server", &["descriptors", "legs", "pool", "statements", "stream"]),
    (
        "session",
        &[
            "auth",
            "cache",
            "console",
            "descriptors",
            "lanes",
            "legs",
            "limits",
            "metrics",
            "pool",
            "registry",
            "route",
            "server",
            "spans",
            "statements",
            "stream",
            "worker",
        ],
    ),
    ("spans", &["metrics", "pool"]),
    ("spread", &[]),
    ("standalone", &["console", "control", "pool", "route", "worker"]),
    ("statements", &[]),
    ("stream", &[]),
    (
        "worker",
        &[
            "auth",
            "cache",
            "console",
            "lanes",
            "legs",
            "limits",
            "metrics",
            "pool",
            "registry",
            "route",
            "spans",
            "statements",
        ],
    ),
];

/// What has no sockets, no clock of a runtime and no tasks.
const SANS_IO: &[&str] = &[
    "dataplane/pgwire/src",
    "dataplane/src/cache/answer.rs",
    "dataplane/src/cache/facts.rs",
    "dataplane/src/cache/pgoutput.rs",
    "dataplane/src/cache/reading.rs",
    "dataplane/src/cache/shape.rs",
    "dataplane/src/cache/stamps.rs",
    "dataplane/src/route",
    "dataplane/src/route.rs",
    "dataplane/src/server/ledger.rs",
    "dataplane/src/session/core",
    "dataplane/src/session/core.rs",
    "dataplane/src/session/names.rs",
    "dataplane/src/session/run.rs",
    "dataplane/src/session/settings.rs",
    "dataplane/src/spread.rs",
    "dataplane/src/statements.rs",
    "controlplane/src/authority.rs",
    "controlplane/src/cluster.rs",
    "controlplane/src/cluster",
    "controlplane/src/fanout.rs",
    "controlplane/src/primary.rs",
    "controlplane/src/health/verdict.rs",
    "proto/src/wire",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Every Rust file at or below a path, relative to the root, with its text without comments.
fn sources(at: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut left = vec![root().join(at)];
    while let Some(path) = left.pop() {
        if path.is_dir() {
            left.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.extension().is_some_and(|e| e == "rs") {
            let name = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
            let text = fs::read_to_string(&path).unwrap();
            let code = text.lines().map(|l| l.split("//").next().unwrap_or_default());
            found.push((name, code.collect::<Vec<_>>().join("\n")));
        }
    }
    assert!(!found.is_empty(), "{at} has no sources");
    found
}

/// Names that follow `prefix` as a whole path segment.
fn names_after(code: &str, prefix: &str) -> BTreeSet<String> {
    let whole = |at: usize| !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
    let name = |rest: &str| rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    let mut names = BTreeSet::new();
    for (at, _) in code.match_indices(prefix).filter(|(at, _)| whole(*at)) {
        let rest = &code[at + prefix.len()..];
        match rest.strip_prefix('{') {
            Some(group) => {
                names.extend(group.split('}').next().unwrap().split(',').map(|part| name(part.trim_start())))
            }
            None => drop(names.insert(name(rest))),
        }
    }
    names
}

/// Our own crates that a package depends on, tests included.
fn own_dependencies(package: &str) -> BTreeSet<String> {
    let manifest = fs::read_to_string(root().join(package).join("Cargo.toml")).unwrap();
    let name = |line: &str| line.split(['.', '=', ' ']).next().unwrap().to_owned();
    let ours = |line: &&str| line.starts_with("helios");
    manifest.lines().filter(ours).map(name).collect()
}

#[test]
fn crates_depend_one_way() {
    for (package, allowed) in [
        ("dataplane/pgwire", &[][..]),
        ("proto", &[]),
        ("proto/papers", &[]),
        ("proto/tls", &["helios-proto"]),
        ("cli", &["helios-papers", "helios-proto", "helios-tls"]),
        ("controlplane", &["helios-papers", "helios-proto", "helios-tls"]),
        (
            "dataplane",
            &["helios-controlplane", "helios-papers", "helios-pgwire", "helios-proto", "helios-tls"],
        ),
    ] {
        let allowed = allowed.iter().map(|&name| name.to_owned()).collect();
        let found = own_dependencies(package);
        assert!(found.is_subset(&allowed), "{package} depends on {found:?}");
    }
}

#[test]
fn only_the_standalone_module_knows_the_control_plane() {
    for (file, code) in sources("dataplane") {
        // One simulation plays both sides of the budgets: test code.
        if !file.starts_with("dataplane/src/standalone") && !file.ends_with("/simulation.rs") {
            assert!(!code.contains("helios_controlplane"), "{file}");
        }
    }
}

#[test]
fn modules_of_the_data_plane_use_only_what_they_may() {
    for (file, code) in sources("dataplane/src") {
        let inside = file.strip_prefix("dataplane/src/").unwrap();
        let module = inside.split(['/', '.']).next().unwrap();
        let allowed = DATA_PLANE.iter().find(|(name, _)| *name == module).map(|(_, allowed)| *allowed);
        let allowed = allowed.unwrap_or_else(|| panic!("{module} has no line in DATA_PLANE"));
        let prefix = if module == "main" { "heliosdb_proxy::" } else { "crate::" };
        for used in names_after(&code, prefix) {
            let known = module == "main" || used == module || allowed.contains(&used.as_str());
            assert!(known, "{file} uses {used}");
        }
    }
}

#[test]
fn the_pure_parts_know_no_sockets_and_no_runtime() {
    for path in SANS_IO {
        for (file, code) in sources(path) {
            for word in ["tokio", "socket2", "hyper", "std::net", "std::fs", "std::thread", "async fn"] {
                assert!(!code.contains(word), "{file} uses {word}");
            }
        }
    }
    for path in ["core", "core.rs", "names.rs", "run.rs"] {
        for (file, code) in sources(&format!("dataplane/src/session/{path}")) {
            let used = names_after(&code, "crate::");
            let fine = ["route", "server", "session", "statements"];
            assert!(used.iter().all(|name| fine.contains(&name.as_str())), "{file}: {used:?}");
            assert!(names_after(&code, "crate::server::").iter().all(|name| name == "Ledger"), "{file}");
        }
    }
}

#[test]
fn every_file_opens_with_what_it_is_for() {
    for top in ["proto", "dataplane", "controlplane", "tests"] {
        for (file, _) in sources(top) {
            let text = fs::read_to_string(root().join(&file)).unwrap();
            assert!(text.starts_with("//! "), "{file} opens without a word");
        }
    }
}

#[test]
fn the_reader_of_edges_reads_them() {
    let code = "use crate::a::B;\nuse crate::{c, d::E};\nmy_crate::f();\nlet x = crate::g;";
    assert_eq!(names_after(code, "crate::").into_iter().collect::<Vec<_>>(), ["a", "c", "d", "g"]);
}
