//! A model of a PostgreSQL session on the wire: bytes of a client in, bytes of the server out, by the rules of "Message
//! Flow" in the manual and of `postgres.c`. Knows a handful of statements by their text. Never asks where its bytes come
//! from: the same model stands behind the proxy and, as the judge, directly behind the client.

use helios_pgwire::PgError;
use helios_pgwire::backend::{self, TxStatus};
use helios_pgwire::frame::{Header, put, put_cstr, take_cstr};
use helios_pgwire::frontend::max_len;
use std::collections::BTreeMap;

/// One session of a server.
pub struct Server {
    /// Bytes that make no whole message yet.
    inbox: Vec<u8>,
    status: TxStatus,
    skipping: bool,
    unsynced: bool,
    /// A COPY reads data; what is left of its Query.
    copying: Option<Copying>,
    prepared: BTreeMap<Vec<u8>, String>,
    portals: BTreeMap<Vec<u8>, Portal>,
    /// A deferred check fails at the end of the transaction.
    deferred: bool,
    /// Session state that outlives a transaction.
    left_behind: bool,
    standby: bool,
    /// The client broke the protocol in a way that ends the connection.
    broken: bool,
}

enum Copying {
    /// From a Query, with the statements behind it.
    Simple(Vec<String>),
    /// From an Execute.
    Extended,
}

struct Portal {
    sql: String,
    /// Rows already sent.
    sent: usize,
}

/// How a statement ended.
enum Done {
    Yes,
    Copies,
    Failed,
}

fn complete(out: &mut Vec<u8>, tag: &str) {
    put(out, b'C', |body| put_cstr(body, tag.as_bytes()));
}

fn row(out: &mut Vec<u8>, text: &str) {
    put(out, b'D', |body| {
        body.extend_from_slice(&[0, 1]);
        body.extend_from_slice(&u32::try_from(text.len()).unwrap().to_be_bytes());
        body.extend_from_slice(text.as_bytes());
    });
}

fn row_description(out: &mut Vec<u8>) {
    put(out, b'T', |body| {
        body.extend_from_slice(b"\0\x01c\0\0\0\0\0\0\0\0\0\0\x19\xff\xff\xff\xff\xff\xff\0\0")
    });
}

fn rows_of(sql: &str) -> usize {
    if sql.contains("many") { 3 } else { 1 }
}

fn returns_rows(sql: &str) -> bool {
    sql.starts_with("select")
}

fn ends_transaction(sql: &str) -> bool {
    matches!(sql, "commit" | "rollback")
}

impl Server {
    /// A session that has just begun.
    #[must_use]
    pub fn new(standby: bool) -> Self {
        Self {
            inbox: Vec::new(),
            status: TxStatus::Idle,
            skipping: false,
            unsynced: false,
            copying: None,
            prepared: BTreeMap::new(),
            portals: BTreeMap::new(),
            deferred: false,
            left_behind: false,
            standby,
            broken: false,
        }
    }

    /// Whether the next client could have this session: nothing open, nothing half read, nothing left behind.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.rests() && self.status == TxStatus::Idle && !self.left_behind
    }

    /// Whether every message was answered and none stands half way.
    #[must_use]
    pub fn rests(&self) -> bool {
        self.inbox.is_empty() && !self.skipping && !self.unsynced && self.copying.is_none() && !self.broken
    }

    /// Whether it reads COPY data.
    #[must_use]
    pub const fn copies(&self) -> bool {
        self.copying.is_some()
    }

    /// Whether a transaction has failed.
    #[must_use]
    pub fn is_failed(&self) -> bool {
        self.status == TxStatus::Failed
    }

    /// Whether it waits for a Sync.
    #[must_use]
    pub const fn waits_for_sync(&self) -> bool {
        self.skipping || self.unsynced
    }

    /// The text of a prepared statement.
    #[must_use]
    pub fn text_of(&self, name: &str) -> Option<&str> {
        self.prepared.get(name.as_bytes()).map(String::as_str)
    }

    /// Bytes of the client.
    ///
    /// # Panics
    /// On a message that no PostgreSQL would read.
    pub fn feed(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        self.inbox.extend_from_slice(bytes);
        while let Some(Header { tag, size }) =
            Header::parse(&self.inbox, max_len).expect("a length that is allowed")
        {
            if self.inbox.len() < size {
                return;
            }
            let message: Vec<u8> = self.inbox.drain(..size).collect();
            assert!(!self.broken, "message {} behind a broken one", char::from(tag));
            self.message(tag, &message[5..], out);
        }
    }

    fn message(&mut self, tag: u8, body: &[u8], out: &mut Vec<u8>) {
        if self.copying.is_some() {
            return self.copy_message(tag, out);
        }
        match tag {
            b'S' => self.sync(out),
            b'd' | b'c' | b'f' | b'H' => {}
            _ if self.skipping => {}
            b'Q' => self.query(body, out),
            b'F' => self.function_call(out),
            b'P' | b'B' | b'D' | b'E' | b'C' => {
                self.unsynced = true;
                if let Err((code, text)) = self.extended(tag, body, out) {
                    self.fail(code, &text, out);
                    self.skipping = true;
                }
            }
            other => panic!("message {}", char::from(other)),
        }
    }

    fn copy_message(&mut self, tag: u8, out: &mut Vec<u8>) {
        match tag {
            b'd' | b'S' | b'H' => {}
            b'c' => {
                complete(out, "COPY 1");
                if let Some(Copying::Simple(rest)) = self.copying.take() {
                    self.statements(&rest, out);
                }
            }
            b'f' => {
                let simple = matches!(self.copying.take(), Some(Copying::Simple(_)));
                self.fail("57014", "COPY from stdin failed", out);
                self.skipping = !simple;
                if simple {
                    self.ready(out);
                }
            }
            _ => {
                self.fail("08P01", "unexpected message type during COPY from stdin", out);
                self.broken = true;
            }
        }
    }

    fn fail(&mut self, code: &'static str, text: &str, out: &mut Vec<u8>) {
        PgError::error(code, text).encode(out);
        if self.status == TxStatus::Idle {
            self.portals.clear();
            self.deferred = false;
        } else {
            self.status = TxStatus::Failed;
        }
    }

    fn ready(&mut self, out: &mut Vec<u8>) {
        if self.status == TxStatus::Idle {
            self.portals.clear();
        }
        backend::ready_for_query(out, self.status);
    }

    fn sync(&mut self, out: &mut Vec<u8>) {
        if !self.skipping && self.status == TxStatus::Idle && std::mem::take(&mut self.deferred) {
            self.fail("23503", "deferred check failed", out);
        }
        self.skipping = false;
        self.unsynced = false;
        self.ready(out);
    }

    fn function_call(&mut self, out: &mut Vec<u8>) {
        self.unsynced = false;
        if self.status == TxStatus::Failed {
            self.fail("25P02", "current transaction is aborted", out);
        } else {
            put(out, b'V', |body| body.extend_from_slice(&[0, 0, 0, 0]));
        }
        self.ready(out);
    }

    fn query(&mut self, body: &[u8], out: &mut Vec<u8>) {
        let sql = take_cstr(body).map(|(sql, _)| String::from_utf8_lossy(sql).into_owned()).unwrap();
        self.prepared.remove(&b""[..]);
        self.portals.remove(&b""[..]);
        self.unsynced = false;
        if sql == "discard all" {
            match self.status {
                TxStatus::Idle => {
                    self.prepared.clear();
                    self.left_behind = false;
                    complete(out, "DISCARD ALL");
                }
                TxStatus::InTransaction => self.fail("25001", "DISCARD ALL inside a transaction", out),
                TxStatus::Failed => self.fail("25P02", "current transaction is aborted", out),
            }
            return self.ready(out);
        }
        if sql.split(';').any(|part| part.trim() == "bad syntax") {
            self.fail("42601", "syntax error", out);
            return self.ready(out);
        }
        let parts: Vec<_> = sql.split(';').map(|s| s.trim().to_owned()).filter(|s| !s.is_empty()).collect();
        if parts.is_empty() {
            put(out, b'I', |_| {});
        }
        self.statements(&parts, out);
    }

    /// Statements of a Query, up to its end or to a COPY.
    fn statements(&mut self, parts: &[String], out: &mut Vec<u8>) {
        for (i, sql) in parts.iter().enumerate() {
            let before = out.len();
            if returns_rows(sql) && !sql.contains("1/0") && self.status != TxStatus::Failed {
                row_description(out);
            }
            match self.execute(sql, &mut 0, 0, out) {
                Done::Yes => {}
                Done::Copies => {
                    self.copying = Some(Copying::Simple(parts[i + 1..].to_vec()));
                    return;
                }
                Done::Failed => {
                    assert!(out.len() > before);
                    break;
                }
            }
        }
        if self.status == TxStatus::Idle && std::mem::take(&mut self.deferred) {
            self.fail("23503", "deferred check failed", out);
        }
        self.ready(out);
    }

    /// One statement; `limit` rows at most unless 0.
    fn execute(&mut self, sql: &str, sent: &mut usize, limit: usize, out: &mut Vec<u8>) -> Done {
        if self.status == TxStatus::Failed && !ends_transaction(sql) {
            self.fail("25P02", "current transaction is aborted", out);
            return Done::Failed;
        }
        if self.standby && (sql.starts_with("insert") || sql.contains("writes()")) {
            self.fail("25006", "cannot execute INSERT in a read-only transaction", out);
            return Done::Failed;
        }
        match sql {
            "begin" => {
                self.status = TxStatus::InTransaction;
                complete(out, "BEGIN");
            }
            "commit" | "rollback" => return self.end(sql, out),
            "copy t from stdin" => {
                put(out, b'G', |body| body.extend_from_slice(&[0, 0, 1, 0, 0]));
                return Done::Copies;
            }
            "copy t to stdout" => {
                put(out, b'H', |body| body.extend_from_slice(&[0, 0, 1, 0, 0]));
                put(out, b'd', |body| body.extend_from_slice(b"a\n"));
                put(out, b'c', |_| {});
                complete(out, "COPY 1");
            }
            _ if sql.contains("1/0") => {
                self.fail("22012", "division by zero", out);
                return Done::Failed;
            }
            _ if sql.starts_with("select") => return self.select(sql, sent, limit, out),
            _ => self.change(sql, out),
        }
        Done::Yes
    }

    fn end(&mut self, sql: &str, out: &mut Vec<u8>) -> Done {
        let failed = self.status == TxStatus::Failed || sql == "rollback";
        self.status = TxStatus::Idle;
        self.portals.clear();
        if !failed && std::mem::take(&mut self.deferred) {
            self.fail("23503", "deferred check failed", out);
            return Done::Failed;
        }
        self.deferred = false;
        complete(out, if failed { "ROLLBACK" } else { "COMMIT" });
        Done::Yes
    }

    fn select(&mut self, sql: &str, sent: &mut usize, limit: usize, out: &mut Vec<u8>) -> Done {
        if sql.contains("noisy") {
            put(out, b'N', |body| body.extend_from_slice(b"SNOTICE\0C00000\0Mnoise\0\0"));
        }
        let all = rows_of(sql);
        let now = if limit == 0 { all - *sent } else { limit.min(all - *sent) };
        for i in 0..now {
            row(out, &format!("{sql} row {}", *sent + i));
        }
        *sent += now;
        if limit > 0 && now == limit {
            put(out, b's', |_| {});
        } else {
            complete(out, &format!("SELECT {now}"));
        }
        Done::Yes
    }

    fn change(&mut self, sql: &str, out: &mut Vec<u8>) {
        if sql.contains("deferred") {
            self.deferred = true;
        }
        if sql.starts_with("set") {
            self.left_behind = true;
            backend::parameter_status(out, b"application_name", sql.as_bytes());
        }
        self.left_behind |= sql.starts_with("listen") || sql.starts_with("create temp");
        complete(out, sql.split(' ').next().unwrap_or_default());
    }

    fn extended(&mut self, tag: u8, body: &[u8], out: &mut Vec<u8>) -> Result<(), (&'static str, String)> {
        match tag {
            b'P' => self.parse(body, out),
            b'B' => self.bind(body, out),
            b'D' => self.describe(body, out),
            b'C' => {
                let (name, _) = take_cstr(&body[1..]).unwrap();
                if body[0] == b'S' {
                    self.prepared.remove(name);
                } else {
                    self.portals.remove(name);
                }
                put(out, b'3', |_| {});
                Ok(())
            }
            _ => self.run_portal(body, out),
        }
    }

    fn refuse_if_failed(&self, sql: &str) -> Result<(), (&'static str, String)> {
        if self.status == TxStatus::Failed && !ends_transaction(sql) {
            return Err(("25P02", "current transaction is aborted".to_owned()));
        }
        Ok(())
    }

    fn parse(&mut self, body: &[u8], out: &mut Vec<u8>) -> Result<(), (&'static str, String)> {
        let (name, rest) = take_cstr(body).unwrap();
        let sql = String::from_utf8_lossy(take_cstr(rest).unwrap().0).into_owned();
        if name.is_empty() {
            self.prepared.remove(name);
        }
        if sql == "bad syntax" {
            return Err(("42601", "syntax error".to_owned()));
        }
        self.refuse_if_failed(&sql)?;
        if !name.is_empty() && self.prepared.contains_key(name) {
            let shown = String::from_utf8_lossy(name);
            return Err(("42P05", format!("prepared statement \"{shown}\" already exists")));
        }
        self.prepared.insert(name.to_vec(), sql);
        put(out, b'1', |_| {});
        Ok(())
    }

    fn statement(&self, name: &[u8]) -> Result<String, (&'static str, String)> {
        let shown = String::from_utf8_lossy(name);
        let missing = || ("26000", format!("prepared statement \"{shown}\" does not exist"));
        self.prepared.get(name).cloned().ok_or_else(missing)
    }

    fn bind(&mut self, body: &[u8], out: &mut Vec<u8>) -> Result<(), (&'static str, String)> {
        let (portal, rest) = take_cstr(body).unwrap();
        let sql = self.statement(take_cstr(rest).unwrap().0)?;
        self.refuse_if_failed(&sql)?;
        if !portal.is_empty() && self.portals.contains_key(portal) {
            return Err(("42P03", "portal already exists".to_owned()));
        }
        self.portals.insert(portal.to_vec(), Portal { sql, sent: 0 });
        put(out, b'2', |_| {});
        Ok(())
    }

    fn portal(&self, name: &[u8]) -> Result<&Portal, (&'static str, String)> {
        self.portals.get(name).ok_or_else(|| ("34000", "portal does not exist".to_owned()))
    }

    fn describe(&mut self, body: &[u8], out: &mut Vec<u8>) -> Result<(), (&'static str, String)> {
        let (name, _) = take_cstr(&body[1..]).unwrap();
        let of_statement = body[0] == b'S';
        let sql = if of_statement { self.statement(name)? } else { self.portal(name)?.sql.clone() };
        if returns_rows(&sql) {
            self.refuse_if_failed(&sql)?;
        }
        if of_statement {
            put(out, b't', |body| body.extend_from_slice(&[0, 0]));
        }
        if returns_rows(&sql) {
            row_description(out);
        } else {
            put(out, b'n', |_| {});
        }
        Ok(())
    }

    fn run_portal(&mut self, body: &[u8], out: &mut Vec<u8>) -> Result<(), (&'static str, String)> {
        let (name, rest) = take_cstr(body).unwrap();
        let limit = rest.first_chunk::<4>().map_or(0, |n| u32::from_be_bytes(*n));
        let portal = self.portal(name)?;
        let (sql, mut sent) = (portal.sql.clone(), portal.sent);
        let parts: Vec<_> = sql.split(';').map(str::trim).filter(|s| !s.is_empty()).collect();
        let Some(&sql) = parts.first() else {
            put(out, b'I', |_| {});
            return Ok(());
        };
        let mark = out.len();
        match self.execute(sql, &mut sent, usize::try_from(limit).unwrap(), out) {
            Done::Yes => {}
            Done::Copies => self.copying = Some(Copying::Extended),
            // Written already, as `execute` words it.
            Done::Failed => {
                assert!(out.len() > mark);
                self.skipping = true;
            }
        }
        if let Some(portal) = self.portals.get_mut(name) {
            portal.sent = sent;
        }
        Ok(())
    }
}
