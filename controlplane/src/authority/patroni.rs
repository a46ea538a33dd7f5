//! Patroni's REST API: who holds the leader lock, and a switchover. Every member is asked at once, over connections of one
//! request each, under a deadline. Members whose own view may be out of date can disagree: then those that are named are
//! asked themselves. Never changes anything but by [`Rest::switchover`]; never logs the login.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use helios_proto::model::Patroni;
use helios_tls::ClientSide;
use helios_tls::dial::{self, Secured};
use helios_tls::files::Files;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{AUTHORIZATION, CONNECTION, CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::task::JoinSet;
use tokio::time::{timeout, timeout_at};
use tokio_util::task::AbortOnDropHandle;

use super::Holder;

/// Once one member has answered, the others get this long.
const TOGETHER: Duration = Duration::from_millis(100);
/// A longer answer is none.
const LONGEST: usize = 1 << 20;

/// Where the members are asked.
pub(crate) struct Rest {
    settings: Arc<Patroni>,
    /// TLS towards them, once it was needed.
    tls: Mutex<Option<Arc<ClientSide>>>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
enum Lost {
    /// The question has not reached anybody.
    #[error("{0}")]
    Unasked(String),
    /// It may have.
    #[error("{0}")]
    Unanswered(String),
}

/// What is asked.
struct Question {
    method: hyper::Method,
    path: &'static str,
    body: String,
}

/// `GET /cluster`, as far as it matters.
#[derive(Debug, Clone, Deserialize)]
struct View {
    members: Vec<Seen>,
}

/// One member in it.
#[derive(Debug, Clone, Deserialize)]
struct Seen {
    name: String,
    role: String,
    api_url: Option<String>,
    host: Option<String>,
    port: Option<u16>,
}

impl View {
    /// The member that holds the leader lock. A standby cluster's leader takes no writes.
    fn leader(&self) -> Option<&Seen> {
        self.members.iter().find(|member| member.role == "leader")
    }
}

impl Seen {
    fn holder(&self) -> Holder {
        Holder { name: self.name.clone(), address: self.host.clone().zip(self.port) }
    }

    /// `http://host:port` of its API: what comes after is a path that we do not need.
    fn endpoint(&self) -> Option<String> {
        let uri: Uri = self.api_url.as_deref()?.parse().ok()?;
        Some(format!("{}://{}", uri.scheme_str()?, uri.authority()?))
    }
}

impl Rest {
    pub const fn new(settings: Arc<Patroni>) -> Self {
        Self { settings, tls: Mutex::new(None) }
    }

    /// Who holds the leader lock.
    pub async fn holder(self: &Arc<Self>) -> Result<Option<Holder>, String> {
        let views = self.views().await?;
        let mut named: Vec<Option<&Seen>> = Vec::new();
        for leader in views.iter().map(View::leader) {
            if !named.iter().any(|known| known.map(|seen| &seen.name) == leader.map(|seen| &seen.name)) {
                named.push(leader);
            }
        }
        if let [agreed] = named[..] {
            return Ok(agreed.map(Seen::holder));
        }
        let mut confirmed = Vec::new();
        for seen in named.into_iter().flatten() {
            if self.is_confirmed(seen).await {
                confirmed.push(seen.holder());
            }
        }
        match (confirmed.pop(), confirmed.pop()) {
            (Some(only), None) => Ok(Some(only)),
            _ => Err("its members disagree on who holds the leader lock".to_owned()),
        }
    }

    /// What the members answer that do so in time; an error if none does.
    async fn views(self: &Arc<Self>) -> Result<Vec<View>, String> {
        let mut asked = JoinSet::new();
        for endpoint in self.settings.endpoints.clone() {
            let rest = Arc::clone(self);
            asked.spawn(async move {
                let question = Question { method: hyper::Method::GET, path: "/cluster", body: String::new() };
                let found = rest.ask(&endpoint, question, rest.settings.timeout).await;
                let found = found.map_err(|lost| lost.to_string());
                found.and_then(|(code, body)| view(code, &body)).map_err(|why| format!("{endpoint}: {why}"))
            });
        }
        let mut end = tokio::time::Instant::now() + self.settings.timeout;
        let (mut views, mut errors) = (Vec::new(), Vec::new());
        while let Ok(Some(answer)) = timeout_at(end, asked.join_next()).await {
            match answer {
                Ok(Ok(view)) => {
                    views.push(view);
                    end = end.min(tokio::time::Instant::now() + TOGETHER);
                }
                Ok(Err(why)) => errors.push(why),
                Err(_) => errors.push("a question was not asked to its end".to_owned()),
            }
        }
        if views.is_empty() {
            let text = if errors.is_empty() { "no answer in time".to_owned() } else { errors.join("; ") };
            return Err(text);
        }
        Ok(views)
    }

    /// Whether a member itself says that it holds the lock.
    async fn is_confirmed(&self, seen: &Seen) -> bool {
        let Some(endpoint) = seen.endpoint() else { return false };
        let question = Question { method: hyper::Method::GET, path: "/primary", body: String::new() };
        let answer = self.ask(&endpoint, question, self.settings.timeout).await;
        answer.is_ok_and(|(code, _)| code == StatusCode::OK)
    }

    /// Asks for a switchover, and waits for its end. Members are named as Patroni names them.
    pub async fn switchover(&self, from: &str, to: &str, limit: Duration) -> Result<(), String> {
        let body = serde_json::json!({"leader": from, "candidate": to}).to_string();
        let mut refused = Vec::new();
        for endpoint in &self.settings.endpoints {
            let question = Question { method: hyper::Method::POST, path: "/switchover", body: body.clone() };
            match self.ask(endpoint, question, limit).await {
                Ok((StatusCode::OK, _)) => return Ok(()),
                Ok((code, text)) => {
                    let text: String = String::from_utf8_lossy(&text).chars().take(200).collect();
                    return Err(format!("Patroni refuses the switchover ({}): {text}", code.as_u16()));
                }
                Err(Lost::Unasked(why)) => refused.push(format!("{endpoint}: {why}")),
                // It may go on with it.
                Err(Lost::Unanswered(why)) => return Err(format!("Patroni at {endpoint}: {why}")),
            }
        }
        Err(format!("Patroni does not answer: {}", refused.join("; ")))
    }

    async fn ask(
        &self,
        endpoint: &str,
        question: Question,
        limit: Duration,
    ) -> Result<(StatusCode, Bytes), Lost> {
        let reach = self.settings.timeout;
        let io = match timeout(reach, self.connect(endpoint)).await {
            Ok(io) => io.map_err(Lost::Unasked)?,
            Err(_) => return Err(Lost::Unasked(format!("no connection within {reach:?}"))),
        };
        match timeout(limit, exchange(io, self.request(endpoint, question)?)).await {
            Ok(answer) => answer.map_err(Lost::Unanswered),
            Err(_) => Err(Lost::Unanswered(format!("no answer within {limit:?}"))),
        }
    }

    async fn connect(&self, endpoint: &str) -> Result<Box<dyn dial::Io>, String> {
        let uri: Uri = endpoint.parse().map_err(|_| "not an address".to_owned())?;
        let tls = if uri.scheme_str() == Some("https") { Some(self.secured().await?) } else { None };
        dial::stream(&uri, tls).await.map_err(|error| error.to_string())
    }

    /// TLS with the file of authorities as it is now, or as it was when it was good last.
    async fn secured(&self) -> Result<Secured, String> {
        let known = self.tls.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let files = Files::of_patroni(&self.settings).ok_or("patroni_ca_file in [topology] is missing")?;
        let opened = tokio::task::spawn_blocking(move || match known {
            Some(side) => {
                side.look();
                Ok(side)
            }
            None => ClientSide::open(files),
        });
        let side = opened.await.map_err(|_| "the file of authorities cannot be read".to_owned())??;
        let mut config = side.current().as_ref().clone();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        *self.tls.lock().unwrap_or_else(PoisonError::into_inner) = Some(side);
        Ok(Secured { config: Arc::new(config), name: None })
    }

    fn request(&self, endpoint: &str, question: Question) -> Result<Request<Full<Bytes>>, Lost> {
        let Question { method, path, body } = question;
        let host = endpoint.split_once("://").map_or(endpoint, |(_, host)| host);
        let mut request =
            Request::builder().method(&method).uri(path).header(HOST, host).header(CONNECTION, "close");
        if method == hyper::Method::POST {
            request = request.header(CONTENT_TYPE, "application/json");
            // Only what changes something is asked with a login.
            if let Some((user, password)) = &self.settings.login {
                let login = BASE64_STANDARD.encode(format!("{user}:{}", password.expose()));
                let value = HeaderValue::from_str(&format!("Basic {login}"));
                let mut value = value.map_err(|error| Lost::Unasked(error.to_string()))?;
                value.set_sensitive(true);
                request = request.header(AUTHORIZATION, value);
            }
        }
        request.body(Full::new(Bytes::from(body))).map_err(|error| Lost::Unasked(error.to_string()))
    }

    /// The name of the member that is at this address, or has this name.
    pub async fn name_of(self: &Arc<Self>, (node, host, port): (&str, &str, u16)) -> Result<String, String> {
        let views = self.views().await?;
        let members = || views.iter().flat_map(|view| &view.members);
        let here = members().find(|m| m.host.as_deref() == Some(host) && m.port == Some(port));
        let found = here.or_else(|| members().find(|member| member.name == node));
        found
            .map(|member| member.name.clone())
            .ok_or_else(|| format!("Patroni knows no member that is {node}"))
    }
}

/// What a member answered, if it is a view.
fn view(code: StatusCode, body: &[u8]) -> Result<View, String> {
    if code != StatusCode::OK {
        return Err(format!("it answers {}", code.as_u16()));
    }
    serde_json::from_slice(body).map_err(|error| format!("its answer is not Patroni's: {error}"))
}

/// One request on a connection of its own.
async fn exchange(
    io: Box<dyn dial::Io>,
    request: Request<Full<Bytes>>,
) -> Result<(StatusCode, Bytes), String> {
    let shaken = http1::handshake(TokioIo::new(io)).await;
    let (mut sender, connection) = shaken.map_err(|error| error.to_string())?;
    let _connection = AbortOnDropHandle::new(tokio::spawn(async move {
        // Its end shows in the answer.
        drop(connection.await);
    }));
    let answer = sender.send_request(request).await.map_err(|error| error.to_string())?;
    let code = answer.status();
    let body = Limited::new(answer.into_body(), LONGEST).collect().await;
    Ok((code, body.map_err(|error| error.to_string())?.to_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_leader_is_read_from_a_view_and_nobody_else_is() {
        let leader = |body: &str| {
            let view = view(StatusCode::OK, body.as_bytes());
            view.map(|view| view.leader().map(Seen::holder))
                .map_err(|why| why.chars().take(30).collect::<String>())
        };
        // As Patroni 3.0 writes it.
        let both = r#"{"members": [
            {"name": "a", "role": "ROLE", "state": "running", "api_url": "http://10.0.0.1:8008/patroni",
             "host": "10.0.0.1", "port": 5432, "timeline": 1},
            {"name": "b", "role": "replica", "state": "running", "api_url": "http://10.0.0.2:8008/patroni",
             "host": "10.0.0.2", "port": 5432, "timeline": 1, "lag": 0}], "pause": true}"#;
        let holder = Holder { name: "a".to_owned(), address: Some(("10.0.0.1".to_owned(), 5432)) };
        assert_eq!(leader(&both.replace("ROLE", "leader")), Ok(Some(holder)));
        for role in ["replica", "sync_standby", "standby_leader"] {
            assert_eq!(leader(&both.replace("ROLE", role)), Ok(None), "{role}");
        }
        // A member that has not started yet says little of itself.
        let young = r#"{"members": [{"name": "a", "role": "leader", "state": "", "api_url": null}]}"#;
        assert_eq!(leader(young), Ok(Some(Holder { name: "a".to_owned(), address: None })));
        assert_eq!(leader(r#"{"members": []}"#), Ok(None));
        assert_eq!(leader("<html>"), Err("its answer is not Patroni's: e".to_owned()));
        assert!(view(StatusCode::SERVICE_UNAVAILABLE, b"{}").unwrap_err().contains("503"));
    }

    #[test]
    fn the_api_of_a_member_is_its_address_without_a_path() {
        let seen = |url: &str| Seen {
            name: "a".to_owned(),
            role: "leader".to_owned(),
            api_url: Some(url.to_owned()),
            host: None,
            port: None,
        };
        assert_eq!(
            seen("https://10.0.0.1:8008/patroni").endpoint().as_deref(),
            Some("https://10.0.0.1:8008")
        );
        assert_eq!(seen("nonsense").endpoint(), None);
    }
}
