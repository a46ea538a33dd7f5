//! Credentials change while the proxy runs: a password is rotated, a role is dropped or shut out. What the proxy remembers of a
//! role counts for as long as `proof_ttl_secs` says, and not longer; a new password gets in. Each test has roles of its own in
//! the shared cluster. Never touches the roles that other tests use; times are printed, never asserted.

use std::time::{Duration, Instant};

use helios_tests::{Cluster, Config, Proxy, eventually};
use postgres::{Client, NoTls};

const LONG: Duration = Duration::from_secs(60);

/// A proxy in front of the primary, for which a proof is good this long.
fn proxy(ttl: u32) -> Proxy {
    let mut config = Config::primary_only(Cluster::shared());
    config.more += &format!("\n[auth]\nproof_ttl_secs = {ttl}\n[limits]\nfailed_login_delay_secs = 0\n");
    config.start().ready()
}

fn told(error: &postgres::Error) -> String {
    error.code().map_or("closed", |code| code.code()).to_owned()
}

/// Logs in; what the client is told if it is not let in.
fn enter(proxy: &Proxy, role: &str, password: &str, database: &str) -> Result<Client, String> {
    let mut config = proxy.config(role);
    config.password(password).dbname(database).connect(NoTls).map_err(|error| told(&error))
}

/// Logs in and runs a statement.
fn login(proxy: &Proxy, role: &str, password: &str, database: &str) -> Result<Client, String> {
    let mut client = enter(proxy, role, password, database)?;
    let row = client.query_one("select current_user::text", &[]).map_err(|error| told(&error))?;
    assert_eq!(row.get::<_, &str>(0), role);
    Ok(client)
}

#[test]
fn a_new_password_gets_in_at_the_second_try_at_worst_and_the_old_one_not_after_that() {
    let cluster = Cluster::shared();
    cluster.execute("create role rotated login password 'one-secret'");
    // The proof would be good for an hour.
    let proxy = proxy(3600);
    let mut held = login(&proxy, "rotated", "one-secret", "postgres").unwrap();
    for (old, new) in [("one-secret", "two-secret"), ("two-secret", "three-secret")] {
        login(&proxy, "rotated", old, "postgres").expect("proved a moment ago");
        cluster.execute(&format!("alter role rotated password '{new}'"));
        let tries = (0..3).take_while(|_| login(&proxy, "rotated", new, "postgres").is_err()).count();
        println!("a new password inside the time of the proof: let in at try {}", tries + 1);
        assert!(tries <= 1, "{tries} logins with the new password failed");
        assert_eq!(login(&proxy, "rotated", old, "postgres").err().as_deref(), Some("28P01"), "the old one");
        // Who guesses does not keep out who knows.
        login(&proxy, "rotated", new, "postgres").expect("the new one, after a failure");
    }
    held.batch_execute("select 1").expect("a session goes on, as PostgreSQL's do");
    assert!(proxy.logged("-secret").is_empty(), "passwords reach no log");
}

#[test]
fn a_refused_server_connection_puts_the_proof_in_doubt() {
    let cluster = Cluster::shared();
    cluster.execute("create role doubted login password 'one-secret'");
    let proxy = proxy(3600);
    let mut held = login(&proxy, "doubted", "one-secret", "postgres").unwrap();
    cluster.execute("alter role doubted password 'two-secret'");
    let mut superuser = cluster.primary().superuser();
    let mine = "select pg_terminate_backend(pid, 10000) from pg_stat_activity where usename = 'doubted'";
    assert!(!superuser.query(mine, &[]).unwrap().is_empty());
    // It needs a server connection, which what is remembered does not open any more.
    held.batch_execute("select 1").expect_err("no server takes it");
    assert_eq!(enter(&proxy, "doubted", "one-secret", "postgres").err().as_deref(), Some("28P01"));
    login(&proxy, "doubted", "two-secret", "postgres").expect("the new password, at the first try");
}

#[test]
fn what_the_server_takes_back_counts_once_the_proof_is_old() {
    let cluster = Cluster::shared();
    cluster.execute("create database closing");
    cluster.execute("revoke connect on database closing from public");
    let proxy = proxy(2);
    // What is done to the role, and what the server says to it afterwards, be the password right or wrong.
    let cases = [
        ("taken_password", "postgres", "alter role taken_password password 'other-secret'", "28P01"),
        ("taken_role", "postgres", "drop role taken_role", "28P01"),
        ("taken_login", "postgres", "alter role taken_login nologin", "28000"),
        ("taken_time", "postgres", "alter role taken_time valid until '2020-01-01'", "28P01"),
        ("taken_connect", "closing", "revoke connect on database closing from taken_connect", "42501"),
    ];
    for (role, database, ..) in cases {
        cluster.execute(&format!("create role {role} login password 'good-secret'"));
        if database == "closing" {
            cluster.execute(&format!("grant connect on database closing to {role}"));
        }
    }
    std::thread::scope(|s| {
        for (role, database, change, code) in cases {
            let proxy = &proxy;
            s.spawn(move || {
                login(proxy, role, "good-secret", database).expect("as it was");
                cluster.execute(change);
                let since = Instant::now();
                let (mut refused, mut let_in) = (None, 0);
                // Logins in between do not make the proof any younger. Whether their sessions are of use depends on what
                // server connections there are.
                eventually(LONG, role, || {
                    refused = enter(proxy, role, "good-secret", database).err();
                    let_in += usize::from(refused.is_none());
                    refused.is_some()
                });
                assert_eq!(refused.as_deref(), Some(code), "{role}");
                println!("{role}: refused with {code} after {:?} and {let_in} logins", since.elapsed());
                for _ in 0..3 {
                    let again = enter(proxy, role, "good-secret", database).err();
                    assert_eq!(again.as_deref(), Some(code), "{role}, for good");
                }
            });
        }
    });
    login(&proxy, "taken_password", "other-secret", "postgres").expect("the new password, at the first try");
}

#[test]
fn a_listed_password_is_rotated_by_a_reload_and_open_sessions_go_on() {
    let cluster = Cluster::shared();
    cluster.execute("create role listed login password 'one-secret'");
    let config = Config::primary_only(cluster);
    let text = |password: &str| config.clone().user("listed", &format!("password = \"{password}\"")).text();
    let proxy = Proxy::start(&text("one-secret")).ready();
    let mut held = login(&proxy, "listed", "one-secret", "postgres").unwrap();
    cluster.execute("alter role listed password 'two-secret'");
    proxy.rewrite(&text("two-secret"));
    proxy.reload();
    eventually(LONG, "the new password gets in", || {
        held.batch_execute("select 1").expect("a session goes on");
        login(&proxy, "listed", "two-secret", "postgres").is_ok()
    });
    for _ in 0..3 {
        assert_eq!(login(&proxy, "listed", "one-secret", "postgres").err().as_deref(), Some("28P01"));
        login(&proxy, "listed", "two-secret", "postgres").expect("the new one");
    }
    held.batch_execute("select 1").expect("a session goes on");
}
