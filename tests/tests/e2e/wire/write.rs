//! What cases are written with: messages, true and lying, and the usual beginnings. Sends nothing.

use helios_tests::cluster::password;
use helios_tests::raw::{message, query, startup};

use super::{Case, End, Step};

pub(super) const V3: u32 = 0x0003_0000;
pub(super) const V3_2: u32 = 0x0003_0002;
pub(super) const SSL: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];
pub(super) const GSS: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 48];
pub(super) const APP: [(&str, &str); 2] = [("user", "app"), ("database", "postgres")];

/// A length word that lies, and what follows it.
pub(super) fn lying(tag: Option<u8>, len: u32, body: &[u8]) -> Vec<u8> {
    let mut out: Vec<u8> = tag.into_iter().collect();
    out.extend_from_slice(&len.to_be_bytes());
    out.extend_from_slice(body);
    out
}

pub(super) fn join(parts: &[Vec<u8>]) -> Vec<u8> {
    parts.concat()
}

pub(super) fn parse(name: &str, sql: &str) -> Vec<u8> {
    message(b'P', format!("{name}\0{sql}\0\0\0").as_bytes())
}

pub(super) fn bind(portal: &str, statement: &str) -> Vec<u8> {
    message(b'B', format!("{portal}\0{statement}\0\0\0\0\0\0\0").as_bytes())
}

pub(super) fn execute(portal: &str, max: u8) -> Vec<u8> {
    message(b'E', format!("{portal}\0\0\0\0{}", char::from(max)).as_bytes())
}

pub(super) fn describe_of(kind: char, name: &str) -> Vec<u8> {
    message(b'D', format!("{kind}{name}\0").as_bytes())
}

pub(super) fn close(kind: char, name: &str) -> Vec<u8> {
    message(b'C', format!("{kind}{name}\0").as_bytes())
}

pub(super) fn sync() -> Vec<u8> {
    message(b'S', b"")
}

pub(super) fn flush() -> Vec<u8> {
    message(b'H', b"")
}

/// All of an unnamed statement.
pub(super) fn unnamed(sql: &str) -> Vec<u8> {
    join(&[parse("", sql), bind("", ""), describe_of('P', ""), execute("", 0)])
}

pub(super) fn case(row: &'static str, what: &'static str, steps: Vec<Step>, end: End) -> Case {
    Case { row, what, steps, end, expect: None }
}

/// Bytes on a fresh connection, then until it is closed.
pub(super) fn cut(row: &'static str, what: &'static str, bytes: Vec<u8>) -> Case {
    case(row, what, vec![Step::Send(bytes)], End::Closed)
}

/// A StartupMessage, then a whole login as `app`.
pub(super) fn login(row: &'static str, what: &'static str, bytes: Vec<u8>, end: End) -> Case {
    login_as(row, what, bytes, "app", end)
}

pub(super) fn login_as(row: &'static str, what: &'static str, bytes: Vec<u8>, user: &str, end: End) -> Case {
    let authenticate = Step::Authenticate(user.into(), password(user));
    case(row, what, vec![Step::Send(bytes), authenticate], end)
}

/// Bytes after a login as `app`, then a probe.
pub(super) fn alive(row: &'static str, what: &'static str, bytes: Vec<u8>) -> Case {
    case(row, what, vec![Step::Login("app"), Step::Send(bytes)], End::Probe)
}

/// Bytes after a login as `app`, then until it is closed.
pub(super) fn fatal(row: &'static str, what: &'static str, bytes: Vec<u8>) -> Case {
    case(row, what, vec![Step::Login("app"), Step::Send(bytes)], End::Closed)
}

/// A startup of `app` with further parameters, and what `show` says afterwards.
pub(super) fn with_params(
    row: &'static str,
    what: &'static str,
    params: &[(&str, &str)],
    show: Option<&str>,
) -> Case {
    let mut all = vec![("user", "app"), ("database", "postgres")];
    all.extend_from_slice(params);
    let mut case = login(row, what, startup(V3, &all), End::Probe);
    case.steps.extend(show.map(|name| Step::Send(query(&format!("show {name}")))));
    case
}

pub(super) fn expecting(case: Case, expect: &'static str) -> Case {
    Case { expect: Some(expect), ..case }
}
