//! A configuration as it is after every check: types which cannot be invalid.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use super::ports::PortSet;
use super::template::Template;
use crate::plan::{CompanionName, Instance, ListenAddress, PoolName, Port, Protocol};

/// Everything the files say, defaults filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// `[plan] name`, for titles.
    pub plan_name: Option<String>,
    /// `[plan] space`: the ports every pool lies in.
    pub space: Option<PortSet>,
    /// `[agent]`.
    pub agent: AgentSettings,
    /// `[access]`.
    pub access: Access,
    /// `[host.*]`, in the order written.
    pub hosts: Vec<Host>,
    /// `[category.*]`, in the order written.
    pub categories: Vec<Category>,
    /// `[range.*]`, in the order written.
    pub ranges: Vec<NumberRange>,
    /// `[pool.*]`, in the order written.
    pub pools: Vec<Pool>,
    /// What a pool has that says nothing itself.
    pub defaults: PoolDefaults,
}

/// The numbers of a pool that says none, of `[defaults]` and `[agent]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolDefaults {
    /// tcp or udp.
    pub protocol: Protocol,
    /// The distance between a port in one instance and the next, in ports.
    pub stride: u16,
    /// The highest instance there may be, at least 1.
    pub max_instances: u16,
}

/// `[agent]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentSettings {
    /// How many instances are held from the start, at least 1.
    pub instances: u16,
    /// How far `--instance auto` may go, at least `instances`; proven free of collisions.
    pub max_instances: u16,
    /// The distance between a port in one instance and the next, in ports.
    pub stride: u16,
    /// Whether a conflict at start is fatal.
    pub strict: bool,
    /// Which `[host]` this machine is; `None`: the one named like its hostname.
    pub host: Option<String>,
    /// Where metrics are served over HTTP; `None`: on the Unix socket only.
    pub metrics: Option<SocketAddr>,
}

/// `[access]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// Who may revoke, reload and see everything, besides root and the agent's own user.
    pub admin: Allow,
    /// How many leases one user's processes may have together, at least 1.
    pub leases_per_user: u16,
    /// How many of one user's processes may wait at a time.
    pub waiters_per_user: u16,
}

/// Who may do something: any user, any group or any unit listed is enough; nobody, when all are empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allow {
    /// User names or numbers.
    pub users: Vec<String>,
    /// Group names or numbers.
    pub groups: Vec<String>,
    /// System units as globs with their suffix, such as `api-server@*.service`.
    pub units: Vec<String>,
}

impl Allow {
    /// Whether it allows nobody.
    pub fn is_empty(&self) -> bool {
        self.users.is_empty() && self.groups.is_empty() && self.units.is_empty()
    }
}

/// `[host.NAME]`: a machine the plan spans.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// What pools call it.
    pub name: String,
    /// An IP address or a DNS name, as other machines reach it.
    pub address: String,
}

/// `[category.NAME]`: a group of pools in tables and documents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Category {
    /// What pools call it.
    pub name: String,
    /// The heading it is shown under.
    pub tier: Option<String>,
}

/// `[range.NAME]`: ports set aside for a purpose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NumberRange {
    /// Its name.
    pub name: String,
    /// The ports set aside.
    pub ports: PortSet,
    /// What for.
    pub purpose: Option<String>,
    /// The categories which may use it; empty: every pool may.
    pub categories: Vec<String>,
    /// The distance `portpool next` keeps between pools, in ports; at least 1.
    pub step: u16,
}

/// `[pool.NAME]`: the ports reserved for one service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Its name.
    pub name: PoolName,
    /// The ports of instance 1, in the order they are handed out; never empty.
    pub ports: PortSet,
    /// Further ports of the service, which go with its own.
    pub companions: Vec<Companion>,
    /// Where its sockets are bound; never empty.
    pub addresses: Vec<ListenAddress>,
    /// tcp or udp.
    pub protocol: Protocol,
    /// The listen(2) queue, in connections; 1 to 65535.
    pub backlog: u32,
    /// What clients meet while nobody holds a slot.
    pub unleased: Unleased,
    /// How long a dead holder's slot queues for its successor; zero: not at all.
    pub restart_window: Duration,
    /// The signal a fenced holder gets.
    pub on_revoke: OnRevoke,
    /// Who may take its slots; `None`: it does not say.
    pub allow: Option<Allow>,
    /// The distance between a port in one instance and the next, in ports.
    pub stride: u16,
    /// How many instances are held from the start, at least 1.
    pub instances: u16,
    /// The highest instance there may be, at least `instances`.
    pub max_instances: u16,
    /// The `[host]` it is on; `None`: on every host.
    pub host: Option<String>,
    /// Whether `diff` and reload refuse to move it.
    pub fixed: bool,
    /// Whether another program binds it, so that it is never held.
    pub external: bool,
    /// Whether it is expected to be up.
    pub state: State,
    /// Its `[category]`.
    pub category: Option<String>,
    /// What people call it.
    pub title: Option<String>,
    /// What it is.
    pub description: Option<String>,
    /// Former ports.
    pub was: PortSet,
    /// Proposed ports.
    pub planned: PortSet,
    /// The pool which is the same service run another way.
    pub alternative_to: Option<PoolName>,
    /// The container it runs in.
    pub container: Option<Container>,
    /// Who is expected to listen.
    pub served_by: Option<ServedBy>,
    /// Who may reach it through the firewall, for generated rules; empty: no rule.
    pub firewall: Vec<FirewallSource>,
    /// How to ask whether it is well.
    pub health: Option<Health>,
    /// Environment variables and their templates, in the order written.
    pub env: Vec<(String, Template)>,
    /// Shown in tables and documents.
    pub note: Option<String>,
}

impl Pool {
    /// Whether an agent holds it at all: not external, not disabled.
    pub fn is_held(&self) -> bool {
        !self.external && self.state != State::Disabled
    }

    /// Whether it is on the host of that name; a pool without `host` is on every one.
    pub fn is_on(&self, host: &str) -> bool {
        self.host.as_deref().is_none_or(|own| own == host)
    }

    /// The ports of another instance, in order; none beyond the pool's maximum.
    pub fn ports_in(&self, instance: Instance) -> impl Iterator<Item = Port> + '_ {
        let exists = instance.get() <= self.max_instances;
        self.ports
            .iter()
            .filter(move |_| exists)
            .filter_map(move |port| port.in_instance(instance, self.stride))
    }
}

/// A named port which belongs to a service beside its own, such as metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Companion {
    /// Its name.
    pub name: CompanionName,
    /// The i-th goes with the pool's i-th port; at most as many as the pool has.
    pub ports: PortSet,
}

/// What clients meet while nobody holds a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unleased {
    /// Connection refused, at once.
    Refuse,
    /// They wait in the backlog for the first holder.
    Queue,
}

/// Whether a pool is expected to be up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Its silence is a finding.
    Active,
    /// Not finished: may be silent.
    Development,
    /// Started when needed: may be silent.
    OnDemand,
    /// Switched off: not held, may be silent.
    Disabled,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Active => "active",
            Self::Development => "development",
            Self::OnDemand => "on-demand",
            Self::Disabled => "disabled",
        })
    }
}

/// What happens to a holder whose lease was revoked or taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnRevoke {
    /// It gets this signal through its pidfd.
    Signal(Signal),
    /// It is left alone.
    None,
}

impl FromStr for OnRevoke {
    type Err = UnknownSignal;

    fn from_str(text: &str) -> Result<Self, UnknownSignal> {
        match text {
            "none" => Ok(Self::None),
            signal => signal.parse().map(Self::Signal),
        }
    }
}

/// A signal a holder may be sent. Its text is `TERM`; `SIGTERM` reads too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signal(&'static str);

impl Signal {
    /// Every signal which may be asked for: those that ask a server to stop or to look again (signal(7)).
    pub const ALL: [&'static str; 8] = [
        "TERM", "INT", "HUP", "QUIT", "USR1", "USR2", "WINCH", "KILL",
    ];

    /// What a holder gets unless the pool says otherwise.
    pub const TERM: Self = Self("TERM");

    /// The name without `SIG`.
    pub fn name(self) -> &'static str {
        self.0
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.0)
    }
}

impl FromStr for Signal {
    type Err = UnknownSignal;

    fn from_str(text: &str) -> Result<Self, UnknownSignal> {
        let name = text.strip_prefix("SIG").unwrap_or(text);
        let known = Self::ALL.into_iter().find(|known| *known == name);
        known.map(Self).ok_or(UnknownSignal)
    }
}

/// The text is none of [`Signal::ALL`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownSignal;

impl fmt::Display for UnknownSignal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not one of {}", Signal::ALL.join(", "))
    }
}

impl std::error::Error for UnknownSignal {}

/// The container a pool's service runs in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// Its name on the container network.
    pub name: String,
    /// Its service in the compose file.
    pub compose: Option<String>,
    /// The port inside; `None`: the pool's first port.
    pub port: Option<Port>,
}

/// Who is expected to listen on an external pool's ports; what the audit compares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServedBy {
    /// A program of this name.
    Program(String),
    /// A system unit of this name.
    Unit(String),
    /// A container of this name.
    Container(String),
}

/// Where connections may come from, for generated firewall rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirewallSource {
    /// Anywhere.
    Any,
    /// A network, or one address with its full prefix length.
    Net {
        /// The network's address.
        ip: IpAddr,
        /// The prefix length, in bits: at most 32 for IPv4, 128 for IPv6.
        prefix: u8,
    },
}

impl fmt::Display for FirewallSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("any"),
            Self::Net { ip, prefix } => write!(f, "{ip}/{prefix}"),
        }
    }
}

impl FromStr for FirewallSource {
    type Err = BadSource;

    fn from_str(text: &str) -> Result<Self, BadSource> {
        if text == "any" {
            return Ok(Self::Any);
        }
        let (ip, prefix) = match text.split_once('/') {
            Some((ip, prefix)) => (ip, Some(prefix)),
            None => (text, None),
        };
        let ip: IpAddr = ip.parse().map_err(|_| BadSource)?;
        let bits = if ip.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.map_or(Ok(bits), str::parse).map_err(|_| BadSource)?;
        match prefix <= bits {
            true => Ok(Self::Net { ip, prefix }),
            false => Err(BadSource),
        }
    }
}

/// The text is neither `any` nor an address nor a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadSource;

impl fmt::Display for BadSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("neither `any` nor an address nor a network such as 192.168.1.0/24")
    }
}

impl std::error::Error for BadSource {}

/// How to ask a service whether it is well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// What to ask.
    pub probe: Probe,
    /// When to give up.
    pub timeout: Duration,
}

/// What a health check does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    /// GET this path and compare the status.
    Http {
        /// The path, from its `/`.
        path: String,
        /// The status of a healthy service, 100 to 599.
        expect: u16,
    },
    /// Connect.
    Tcp,
    /// Connect and shake hands.
    Tls,
}
