//! The console of a data plane whose control plane is elsewhere: it shows, and changes nothing.

use super::{CONSOLE, LONG, console, failure, login, tag, with_console};
use helios_tests::controlplane::{directory, sections, token};
use helios_tests::{Cluster, ControlPlane, Proxy, eventually, free_port};

#[test]
fn in_a_fleet_the_console_comes_from_the_control_plane_and_changes_nothing() {
    let cluster = Cluster::shared();
    let discovery = free_port();
    let text = with_console(cluster).text();
    assert!(text.contains(CONSOLE));
    let _plane =
        ControlPlane::start(&format!("{text}\n{}", sections(&directory("console"), discovery))).ready();
    let dataplane = format!(
        "listen_address = \"127.0.0.1:0\"\nadmin_address = \"127.0.0.1:0\"\n[control_plane]\n\
         endpoints = [\"127.0.0.1:{discovery}\"]\nname = \"dp\"\ntoken = \"{}\"\n",
        token("dataplane")
    );
    let proxy = Proxy::start(&dataplane).ready();
    eventually(LONG, "there is a console", || login(proxy.port(), "helios", "ops").is_ok());
    proxy.connect("app").simple_query("select 1").unwrap();
    let mut ops = console(proxy.port(), "ops");
    assert_eq!(tag(&mut ops, "SHOW POOLS"), "SHOW");
    for command in ["PAUSE", "RECONNECT", "PAUSE postgres", "RECONNECT postgres", "KILL postgres", "RELOAD"] {
        let (code, text) = failure(&mut ops, command);
        assert_eq!(
            (code.as_str(), text.as_str()),
            ("0A000", "the control plane decides over this data plane"),
            "{command}"
        );
    }
    proxy.connect("app").simple_query("select 1").unwrap();
}
