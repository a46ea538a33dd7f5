//! The verbs of each noun. Part of the command line; see `args`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use crate::args::Watch;

/// How long a change waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Until {
    /// Do not wait.
    None,
    /// Until every connected data plane has acknowledged it.
    Ack,
    /// Also until no server connection to the node is in use.
    Idle,
}

/// Waiting for data planes.
#[derive(Debug, Clone, Copy, Args)]
pub struct Wait {
    /// Until when to wait, no longer than --timeout
    #[arg(long, value_enum, default_value = "ack", value_name = "UNTIL", hide_possible_values = true,
          value_parser = clap::builder::EnumValueParser::<Until>::new())]
    #[arg(
        long_help = "Until when to wait, no longer than --timeout: none, ack (every data plane has acknowledged \
                       it), or idle (node drain only: also until no connection to the node is in use)"
    )]
    pub wait: Until,
}

/// Verbs of `node`.
#[derive(Debug, Subcommand)]
pub enum NodeVerb {
    /// Every node with its state
    #[command(
        after_help = "Examples:\n  heliosctl node list\n  heliosctl node list -o wide --watch\n  heliosctl node list -o name"
    )]
    List {
        /// Repeat.
        #[command(flatten)]
        watch: Watch,
    },
    /// One node, everything about it
    #[command(
        after_help = "Examples:\n  heliosctl node get replica-1\n  heliosctl node get replica-1 -o yaml"
    )]
    Get {
        /// Name of the node
        name: String,
    },
    /// Adds a node to the configuration
    #[command(
        after_help = "Examples:\n  heliosctl node add db-3:5432 --role replica\n  heliosctl node add db-4 --role standby --name west --weight 50\n  heliosctl node add db-3 --role replica --dry-run"
    )]
    Add {
        /// Its address; without a port 5432
        #[arg(value_name = "HOST[:PORT]")]
        address: String,
        /// What it may be used for
        #[arg(long, value_enum)]
        role: RoleWord,
        /// Its name; without one it is derived from the role
        #[arg(long, default_value = "", hide_default_value = true)]
        name: String,
        /// Its weight among readers
        #[arg(long)]
        weight: Option<u32>,
        /// Check only; exit code 1 if it would change something
        #[arg(long)]
        dry_run: bool,
        /// Waiting.
        #[command(flatten)]
        wait: Wait,
    },
    /// Takes a node out of the configuration
    #[command(
        after_help = "Examples:\n  heliosctl node remove replica-2 --yes\n  heliosctl node remove replica-2 --dry-run"
    )]
    Remove {
        /// Name of the node
        name: String,
        /// Also the primary, and a node whose connections are in use
        #[arg(long)]
        force: bool,
        /// Check only; exit code 1 if it would change something
        #[arg(long)]
        dry_run: bool,
        /// Do not ask
        #[arg(short, long)]
        yes: bool,
        /// Waiting.
        #[command(flatten)]
        wait: Wait,
    },
    /// No new work for a node; what runs there ends by itself
    #[command(
        after_help = "Examples:\n  heliosctl node drain replica-1\n  heliosctl node drain replica-1 --wait idle --timeout 60s"
    )]
    Drain {
        /// Name of the node
        name: String,
        /// Waiting.
        #[command(flatten)]
        wait: Wait,
    },
    /// Work for a drained node again
    #[command(after_help = "Examples:\n  heliosctl node undrain replica-1")]
    Undrain {
        /// Name of the node
        name: String,
        /// Waiting.
        #[command(flatten)]
        wait: Wait,
    },
    /// Another weight than the configured one
    #[command(
        name = "set-weight",
        after_help = "Examples:\n  heliosctl node set-weight replica-1 50\n  heliosctl node set-weight replica-1 --reset"
    )]
    SetWeight {
        /// Name of the node
        name: String,
        /// Its weight among readers, 0 to 10000
        #[arg(required_unless_present = "reset", conflicts_with = "reset")]
        weight: Option<u32>,
        /// Back to the configured weight
        #[arg(long)]
        reset: bool,
        /// Waiting.
        #[command(flatten)]
        wait: Wait,
    },
}

/// What a node may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RoleWord {
    /// Takes writes.
    Primary,
    /// Serves reads, and may be promoted.
    Standby,
    /// Serves reads, and is never promoted.
    Replica,
}

/// Which pools.
#[derive(Debug, Clone, Args)]
#[group(required = true, multiple = false)]
pub struct Pools {
    /// The pools of this node
    pub node: Option<String>,
    /// The pools of every node
    #[arg(long)]
    pub all: bool,
}

/// Verbs of `pool`.
#[derive(Debug, Subcommand)]
pub enum PoolVerb {
    /// The pool of each node in each data plane
    #[command(after_help = "Examples:\n  heliosctl pool list\n  heliosctl pool list --watch -o json")]
    List {
        /// Repeat.
        #[command(flatten)]
        watch: Watch,
    },
    /// The pools of one node
    #[command(after_help = "Examples:\n  heliosctl pool get primary")]
    Get {
        /// Name of the node
        node: String,
    },
    /// Another size instead of max_pool_size
    #[command(
        after_help = "Examples:\n  heliosctl pool resize replica-1 50\n  heliosctl pool resize replica-1 --reset"
    )]
    Resize {
        /// Name of the node
        node: String,
        /// Most connections of each data plane to the node, 1 to 10000
        #[arg(required_unless_present = "reset", conflicts_with = "reset")]
        size: Option<u32>,
        /// Back to max_pool_size
        #[arg(long)]
        reset: bool,
        /// Waiting.
        #[command(flatten)]
        wait: Wait,
    },
    /// Statements for a node wait; open transactions go on
    #[command(after_help = "Examples:\n  heliosctl pool pause primary\n  heliosctl pool pause --all")]
    Pause {
        /// Which.
        #[command(flatten)]
        pools: Pools,
        /// Waiting.
        #[command(flatten)]
        wait: Wait,
    },
    /// Statements for a paused node go on
    #[command(after_help = "Examples:\n  heliosctl pool resume primary\n  heliosctl pool resume --all")]
    Resume {
        /// Which.
        #[command(flatten)]
        pools: Pools,
        /// Waiting.
        #[command(flatten)]
        wait: Wait,
    },
    /// Server connections close as they come back, idle ones at once
    #[command(
        after_help = "Examples:\n  heliosctl pool reconnect replica-1\n  heliosctl pool reconnect --all"
    )]
    Reconnect {
        /// Which.
        #[command(flatten)]
        pools: Pools,
        /// Waiting.
        #[command(flatten)]
        wait: Wait,
    },
}

/// Verbs of `cache`.
#[derive(Debug, Subcommand)]
pub enum CacheVerb {
    /// What each data plane's cache holds, and how often it had the answer
    #[command(after_help = "Examples:\n  heliosctl cache stats\n  heliosctl cache stats -o wide --watch")]
    Stats {
        /// Repeat.
        #[command(flatten)]
        watch: Watch,
    },
    /// Throws everything away that the caches hold, also in Redis
    #[command(after_help = "Examples:\n  heliosctl cache flush\n  heliosctl cache flush --wait none")]
    Flush {
        /// Waiting.
        #[command(flatten)]
        wait: Wait,
    },
}

/// Verbs of `dataplane`.
#[derive(Debug, Subcommand)]
pub enum DataplaneVerb {
    /// Every data plane, connected or seen before
    #[command(after_help = "Examples:\n  heliosctl dataplane list\n  heliosctl dp list -o wide --watch")]
    List {
        /// Repeat.
        #[command(flatten)]
        watch: Watch,
    },
    /// One data plane, everything about it
    #[command(after_help = "Examples:\n  heliosctl dataplane get dp-1")]
    Get {
        /// Its name
        id: String,
    },
}

/// Verbs of `topology`.
#[derive(Debug, Subcommand)]
pub enum TopologyVerb {
    /// The primary, and what each node is
    #[command(after_help = "Examples:\n  heliosctl topology show\n  heliosctl topology show -o json")]
    Show,
    /// Vouches for a node as the primary, where probes cannot tell which one it is
    #[command(
        after_help = "Examples:\n  heliosctl topology accept --node standby\n  heliosctl topology accept --node standby --yes\n\nOnly while there is no primary, for instance because two nodes take writes on one timeline. Whatever the\nothers have that this one lacks is lost to clients; stop or rebuild them. Exit code 4: there is nothing to decide."
    )]
    Accept {
        /// Name of the node
        #[arg(long, value_name = "NODE")]
        node: String,
        /// Do not ask
        #[arg(short, long)]
        yes: bool,
        /// Waiting.
        #[command(flatten)]
        wait: Wait,
    },
    /// Prints each change of primary, roles and health
    #[command(after_help = "Examples:\n  heliosctl topology watch\n  heliosctl topology watch -o json")]
    Watch,
}

/// Verbs of `config`.
#[derive(Debug, Subcommand)]
pub enum ConfigVerb {
    /// Prints a configuration, secrets as dots
    #[command(after_help = "Examples:\n  heliosctl config get > fleet.toml\n  heliosctl config get 3")]
    Get {
        /// Its revision; without one, that in force
        revision: Option<u64>,
    },
    /// Checks a file here, as `heliosdb-proxy --check` does; asks nobody
    #[command(
        after_help = "Examples:\n  heliosctl config validate config.toml\n  heliosctl config validate fleet.toml --server"
    )]
    Validate {
        /// The file; - is standard input
        file: PathBuf,
        /// Let the service check it: its environment, its secrets for dots
        #[arg(long)]
        server: bool,
    },
    /// What would change if a file were applied; exit code 1 if anything would
    #[command(
        after_help = "Examples:\n  heliosctl config diff fleet.toml\n  heliosctl config diff --against 3"
    )]
    Diff {
        /// The file, - is standard input; without one, the revision in force
        #[arg(required_unless_present = "against")]
        file: Option<PathBuf>,
        /// Revision to compare with; without one, that in force
        #[arg(long, value_name = "REVISION")]
        against: Option<u64>,
    },
    /// Makes a file the configuration
    #[command(
        after_help = "Examples:\n  heliosctl config apply fleet.toml --comment \"more readers\"\n  heliosctl config apply fleet.toml --dry-run\n  heliosctl config apply fleet.toml --expect 7 --yes\n\nDots stand for the secrets in force. What operators set on nodes stays."
    )]
    Apply {
        /// The file; - is standard input
        file: PathBuf,
        /// Only if this revision is in force
        #[arg(long, value_name = "REVISION")]
        expect: Option<u64>,
        /// For the history
        #[arg(long, default_value = "", hide_default_value = true)]
        comment: String,
        /// Check only; exit code 1 if it would change something
        #[arg(long)]
        dry_run: bool,
        /// Do not ask, also if nodes go
        #[arg(short, long)]
        yes: bool,
        /// Waiting.
        #[command(flatten)]
        wait: Wait,
    },
    /// Revisions, newest first
    #[command(after_help = "Examples:\n  heliosctl config history\n  heliosctl config history --limit 100")]
    History {
        /// Most revisions
        #[arg(long, default_value_t = 20, value_name = "N")]
        limit: u32,
    },
    /// Applies an older revision as a new one
    #[command(
        after_help = "Examples:\n  heliosctl config rollback --yes\n  heliosctl config rollback 3 --yes\n  heliosctl config rollback 3 --dry-run"
    )]
    Rollback {
        /// Which; without one, the one before that in force
        revision: Option<u64>,
        /// Only if this revision is in force
        #[arg(long, value_name = "REVISION")]
        expect: Option<u64>,
        /// Check only; exit code 1 if it would change something
        #[arg(long)]
        dry_run: bool,
        /// Do not ask
        #[arg(short, long)]
        yes: bool,
        /// Waiting.
        #[command(flatten)]
        wait: Wait,
    },
}

/// Verbs of `context`.
#[derive(Debug, Subcommand)]
pub enum ContextVerb {
    /// Every context, tokens as dots
    #[command(after_help = "Examples:\n  heliosctl context list")]
    List,
    /// Makes a context the one to use
    #[command(after_help = "Examples:\n  heliosctl context use prod")]
    Use {
        /// Its name
        name: String,
    },
    /// Keeps --endpoints, --token or --token-file, --ca, --cert, --key and --server-name under a name
    #[command(
        after_help = "Examples:\n  heliosctl context set prod --endpoints https://cp-1:9091 --ca ca.pem --token-file ops.token\n  heliosctl context set laptop --endpoints http://127.0.0.1:9091"
    )]
    Set {
        /// Its name
        name: String,
    },
}
