//! Who may call what: a layer in front of every service that looks at the method's path, the bearer token and the client
//! certificate, and denies whatever is not in its table. A token counts for more than a certificate: who shows both gets
//! what the token's entry says, or nothing. Leaves a [`Caller`] with the request. Never logs a token.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use helios_proto::config::{Access, Token, TokenProof};
use helios_tls::Peer;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use tonic::Status;
use tower::{Layer, Service};

/// Who called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// Name of the entry of its token or certificate; `local` for loopback without one.
    pub name: String,
    /// What it allows.
    pub access: Access,
    /// Address, if there is one.
    pub from: String,
}

/// What a method needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Need {
    /// Nothing: health checks.
    Nothing,
    /// This, or more.
    At(Access),
}

/// Every method, and what it needs. What is not here is denied.
const TABLE: &[(&str, &str, Need)] = &[
    ("helios.v1.Discovery", "Stream", Need::At(Access::Dataplane)),
    ("helios.v1.Report", "Stream", Need::At(Access::Dataplane)),
    ("helios.v1.Management", "Status", Need::At(Access::Viewer)),
    ("helios.v1.Management", "ListNodes", Need::At(Access::Viewer)),
    ("helios.v1.Management", "ListPools", Need::At(Access::Viewer)),
    ("helios.v1.Management", "ListDataplanes", Need::At(Access::Viewer)),
    ("helios.v1.Management", "ListCaches", Need::At(Access::Viewer)),
    ("helios.v1.Management", "FlushCaches", Need::At(Access::Operator)),
    ("helios.v1.Management", "GetConfig", Need::At(Access::Viewer)),
    ("helios.v1.Management", "ValidateConfig", Need::At(Access::Viewer)),
    ("helios.v1.Management", "DiffConfig", Need::At(Access::Viewer)),
    ("helios.v1.Management", "History", Need::At(Access::Viewer)),
    ("helios.v1.Management", "Explain", Need::At(Access::Viewer)),
    ("helios.v1.Management", "Events", Need::At(Access::Viewer)),
    ("helios.v1.Management", "Watch", Need::At(Access::Viewer)),
    ("helios.v1.Management", "SetNode", Need::At(Access::Operator)),
    ("helios.v1.Management", "PoolOp", Need::At(Access::Operator)),
    ("helios.v1.Management", "Switchover", Need::At(Access::Operator)),
    ("helios.v1.Management", "AcceptPrimary", Need::At(Access::Admin)),
    ("helios.v1.Management", "AddNode", Need::At(Access::Admin)),
    ("helios.v1.Management", "RemoveNode", Need::At(Access::Admin)),
    ("helios.v1.Management", "ApplyConfig", Need::At(Access::Admin)),
    ("helios.v1.Management", "Rollback", Need::At(Access::Admin)),
    ("helios.v1.Management", "Audit", Need::At(Access::Admin)),
    ("grpc.health.v1.Health", "Check", Need::Nothing),
    ("grpc.health.v1.Health", "List", Need::Nothing),
    ("grpc.health.v1.Health", "Watch", Need::Nothing),
    ("grpc.reflection.v1.ServerReflection", "ServerReflectionInfo", Need::At(Access::Viewer)),
];

/// The entries of `[[management.tokens]]`, and what holds without any.
pub struct Door {
    entries: Vec<(String, Access, Proof)>,
    open_on_loopback: bool,
}

/// How an entry knows its bearer.
enum Proof {
    /// SHA-256 of the token.
    Hash([u8; 32]),
    /// Name in the certificate.
    Certificate(String),
}

impl Door {
    /// A door for these tokens. `open_on_loopback`: without any token, callers from this machine need none.
    #[must_use]
    pub fn new(tokens: &[Token], open_on_loopback: bool) -> Arc<Self> {
        let entry = |Token { name, access, proof }: &Token| {
            let proof = match proof {
                TokenProof::Clear(secret) => Proof::Hash(Sha256::digest(secret.expose().as_bytes()).into()),
                TokenProof::Sha256(hash) => Proof::Hash(*hash),
                TokenProof::Certificate(name) => Proof::Certificate(name.clone()),
            };
            (name.clone(), *access, proof)
        };
        let entries: Vec<_> = tokens.iter().map(entry).collect();
        let open_on_loopback = open_on_loopback && entries.is_empty();
        Arc::new(Self { entries, open_on_loopback })
    }

    /// Whether a call may go on, and as whom.
    fn judge(&self, path: &str, bearer: Option<&str>, peer: &Peer) -> Result<Caller, Status> {
        let need = TABLE.iter().find(|(service, method, _)| {
            path.strip_prefix('/').and_then(|path| path.split_once('/')) == Some((*service, *method))
        });
        let Some((_, method, need)) = need else {
            return Err(Status::permission_denied("no such method is offered here"));
        };
        let from = peer.address.map(|address| address.ip().to_string()).unwrap_or_default();
        let needed = match need {
            Need::Nothing => {
                return Ok(Caller { name: "anybody".to_owned(), access: Access::Viewer, from });
            }
            Need::At(needed) => *needed,
        };
        let (name, access) = self.find(bearer, peer)?;
        if allows(access, needed) {
            return Ok(Caller { name: name.to_owned(), access, from });
        }
        Err(Status::permission_denied(format!(
            "{method} needs the role {needed}; {name:?} has the role {access}"
        )))
    }

    /// The entry of a caller.
    fn find(&self, bearer: Option<&str>, peer: &Peer) -> Result<(&str, Access), Status> {
        if let Some(bearer) = bearer {
            let hash: [u8; 32] = Sha256::digest(bearer.as_bytes()).into();
            let fits = |(_, _, proof): &&(String, Access, Proof)| match proof {
                Proof::Hash(known) => known.ct_eq(&hash).into(),
                Proof::Certificate(_) => false,
            };
            let known = self.entries.iter().find(fits).map(|(name, access, _)| (name.as_str(), *access));
            return known.ok_or_else(|| Status::unauthenticated("the token is not known"));
        }
        if self.open_on_loopback && peer.address.is_some_and(|address| address.ip().is_loopback()) {
            return Ok(("local", Access::Admin));
        }
        let fits = |(_, _, proof): &&(String, Access, Proof)| match proof {
            Proof::Hash(_) => false,
            Proof::Certificate(name) => peer.names.contains(name),
        };
        let known = self.entries.iter().find(fits).map(|(name, access, _)| (name.as_str(), *access));
        known.ok_or_else(|| match peer.names.first() {
            None => Status::unauthenticated("a token is needed"),
            Some(name) => Status::unauthenticated(format!(
                "a token is needed: no entry of [[management.tokens]] is for the certificate of {name:?}"
            )),
        })
    }
}

/// Whether a role includes another. A data plane's is apart from all others.
const fn allows(has: Access, needed: Access) -> bool {
    match (has, needed) {
        (Access::Dataplane, Access::Dataplane)
        | (Access::Admin, Access::Admin | Access::Operator | Access::Viewer)
        | (Access::Operator, Access::Operator | Access::Viewer)
        | (Access::Viewer, Access::Viewer) => true,
        (Access::Dataplane, _) | (_, Access::Dataplane) => false,
        (Access::Operator | Access::Viewer, Access::Admin) | (Access::Viewer, Access::Operator) => false,
    }
}

/// Puts the door in front of services.
#[derive(Clone)]
pub struct Guarded(pub Arc<Door>);

/// A service behind the door.
#[derive(Clone)]
pub struct Gate<S> {
    inner: S,
    door: Arc<Door>,
}

impl<S> Layer<S> for Guarded {
    type Service = Gate<S>;

    fn layer(&self, inner: S) -> Gate<S> {
        Gate { inner, door: Arc::clone(&self.0) }
    }
}

impl<S, B, R> Service<http::Request<B>> for Gate<S>
where
    S: Service<http::Request<B>, Response = http::Response<R>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    R: Default + Send + 'static,
{
    type Response = http::Response<R>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<B>) -> Self::Future {
        let peer = request.extensions().get::<Peer>().cloned().unwrap_or_default();
        let bearer = request.headers().get(http::header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let bearer = bearer.and_then(|value| value.strip_prefix("Bearer "));
        match self.door.judge(request.uri().path(), bearer, &peer) {
            Ok(caller) => {
                request.extensions_mut().insert(caller);
                Box::pin(self.inner.call(request))
            }
            Err(status) => {
                let from = peer.address.map(|address| address.to_string()).unwrap_or_default();
                tracing::warn!(%from, path = request.uri().path(), reason = status.message(), "call denied");
                Box::pin(async move { Ok(status.into_http()) })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use helios_proto::model::Secret;
    use helios_proto::wire::v1;
    use prost::Message as _;

    fn home() -> Peer {
        Peer { address: Some(([127, 0, 0, 1], 1).into()), names: Arc::default() }
    }

    fn away() -> Peer {
        Peer { address: Some(([10, 0, 0, 1], 1).into()), names: Arc::default() }
    }

    fn with_certificate(names: &[&str]) -> Peer {
        Peer { names: names.iter().map(|name| (*name).to_owned()).collect(), ..away() }
    }

    fn token(access: Access) -> Token {
        let proof = TokenProof::Clear(Secret::new(format!("token-of-{access}")));
        Token { name: access.to_string(), access, proof }
    }

    #[test]
    fn every_method_of_the_contract_is_in_the_table() {
        let set = prost_types::FileDescriptorSet::decode(v1::DESCRIPTORS).unwrap();
        // Data planes serve Peer to each other.
        let services =
            set.file.iter().flat_map(|file| &file.service).filter(|service| service.name() != "Peer");
        let methods: Vec<(String, String)> = services
            .flat_map(|service| {
                let name = format!("helios.v1.{}", service.name());
                service.method.iter().map(move |method| (name.clone(), method.name().to_owned()))
            })
            .collect();
        assert!(methods.len() > 15);
        for (service, method) in &methods {
            assert!(TABLE.iter().any(|(s, m, _)| s == service && m == method), "{service} {method}");
        }
        for (service, method, _) in TABLE.iter().filter(|(service, _, _)| service.starts_with("helios")) {
            assert!(methods.contains(&((*service).to_owned(), (*method).to_owned())), "{service} {method}");
        }
    }

    #[test]
    fn each_role_may_do_its_own_and_nothing_else() {
        use Access::{Admin, Dataplane, Operator, Viewer};
        let door = Door::new(&Access::ALL.iter().copied().map(token).collect::<Vec<_>>(), true);
        for (method, allowed) in [
            ("Management/ListNodes", &[Viewer, Operator, Admin][..]),
            ("Management/SetNode", &[Operator, Admin]),
            ("Management/ApplyConfig", &[Admin]),
            ("Management/AcceptPrimary", &[Admin]),
            ("Management/Audit", &[Admin]),
            ("Discovery/Stream", &[Dataplane]),
            ("Report/Stream", &[Dataplane]),
            ("Management/Nonsense", &[]),
        ] {
            for access in Access::ALL {
                let bearer = format!("token-of-{access}");
                let judged = door.judge(&format!("/helios.v1.{method}"), Some(&bearer), &away());
                assert_eq!(judged.is_ok(), allowed.contains(access), "{method} {access}: {judged:?}");
            }
        }
    }

    #[test]
    fn loopback_needs_no_token_only_where_there_are_none() {
        let path = "/helios.v1.Management/ApplyConfig";
        let code = |door: &Door, bearer, from: Peer| door.judge(path, bearer, &from).map_err(|s| s.code());
        let open = Door::new(&[], true);
        assert_eq!(code(&open, None, home()).unwrap().name, "local");
        assert_eq!(code(&open, None, away()), Err(tonic::Code::Unauthenticated));
        assert_eq!(code(&open, None, Peer::default()), Err(tonic::Code::Unauthenticated));
        assert_eq!(code(&open, Some("wrong"), home()), Err(tonic::Code::Unauthenticated));
        assert_eq!(code(&Door::new(&[], false), None, home()), Err(tonic::Code::Unauthenticated));
        let closed = Door::new(&[token(Access::Admin)], true);
        assert_eq!(code(&closed, None, home()), Err(tonic::Code::Unauthenticated));
        assert!(code(&closed, Some("token-of-admin"), away()).is_ok());
    }

    #[test]
    fn a_hash_stands_for_its_token() {
        let proof = TokenProof::Sha256(Sha256::digest(b"a-secret-token-x").into());
        let door = Door::new(&[Token { name: "h".to_owned(), access: Access::Viewer, proof }], false);
        let path = "/helios.v1.Management/Status";
        assert_eq!(door.judge(path, Some("a-secret-token-x"), &away()).unwrap().name, "h");
        assert!(door.judge(path, Some("a-secret-token-y"), &away()).is_err());
    }

    #[test]
    fn a_certificate_stands_for_its_entry_and_a_token_for_more() {
        let named = |name: &str, access, proof| Token { name: name.to_owned(), access, proof };
        let door = Door::new(
            &[
                named("deploy", Access::Operator, TokenProof::Certificate("deploy.internal".to_owned())),
                token(Access::Viewer),
            ],
            true,
        );
        let judge = |method: &str, bearer, names: &[&str]| {
            let path = format!("/helios.v1.Management/{method}");
            door.judge(&path, bearer, &with_certificate(names)).map(|c| c.name).map_err(|s| s.code())
        };
        let (denied, unknown) = (Err(tonic::Code::PermissionDenied), Err(tonic::Code::Unauthenticated));
        let of_viewer = Some("token-of-viewer");
        assert_eq!(judge("SetNode", None, &["x", "deploy.internal"]), Ok("deploy".to_owned()));
        assert_eq!(judge("ApplyConfig", None, &["deploy.internal"]), denied);
        assert_eq!(
            judge("Status", None, &["deploy"]),
            unknown,
            "the entry's own name is no name of a certificate"
        );
        assert_eq!(judge("Status", None, &[]), unknown);
        // Both: the token's entry decides.
        assert_eq!(judge("Status", of_viewer, &["deploy.internal"]), Ok("viewer".to_owned()));
        assert_eq!(judge("SetNode", of_viewer, &["deploy.internal"]), denied);
        assert_eq!(judge("Status", Some("wrong"), &["deploy.internal"]), unknown);
        assert_eq!(judge("Status", Some("deploy.internal"), &["deploy.internal"]), unknown);
    }

    #[test]
    fn health_is_for_everybody() {
        assert!(Door::new(&[], false).judge("/grpc.health.v1.Health/Check", None, &away()).is_ok());
    }
}
