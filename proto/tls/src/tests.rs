//! Handshakes over real sockets with certificates made here: every refusal in words, strangers that hold up nobody, and
//! files that change.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use helios_proto::config::{ClientTls, ServerTls};
use rcgen::{CertificateParams, CertifiedIssuer, DnType, KeyPair};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio_stream::StreamExt as _;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::transport::Endpoint;

use crate::dial::Secured;
use crate::incoming::Conn;
use crate::live::Expires as _;
use crate::{ClientSide, DialError, Files, Live, Peer, ServerSide, connect, incoming};

/// A directory of certificates, removed at the end.
struct Pki(PathBuf);

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority(name: &str) -> Authority {
    let mut params = CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, name);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

impl Drop for Pki {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Pki {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("helios-tls-{}-{count}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn authority(&self, name: &str) -> Authority {
        let made = authority(name);
        fs::write(self.at(&format!("{name}.ca")), made.pem()).unwrap();
        made
    }

    /// `name.pem` and `name.key`, for the DNS name `dns`.
    fn issue(&self, by: &Authority, name: &str, dns: &str, expired: bool) {
        let mut params = CertificateParams::new(vec![dns.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        if expired {
            params.not_before = rcgen::date_time_ymd(2019, 1, 1);
            params.not_after = rcgen::date_time_ymd(2020, 1, 1);
        }
        let key = KeyPair::generate().unwrap();
        fs::write(self.at(&format!("{name}.pem")), params.signed_by(&key, by).unwrap().pem()).unwrap();
        let path = self.at(&format!("{name}.key"));
        fs::write(&path, key.serialize_pem()).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn server(&self, name: &str, client_ca: Option<&str>) -> ServerTls {
        ServerTls {
            section: "management",
            cert: self.at(&format!("{name}.pem")),
            key: self.at(&format!("{name}.key")),
            client_ca: client_ca.map(|ca| self.at(&format!("{ca}.ca"))),
        }
    }

    fn client(&self, ca: &str, identity: Option<&str>) -> Arc<ClientSide> {
        let identity =
            identity.map(|name| (self.at(&format!("{name}.pem")), self.at(&format!("{name}.key"))));
        let tls = ClientTls { ca: self.at(&format!("{ca}.ca")), identity, server_name: None };
        Live::open(Files::of_client(&tls)).unwrap()
    }
}

/// A listener whose connections stay open; what it saw comes out.
struct Stage {
    port: u16,
    side: Arc<ServerSide>,
    peers: tokio::sync::mpsc::UnboundedReceiver<Peer>,
    _stop: DropGuard,
}

async fn stage(tls: &ServerTls) -> Stage {
    let side = ServerSide::open(Files::of_server(tls)).unwrap();
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let stop = CancellationToken::new();
    let mut conns = incoming(listener, Some(Arc::clone(&side)), stop.clone());
    let (tell, peers) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(conn) = conns.next().await {
            let mut conn: Conn = conn.unwrap();
            let _ = tell.send(tonic::transport::server::Connected::connect_info(&conn));
            tokio::spawn(async move {
                // An empty SETTINGS frame, as a service begins.
                let _ = conn.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await;
                let _ = conn.flush().await;
                std::future::pending::<()>().await;
            });
        }
    });
    Stage { port, side, peers, _stop: stop.drop_guard() }
}

impl Stage {
    async fn dial(&self, side: &ClientSide, host: &str) -> Result<(), String> {
        let endpoint = Endpoint::from_shared(format!("https://{host}:{}", self.port)).unwrap();
        let secured = Secured { config: side.current(), name: None };
        connect(endpoint, Some(secured)).await.map(drop).map_err(|error: DialError| error.to_string())
    }
}

#[tokio::test]
async fn every_refusal_says_why() {
    let pki = Pki::new();
    let (ours, theirs) = (pki.authority("ours"), pki.authority("theirs"));
    pki.issue(&ours, "server", "localhost", false);
    pki.issue(&ours, "late", "localhost", true);
    pki.issue(&ours, "client", "client.internal", false);
    pki.issue(&theirs, "stranger", "client.internal", false);
    let mut open = stage(&pki.server("server", None)).await;
    open.dial(&pki.client("ours", None), "localhost").await.unwrap();
    assert!(open.peers.recv().await.unwrap().names.is_empty());
    let refused = async |stage: &Stage, side: &ClientSide, host: &str, words: &str| {
        let why = stage.dial(side, host).await.unwrap_err();
        assert!(why.contains(words), "{words}: {why}");
    };
    refused(&open, &pki.client("theirs", None), "localhost", "unknown authority").await;
    refused(&open, &pki.client("ours", None), "127.0.0.1", "another name than \"127.0.0.1\"").await;
    let late = stage(&pki.server("late", None)).await;
    refused(&late, &pki.client("ours", None), "localhost", "has expired").await;
    let mut closed = stage(&pki.server("server", Some("ours"))).await;
    refused(&closed, &pki.client("ours", None), "localhost", "client certificate is required").await;
    refused(&closed, &pki.client("ours", Some("stranger")), "localhost", "does not know the authority").await;
    refused(&closed, &pki.client("ours", Some("late")), "localhost", "expired").await;
    closed.dial(&pki.client("ours", Some("client")), "localhost").await.unwrap();
    assert_eq!(closed.peers.recv().await.unwrap().names.as_ref(), ["client", "client.internal"]);

    // The other side speaks no TLS.
    let plain = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = plain.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (mut io, _) = plain.accept().await.unwrap();
        let _ = io.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        std::future::pending::<()>().await;
    });
    let endpoint = Endpoint::from_shared(format!("https://localhost:{port}")).unwrap();
    let secured = Secured { config: pki.client("ours", None).current(), name: None };
    let why = connect(endpoint, Some(secured)).await.err().unwrap().to_string();
    assert!(why.contains("does not speak TLS"), "{why}");
}

#[tokio::test]
async fn the_stuck_and_the_plain_hold_up_nobody() {
    let pki = Pki::new();
    let ours = pki.authority("ours");
    pki.issue(&ours, "server", "localhost", false);
    let stage = stage(&pki.server("server", None)).await;
    let mut strangers = Vec::new();
    for i in 0..100 {
        let mut io = TcpStream::connect(("127.0.0.1", stage.port)).await.unwrap();
        if i % 2 == 0 {
            io.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        }
        strangers.push(io);
    }
    stage.dial(&pki.client("ours", None), "localhost").await.unwrap();
}

#[tokio::test]
async fn new_files_are_taken_and_bad_ones_are_not() {
    let pki = Pki::new();
    let ours = pki.authority("ours");
    pki.issue(&ours, "server", "localhost", false);
    let stage = stage(&pki.server("server", None)).await;
    let (client, side) = (pki.client("ours", None), Arc::clone(&stage.side));
    stage.dial(&client, "localhost").await.unwrap();
    let pem = fs::read(pki.at("server.pem")).unwrap();
    // Damaged, of another key, expired: each is refused once, and the old one serves.
    fs::write(pki.at("server.pem"), "nothing").unwrap();
    side.look();
    side.look();
    assert_eq!(side.failures(), 1);
    pki.issue(&ours, "other", "localhost", false);
    fs::copy(pki.at("other.pem"), pki.at("server.pem")).unwrap();
    side.look();
    assert_eq!(side.failures(), 2);
    pki.issue(&ours, "server", "localhost", true);
    side.look();
    assert_eq!(side.failures(), 3);
    stage.dial(&client, "localhost").await.unwrap();
    let before = side.not_after();
    // A good one, for another name.
    pki.issue(&ours, "server", "elsewhere", false);
    side.look();
    assert_eq!(side.failures(), 3);
    assert!(stage.dial(&client, "localhost").await.unwrap_err().contains("another name"));
    assert!(before.is_some() && side.not_after().is_some());
    assert_ne!(pem, fs::read(pki.at("server.pem")).unwrap());
}

#[test]
fn problems_name_the_file_and_the_key() {
    let pki = Pki::new();
    let ours = pki.authority("ours");
    for name in ["server", "other"] {
        pki.issue(&ours, name, "localhost", false);
    }
    let problem = |tls: &ServerTls| Files::of_server(tls).load().err().unwrap().to_string();
    let good = pki.server("server", Some("ours"));
    assert!(Files::of_server(&good).load().unwrap().warnings.is_empty());
    let has = |text: String, words: [&str; 3]| {
        words.iter().for_each(|word| assert!(text.contains(word), "{word}: {text}"));
    };
    let missing = ServerTls { cert: pki.at("none.pem"), ..good.clone() };
    has(problem(&missing), ["tls_cert_file in [management]", "none.pem", "No such file"]);
    let mixed = ServerTls { key: pki.at("other.key"), ..good.clone() };
    has(problem(&mixed), ["tls_key_file in [management]", "other.key", "not the key"]);
    let no_key = ServerTls { key: pki.at("server.pem"), ..good.clone() };
    has(problem(&no_key), ["tls_key_file", "server.pem", "no private key"]);
    let no_ca = ServerTls { client_ca: Some(pki.at("server.key")), ..good.clone() };
    has(problem(&no_ca), ["tls_client_ca_file", "server.key", "no certificate"]);
    fs::set_permissions(pki.at("server.key"), fs::Permissions::from_mode(0o640)).unwrap();
    let [warning] = Files::of_server(&good).load().unwrap().warnings.try_into().unwrap();
    has(warning, ["tls_key_file in [management]", "server.key (mode 0640)", "chmod 600"]);
}
