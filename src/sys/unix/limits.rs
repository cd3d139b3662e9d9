//! What this process may do, and facts about the machine that warnings are made of.

use std::ops::RangeInclusive;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Raises the number of file descriptors this process may have to the most it may allow itself,
/// and gives that number: getrlimit(2), `RLIMIT_NOFILE`.
///
/// # Errors
/// What setrlimit(2) says; the limit is then as it was.
pub(crate) fn raise_fd_limit() -> std::io::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(hard)
}

/// How many file descriptors this process may have; getrlimit(2), `RLIMIT_NOFILE`'s hard limit.
pub(crate) fn fd_limit() -> Option<u64> {
    getrlimit(Resource::RLIMIT_NOFILE)
        .ok()
        .map(|(_, hard)| hard)
}

/// Whether this process has a capability in its effective set; capabilities(7) numbers them.
pub(crate) fn has_capability(number: u8) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = effective
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0);
    bits & (1 << number) != 0
}

/// `CAP_NET_BIND_SERVICE`: bind below `ip_unprivileged_port_start`.
pub(crate) const CAP_NET_BIND_SERVICE: u8 = 10;

/// `CAP_NET_ADMIN`: steer, together with `CAP_BPF`.
pub(crate) const CAP_NET_ADMIN: u8 = 12;

/// `CAP_KILL`: signal another user's process.
pub(crate) const CAP_KILL: u8 = 5;

/// `CAP_SYS_PTRACE`: see what another user's process has open.
pub(crate) const CAP_SYS_PTRACE: u8 = 19;

/// This machine's name: gethostname(2).
pub(crate) fn hostname() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned()
}

/// The ports the kernel gives out by itself: `net.ipv4.ip_local_port_range` of ip(7).
pub(crate) fn ephemeral_ports() -> Option<RangeInclusive<u16>> {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?;
    let mut numbers = text.split_whitespace().map(str::parse::<u16>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(first)), Some(Ok(last))) => Some(first..=last),
        _ => None,
    }
}

/// The ports taken out of that range: `net.ipv4.ip_local_reserved_ports`, as written there.
pub(crate) fn reserved_ports() -> Vec<RangeInclusive<u16>> {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_reserved_ports");
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse().ok()?..=last.parse().ok()?)
    };
    text.unwrap_or_default()
        .trim()
        .split(',')
        .filter_map(range)
        .collect()
}

/// The first port that needs no capability: `net.ipv4.ip_unprivileged_port_start` of ip(7).
pub(crate) fn unprivileged_port_start() -> Option<u16> {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").ok()?;
    text.trim().parse().ok()
}
