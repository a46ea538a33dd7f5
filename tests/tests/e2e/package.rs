//! What a release is made of: versions that agree, manual pages and completion scripts of the programs, the bill of materials,
//! and the Debian package, which is built for real of the programs under test. Never builds a release: `make release` does.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use helios_tests::loudly;
use helios_tests::proxy::{check, program};
use serde_json::Value;

use super::deploy;

const PROGRAMS: [&str; 3] = ["heliosdb-proxy", "helios-controlplane", "heliosctl"];

fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    output
}

/// What one of the programs prints.
fn prints(name: &str, arguments: &[&str]) -> String {
    let output = run(Command::new(program().with_file_name(name)).args(arguments));
    String::from_utf8(output.stdout).unwrap()
}

/// A directory that is gone after the test.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("helios-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Whether a program is on this machine; says so if it is not.
fn has(tool: &str) -> bool {
    let found =
        Command::new("sh").args(["-c", "command -v \"$0\" >/dev/null", tool]).status().unwrap().success();
    if !found {
        loudly(&format!("SKIPPED: no {tool} on this machine (tools/setup installs it)"));
    }
    found
}

#[test]
fn everything_has_one_version() {
    let version = env!("CARGO_PKG_VERSION");
    for name in PROGRAMS {
        assert_eq!(prints(name, &["--version"]), format!("{name} {version}\n"));
    }
    let charts = deploy::documents(&deploy::path("helm/heliosproxy/Chart.yaml"));
    let chart = &charts[0];
    assert_eq!((&chart["version"], &chart["appVersion"]), (&version.into(), &version.into()));
}

#[test]
fn the_changelog_keeps_its_form() {
    let text = std::fs::read_to_string(deploy::path("../CHANGELOG.md")).unwrap();
    let kinds = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"];
    let versions: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("## ")).collect();
    assert_eq!(versions.first(), Some(&"[Unreleased]"));
    for version in &versions[1..] {
        let (number, date) =
            version.split_once("] - ").unwrap_or_else(|| panic!("{version}: [1.2.3] - 2026-01-31"));
        assert_eq!((number.split('.').count(), date.split('-').count()), (3, 3), "{version}");
    }
    for kind in text.lines().filter_map(|line| line.strip_prefix("### ")) {
        assert!(kinds.contains(&kind), "{kind}");
    }
}

#[test]
fn every_program_has_a_manual_page_for_each_command_and_completion_for_each_shell() {
    let pages = Directory::new("pages");
    for (name, man) in [("heliosdb-proxy", "--man"), ("helios-controlplane", "--man"), ("heliosctl", "man")] {
        std::fs::write(pages.0.join(format!("{name}.1")), prints(name, &[man])).unwrap();
        let word = if man == "man" { "completion" } else { "--completion" };
        for (shell, check) in [("bash", "complete -F _"), ("zsh", "#compdef"), ("fish", "complete -c")] {
            let script = prints(name, &[word, shell]);
            assert!(script.contains(check), "{name} {shell}");
            if shell == "bash" {
                let file = pages.0.join("script");
                std::fs::write(&file, script).unwrap();
                run(Command::new("bash").arg("-n").arg(&file));
                std::fs::remove_file(file).unwrap();
            }
        }
    }
    prints("heliosctl", &["man", "--directory", pages.0.to_str().unwrap()]);
    let files: Vec<PathBuf> = std::fs::read_dir(&pages.0).unwrap().map(|e| e.unwrap().path()).collect();
    assert!(files.len() > 40, "{files:?}");
    for file in &files {
        let (text, name) =
            (std::fs::read_to_string(file).unwrap(), file.file_stem().unwrap().to_str().unwrap());
        assert!(text.contains(&format!(".TH {name} 1")), "{text}");
    }
    if has("mandoc") {
        run(Command::new("mandoc").args(["-Tlint", "-Werror"]).args(&files));
    }
}

#[test]
fn the_bill_of_materials_has_what_is_linked_and_nothing_else() {
    let bills = Directory::new("sbom");
    run(Command::new("/usr/bin/python3").arg(deploy::path("../tools/sbom")).arg(&bills.0));
    let lock = std::fs::read_to_string(deploy::path("../Cargo.lock")).unwrap();
    for name in PROGRAMS {
        let text = std::fs::read_to_string(bills.0.join(format!("{name}.cdx.json"))).unwrap();
        let bill: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&bill["bomFormat"], &bill["specVersion"]), (&"CycloneDX".into(), &"1.6".into()));
        assert_eq!(bill["metadata"]["component"]["name"], name);
        let components = bill["components"].as_array().unwrap();
        let has = |wanted: &str| components.iter().any(|c| c["name"] == wanted);
        for linked in ["tokio", "rustls", "ring", "helios-proto"] {
            assert!(has(linked), "{name} is linked with {linked}");
        }
        assert_eq!(has("etcd-client"), name == "helios-controlplane", "{name}");
        for other in ["protox", "criterion", "serde_derive", "helios-tests", "postgres"] {
            assert!(!has(other), "{name} is not linked with {other}");
        }
        for component in components {
            assert!(component["licenses"][0]["expression"].is_string(), "{component}");
            let ours = component["name"].as_str().unwrap().starts_with("helios-");
            let sum = component["hashes"][0]["content"].as_str();
            assert!(if ours { sum.is_none() } else { lock.contains(sum.unwrap()) }, "{component}");
        }
        // Every reference leads somewhere.
        let known: Vec<&Value> =
            components.iter().chain([&bill["metadata"]["component"]]).map(|c| &c["bom-ref"]).collect();
        for edge in bill["dependencies"].as_array().unwrap() {
            let ends = edge["dependsOn"].as_array().unwrap().iter().chain([&edge["ref"]]);
            ends.for_each(|end| assert!(known.contains(&end), "{edge}"));
        }
    }
}

/// Files of a package: mode and owner, by path.
fn contents(package: &Path) -> Vec<(String, String)> {
    let listed = run(Command::new("dpkg-deb").arg("--contents").arg(package));
    let listed = String::from_utf8(listed.stdout).unwrap();
    let line = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        (words[5].trim_start_matches('.').to_owned(), format!("{} {}", words[0], words[1]))
    };
    listed.lines().map(line).collect()
}

#[test]
fn the_debian_package_is_built_and_has_everything_in_its_place() {
    if !has("dh") {
        return;
    }
    let out = Directory::new("deb");
    for name in PROGRAMS {
        // Without what a debugger reads, so that it is quick.
        let (from, to) = (program().with_file_name(name), out.0.join(name));
        run(Command::new("strip").arg("-o").arg(to).arg(from));
    }
    run(Command::new(deploy::path("../tools/deb")).arg(&out.0).env("HELIOS_DEB_OPTIONS", "-Zgzip -z1"));
    let package = std::fs::read_dir(&out.0).unwrap().map(|e| e.unwrap().path());
    let package = package.into_iter().find(|path| path.extension().is_some_and(|e| e == "deb")).unwrap();
    let version = run(Command::new("dpkg-deb").arg("--field").arg(&package).arg("Version"));
    let expected = concat!(env!("CARGO_PKG_VERSION"), "-1");
    assert_eq!(String::from_utf8(version.stdout).unwrap().trim(), expected);
    let files = contents(&package);
    let has = |path: &str, mode: &str| {
        let found = files.iter().find(|(at, _)| at == path).unwrap_or_else(|| panic!("no {path}: {files:?}"));
        assert_eq!(found.1, format!("{mode} root/root"), "{path}");
    };
    for name in PROGRAMS {
        has(&format!("/usr/bin/{name}"), "-rwxr-xr-x");
        has(&format!("/usr/share/man/man1/{name}.1.gz"), "-rw-r--r--");
        has(&format!("/usr/share/bash-completion/completions/{name}"), "-rw-r--r--");
        has(&format!("/usr/share/zsh/vendor-completions/_{name}"), "-rw-r--r--");
        has(&format!("/usr/share/fish/vendor_completions.d/{name}.fish"), "-rw-r--r--");
    }
    has("/usr/share/doc/heliosproxy/changelog.gz", "-rw-r--r--");
    has("/usr/share/man/man1/heliosctl-node-drain.1.gz", "-rw-r--r--");
    has("/etc/heliosproxy/config.toml", "-rw-r--r--");
    has("/usr/lib/sysusers.d/heliosproxy.conf", "-rw-r--r--");
    for unit in ["heliosdb-proxy", "helios-controlplane"] {
        has(&format!("/lib/systemd/system/{unit}.service"), "-rw-r--r--");
    }
    // What the package keeps of the operator's, and whom it hides it from.
    let control = out.0.join("control");
    run(Command::new("dpkg-deb").arg("--control").arg(&package).arg(&control));
    let read = |name: &str| std::fs::read_to_string(control.join(name)).unwrap();
    assert_eq!(read("conffiles").trim(), "/etc/heliosproxy/config.toml");
    let postinst = read("postinst");
    assert!(postinst.contains("systemd-sysusers") && postinst.contains("chmod 640"), "{postinst}");
    assert!(!postinst.contains("deb-systemd-invoke"), "neither started nor restarted: {postinst}");
    // The configuration that it installs is one.
    let text = std::fs::read_to_string(deploy::path("config.example.toml")).unwrap();
    let checked = check(&text);
    assert!(checked.status.success(), "{checked:?}");
}
