//! Every key of the configuration file: section, kind, unit, range, default and meaning, in one table.
//! The reader takes ranges and defaults from here, the example file is tested against it, and docs/reference/configuration.md
//! is made of it (tests/reference.rs). Only data.

/// A part of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Section {
    /// Above the first header.
    Top,
    /// `[pool_mode]`
    PoolMode,
    /// `[load_balancer]`
    LoadBalancer,
    /// `[health]`
    Health,
    /// `[topology]`
    Topology,
    /// `[limits]`
    Limits,
    /// `[auth]`
    Auth,
    /// `[[hba]]`
    Hba,
    /// `[console]`
    Console,
    /// `[control_plane]`
    ControlPlane,
    /// `[management]`
    Management,
    /// `[[management.tokens]]`
    Tokens,
    /// `[discovery]`
    Discovery,
    /// `[store]`
    Store,
    /// `[switchover]`
    Switchover,
    /// `[cache]`
    Cache,
    /// `[[cache.tables]]`
    CacheTables,
    /// `[tracing]`
    Tracing,
    /// `[client_tls]`
    ClientTls,
    /// `[server_tls]`
    ServerTls,
    /// `[[users]]`
    Users,
    /// `[[databases]]`
    Databases,
    /// `[[nodes]]`
    Nodes,
}

/// What a value may be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// Any text that is not empty.
    Text,
    /// A list of texts that are not empty.
    Texts,
    /// Like `Text`, never shown.
    Secret,
    /// `host:port`
    Address,
    /// `true` or `false`.
    Flag,
    /// One of these words.
    Word(&'static [&'static str]),
    /// A whole number: unit, least, most.
    Whole(&'static str, u64, u64),
    /// A number of seconds, fractions allowed: least (in milliseconds); the most is a year.
    Seconds(u64),
}

/// What holds when a key is absent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fallback {
    /// It must be given.
    Required,
    /// Nothing; the meaning says what that does.
    Absent,
    /// This text or word.
    Text(&'static str),
    /// This number (of seconds, for durations).
    Number(u64),
    /// This flag.
    Flag(bool),
}

/// When a changed value holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InForce {
    /// From the next reload, or `heliosctl config apply`, on: it belongs to the configuration that a fleet shares.
    AtOnce,
    /// From the next start on: it belongs to the one process whose file it is.
    AtRestart,
}

/// One key of the file.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// Where it stands.
    pub section: Section,
    /// Its name.
    pub name: &'static str,
    /// What its value may be.
    pub kind: Kind,
    /// What holds when it is absent.
    pub default: Fallback,
    /// What it does, in one line.
    pub meaning: &'static str,
}

use Fallback::{Absent, Number, Required};
use Kind::{Address, Flag, Seconds, Secret, Text, Texts, Whole, Word};

macro_rules! keys {
    ($($section:ident { $($name:ident: $kind:expr, $default:expr, $meaning:literal;)+ })+) => {
        /// Every key, in the order of the example file.
        pub const KEYS: &[Key] = &[$($(Key {
            section: Section::$section,
            name: stringify!($name),
            kind: $kind,
            default: $default,
            meaning: $meaning,
        }),+),+];
    };
}

const ANY: u64 = 1_000_000;
const POOL_MODES: Kind = Word(&["session", "transaction", "statement"]);
const TLS_MODES: Kind = Word(&["disable", "prefer", "require", "verify-ca", "verify-full"]);
const ACCESS: Kind = Word(&["viewer", "operator", "admin", "dataplane"]);
const STRATEGIES: Kind =
    Word(&["round_robin", "weighted_round_robin", "least_connections", "latency_based", "random"]);

keys! {
    Top {
        listen_address: Address, Fallback::Text("127.0.0.1:5433"), "Where clients connect.";
        admin_address: Address, Fallback::Text("127.0.0.1:9090"), "Where /health, /metrics, /pool/stats and /nodes are served.";
        workers: Whole("threads", 0, 1024), Number(0), "Most worker threads; 0: one per core. As many serve as the load needs.";
        write_timeout_secs: Seconds(0), Number(30), "Longest wait of a statement for a primary when there is none.";
        shutdown_grace_secs: Seconds(0), Number(0), "At shutdown, how long new clients are still let in while /health already says 503; for load balancers that need a moment to see that.";
        shutdown_drain_timeout_secs: Seconds(0), Number(60), "At shutdown, longest wait for open transactions, behind shutdown_grace_secs.";
    }
    PoolMode {
        mode: POOL_MODES, Fallback::Text("transaction"), "When a session gives its server connection back.";
        max_pool_size: Whole("connections", 1, 10_000), Number(100), "Most server connections to one node, busy and idle together.";
        min_idle: Whole("connections", 0, 10_000), Number(0), "Idle server connections kept per node, database and user in use.";
        idle_timeout_secs: Seconds(0), Number(600), "An idle server connection is closed after this long; 0: never.";
        max_lifetime_secs: Seconds(0), Number(3600), "A server connection is closed past this age; 0: never.";
        acquire_timeout_secs: Seconds(1), Number(5), "Longest wait for a server connection.";
        reset_query: Text, Fallback::Text("DISCARD ALL"), "Run before another session gets a changed server connection.";
    }
    LoadBalancer {
        read_write_split: Flag, Fallback::Flag(false), "Send plain reads to standbys and replicas.";
        read_strategy: STRATEGIES, Fallback::Text("round_robin"), "How a read picks a node.";
        read_your_writes: Word(&["off", "time"]), Fallback::Text("off"), "Whether a session's reads stay on the primary after it wrote.";
        read_your_writes_ms: Whole("milliseconds", 1, 3_600_000), Number(1000), "How long they stay; only with read_your_writes = \"time\".";
        slow_start_secs: Seconds(0), Number(30), "A node that came back gets its share of reads gradually over this long; 0: at once.";
        max_lag_bytes: Whole("bytes", 0, u64::MAX), Number(0), "A replica further behind takes no reads; 0: no limit. Needs [health] user.";
        max_lag_ms: Whole("milliseconds", 0, 86_400_000), Number(0), "A replica further behind takes no reads; 0: no limit. Needs [health] user.";
    }
    Health {
        check_interval_secs: Seconds(100), Number(5), "Pause between two probes of a node.";
        check_timeout_secs: Seconds(10), Number(3), "Longest wait for a probe's answer.";
        failure_threshold: Whole("probes", 1, 1000), Number(3), "Failed probes in a row that make a node down.";
        success_threshold: Whole("probes", 1, 1000), Number(2), "Good probes in a row that make a node up again.";
        user: Text, Absent, "Role of the probe; without it a probe only checks that the server answers.";
        password: Secret, Absent, "Password of that role.";
        database: Text, Fallback::Text("postgres"), "Database of the probe; only with user.";
    }
    Topology {
        provider: Word(&["postgres", "patroni"]), Fallback::Text("postgres"), "Who says which node may be the primary: the nodes' own timelines, or Patroni's leader lock.";
        poll_interval_secs: Seconds(100), Number(1), "Pause between two questions to Patroni while all is well.";
        patroni_endpoints: Texts, Absent, "REST addresses of Patroni's members, such as \"http://db-1:8008\"; needed with provider = \"patroni\" and only then.";
        patroni_timeout_secs: Seconds(10), Number(2), "Longest wait for Patroni's answer.";
        patroni_ca_file: Text, Absent, "PEM file of the authorities of the members' certificates; needed with https.";
        patroni_user: Text, Absent, "User of Patroni's REST API, for heliosctl switchover; by default none.";
        patroni_password: Secret, Absent, "Password of that user.";
    }
    Limits {
        max_client_connections: Whole("connections", 0, ANY), Number(0), "Client connections in all; 0: no limit.";
        max_client_connections_per_user: Whole("connections", 0, ANY), Number(0), "Client connections of one user; 0: no limit.";
        max_client_connections_per_database: Whole("connections", 0, ANY), Number(0), "Client connections to one database; 0: no limit.";
        max_client_connections_per_address: Whole("connections", 0, ANY), Number(0), "Client connections from one IP address; 0: no limit.";
        query_timeout_secs: Seconds(0), Number(0), "Longest run of a statement; 0: no limit.";
        idle_in_transaction_timeout_secs: Seconds(0), Number(0), "Longest pause inside a transaction; 0: no limit.";
        client_idle_timeout_secs: Seconds(0), Number(0), "Longest pause outside a transaction; 0: no limit.";
        login_timeout_secs: Seconds(1), Number(15), "Longest login.";
        failed_login_delay_secs: Seconds(0), Number(1), "Longest pause before a wrong password is answered; it begins with 0.1 s at the fourth failure of a role from one address, and doubles; 0: none.";
        max_replication_connections: Whole("connections", 0, ANY), Number(10), "Connections of the replication protocol, which go through to the primary beside the pools; 0: none.";
    }
    Auth {
        mode: Word(&["auto"]), Fallback::Text("auto"), "How clients prove who they are.";
        allow_backend_trust: Flag, Fallback::Flag(false), "Let remote clients use a role for which PostgreSQL asks no credential.";
        proof_ttl_secs: Seconds(0), Number(60), "A login proved longer ago is checked on the backend again; 0: every login.";
        auth_query: Text, Absent, "Statement that gives name and verifier of the role $1, for roles that [[users]] does not have.";
        auth_user: Text, Absent, "Role that runs auth_query.";
        auth_password: Secret, Absent, "Its password.";
        auth_database: Text, Fallback::Text("postgres"), "Database where auth_query runs.";
    }
    Hba {
        users: Texts, Absent, "Roles; without it all.";
        databases: Texts, Absent, "Databases; without it all.";
        address: Text, Absent, "Addresses of clients, such as 10.0.0.0/8; without it all.";
        tls: Flag, Fallback::Flag(false), "Only connections with TLS.";
        method: Word(&["auto", "cert", "reject"]), Required, "auto: as [auth] says; cert: a certificate for the role is proof enough; reject: no.";
    }
    Console {
        admin_users: Texts, Absent, "Roles that may look and change on the admin console, the virtual databases pgbouncer and helios.";
        stats_users: Texts, Absent, "Roles that may look only.";
    }
    ControlPlane {
        endpoints: Texts, Required, "Addresses of the control plane; the data plane takes its configuration from the first that answers.";
        cluster: Text, Fallback::Text("helios"), "Name of the fleet; must be that of [discovery] there.";
        token: Secret, Absent, "Token with the role dataplane.";
        name: Text, Absent, "Unique name of this data plane; by default host name and port.";
        state_dir: Text, Absent, "Directory for the last good snapshot; without it nothing is kept over a restart.";
        tls_ca_file: Text, Absent, "PEM file of the authorities of the control plane's certificate; turns TLS on.";
        tls_cert_file: Text, Absent, "PEM file of this data plane's own certificate, where one is asked for.";
        tls_key_file: Text, Absent, "PEM file of its private key.";
        tls_server_name: Text, Absent, "Name in the control plane's certificate; by default the host of the endpoint.";
        peer_listen_address: Address, Absent, "Where other data planes hand over cancel requests; without it none are received or forwarded.";
        peer_advertise_address: Text, Absent, "That address as other data planes reach it; by default peer_listen_address.";
        peer_server_name: Text, Absent, "Name in the other data planes' certificates; by default the host of their address.";
    }
    Management {
        enabled: Flag, Fallback::Flag(true), "Serve heliosctl.";
        listen_address: Address, Fallback::Text("127.0.0.1:9091"), "Where heliosctl connects.";
        tls_cert_file: Text, Absent, "PEM file of the service's certificate and those between it and its authority; turns TLS on.";
        tls_key_file: Text, Absent, "PEM file of its private key.";
        tls_client_ca_file: Text, Absent, "PEM file of the authorities of client certificates; every client needs one then.";
    }
    Tokens {
        name: Text, Required, "Unique name, as the audit log shows it.";
        role: ACCESS, Required, "viewer reads, operator drains and pauses, admin configures; dataplane is for data planes.";
        token: Secret, Absent, "The token, at least 16 characters; or sha256, or certificate.";
        sha256: Text, Absent, "Its SHA-256 in 64 hexadecimal digits.";
        certificate: Text, Absent, "Instead of a token: common name or DNS name in the client's certificate.";
    }
    Discovery {
        listen_address: Address, Fallback::Text("127.0.0.1:9092"), "Where data planes connect to helios-controlplane.";
        cluster: Text, Fallback::Text("helios"), "Name of the fleet.";
        tls_cert_file: Text, Absent, "PEM file of the service's certificate and those between it and its authority; turns TLS on.";
        tls_key_file: Text, Absent, "PEM file of its private key.";
        tls_client_ca_file: Text, Absent, "PEM file of the authorities of client certificates; every client needs one then.";
    }
    Store {
        kind: Word(&["embedded", "etcd"]), Fallback::Text("embedded"), "How the configuration is kept: as files in a directory, or in etcd for several control planes.";
        directory: Text, Absent, "The directory, made if it is not there; needed with kind = \"embedded\" and only then.";
        endpoints: Texts, Absent, "Addresses of the members of etcd, such as \"http://etcd-1:2379\"; needed with kind = \"etcd\" and only then.";
        prefix: Text, Fallback::Text("/helios"), "What every key in etcd starts with; the name of the fleet follows.";
        user: Text, Absent, "User of etcd; by default none.";
        password: Secret, Absent, "Password of that user.";
    }
    Switchover {
        driver: Word(&["sql", "exec", "manual", "patroni"]), Absent, "Who promotes: pg_promote(), promote_command, an operator, or Patroni; by default Patroni where it is the provider, else pg_promote().";
        user: Text, Absent, "Role that may promote and fence; by default that of [health].";
        password: Secret, Absent, "Password of that role.";
        stop_command: Text, Absent, "Stops the old primary; without it the old primary is made read-only by SQL.";
        promote_command: Text, Absent, "Promotes the new one; with driver = \"exec\".";
        rejoin_command: Text, Absent, "Makes the old primary a standby of the new one, afterwards.";
        drain_timeout_secs: Seconds(100), Number(10), "Longest wait for open transactions; past it everything stays as it was.";
        promote_timeout_secs: Seconds(100), Number(30), "Longest wait for each step of PostgreSQL or of a command.";
    }
    Cache {
        enabled: Flag, Fallback::Flag(false), "Keep answers of plain reads; needs a build with feature distribcache.";
        max_bytes: Whole("bytes", 65_536, 1_099_511_627_776), Number(67_108_864), "Most bytes of answers kept in this process.";
        max_entry_bytes: Whole("bytes", 64, 67_108_864), Number(1_048_576), "Longest answer that is kept.";
        ttl_secs: Seconds(1), Number(60), "Longest life of an answer; writes that no proxy sees show after this time at the latest.";
        redis_url: Secret, Absent, "redis://[[user]:password@]host[:port][/number]: data planes share answers and tell each other of writes; while it is away nothing is answered from the cache.";
        invalidation: Word(&["proxy", "logical"]), Fallback::Text("proxy"), "Which writes make answers bad at once: those through a proxy, or also those that the primary's logical replication stream tells of.";
        replication_user: Text, Absent, "Role that follows the stream, with LOGIN and REPLICATION; needed with invalidation = \"logical\".";
        replication_password: Secret, Absent, "Password of that role.";
        publication: Text, Fallback::Text("heliosproxy"), "Publication that the stream tells of, one in each database; only tables in it are kept with invalidation = \"logical\".";
        namespace: Text, Fallback::Text("helios"), "What the names in Redis begin with; another one for each PostgreSQL cluster.";
    }
    CacheTables {
        name: Text, Required, "Name of a table, without its schema.";
        ttl_secs: Seconds(0), Required, "Longest life of answers from this table; 0: they are not kept.";
    }
    Tracing {
        otlp_endpoint: Text, Absent, "http://host:port of an OpenTelemetry collector, which gets spans of statements (OTLP over gRPC); without it there are none.";
        sample_one_in: Whole("statements", 1, 1_000_000), Number(100), "One statement in so many is traced; one whose comment has a traceparent, as its flag says.";
        service_name: Text, Fallback::Text("heliosproxy"), "Name of the service in traces.";
    }
    ClientTls {
        mode: TLS_MODES, Fallback::Text("prefer"), "What clients must do: disable, prefer, require, verify-ca or verify-full, as sslmode of libpq.";
        tls_cert_file: Text, Absent, "PEM file of the proxy's certificate and those between it and its authority; by default a self-signed one in memory.";
        tls_key_file: Text, Absent, "PEM file of its private key.";
        tls_client_ca_file: Text, Absent, "PEM file of the authorities of client certificates; needed with verify-ca and verify-full, where every client shows one.";
    }
    ServerTls {
        mode: TLS_MODES, Fallback::Text("prefer"), "What servers must do: disable, prefer, require, verify-ca or verify-full, as sslmode of libpq.";
        tls_ca_file: Text, Absent, "PEM file of the authorities of the servers' certificates; needed with verify-ca and verify-full.";
        tls_cert_file: Text, Absent, "PEM file of the certificate that servers are shown where they ask for one.";
        tls_key_file: Text, Absent, "PEM file of its private key.";
    }
    Users {
        name: Text, Required, "Role name.";
        password: Secret, Absent, "Its password in clear text; not with scram_verifier.";
        scram_verifier: Secret, Absent, "Its verifier as in pg_authid; not with password.";
        mode: POOL_MODES, Absent, "Instead of [pool_mode] mode.";
        pool_size: Whole("connections", 1, 10_000), Absent, "Most server connections of this user to one node.";
        query_timeout_secs: Seconds(0), Absent, "Instead of [limits]; 0: no limit.";
        idle_in_transaction_timeout_secs: Seconds(0), Absent, "Instead of [limits]; 0: no limit.";
    }
    Databases {
        name: Text, Required, "Database name.";
        mode: POOL_MODES, Absent, "Instead of [pool_mode] mode.";
        pool_size: Whole("connections", 1, 10_000), Absent, "Most server connections to one node for this database.";
        query_timeout_secs: Seconds(0), Absent, "Instead of [limits]; 0: no limit.";
        idle_in_transaction_timeout_secs: Seconds(0), Absent, "Instead of [limits]; 0: no limit.";
    }
    Nodes {
        name: Text, Absent, "Unique name for metrics and logs; else derived from the role.";
        host: Text, Required, "Host name or IP address.";
        port: Whole("a TCP port", 1, 65_535), Number(5432), "TCP port.";
        role: Word(&["primary", "standby", "replica"]), Required, "primary, standby (may be promoted) or replica (never promoted).";
        weight: Whole("shares", 0, 10_000), Number(100), "Share of reads; 0: none while other nodes can.";
        max_connections: Whole("connections", 0, 1_000_000), Number(0), "Most server connections of all data planes together; 0: each has max_pool_size.";
    }
}

/// Keys above the first header that belong to one process.
const TOP_OF_PROCESS: &[&str] =
    &["listen_address", "admin_address", "workers", "shutdown_grace_secs", "shutdown_drain_timeout_secs"];

/// Sections that later versions will have.
pub(super) const LATER_SECTIONS: &[&str] = &["mirror"];

/// Words that later versions will know.
pub(super) const LATER_WORDS: &[(Section, &str, &str)] =
    &[(Section::LoadBalancer, "read_your_writes", "lsn")];

impl Section {
    /// Every section but the top.
    pub const NAMED: &'static [Self] = &[
        Self::PoolMode,
        Self::LoadBalancer,
        Self::Health,
        Self::Topology,
        Self::Limits,
        Self::Auth,
        Self::Hba,
        Self::Console,
        Self::ControlPlane,
        Self::Management,
        Self::Tokens,
        Self::Discovery,
        Self::Store,
        Self::Switchover,
        Self::Cache,
        Self::CacheTables,
        Self::Tracing,
        Self::ClientTls,
        Self::ServerTls,
        Self::Users,
        Self::Databases,
        Self::Nodes,
    ];

    /// The name in the header; empty for the top.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Top => "",
            Self::PoolMode => "pool_mode",
            Self::LoadBalancer => "load_balancer",
            Self::Health => "health",
            Self::Topology => "topology",
            Self::Limits => "limits",
            Self::Auth => "auth",
            Self::Hba => "hba",
            Self::Console => "console",
            Self::ControlPlane => "control_plane",
            Self::Management => "management",
            Self::Tokens => "management.tokens",
            Self::Discovery => "discovery",
            Self::Store => "store",
            Self::Switchover => "switchover",
            Self::Cache => "cache",
            Self::CacheTables => "cache.tables",
            Self::Tracing => "tracing",
            Self::ClientTls => "client_tls",
            Self::ServerTls => "server_tls",
            Self::Users => "users",
            Self::Databases => "databases",
            Self::Nodes => "nodes",
        }
    }

    /// Whether the section may stand in the file more than once, as `[[name]]`.
    #[must_use]
    pub const fn repeats(self) -> bool {
        matches!(
            self,
            Self::Hba | Self::Tokens | Self::CacheTables | Self::Users | Self::Databases | Self::Nodes
        )
    }

    /// Whether a name in this section is a section of its own, as `tokens` in `[management]`.
    #[must_use]
    pub fn holds(self, name: &str) -> bool {
        let inside = |section: &Self| {
            section.name().strip_prefix(self.name()).and_then(|rest| rest.strip_prefix('.')) == Some(name)
        };
        self != Self::Top && Self::NAMED.iter().any(inside)
    }

    /// What the section is for, in a sentence or two.
    #[must_use]
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Top => "Above the first header.",
            Self::PoolMode => "How sessions share server connections.",
            Self::LoadBalancer => "Where reads go.",
            Self::Health => "How nodes are probed.",
            Self::Topology => "Who says which node is the primary.",
            Self::Limits => "Limits of clients and of their statements.",
            Self::Auth => "How a client proves who it is.",
            Self::Hba => {
                "Who may try to log in; the first rule that fits decides, without any rule everybody may."
            }
            Self::Console => {
                "The admin console on the virtual databases pgbouncer and helios; without anybody there is none."
            }
            Self::ControlPlane => "For a data plane of a fleet: where it takes its configuration from.",
            Self::Management => {
                "The service for heliosctl, in a standalone proxy and in helios-controlplane."
            }
            Self::Tokens => "Who may use that service, and as what.",
            Self::Discovery => "The service for data planes, in helios-controlplane.",
            Self::Store => "Where the configuration, its history and the audit log are kept.",
            Self::Switchover => "How heliosctl switchover is carried out.",
            Self::Cache => "Answers of plain reads, kept until something that they depend on is written.",
            Self::CacheTables => "Other lives for answers from a table.",
            Self::Tracing => "Spans of statements for an OpenTelemetry collector.",
            Self::ClientTls => "TLS towards clients.",
            Self::ServerTls => "TLS towards PostgreSQL.",
            Self::Users => {
                "Roles that the proxy can check by itself, or that get something else than the general settings."
            }
            Self::Databases => {
                "Databases that get something else than the general settings; those of a user win."
            }
            Self::Nodes => {
                "The PostgreSQL servers: at least one, at most one of them with role = \"primary\"."
            }
        }
    }

    /// Whether the section belongs to one process, not to the configuration that a fleet shares; of the top, some keys do.
    #[must_use]
    pub const fn is_of_process(self) -> bool {
        match self {
            Self::ControlPlane
            | Self::Management
            | Self::Tokens
            | Self::Discovery
            | Self::Store
            | Self::Switchover
            | Self::Cache
            | Self::CacheTables
            | Self::Tracing
            | Self::ClientTls
            | Self::ServerTls => true,
            Self::Top
            | Self::PoolMode
            | Self::LoadBalancer
            | Self::Health
            | Self::Topology
            | Self::Limits
            | Self::Auth
            | Self::Hba
            | Self::Console
            | Self::Users
            | Self::Databases
            | Self::Nodes => false,
        }
    }

    /// The header as it stands in a file; "the top level" for the top.
    #[must_use]
    pub fn header(self) -> String {
        match self {
            Self::Top => "the top level".to_owned(),
            section if section.repeats() => format!("[[{}]]", section.name()),
            section => format!("[{}]", section.name()),
        }
    }

    /// The section's keys.
    pub fn keys(self) -> impl Iterator<Item = &'static Key> {
        KEYS.iter().filter(move |key| key.section == self)
    }

    /// The section's key of this name.
    #[must_use]
    pub fn key(self, name: &str) -> Option<&'static Key> {
        self.keys().find(|key| key.name == name)
    }
}

/// The names at the top of a file that belong to one process: keys, and sections with all that is in them.
pub fn of_process() -> impl Iterator<Item = &'static str> {
    let keys = Section::Top.keys().filter(|key| key.in_force() == InForce::AtRestart).map(|key| key.name);
    let sections = Section::NAMED.iter().filter(|section| section.is_of_process());
    keys.chain(sections.map(|section| section.name()).filter(|name| !name.contains('.')))
}

impl Key {
    /// When a changed value holds.
    #[must_use]
    pub fn in_force(&self) -> InForce {
        let of_process = self.section.is_of_process()
            || (self.section == Section::Top && TOP_OF_PROCESS.contains(&self.name));
        if of_process { InForce::AtRestart } else { InForce::AtOnce }
    }

    /// The default as it would stand in a file; `None` if there is none.
    #[must_use]
    pub fn default_text(&self) -> Option<String> {
        match self.default {
            Required | Absent => None,
            Fallback::Text(text) => Some(format!("{text:?}")),
            Number(number) => Some(number.to_string()),
            Fallback::Flag(flag) => Some(flag.to_string()),
        }
    }
}
