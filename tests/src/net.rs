//! A network of its own for a data plane, that can be cut without a reset being sent: a network namespace joined to the
//! host by a pair of interfaces, with one address of the host for each thing that is to be cut off by itself. Needs
//! root and Linux; where that is missing it says why. Gone when dropped, and when the test process dies.

use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::guard::Guard;

/// Where the data plane is in its network.
const INSIDE: u8 = 2;
/// No host of the network has this address.
const SILENT: u8 = 99;
/// No interface has this address: what is sent there is lost.
const NOWHERE: &str = "02:00:00:00:00:99";

/// A network.
pub struct Net {
    name: String,
    host: String,
    inner: String,
    number: u8,
    /// Hardware address of the host's side.
    mac: String,
    _guard: Guard,
}

/// Runs `ip` with these arguments, separated by spaces.
fn ip(args: &str) -> Result<String, String> {
    let output = Command::new("ip").args(args.split(' ')).output();
    let output = output.map_err(|error| format!("ip (iproute2; tools/setup installs it): {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(format!("ip {args}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}

impl Net {
    /// Makes one, with these addresses of the host in it.
    ///
    /// # Errors
    /// Why this machine has none.
    pub fn new(hosts: &[u8]) -> Result<Self, String> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let pid = std::process::id();
        let mut last = String::new();
        for _ in 0..20 {
            let count = COUNT.fetch_add(1, Ordering::Relaxed);
            let number = u8::try_from((pid.wrapping_mul(7) + count) % 250 + 1).unwrap();
            let (name, host, inner) =
                (format!("helios-{pid}-{count}"), format!("hv{number}a"), format!("hv{number}b"));
            match ip(&format!("link add {host} type veth peer name {inner}")) {
                Ok(_) => {}
                Err(why) if why.contains("exists") => {
                    last = why;
                    continue;
                }
                Err(why) => return Err(why),
            }
            let guard = Guard::new(
                "ip link del \"$1\"; ip netns del \"$2\"; rm -rf \"/etc/netns/$2\"",
                &[&host, &name],
            );
            let mut net = Self { name, host, inner, number, mac: String::new(), _guard: guard };
            return net.connect(hosts).map(|()| net);
        }
        Err(last)
    }

    fn connect(&mut self, hosts: &[u8]) -> Result<(), String> {
        let Self { name, host, inner, .. } = self;
        let (number, inside) = (self.number, self.number);
        ip(&format!("netns add {name}"))?;
        ip(&format!("link set {inner} netns {name}"))?;
        ip(&format!("addr add 10.231.{number}.1/24 dev {host}"))?;
        ip(&format!("link set {host} up"))?;
        ip(&format!("-n {name} addr add 10.231.{inside}.{INSIDE}/24 dev {inner}"))?;
        ip(&format!("-n {name} link set {inner} up"))?;
        ip(&format!("-n {name} link set lo up"))?;
        let forwarding = format!("/proc/sys/net/ipv4/conf/{host}/forwarding");
        std::fs::write(&forwarding, "0").map_err(|error| format!("{forwarding}: {error}"))?;
        let mac = format!("/sys/class/net/{host}/address");
        self.mac = std::fs::read_to_string(&mac).map_err(|e| format!("{mac}: {e}"))?.trim().to_owned();
        for host in hosts {
            self.heal(*host);
            self.unmute(*host);
        }
        Ok(())
    }

    /// An address of the host in this network.
    #[must_use]
    pub const fn at(&self, host: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 231, self.number, host)
    }

    /// Where the data plane is.
    #[must_use]
    pub const fn inside(&self) -> Ipv4Addr {
        self.at(INSIDE)
    }

    /// From now on nothing passes between this address of the host and anybody; nobody is told.
    ///
    /// # Panics
    /// When it was cut already.
    pub fn cut(&self, host: u8) {
        ip(&format!("addr del {}/32 dev {}", self.at(host), self.host)).unwrap();
    }

    /// Ends [`cut`](Self::cut).
    ///
    /// # Panics
    /// When it was not cut.
    pub fn heal(&self, host: u8) {
        ip(&format!("addr add {}/32 dev {}", self.at(host), self.host)).unwrap();
    }

    /// From now on this address of the host does not hear the data plane, which still hears it.
    ///
    /// # Panics
    /// When the system refuses.
    pub fn mute(&self, host: u8) {
        self.send_to(host, NOWHERE);
    }

    /// Ends [`mute`](Self::mute).
    ///
    /// # Panics
    /// When the system refuses.
    pub fn unmute(&self, host: u8) {
        self.send_to(host, &self.mac);
    }

    fn send_to(&self, host: u8, mac: &str) {
        let Self { name, inner, .. } = self;
        ip(&format!("-n {name} neigh replace {} lladdr {mac} dev {inner} nud permanent", self.at(host)))
            .unwrap();
    }

    /// From now on these names are found here, and nobody else is asked; `None`: who is asked does not answer. What runs
    /// inside sees it, if this was called before it was started as well.
    ///
    /// # Panics
    /// When the files cannot be written.
    pub fn names(&self, names: Option<&[(&str, Ipv4Addr)]>) {
        let directory = format!("/etc/netns/{}", self.name);
        std::fs::create_dir_all(&directory).unwrap();
        let mut hosts = "127.0.0.1 localhost\n".to_owned();
        for (name, address) in names.unwrap_or_default() {
            hosts += &format!("{address} {name}\n");
        }
        // The files are bound into the network's own /etc: they stay the same ones.
        std::fs::write(format!("{directory}/hosts"), hosts).unwrap();
        std::fs::write(format!("{directory}/nsswitch.conf"), "hosts: files dns\n").unwrap();
        // Inside, nobody listens there, and a reset says so; an address that nobody has says nothing.
        let server = if names.is_some() { "127.0.0.1".to_owned() } else { self.at(SILENT).to_string() };
        let silent = format!("nameserver {server}\noptions timeout:15 attempts:2\n");
        std::fs::write(format!("{directory}/resolv.conf"), silent).unwrap();
    }

    /// What stands before a command that is to run inside.
    #[must_use]
    pub fn prefix(&self) -> Vec<String> {
        ["ip", "netns", "exec", &self.name].map(str::to_owned).to_vec()
    }
}
