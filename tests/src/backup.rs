//! A standby's directory made with the functions of a base backup and `cp`, where there is no `pg_basebackup`. Never stops
//! the primary.

use std::fs;
use std::io::Write as _;
use std::process::Stdio;

use crate::cluster::{Node, SERVER_USER, own, unprivileged};

/// Copies a running primary into the directory of `standby`, ready to stream.
pub(crate) fn copy(primary: &Node, standby: &Node) {
    let mut session = primary.superuser();
    session.execute("select pg_backup_start('copy', true)", &[]).unwrap();
    let mut cp = unprivileged(std::path::Path::new("cp"), &primary.sockets);
    cp.arg("-a").arg(&primary.data).arg(&standby.data);
    let output = cp.stderr(Stdio::piped()).output().unwrap();
    // Files may vanish while they are copied (manual, "Making a Base Backup Using the Low Level API").
    let text = String::from_utf8_lossy(&output.stderr);
    let harmless = text.lines().all(|line| line.ends_with("No such file or directory"));
    assert!(output.status.success() || (harmless && !text.is_empty()), "{text}");
    let label: String = session.query_one("select labelfile from pg_backup_stop(false)", &[]).unwrap().get(0);
    for gone in ["postmaster.pid", "postmaster.opts"] {
        let _ = fs::remove_file(standby.data.join(gone));
    }
    fs::write(standby.data.join("backup_label"), label).unwrap();
    fs::write(standby.data.join("standby.signal"), "").unwrap();
    for ours in ["backup_label", "standby.signal"] {
        own(&standby.data.join(ours));
    }
    let settings = standby.data.join("postgresql.auto.conf");
    let mut settings = fs::OpenOptions::new().append(true).open(settings).unwrap();
    let from = format!("host=127.0.0.1 port={} user={SERVER_USER}", primary.port);
    writeln!(settings, "primary_conninfo = '{from}'").unwrap();
}
