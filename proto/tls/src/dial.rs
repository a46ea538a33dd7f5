//! A connection to a service, plain or TLS, as tonic's channel. Errors say what is wrong with the certificates, on which
//! side. Never retries; never says anything on the connection before the service has.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{AlertDescription, CertificateError, ClientConfig};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

/// A service speaks first, or its refusal of our certificate comes; one that does neither in this time is believed.
const FIRST_WORD: Duration = Duration::from_secs(1);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The connection itself.
    #[error("{0}")]
    Connect(io::Error),
    /// TLS on it.
    #[error("TLS: {0}")]
    Tls(String),
    /// The address has no host, or no name that a certificate may have.
    #[error("{0:?} is no name of a host")]
    Name(String),
    /// What else tonic may say.
    #[error("{0}")]
    Channel(String),
}

/// TLS towards a service.
#[derive(Clone)]
pub struct Secured {
    /// What is in force.
    pub config: Arc<ClientConfig>,
    /// Name in the service's certificate; `None`: the host of the address.
    pub name: Option<String>,
}

/// What hyper may use as a connection.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// Connects. The time that it may take is the endpoint's.
///
/// # Errors
/// Why there is no connection.
pub async fn connect(endpoint: Endpoint, tls: Option<Secured>) -> Result<Channel, DialError> {
    let connector = service_fn(move |uri: Uri| {
        let tls = tls.clone();
        async move { open(&uri, tls).await.map(TokioIo::new) }
    });
    endpoint.connect_with_connector(connector).await.map_err(|error| cause(&error))
}

/// A connection to the host and port of an address, plain or TLS, for a protocol in which this side speaks first. The time
/// that it may take is the caller's.
///
/// # Errors
/// Why there is no connection.
pub async fn stream(uri: &Uri, tls: Option<Secured>) -> Result<Box<dyn Io>, DialError> {
    let io = reach(uri, tls.is_some()).await?;
    match tls {
        None => Ok(Box::new(io)),
        Some(tls) => Ok(Box::new(shake(io, host(uri), tls).await?.0)),
    }
}

async fn open(uri: &Uri, tls: Option<Secured>) -> Result<Box<dyn Io>, DialError> {
    let io = reach(uri, tls.is_some()).await?;
    let Some(tls) = tls else { return Ok(Box::new(io)) };
    let (mut stream, name) = shake(io, host(uri), tls).await?;
    // In TLS 1.3 the refusal of our certificate comes after the handshake; in HTTP/2 the service's settings do.
    match timeout(FIRST_WORD, stream.fill_buf()).await {
        Ok(Ok([])) => Err(DialError::Tls("it closed the connection after the handshake".to_owned())),
        Ok(Ok(_)) | Err(_) => Ok(Box::new(stream)),
        Ok(Err(error)) => Err(DialError::Tls(in_words(&error, Some(&name)))),
    }
}

fn host(uri: &Uri) -> &str {
    let host = uri.host().unwrap_or_default();
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

async fn reach(uri: &Uri, tls: bool) -> Result<TcpStream, DialError> {
    let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
    let io = TcpStream::connect((host(uri), port)).await.map_err(DialError::Connect)?;
    io.set_nodelay(true).map_err(DialError::Connect)?;
    Ok(io)
}

/// TLS on a connection, and the name that the certificate had to have.
async fn shake(io: TcpStream, host: &str, tls: Secured) -> Result<(TlsStream<TcpStream>, String), DialError> {
    let Secured { config, name } = tls;
    let name = name.unwrap_or_else(|| host.to_owned());
    let expected = ServerName::try_from(name.clone()).map_err(|_| DialError::Name(name.clone()))?;
    let failed = |error: io::Error| DialError::Tls(in_words(&error, Some(&name)));
    let stream = TlsConnector::from(config).connect(expected, io).await.map_err(failed)?;
    Ok((stream, name))
}

/// Our own error among the causes of tonic's, else the innermost of these.
fn cause(error: &(dyn std::error::Error + 'static)) -> DialError {
    let mut at = error;
    loop {
        match at.downcast_ref() {
            Some(DialError::Connect(error)) => {
                return DialError::Connect(io::Error::new(error.kind(), error.to_string()));
            }
            Some(DialError::Tls(text)) => return DialError::Tls(text.clone()),
            Some(DialError::Name(text)) => return DialError::Name(text.clone()),
            Some(DialError::Channel(text)) => return DialError::Channel(text.clone()),
            None => {}
        }
        match at.source() {
            Some(source) => at = source,
            None => return DialError::Channel(at.to_string()),
        }
    }
}

/// What went wrong in a handshake, in words for an operator. `expected`: the name that the certificate had to have.
#[must_use]
pub fn in_words(error: &io::Error, expected: Option<&str>) -> String {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let Some(error) = inner else {
        return match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
                "the connection was closed during the handshake; does the other side speak TLS?".to_owned()
            }
            _ => error.to_string(),
        };
    };
    match error {
        rustls::Error::InvalidCertificate(wrong) => of_certificate(wrong, expected),
        rustls::Error::NoCertificatesPresented => "it showed no client certificate".to_owned(),
        rustls::Error::InvalidMessage(_) => "the other side does not speak TLS".to_owned(),
        rustls::Error::AlertReceived(alert) => of_alert(*alert),
        error => error.to_string(),
    }
}

fn of_certificate(wrong: &CertificateError, expected: Option<&str>) -> String {
    match wrong {
        // A bad signature: of an authority that has the name of a known one.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "the certificate is of an unknown authority".to_owned()
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "the certificate has expired".to_owned()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "the certificate is not valid yet".to_owned()
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            format!("the certificate is for another name than {:?}", expected.unwrap_or_default())
        }
        wrong => format!("the certificate is not valid: {wrong}"),
    }
}

/// What the other side says of us.
fn of_alert(alert: AlertDescription) -> String {
    match alert {
        AlertDescription::CertificateRequired => "a client certificate is required".to_owned(),
        AlertDescription::UnknownCA | AlertDescription::DecryptError => {
            "the other side does not know the authority of the certificate it was shown".to_owned()
        }
        AlertDescription::CertificateExpired => {
            "the other side says that the certificate it was shown has expired".to_owned()
        }
        AlertDescription::BadCertificate
        | AlertDescription::CertificateUnknown
        | AlertDescription::CertificateRevoked
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::AccessDenied => {
            format!("the other side does not accept the certificate it was shown ({alert:?})")
        }
        alert => format!("the other side refuses the connection ({alert:?})"),
    }
}
