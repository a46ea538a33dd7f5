//! What happened: events, the audit log, revisions, and how a change ended. Pure.

use helios_proto::wire::v1;

use crate::failure::clean;
use crate::table::{Table, Tone, cell, toned};
use crate::words;

/// An event in a line.
#[must_use]
pub fn event(event: &v1::Event, color: bool) -> String {
    let tone = match event.kind {
        kind if kind == i32::from(v1::event::Kind::Topology) => Tone::Bold,
        kind if kind == i32::from(v1::event::Kind::Gap) => Tone::Bad,
        _ => Tone::Plain,
    };
    let subject = if event.subject.is_empty() { "-" } else { &event.subject };
    let kind = tone.paint(&format!("{:<9}", words::event(event.kind)), color);
    clean_line(&format!("{}  {kind}  {subject:<12}  {}", words::time(event.at_unix_ms), event.text), color)
}

/// One line that steers nothing but its own colour.
fn clean_line(line: &str, color: bool) -> String {
    let keep = |c: char| !c.is_control() || (color && c == '\x1b');
    line.chars().map(|c| if keep(c) { c } else { ' ' }).collect()
}

/// The audit log.
#[must_use]
pub fn audit(entries: &[v1::AuditEntry]) -> Table {
    let mut table = Table::new(&["TIME", "ACTOR", "ROLE", "FROM", "VERB", "DETAIL", ">CONFIG", "OUTCOME"]);
    for entry in entries {
        let config =
            if entry.config_revision == 0 { "-".to_owned() } else { entry.config_revision.to_string() };
        let tone = if entry.outcome == "ok" { Tone::Good } else { Tone::Bad };
        table.row(vec![
            cell(words::time(entry.at_unix_ms)),
            cell(&entry.actor),
            cell(&entry.role),
            cell(&entry.from),
            cell(&entry.verb),
            cell(&entry.detail),
            cell(config),
            toned(&entry.outcome, tone),
        ]);
    }
    table
}

/// Revisions of the configuration.
#[must_use]
pub fn history(revisions: &[v1::Revision]) -> Table {
    let mut table = Table::new(&[">REVISION", "TIME", "ACTOR", "COMMENT", "STATE"]);
    for revision in revisions {
        table.row(vec![
            cell(revision.revision),
            cell(words::time(revision.at_unix_ms)),
            cell(&revision.actor),
            cell(&revision.comment),
            toned(if revision.current { "in force" } else { "" }, Tone::Good),
        ]);
    }
    table
}

/// A unified diff.
#[must_use]
pub fn diff(unified: &str, color: bool) -> String {
    let line = |line: &str| {
        let tone = match line.as_bytes().first() {
            Some(b'+') => Tone::Good,
            Some(b'-') => Tone::Bad,
            Some(b'@') => Tone::Dim,
            _ => Tone::Plain,
        };
        tone.paint(&clean(line), color)
    };
    unified.lines().map(line).collect::<Vec<_>>().join("\n")
}

/// How a change ended, in a line: what, the revision, how many data planes have it.
#[must_use]
pub fn change(what: &str, reply: &v1::ChangeReply, waited: bool) -> String {
    let v1::ChangeReply { config_revision, revision, dataplanes, acknowledged, changed, .. } = reply;
    let what = if *changed { what.to_owned() } else { format!("{what} already") };
    let planes = if *dataplanes == 1 { "data plane" } else { "data planes" };
    let ack = if waited { "acknowledged" } else { "acknowledged so far" };
    clean_line(
        &format!(
            "{what}: configuration {config_revision}, revision {revision}, {acknowledged}/{dataplanes} {planes} {ack}"
        ),
        false,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOON: u64 = 1_772_366_400_000;

    #[test]
    fn events_are_lines() {
        let it = v1::Event {
            at_unix_ms: NOON,
            kind: v1::event::Kind::Health.into(),
            subject: "replica-1".to_owned(),
            text: "up -> down: \u{1b}[2Jx\ny".to_owned(),
            revision: 3,
        };
        let expected = "2026-03-01 12:00:00Z  health     replica-1     up -> down:  [2Jx y";
        assert_eq!(event(&it, false), expected);
    }

    #[test]
    fn the_audit_log_and_the_history() {
        let entry = |outcome: &str, config_revision| v1::AuditEntry {
            at_unix_ms: NOON,
            actor: "ops".to_owned(),
            role: "operator".to_owned(),
            from: "127.0.0.1".to_owned(),
            verb: "SetNode".to_owned(),
            detail: "replica-1 drain".to_owned(),
            outcome: outcome.to_owned(),
            config_revision,
        };
        let expected = "\
TIME                  ACTOR  ROLE      FROM       VERB     DETAIL           CONFIG  OUTCOME
2026-03-01 12:00:00Z  ops    operator  127.0.0.1  SetNode  replica-1 drain       2  ok
2026-03-01 12:00:00Z  ops    operator  127.0.0.1  SetNode  replica-1 drain       -  there is no node";
        assert_eq!(audit(&[entry("ok", 2), entry("there is no node", 0)]).render(false), expected);
        let revision = |revision, current| v1::Revision {
            revision,
            at_unix_ms: NOON,
            actor: "file".to_owned(),
            comment: "read from the file".to_owned(),
            current,
        };
        let expected = "\
REVISION  TIME                  ACTOR  COMMENT             STATE
      10  2026-03-01 12:00:00Z  file   read from the file  in force
       9  2026-03-01 12:00:00Z  file   read from the file";
        assert_eq!(history(&[revision(10, true), revision(9, false)]).render(false), expected);
    }

    #[test]
    fn a_change_says_revision_and_acknowledgements() {
        let mut reply = v1::ChangeReply {
            config_revision: 2,
            revision: 14,
            dataplanes: 3,
            acknowledged: 3,
            changed: true,
            ..v1::ChangeReply::default()
        };
        let expected = "node a drained: configuration 2, revision 14, 3/3 data planes acknowledged";
        assert_eq!(change("node a drained", &reply, true), expected);
        (reply.changed, reply.dataplanes, reply.acknowledged) = (false, 1, 0);
        let expected =
            "node a drained already: configuration 2, revision 14, 0/1 data plane acknowledged so far";
        assert_eq!(change("node a drained", &reply, false), expected);
    }
}
