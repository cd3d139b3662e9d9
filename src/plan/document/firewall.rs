//! What firewalls are to let in: the ports of each pool that says from where. Companions are left closed.

use std::net::IpAddr;

use super::{View, in_instances, runs};
use crate::config::{FirewallSource, Pool};
use crate::plan::Port;

/// The rules of one pool.
pub(super) struct Rules<'a> {
    pub(super) pool: &'a Pool,
    /// First and last of each run of its ports.
    pub(super) runs: Vec<(Port, Port)>,
    pub(super) from: &'a [FirewallSource],
}

/// Those of every pool that has some.
pub(super) fn rules<'a>(view: &View<'a>) -> Vec<Rules<'a>> {
    let guarded = view.in_use().filter(|pool| !pool.firewall.is_empty());
    guarded
        .map(|pool| Rules {
            pool,
            runs: runs(in_instances(pool, &pool.ports).map(|(_, port)| port)),
            from: &pool.firewall,
        })
        .collect()
}

/// The network itself: some firewalls refuse an address with bits beyond its prefix.
pub(super) fn network(ip: IpAddr, prefix: u8) -> String {
    let (bits, address) = match ip {
        IpAddr::V4(ip) => (32, u128::from(ip.to_bits())),
        IpAddr::V6(ip) => (128, ip.to_bits()),
    };
    let beyond = bits - u32::from(prefix);
    let kept = address.checked_shr(beyond).unwrap_or(0);
    let kept = kept.checked_shl(beyond).unwrap_or(0);
    let network = match ip {
        IpAddr::V4(_) => u32::try_from(kept).map_or(ip, |bits| IpAddr::V4(bits.into())),
        IpAddr::V6(_) => IpAddr::V6(kept.into()),
    };
    format!("{network}/{prefix}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_has_no_bits_beyond_its_prefix() {
        let network = |ip: &str, prefix| network(ip.parse().unwrap(), prefix);
        assert_eq!(network("192.168.1.17", 24), "192.168.1.0/24");
        assert_eq!(network("192.168.1.17", 32), "192.168.1.17/32");
        assert_eq!(network("192.168.1.17", 0), "0.0.0.0/0");
        assert_eq!(network("fd00::1:2", 64), "fd00::/64");
        assert_eq!(network("fd00::1", 0), "::/0");
    }
}
