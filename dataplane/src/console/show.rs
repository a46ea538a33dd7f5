//! `SHOW`: what is asked for, in PgBouncer's columns. A column that means nothing here is 0 or NULL (docs/console.md).
//! Changes nothing.

use super::census::Census;
use super::command::{Setting, Subject};
use super::stats::Stats;
use super::table::{Cell, Column, Kind, Table, moment};
use super::{DATABASE, Desk, config};
use crate::pool::Identity;
use crate::registry::{ClientFacts, ClientKind, Seen};
use crate::server::ServerIdent;
use crate::worker::Shared;
use helios_proto::model::{Database, Overrides, PoolMode};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use Kind::{Int, Long, Text};

const CONNECTIONS: &[Column] = &[
    ("type", Text),
    ("user", Text),
    ("database", Text),
    ("state", Text),
    ("addr", Text),
    ("port", Int),
    ("local_addr", Text),
    ("local_port", Int),
    ("connect_time", Text),
    ("request_time", Text),
    ("wait", Int),
    ("wait_us", Int),
    ("close_needed", Int),
    ("ptr", Text),
    ("link", Text),
    ("remote_pid", Int),
    ("tls", Text),
    ("application_name", Text),
];

/// What `SHOW SOCKETS` adds: buffers, which belong to workers here.
const BUFFERS: &[Column] = &[
    ("recv_pos", Int),
    ("pkt_pos", Int),
    ("pkt_remain", Int),
    ("send_pos", Int),
    ("send_remain", Int),
    ("pkt_avail", Int),
    ("send_avail", Int),
];

const POOLS: &[Column] = &[
    ("database", Text),
    ("user", Text),
    ("cl_active", Int),
    ("cl_waiting", Int),
    ("cl_active_cancel_req", Int),
    ("cl_waiting_cancel_req", Int),
    ("sv_active", Int),
    ("sv_active_cancel", Int),
    ("sv_being_canceled", Int),
    ("sv_idle", Int),
    ("sv_used", Int),
    ("sv_tested", Int),
    ("sv_login", Int),
    ("maxwait", Int),
    ("maxwait_us", Int),
    ("pool_mode", Text),
];

const DATABASES: &[Column] = &[
    ("name", Text),
    ("host", Text),
    ("port", Int),
    ("database", Text),
    ("force_user", Text),
    ("pool_size", Int),
    ("min_pool_size", Int),
    ("reserve_pool", Int),
    ("pool_mode", Text),
    ("max_connections", Int),
    ("current_connections", Int),
    ("paused", Int),
    ("disabled", Int),
];

const MEM: &[Column] = &[("name", Text), ("size", Int), ("used", Int), ("free", Int), ("memtotal", Int)];
const DNS_HOSTS: &[Column] = &[("hostname", Text), ("ttl", Long), ("addrs", Text)];
const DNS_ZONES: &[Column] = &[("zonename", Text), ("serial", Long), ("count", Int)];

/// What there is to say, as the detail of a notice.
pub const HELP: &str = "
\tSHOW HELP|CONFIG|DATABASES|POOLS|CLIENTS|SERVERS|USERS|VERSION
\tSHOW SOCKETS|ACTIVE_SOCKETS|LISTS|MEM
\tSHOW DNS_HOSTS|DNS_ZONES
\tSHOW STATS|STATS_TOTALS|STATS_AVERAGES|TOTALS
\tRELOAD
\tPAUSE [<db>]
\tRESUME [<db>]
\tRECONNECT [<db>]
\tKILL <db>
\tKILL_CLIENT <ptr>";

/// The table for what is asked; `None`: there is none.
pub fn table(subject: Subject, desk: &Desk, shared: &Shared) -> Option<Table> {
    let census = || Census::take(shared);
    let stats = || Stats::take(desk, &shared.identities);
    Some(match subject {
        Subject::Help | Subject::Fds => return None,
        Subject::Config => config::table(&shared.pools.view(), desk.listen),
        Subject::Databases => databases(&census(), desk, shared),
        Subject::Pools => pools(&census()),
        Subject::Clients => Connections::of(&census(), "").clients(Table::new(CONNECTIONS)),
        Subject::Servers => Connections::of(&census(), "").servers(Table::new(CONNECTIONS)),
        Subject::Sockets => sockets(&census(), |_| true),
        Subject::ActiveSockets => sockets(&census(), |state| state != b"sv_idle"),
        Subject::Users => users(shared),
        Subject::Version => one("version", Text, version().into()),
        Subject::Lists => lists(&census(), shared),
        Subject::Mem => Table::new(MEM),
        Subject::DnsHosts => Table::new(DNS_HOSTS),
        Subject::DnsZones => Table::new(DNS_ZONES),
        Subject::Stats => stats().all(),
        Subject::StatsTotals => stats().totals(),
        Subject::StatsAverages => stats().averages(),
        Subject::Totals => stats().sums(),
        Subject::Setting(setting) => {
            let (name, value) = of_setting(setting);
            one(name, Text, value.into())
        }
    })
}

fn version() -> String {
    format!("HeliosProxy {}", env!("CARGO_PKG_VERSION"))
}

const fn of_setting(setting: Setting) -> (&'static str, &'static str) {
    match setting {
        Setting::ClientEncoding => ("client_encoding", "UTF-8"),
        Setting::DateStyle => ("datestyle", "ISO"),
        Setting::TimeZone => ("timezone", "GMT"),
        Setting::StandardStrings => ("standard_conforming_strings", "on"),
    }
}

fn one(name: &'static str, kind: Kind, cell: Cell) -> Table {
    Table { columns: vec![(name, kind)], rows: vec![vec![cell]] }
}

fn micros(rest: Duration) -> Cell {
    rest.subsec_micros().into()
}

/// The rows of clients and servers, which name each other.
struct Connections<'a> {
    census: &'a Census,
    /// What stands before each state.
    prefix: &'static str,
    /// Who holds which server connection.
    holders: BTreeMap<u64, &'a Seen>,
}

impl<'a> Connections<'a> {
    fn of(census: &'a Census, prefix: &'static str) -> Self {
        let held = census.clients.iter().filter_map(|seen| Some((seen.server.as_ref()?.id, seen)));
        Self { census, prefix, holders: held.collect() }
    }

    fn clients(&self, mut table: Table) -> Table {
        let prefix = if self.prefix.is_empty() { "" } else { "cl_" };
        for seen in &self.census.clients {
            let Some(client) = seen.handle.client() else { continue };
            let waited = seen.queued.map_or(Duration::ZERO, |at| self.since(at));
            let asked = client.since.checked_add(seen.handle.last_request()).unwrap_or(client.since);
            let state = if seen.queued.is_some() { "waiting" } else { "active" };
            let mut row = self.ends("C", client, &format!("{prefix}{state}"));
            row.extend([Cell::from(client.peer.ip().to_canonical().to_string()), client.peer.port().into()]);
            row.extend(address(client.local));
            row.extend([self.moment(client.since), self.moment(asked)]);
            row.extend([waited.as_secs().into(), micros(waited), 0u32.into()]);
            row.push(client_name(seen).into());
            row.push(seen.server.as_deref().map_or_else(String::new, server_name).into());
            row.extend([0u32.into(), client.tls.as_str().into(), application(&client.identity)]);
            table.rows.push(row);
        }
        table
    }

    fn servers(&self, mut table: Table) -> Table {
        let prefix = if self.prefix.is_empty() { "" } else { "sv_" };
        for seen in self.holders.values() {
            let (Some(client), Some(server)) = (seen.handle.client(), seen.server.as_deref()) else {
                continue;
            };
            let asked = client.since.checked_add(seen.handle.last_request()).unwrap_or(client.since);
            let state = format!("{prefix}active");
            table.rows.push(self.server(&client.identity, &state, (server, asked), client_name(seen)));
        }
        for (server, identity, since) in &self.census.idle {
            let state = format!("{prefix}idle");
            table.rows.push(self.server(identity, &state, (server, *since), String::new()));
        }
        table
    }

    fn server(
        &self,
        identity: &Identity,
        state: &str,
        (server, asked): (&ServerIdent, Instant),
        link: String,
    ) -> Vec<Cell> {
        let mut row = whose("S", identity, state);
        row.extend(address(Some(server.addr)));
        row.extend(address(server.local));
        row.extend([self.moment(server.since), self.moment(asked)]);
        row.extend([0u32.into(), 0u32.into(), 0u32.into()]);
        row.extend([Cell::from(server_name(server)), link.into(), server.pid.into()]);
        row.extend([server.tls.as_str().into(), application(identity)]);
        row
    }

    /// What both kinds begin with; the console is one database, whatever its clients call it.
    fn ends(&self, kind: &str, client: &ClientFacts, state: &str) -> Vec<Cell> {
        let mut row = whose(kind, &client.identity, state);
        if client.kind == ClientKind::Console
            && let Some(database) = row.get_mut(2)
        {
            *database = DATABASE.into();
        }
        row
    }

    fn since(&self, at: Instant) -> Duration {
        self.census.now.saturating_duration_since(at)
    }

    fn moment(&self, at: Instant) -> Cell {
        moment(self.census.at(at)).into()
    }
}

fn whose(kind: &str, identity: &Identity, state: &str) -> Vec<Cell> {
    vec![kind.into(), identity.user.as_slice().into(), identity.database.as_slice().into(), state.into()]
}

fn address(at: Option<SocketAddr>) -> [Cell; 2] {
    [at.map(|at| at.ip().to_canonical().to_string()).into(), at.map(|at| at.port()).into()]
}

/// A client's name on the console: our process id in its cancel key. No address of memory.
fn client_name(seen: &Seen) -> String {
    format!("0x{:x}", seen.handle.pid)
}

fn server_name(server: &ServerIdent) -> String {
    format!("0x{:x}", server.id)
}

fn application(identity: &Identity) -> Cell {
    let name = identity.params.iter().find(|(name, _)| name == b"application_name");
    name.map_or(&b""[..], |(_, value)| value).into()
}

fn sockets(census: &Census, wanted: impl Fn(&[u8]) -> bool) -> Table {
    let all = Connections::of(census, "both");
    let mut table = all.servers(all.clients(Table::new(CONNECTIONS)));
    table.rows.retain(|row| matches!(row.get(3), Some(Cell::Text(state)) if wanted(state)));
    table.columns.extend(BUFFERS);
    table.rows.iter_mut().for_each(|row| row.extend(BUFFERS.iter().map(|_| Cell::Number(0))));
    table
}

fn pools(census: &Census) -> Table {
    let mut table = Table::new(POOLS);
    for ((database, user), pool) in census.pools() {
        let mode = census.view.session_settings(&user, &database).mode;
        let mut row: Vec<Cell> = vec![database.as_slice().into(), user.as_slice().into()];
        row.extend([pool.active, pool.waiting, 0, 0].map(Cell::from));
        row.extend([pool.held, 0, 0, pool.idle, 0, 0, pool.others()].map(Cell::from));
        row.extend([pool.longest.as_secs().into(), micros(pool.longest), mode.word().into()]);
        table.rows.push(row);
    }
    let mut row: Vec<Cell> = vec![DATABASE.into(), DATABASE.into(), census.count(ClientKind::Console).into()];
    row.extend([0u32; 12].map(Cell::from));
    row.push(PoolMode::Statement.word().into());
    table.rows.push(row);
    table
}

fn databases(census: &Census, desk: &Desk, shared: &Shared) -> Table {
    let mut table = Table::new(DATABASES);
    let (view, kept) = (&census.view, shared.identities.kept_databases());
    let settings = view.settings();
    let node = view.snapshot.primary().or(view.snapshot.nodes.first()).map(|state| &state.node);
    let all_paused =
        !view.snapshot.nodes.is_empty() && view.snapshot.nodes.iter().all(|node| node.ops.paused);
    let configured = settings.databases.iter().map(|database| database.name.as_bytes());
    let names: BTreeSet<&[u8]> = configured.chain(kept.keys().map(Vec::as_slice)).collect();
    for name in names {
        let is = |database: &&Database| database.name.as_bytes() == name;
        let none = Overrides::default();
        let own = settings.databases.iter().find(is).map_or(&none, |database| &database.overrides);
        let state = kept.get(name);
        let paused = all_paused || state.is_some_and(|state| state.paused());
        table.rows.push(vec![
            name.into(),
            node.map(|node| node.host.as_str()).into(),
            node.map(|node| node.port).into(),
            name.into(),
            Cell::Null,
            own.pool_size.unwrap_or(settings.pool.max_pool_size).into(),
            settings.pool.min_idle.into(),
            0u32.into(),
            own.mode.map(PoolMode::word).into(),
            own.pool_size.unwrap_or(0).into(),
            state.map_or(0, |state| state.places()).into(),
            paused.into(),
            0u32.into(),
        ]);
    }
    let mut row: Vec<Cell> = vec![DATABASE.into(), Cell::Null, desk.listen.port().into()];
    row.extend([Cell::from(DATABASE), DATABASE.into(), 0u32.into(), 0u32.into(), 0u32.into()]);
    row.push(PoolMode::Statement.word().into());
    row.extend([0u32; 4].map(Cell::from));
    table.rows.push(row);
    table
}

/// Roles that the configuration knows, with their own mode.
fn known_users(shared: &Shared) -> BTreeMap<String, Option<PoolMode>> {
    let view = shared.pools.view();
    let settings = view.settings();
    let console = settings.console.admins.iter().chain(&settings.console.viewers);
    let mut users: BTreeMap<_, _> = console.map(|name| (name.clone(), None)).collect();
    users.extend(settings.users.iter().map(|user| (user.name.clone(), user.overrides.mode)));
    users
}

fn users(shared: &Shared) -> Table {
    let mut table = Table::new(&[("name", Text), ("pool_mode", Text)]);
    let rows = known_users(shared).into_iter();
    table.rows.extend(rows.map(|(name, mode)| vec![name.into(), mode.map(PoolMode::word).into()]));
    table
}

fn lists(census: &Census, shared: &Shared) -> Table {
    let mut table = Table::new(&[("list", Text), ("items", Int)]);
    let pools = census.pools();
    let servers = pools.values().fold(0u32, |sum, pool| sum.saturating_add(pool.servers()));
    let configured = census.view.settings().databases.iter().map(|d| d.name.as_bytes().to_vec());
    let databases: BTreeSet<_> = shared.identities.kept_databases().into_keys().chain(configured).collect();
    let logging_in = shared.clients.connected().saturating_sub(census.clients.len());
    let items: [(&str, Cell); 12] = [
        // The console is a database, and has a pool.
        ("databases", databases.len().saturating_add(1).into()),
        ("users", known_users(shared).len().into()),
        ("pools", pools.len().saturating_add(1).into()),
        ("free_clients", 0u32.into()),
        ("used_clients", census.clients.len().into()),
        ("login_clients", logging_in.into()),
        ("free_servers", 0u32.into()),
        ("used_servers", servers.into()),
        ("dns_names", 0u32.into()),
        ("dns_zones", 0u32.into()),
        ("dns_queries", 0u32.into()),
        ("dns_pending", 0u32.into()),
    ];
    table.rows.extend(items.map(|(list, items)| vec![list.into(), items]));
    table
}
