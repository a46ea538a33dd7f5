//! The domain model: nodes, roles, settings, and the immutable [`Snapshot`] from which a data plane serves.
//! Plain values only: nothing here does input or output, and nothing holds a secret in a printable form.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A node's unique name: the file's `name`, else derived from its role (`primary`, `standby`, `replica-1`).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeName(Arc<str>);

/// What a node may be used for. As configured it is a constraint; as observed it is a fact.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Takes writes.
    Primary,
    /// Streams from the primary, serves reads, and may be promoted.
    Standby,
    /// Streams from the primary, serves reads, and is never promoted.
    Replica,
}

/// One PostgreSQL server as configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Unique name; also the `node` label of metrics and log lines.
    pub name: NodeName,
    /// Host name or IP address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Configured role.
    pub role: Role,
    /// Share of reads relative to the other nodes, 0 to 10,000; 0 takes no reads while others can.
    pub weight: u32,
    /// Most server connections of all data planes together; `None`: each has its `max_pool_size`.
    pub max_connections: Option<u32>,
}

/// What the health checks say about a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// Not probed yet: usable, in hope.
    Unknown,
    /// Passed its last checks.
    Up,
    /// Failed `failure_threshold` checks in a row.
    Down,
}

/// What operators have set on a node, apart from its configuration. Survives a new configuration.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NodeOps {
    /// The node gets no new work; what runs there ends by itself.
    pub drained: bool,
    /// Instead of the configured weight.
    pub weight: Option<u32>,
    /// Statements for this node wait.
    pub paused: bool,
    /// Instead of `max_pool_size`, on this node.
    pub pool_size: Option<u32>,
    /// Grows with each order to reconnect: connections from before close as they come back.
    pub reconnect: u64,
    /// The node is about to hand its part over. Data planes see it as [`Snapshot::hold`].
    pub hold: Option<HoldOrder>,
    /// An operator vouches for the node as the primary.
    pub accepted: Option<Acceptance>,
}

/// An operator's word that a node is the primary, where probes could not tell. It holds for the topology that it was given
/// for, and the one that it led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Acceptance {
    /// Incarnation and highest timeline when it was given.
    pub from: (u32, u32),
    /// Incarnation and timeline that it leads to; the timeline is what the node showed.
    pub to: (u32, u32),
    /// System identifier that the node showed.
    pub system: u64,
}

/// An order of a switchover: new work for the node waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HoldOrder {
    /// When it was given, in milliseconds since 1970: tells one order from another.
    pub given: u64,
    /// For how long at most, from when it is heard, in milliseconds.
    pub for_ms: u64,
}

/// A node inside a snapshot: configuration plus what is known about it now.
#[derive(Debug, Clone)]
pub struct NodeState {
    /// The node as configured.
    pub node: Arc<Node>,
    /// What operators have set.
    pub ops: NodeOps,
    /// Role in force: what probes or evidence showed, else the configured one.
    pub role: Role,
    /// Verdict of the health checks.
    pub health: Health,
    /// When the node last came back from [`Health::Down`]; starts its slow start. `None` if it never was down.
    pub recovered_at: Option<Instant>,
    /// Round trip of the last good probe.
    pub latency: Option<Duration>,
    /// Replay lag behind the primary in bytes of WAL; `None` when unknown (no probe credential).
    pub lag_bytes: Option<u64>,
    /// Replay lag behind the primary in time; `None` when unknown.
    pub lag: Option<Duration>,
    /// When the node was last probed, whatever the outcome.
    pub probed_at: Option<Instant>,
    /// Why the last probe failed, in words for an operator; `None` after a good one.
    pub last_error: Option<Arc<str>>,
}

impl NodeState {
    /// A node that nothing is known of beyond its configuration.
    #[must_use]
    pub fn unknown(node: Arc<Node>, ops: NodeOps) -> Self {
        Self {
            role: node.role,
            node,
            ops,
            health: Health::Unknown,
            recovered_at: None,
            latency: None,
            lag_bytes: None,
            lag: None,
            probed_at: None,
            last_error: None,
        }
    }
}

/// When a session gives its server connection back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PoolMode {
    /// At disconnect.
    Session,
    /// At the end of each transaction.
    Transaction,
    /// At the end of each statement; explicit transaction blocks are refused.
    Statement,
}

/// `[pool_mode]`: how server connections are pooled. Durations of zero in the file mean "never" and become `None`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolSettings {
    /// When a session gives its server connection back.
    pub mode: PoolMode,
    /// Most server connections (busy and idle) from this data plane to one node, all users and databases together.
    pub max_pool_size: u32,
    /// Idle server connections kept open per (node, database, user) that is in use.
    pub min_idle: u32,
    /// An idle server connection is closed after this long.
    pub idle_timeout: Option<Duration>,
    /// A server connection is closed at its first idle moment past this age (with up to 10 % jitter).
    pub max_lifetime: Option<Duration>,
    /// Longest wait for a server connection before the statement fails with 53300.
    pub acquire_timeout: Duration,
    /// Run on a server connection whose session state may have changed, before another session gets it.
    pub reset_query: String,
}

/// How a read picks one of the nodes that may serve it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ReadStrategy {
    /// Each in turn; weights ignored except 0.
    RoundRobin,
    /// In turn, in proportion to weight.
    WeightedRoundRobin,
    /// Fewest busy server connections relative to weight; ties at random.
    LeastConnections,
    /// Lowest probe round trip relative to weight.
    LatencyBased,
    /// At random, in proportion to weight.
    Random,
}

/// Whether a session's reads stay on the primary for a while after it wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadYourWrites {
    /// Reads may go to a replica at once.
    Off,
    /// Reads stay on the primary for this long after the session's last write.
    Time(Duration),
}

/// `[load_balancer]`: how statements are routed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BalancerSettings {
    /// Plain reads may leave the primary.
    pub read_write_split: bool,
    /// How a read picks a node.
    pub read_strategy: ReadStrategy,
    /// Whether a session's reads wait for its own writes.
    pub read_your_writes: ReadYourWrites,
    /// A node that came back gets its share of reads gradually over this long; zero: at once.
    pub slow_start: Duration,
    /// A replica further behind takes no reads; `None`: no limit.
    pub max_lag_bytes: Option<u64>,
    /// A replica further behind takes no reads; `None`: no limit.
    pub max_lag: Option<Duration>,
}

/// `[limits]`: bounds on clients and statements; `None` is unlimited.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Client connections of this data plane.
    pub max_clients: Option<u32>,
    /// Client connections of one user.
    pub max_clients_per_user: Option<u32>,
    /// Client connections to one database.
    pub max_clients_per_database: Option<u32>,
    /// Client connections from one IP address.
    pub max_clients_per_address: Option<u32>,
    /// Longest run of one statement, waiting for a server connection not included.
    pub query_timeout: Option<Duration>,
    /// Longest pause of a client inside a transaction.
    pub idle_in_transaction_timeout: Option<Duration>,
    /// Longest pause of a client outside a transaction.
    pub client_idle_timeout: Option<Duration>,
    /// Longest login, from accept to the first ReadyForQuery.
    pub login_timeout: Duration,
    /// Longest pause before a wrong password is answered.
    pub failed_login_delay: Duration,
    /// Connections of the replication protocol through this data plane; 0: none.
    pub max_replication: u32,
}

/// `[health]`: how nodes are probed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthSettings {
    /// Pause between two probes of a node.
    pub check_interval: Duration,
    /// Longest wait for a probe's answer.
    pub check_timeout: Duration,
    /// Failed probes in a row that make a node [`Health::Down`].
    pub failure_threshold: u32,
    /// Good probes in a row that make a node [`Health::Up`] again.
    pub success_threshold: u32,
    /// Login of the probe; `None`: the probe only checks that the server answers.
    pub credential: Option<ProbeCredential>,
    /// `[topology] provider = "patroni"`: who may be the primary is Patroni's to say; `None`: the probes' alone.
    pub patroni: Option<Arc<Patroni>>,
}

/// Where Patroni is asked who holds its leader lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Patroni {
    /// `http://host:port` or `https://host:port` of each member's REST API; never empty.
    pub endpoints: Vec<String>,
    /// Pause between two questions while all is well.
    pub interval: Duration,
    /// Longest wait for an answer.
    pub timeout: Duration,
    /// PEM file of the authorities of the members' certificates; needed with https.
    pub ca: Option<PathBuf>,
    /// User and password for what changes something; never sent to a data plane.
    pub login: Option<(String, Secret)>,
}

/// Login of the health probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeCredential {
    /// Role name.
    pub user: String,
    /// Password; `None` for `trust` and the like.
    pub password: Option<Secret>,
    /// Database to connect to.
    pub database: String,
}

/// `[auth]`: who may log in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthSettings {
    /// Let clients that are not on this machine use a role for which PostgreSQL asks no credential (`trust`).
    pub allow_backend_trust: bool,
    /// A login proved longer ago than this is checked on the backend again; zero: every login.
    pub proof_ttl: Duration,
    /// Where verifiers of roles are looked up that `[[users]]` does not have; `None`: nowhere.
    pub query: Option<AuthQuery>,
    /// `[[hba]]`: who may try, first match first; empty: everybody.
    pub hba: Vec<HbaRule>,
}

/// `[console]`: who may use the admin console. Without anybody there is none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConsoleSettings {
    /// Roles that may look and change.
    pub admins: Vec<String>,
    /// Roles that may look.
    pub viewers: Vec<String>,
}

/// What a role may do on the admin console.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConsoleAccess {
    /// Look.
    Viewer,
    /// Also change.
    Admin,
}

/// `auth_query` and what goes with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthQuery {
    /// Statement with `$1` for the role's name; its first two columns are the name and the verifier.
    pub sql: String,
    /// Role that runs it.
    pub user: String,
    /// Its password, if it needs one.
    pub password: Option<Secret>,
    /// Database where it runs.
    pub database: String,
}

/// One of `[[hba]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HbaRule {
    /// Roles; empty: all.
    pub users: Vec<String>,
    /// Databases; empty: all.
    pub databases: Vec<String>,
    /// Addresses of clients; `None`: all.
    pub address: Option<Cidr>,
    /// Only connections with TLS.
    pub tls: bool,
    /// What becomes of who matches.
    pub method: HbaMethod,
}

/// What becomes of a client that a rule of `[[hba]]` is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HbaMethod {
    /// It proves itself as `[auth]` says.
    Auto,
    /// Its verified certificate for the role is the proof.
    Cert,
    /// It is refused.
    Reject,
}

/// A network of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cidr {
    address: IpAddr,
    /// Bits that count.
    prefix: u8,
}

impl Cidr {
    /// Reads `address/bits`, or an address alone.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix.parse().ok()?)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().ok()?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.unwrap_or(most);
        // Clients are compared by their IPv4 address.
        let mapped = matches!(address, IpAddr::V6(address) if address.to_ipv4_mapped().is_some());
        (prefix <= most && !mapped).then_some(Self { address, prefix })
    }

    /// Whether an address is one of the network; an IPv4 address written as IPv6 is the IPv4 address.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let equal = |ours: u128, theirs: u128, bits: u32| {
            let unlike = bits.saturating_sub(u32::from(self.prefix));
            (ours ^ theirs).checked_shr(unlike).unwrap_or(0) == 0
        };
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(ours), IpAddr::V4(theirs)) => {
                equal(u128::from(u32::from(ours)), u128::from(u32::from(theirs)), 32)
            }
            (IpAddr::V6(ours), IpAddr::V6(theirs)) => equal(u128::from(ours), u128::from(theirs), 128),
            _ => false,
        }
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// `[[users]]`: what is known about a role, and what it gets instead of the general settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Role name.
    pub name: String,
    /// How the role proves itself; `None`: overrides only.
    pub proof: Option<UserProof>,
    /// Instead of the general settings.
    pub overrides: Overrides,
}

/// How a role of `[[users]]` proves itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UserProof {
    /// Its password in clear text.
    Password(Secret),
    /// A verifier as in `pg_authid`: `SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>`, checked for form.
    ScramVerifier(Secret),
}

/// `[[databases]]`: what a database gets instead of the general settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Database {
    /// Database name.
    pub name: String,
    /// Instead of the general settings.
    pub overrides: Overrides,
}

/// Settings of one user or database that replace the general ones; the user's win over the database's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overrides {
    /// Instead of `[pool_mode] mode`.
    pub mode: Option<PoolMode>,
    /// Most server connections to one node for this user or database; never more than `max_pool_size`.
    pub pool_size: Option<u32>,
    /// Instead of `[limits] query_timeout_secs`; `Some(None)` lifts the limit.
    pub query_timeout: Option<Option<Duration>>,
    /// Instead of `[limits] idle_in_transaction_timeout_secs`; `Some(None)` lifts the limit.
    pub idle_in_transaction_timeout: Option<Option<Duration>>,
}

/// A secret from the configuration. Never printed: `Debug` shows dots.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

/// Everything that routing, pooling and login obey, apart from the nodes. Replaced whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// `[pool_mode]`
    pub pool: PoolSettings,
    /// `[load_balancer]`
    pub balancer: BalancerSettings,
    /// `[limits]`
    pub limits: Limits,
    /// `[auth]`
    pub auth: AuthSettings,
    /// `[console]`
    pub console: ConsoleSettings,
    /// `[[users]]`
    pub users: Vec<User>,
    /// `[[databases]]`
    pub databases: Vec<Database>,
    /// Longest wait of a statement for a primary when there is none, before it fails with 57P03.
    pub write_timeout: Duration,
}

/// What the control plane is told to keep: the declarative part of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    /// Settings for the data planes.
    pub settings: Arc<Settings>,
    /// `[health]`
    pub health: HealthSettings,
    /// `[[nodes]]`, in file order.
    pub nodes: Vec<Arc<Node>>,
    /// What operators have set on nodes, by name; not part of the file.
    pub ops: BTreeMap<NodeName, NodeOps>,
    /// Revision of the configuration in the control plane's store; 0 for a file.
    pub revision: u64,
}

/// New work for a node waits, as it is about to hand its part over. Ends by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hold {
    /// The node; in practice the primary of now.
    pub node: NodeName,
    /// When it ends, whatever happens.
    pub until: Instant,
}

/// One immutable view of everything a data plane serves from. Replaced whole, and only by a higher revision.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// Grows with every published change.
    pub revision: u64,
    /// Revision of the configuration that it comes from; 0 for a file.
    pub config_revision: u64,
    /// Grows with every change of primary.
    pub epoch: u64,
    /// Highest timeline seen on a primary; 0 if none was seen.
    pub timeline: u32,
    /// Grows when the cluster is another one than before: timelines of different incarnations do not compare.
    pub incarnation: u32,
    /// System identifier of the cluster, once known.
    pub system: Option<u64>,
    /// Name of the last node that took writes, also while there is none.
    pub last_primary: Option<NodeName>,
    /// Settings in force.
    pub settings: Arc<Settings>,
    /// How nodes are probed: by the control plane, or by a data plane that lost it.
    pub health: Arc<HealthSettings>,
    /// Nodes in configuration order.
    pub nodes: Vec<NodeState>,
    /// Index into `nodes` of the node that takes writes; `None`: there is none now, writes wait.
    pub primary: Option<usize>,
    /// A switchover is on its way.
    pub hold: Option<Hold>,
    /// What is known of the authority that says who may be the primary; `None`: there is none but the probes.
    pub authority: Option<Authority>,
    /// When an operator last ordered that result caches be emptied, in milliseconds since 1970; 0: never.
    pub cache_flush: u64,
}

/// What is known of an authority outside, such as Patroni.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Authority {
    /// It answered when it was asked last.
    pub up: bool,
    /// Who may be the primary, by the authority's name for it, as heard last; `None`: nobody.
    pub holder: Option<String>,
}

/// Which topology is newer, whoever found it out: compared in the order of the fields.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct TopologyKey {
    /// Grows when the cluster is another one.
    pub incarnation: u32,
    /// Highest timeline of a primary; 0: not known.
    pub timeline: u32,
    /// Changes of primary.
    pub epoch: u64,
}

/// What a data plane saw on its connections to a node. A hint: the control plane probes before it believes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Evidence {
    /// A connection was refused, reset or timed out.
    ConnectFailed,
    /// An established connection broke or the server announced its shutdown (57P01, 57P02, 57P03).
    ConnectionLost,
    /// A new or pooled connection reported `in_hot_standby`.
    InHotStandby(bool),
}

// === impl ConsoleSettings ===

impl ConsoleSettings {
    /// Whether there is a console.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        !self.admins.is_empty() || !self.viewers.is_empty()
    }

    /// What a role may do there; `None`: nothing.
    #[must_use]
    pub fn access(&self, role: &[u8]) -> Option<ConsoleAccess> {
        let among = |names: &[String]| names.iter().any(|name| name.as_bytes() == role);
        match (among(&self.admins), among(&self.viewers)) {
            (true, _) => Some(ConsoleAccess::Admin),
            (false, true) => Some(ConsoleAccess::Viewer),
            (false, false) => None,
        }
    }
}

// === impl NodeName ===

impl NodeName {
    /// Wraps a name that the configuration check has accepted.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self(name.into())
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

// === impl Secret ===

impl Secret {
    /// Wraps a secret.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// The secret itself; the caller must not print it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("******")
    }
}

// === impl HealthSettings ===

impl Default for HealthSettings {
    /// As a file that says nothing has it.
    fn default() -> Self {
        Self {
            check_interval: Duration::from_secs(5),
            check_timeout: Duration::from_secs(3),
            failure_threshold: 3,
            success_threshold: 2,
            credential: None,
            patroni: None,
        }
    }
}

// === words ===

macro_rules! words {
    ($type:ident: $($variant:ident = $word:literal),+ $(,)?) => {
        impl $type {
            /// Every value, in the order in which messages list them.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The one word for this value in files, metrics, logs and tools.
            #[must_use]
            pub const fn word(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }

            /// The value that a word stands for.
            #[must_use]
            pub fn from_word(word: &str) -> Option<Self> {
                match word { $($word => Some(Self::$variant),)+ _ => None }
            }
        }

        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.word())
            }
        }
    };
}

pub(crate) use words;

words!(Role: Primary = "primary", Standby = "standby", Replica = "replica");
words!(HbaMethod: Auto = "auto", Cert = "cert", Reject = "reject");
words!(Health: Unknown = "unknown", Up = "up", Down = "down");
words!(PoolMode: Session = "session", Transaction = "transaction", Statement = "statement");
words!(ReadStrategy:
    RoundRobin = "round_robin",
    WeightedRoundRobin = "weighted_round_robin",
    LeastConnections = "least_connections",
    LatencyBased = "latency_based",
    Random = "random",
);

impl NodeState {
    /// Share of reads in force.
    #[must_use]
    pub fn weight(&self) -> u32 {
        self.ops.weight.unwrap_or(self.node.weight)
    }

    /// Whether the node takes new work, as far as operators are concerned.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        !self.ops.drained
    }
}

impl Snapshot {
    /// The node that takes writes now.
    #[must_use]
    pub fn primary(&self) -> Option<&NodeState> {
        self.primary.and_then(|i| self.nodes.get(i))
    }

    /// What must never go back.
    #[must_use]
    pub const fn key(&self) -> TopologyKey {
        TopologyKey { incarnation: self.incarnation, timeline: self.timeline, epoch: self.epoch }
    }
}
