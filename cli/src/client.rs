//! The connection: the first endpoint that answers, a token on each call, a deadline on each call. The only module that
//! opens a socket. Never prints; never shows a token.

use std::time::Duration;

use helios_proto::wire::v1::management_client::ManagementClient;
use helios_tls::dial::Secured;
use helios_tls::{DialError, connect};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};

use crate::contexts::Target;
use crate::failure::{Exit, Failure};

/// Largest reply: a configuration may have 4 MiB.
const LARGEST: usize = 8 << 20;
/// Longest wait for a connection, per endpoint.
const CONNECT: Duration = Duration::from_secs(3);
/// What a service may take on top of the wait that it was asked for.
const GRACE: Duration = Duration::from_secs(5);

/// Adds the token to each call.
#[derive(Clone)]
pub struct Bearer(Option<MetadataValue<Ascii>>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert("authorization", token.clone());
        }
        Ok(request)
    }
}

/// The generated client behind a token.
pub type Client = ManagementClient<InterceptedService<Channel, Bearer>>;

/// A management service.
pub struct Session {
    /// Its address.
    pub endpoint: String,
    /// Longest wait.
    pub timeout: Duration,
    client: Client,
}

impl Session {
    /// Connects to the first endpoint that answers.
    ///
    /// # Errors
    /// None does, or one is no address.
    pub async fn open(target: &Target, timeout: Duration) -> Result<Self, Failure> {
        let token = target.token.as_ref().map(|token| {
            let mut value = MetadataValue::try_from(format!("Bearer {}", token.expose()))
                .map_err(|_| Failure::usage("the token has characters that no token has"))?;
            value.set_sensitive(true);
            Ok(value)
        });
        let bearer = Bearer(token.transpose()?);
        let is_secure = |url: &String| url.starts_with("https://");
        let secured: Option<Secured> =
            target.endpoints.iter().any(is_secure).then(|| target.certificates.open()).transpose()?;
        let (mut tried, mut distrust) = (Vec::new(), true);
        for url in &target.endpoints {
            let endpoint = Endpoint::from_shared(url.clone()).map_err(|_| {
                Failure::usage(format!("{url:?} is no endpoint such as http://127.0.0.1:9091"))
            })?;
            let limit = CONNECT.min(timeout);
            let tls = secured.clone().filter(|_| is_secure(url));
            match tokio::time::timeout(limit, connect(endpoint.connect_timeout(limit), tls)).await {
                Ok(Ok(channel)) => {
                    let client = ManagementClient::with_interceptor(channel, bearer)
                        .max_decoding_message_size(LARGEST);
                    return Ok(Self { endpoint: url.clone(), timeout, client });
                }
                Ok(Err(error)) => {
                    distrust &= matches!(error, DialError::Tls(_));
                    tried.push(format!("{url} ({error})"));
                }
                Err(_) => {
                    distrust = false;
                    tried.push(format!("{url} (no answer in {limit:?})"));
                }
            }
        }
        Err(if distrust { distrusted(&tried) } else { unanswered(&tried) })
    }

    /// Makes one call.
    ///
    /// # Errors
    /// What the service says, or that it said nothing in time.
    pub async fn call<T>(
        &mut self,
        call: impl AsyncFnOnce(&mut Client) -> Result<Response<T>, Status>,
    ) -> Result<T, Failure> {
        self.within(self.timeout, call).await
    }

    /// Makes a change, which waits for data planes.
    ///
    /// # Errors
    /// As [`Session::call`].
    pub async fn change<T>(
        &mut self,
        call: impl AsyncFnOnce(&mut Client) -> Result<Response<T>, Status>,
    ) -> Result<T, Failure> {
        self.within(self.timeout.saturating_add(GRACE), call).await
    }

    async fn within<T>(
        &mut self,
        limit: Duration,
        call: impl AsyncFnOnce(&mut Client) -> Result<Response<T>, Status>,
    ) -> Result<T, Failure> {
        match tokio::time::timeout(limit, call(&mut self.client)).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(self.failure(&status)),
            Err(_) => Err(Failure::new(
                Exit::Unavailable,
                format!("{} does not answer in {limit:?} (see --timeout)", self.endpoint),
            )),
        }
    }

    /// What a status means here.
    #[must_use]
    pub fn failure(&self, status: &Status) -> Failure {
        Failure::of_status(status, &self.endpoint)
    }
}

fn unanswered(tried: &[String]) -> Failure {
    Failure::new(
        Exit::Unavailable,
        format!(
            "nothing answers at {}\n\
             hint: a standalone heliosdb-proxy serves operators at listen_address of [management] in its file, \
             127.0.0.1:9091 by default, unless enabled = false;\n\
             hint: a fleet's service is in helios-controlplane; give its address by --endpoints, \
             HELIOSCTL_ENDPOINTS or a context",
            tried.join(", ")
        ),
    )
}

/// Something answers, but there is no trust.
fn distrusted(tried: &[String]) -> Failure {
    Failure::new(
        Exit::Denied,
        format!(
            "no secure connection to {}\n\
             hint: --ca names the authorities of the service, --cert and --key your own certificate, --server-name the \
             name in the service's certificate if it is not the host of the endpoint; without TLS write http://",
            tried.join(", ")
        ),
    )
}
