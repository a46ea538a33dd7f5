//! One HTTP request at a time, by hand, and the Prometheus text format as far as tests need it. Not a client for
//! anything but tests.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// An answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Status code; 0 when the connection was closed without an answer.
    pub status: u16,
    /// Head, as sent.
    pub head: String,
    /// Body.
    pub body: String,
}

/// Sends `request` as it is and reads until the server closes.
///
/// # Errors
/// When the server cannot be reached or stops answering.
pub fn exchange(address: SocketAddr, request: &[u8]) -> std::io::Result<Answer> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    stream.write_all(request)?;
    let mut all = Vec::new();
    match stream.read_to_end(&mut all) {
        Err(e) if e.kind() != std::io::ErrorKind::ConnectionReset => return Err(e),
        _ => {}
    }
    let text = String::from_utf8_lossy(&all).into_owned();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
    Ok(Answer { status, head: head.to_owned(), body: body.to_owned() })
}

/// `GET path`.
///
/// # Errors
/// As [`exchange`].
pub fn get(address: SocketAddr, path: &str) -> std::io::Result<Answer> {
    exchange(
        address,
        format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").as_bytes(),
    )
}

/// A scrape of `/metrics`.
#[derive(Debug, Clone, Default)]
pub struct Metrics(pub Vec<Sample>);

/// One line of the Prometheus text format.
#[derive(Debug, Clone)]
pub struct Sample {
    /// Name.
    pub name: String,
    /// Labels in the order sent.
    pub labels: Vec<(String, String)>,
    /// Value.
    pub value: f64,
}

impl Metrics {
    /// Reads a scrape.
    ///
    /// # Panics
    /// On a line that is not in the format.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let lines = text.lines().filter(|l| !l.is_empty() && !l.starts_with('#'));
        Self(lines.map(|l| Sample::parse(l).unwrap_or_else(|| panic!("not a sample: {l}"))).collect())
    }

    /// The sum of the samples with this name and at least these labels; `None` if there is none.
    #[must_use]
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let values: Vec<f64> =
            self.0.iter().filter(|s| s.name == name && s.has(labels)).map(|s| s.value).collect();
        (!values.is_empty()).then(|| values.iter().sum())
    }
}

impl Sample {
    fn parse(line: &str) -> Option<Self> {
        let (series, value) = line.rsplit_once(' ')?;
        let (name, labels) = match series.split_once('{') {
            Some((name, rest)) => (name, rest.strip_suffix('}')?),
            None => (series, ""),
        };
        let labels = labels.split("\",").filter(|l| !l.is_empty()).map(|l| {
            let (key, value) = l.split_once("=\"")?;
            Some((key.to_owned(), value.trim_end_matches('"').to_owned()))
        });
        Some(Self {
            name: name.to_owned(),
            labels: labels.collect::<Option<_>>()?,
            value: value.parse().ok()?,
        })
    }

    fn has(&self, labels: &[(&str, &str)]) -> bool {
        labels.iter().all(|(k, v)| self.labels.iter().any(|(key, value)| key == k && value == v))
    }
}
