//! The words of a plan as types: names, ports, instances and addresses which cannot be wrong.

use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::str::FromStr;
use std::sync::Arc;

/// The longest name of a pool or a companion, in characters.
pub const MAX_NAME: usize = 64;

/// Why a text is not a name, a port, an instance or a protocol. Its text completes "it …", as in "it is empty".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadWord(&'static str);

impl fmt::Display for BadWord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for BadWord {}

/// The name of a pool: 1 to 64 of `a-z`, `0-9` and `-`, with no `-` at either end. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PoolName(Arc<str>);

/// The name of a pool's companion, such as `metrics`; the same characters as a [`PoolName`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CompanionName(Arc<str>);

impl PoolName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl CompanionName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for PoolName {
    type Err = BadWord;

    fn from_str(text: &str) -> Result<Self, BadWord> {
        check_name(text).map(|()| Self(text.into()))
    }
}

impl FromStr for CompanionName {
    type Err = BadWord;

    fn from_str(text: &str) -> Result<Self, BadWord> {
        check_name(text).map(|()| Self(text.into()))
    }
}

impl fmt::Display for PoolName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Display for CompanionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// A hyphen at an end is refused because `-a` reads as an option on a command line.
fn check_name(text: &str) -> Result<(), BadWord> {
    if text.is_empty() {
        return Err(BadWord("is empty"));
    }
    if text.len() > MAX_NAME {
        return Err(BadWord("is longer than 64 characters"));
    }
    if !text
        .bytes()
        .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
    {
        return Err(BadWord("has characters other than a-z, 0-9 and -"));
    }
    if text.starts_with('-') || text.ends_with('-') {
        return Err(BadWord("begins or ends with a hyphen"));
    }
    Ok(())
}

/// A port of the transport layer, 1 to 65535.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Port(NonZeroU16);

impl Port {
    /// The port of that number; `None` for 0, which means "any port" to the kernel.
    pub fn new(number: u16) -> Option<Self> {
        NonZeroU16::new(number).map(Self)
    }

    /// The number, 1 to 65535.
    pub fn get(self) -> u16 {
        self.0.get()
    }

    /// Where this port of instance 1 lies in another instance: port + (instance - 1) * stride.
    /// `None` beyond 65535.
    pub fn in_instance(self, instance: Instance, stride: u16) -> Option<Self> {
        let number = u32::from(self.get()) + u32::from(instance.get() - 1) * u32::from(stride);
        u16::try_from(number).ok().and_then(Self::new)
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Port {
    type Err = BadWord;

    fn from_str(text: &str) -> Result<Self, BadWord> {
        text.parse()
            .map(Self)
            .map_err(|_| BadWord("is not a port, 1 to 65535"))
    }
}

/// The number of a copy of the pools, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instance(NonZeroU16);

impl Instance {
    /// Instance 1, whose ports are the ones a configuration writes down.
    pub const FIRST: Self = Self(NonZeroU16::MIN);

    /// The instance of that number; `None` for 0.
    pub fn new(number: u16) -> Option<Self> {
        NonZeroU16::new(number).map(Self)
    }

    /// The number, from 1.
    pub fn get(self) -> u16 {
        self.0.get()
    }

    /// Instances 1 to `last`, both included.
    pub fn up_to(last: u16) -> impl Iterator<Item = Self> {
        (1..=last).filter_map(Self::new)
    }
}

impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Instance {
    type Err = BadWord;

    fn from_str(text: &str) -> Result<Self, BadWord> {
        text.parse()
            .map(Self)
            .map_err(|_| BadWord("is not an instance, 1 to 65535"))
    }
}

/// What a port speaks. Ports of different protocols never meet: 53/tcp and 53/udp are two ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// A stream: listened on, with a backlog.
    Tcp,
    /// Datagrams: bound only; there is no backlog of connections.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

impl FromStr for Protocol {
    type Err = BadWord;

    fn from_str(text: &str) -> Result<Self, BadWord> {
        match text {
            "tcp" => Ok(Self::Tcp),
            "udp" => Ok(Self::Udp),
            _ => Err(BadWord("is neither tcp nor udp")),
        }
    }
}

/// One local address a slot has a socket on. Its text is as in a URL: `127.0.0.1`, `[::1]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ListenAddress {
    /// The address; unspecified means every address of the machine.
    pub ip: IpAddr,
    /// IPV6_V6ONLY of its socket (ipv6(7)). False only for a `[::]` which serves IPv4 too.
    pub v6_only: bool,
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ip {
            IpAddr::V4(ip) => ip.fmt(f),
            IpAddr::V6(ip) => write!(f, "[{ip}]"),
        }
    }
}
