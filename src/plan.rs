//! Pools times instances: the slots a host's agent holds, in the order everything else shows them.
//!
//! A plan is made from a checked configuration ([`crate::config::parse`]), so two of its slots never meet
//! on one port. Everything here is arithmetic: no I/O, no clock.

#[cfg(feature = "cli")]
pub(crate) mod diff;
#[cfg(feature = "cli")]
pub(crate) mod document;
#[cfg(feature = "cli")]
pub(crate) mod edit;
#[cfg(feature = "cli")]
pub(crate) mod init;
#[cfg(feature = "cli")]
pub(crate) mod map;
mod names;
#[cfg(feature = "cli")]
pub(crate) mod next;

pub use names::{
    BadWord, CompanionName, Instance, ListenAddress, MAX_NAME, PoolName, Port, Protocol,
};

use crate::config::{Config, Pool};

/// One port of one pool of one instance: what the agent holds.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Slot {
    /// The pool it belongs to.
    pub pool: PoolName,
    /// The companion it is, such as `metrics`; `None` for one of the pool's own ports.
    pub companion: Option<CompanionName>,
    /// The instance it belongs to.
    pub instance: Instance,
    /// Which of the pool's ports, from 0 in the order written. A companion has that of the port it goes with.
    pub position: usize,
    /// The port, of this instance.
    pub port: Port,
    /// tcp or udp.
    pub protocol: Protocol,
    /// One socket each; never empty.
    pub addresses: Vec<ListenAddress>,
    /// The listen(2) queue, in connections.
    pub backlog: u32,
}

impl Slot {
    /// The name its sockets are handed out under (LISTEN_FDNAMES): `api-server`, or `api-server.metrics`.
    pub fn name(&self) -> String {
        match &self.companion {
            Some(companion) => format!("{}.{companion}", self.pool),
            None => self.pool.to_string(),
        }
    }
}

/// The slots of this host, and the pools they come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// What is held from the start: pools in the order of the configuration, then by instance, then by
    /// position, each companion directly after the slot it goes with.
    pub slots: Vec<Slot>,
    /// What is held only while somebody has claimed its instance: those of the instances beyond, up to
    /// each pool's maximum, in the same order.
    pub dormant: Vec<Slot>,
    /// Every pool of the configuration, also those which are not held here.
    pub pools: Vec<Pool>,
    host: String,
}

impl Plan {
    /// The plan of one host. `host` is what the machine is called under `[host]`.
    pub fn new(config: &Config, host: &str) -> Self {
        let mut plan = Self {
            slots: Vec::new(),
            dormant: Vec::new(),
            pools: config.pools.clone(),
            host: host.to_owned(),
        };
        plan.slots = plan
            .held_pools()
            .flat_map(|pool| Instance::up_to(pool.instances).flat_map(move |n| slots(pool, n)))
            .collect();
        let beyond = |pool: &Pool| {
            let held = usize::from(pool.instances);
            Instance::up_to(pool.max_instances).skip(held)
        };
        plan.dormant = plan
            .held_pools()
            .flat_map(|pool| beyond(pool).flat_map(move |n| slots(pool, n)))
            .collect();
        plan
    }

    /// The name this machine goes by under `[host]`.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Whether this host's agent holds the pool: not another host's, not external, not disabled.
    pub fn holds(&self, pool: &Pool) -> bool {
        pool.is_on(&self.host) && pool.is_held()
    }

    /// The pools whose slots this host's agent holds, in the order of the configuration.
    pub fn held_pools(&self) -> impl Iterator<Item = &Pool> {
        self.pools.iter().filter(|pool| self.holds(pool))
    }

    /// The pool of that name, held here or not.
    pub fn pool(&self, name: &str) -> Option<&Pool> {
        self.pools.iter().find(|pool| pool.name.as_str() == name)
    }

    /// The pool whose name is closest to a mistyped one; `None` if none is close.
    pub fn nearest_pool(&self, name: &str) -> Option<&PoolName> {
        let names = self.pools.iter().map(|pool| pool.name.as_str());
        let nearest = nearest(name, names)?;
        self.pool(nearest).map(|pool| &pool.name)
    }

    /// The slots of one pool and instance which are held from the start, in order.
    pub fn slots_of(&self, pool: &str, instance: Instance) -> impl Iterator<Item = &Slot> {
        self.slots
            .iter()
            .filter(move |slot| slot.pool.as_str() == pool && slot.instance == instance)
    }

    /// The port of a pool in an instance; `position` counts from 0. `None` for an unknown pool, a position it
    /// does not have, or an instance beyond its maximum. Pools which are not held here have ports too.
    pub fn port_of(&self, pool: &str, instance: Instance, position: usize) -> Option<Port> {
        let pool = self.pool(pool)?;
        if instance.get() > pool.max_instances {
            return None;
        }
        let port = pool.ports.get(position)?;
        port.in_instance(instance, pool.stride)
    }

    /// The slots of an instance, also of one which is not held from the start, for one pool or for all:
    /// only of pools this host holds, and none beyond a pool's maximum.
    pub fn instance_slots(&self, pool: Option<&PoolName>, instance: Instance) -> Vec<Slot> {
        self.held_pools()
            .filter(|candidate| pool.is_none_or(|name| candidate.name == *name))
            .flat_map(|pool| slots(pool, instance))
            .collect()
    }
}

/// The slots of one pool in one instance; none beyond the pool's maximum.
fn slots(pool: &Pool, instance: Instance) -> Vec<Slot> {
    if instance.get() > pool.max_instances {
        return Vec::new();
    }
    let slot = |companion, position, port: Port| {
        Some(Slot {
            pool: pool.name.clone(),
            companion,
            instance,
            position,
            port: port.in_instance(instance, pool.stride)?,
            protocol: pool.protocol,
            addresses: pool.addresses.clone(),
            backlog: pool.backlog,
        })
    };
    let mut slots = Vec::new();
    for (position, port) in pool.ports.iter().enumerate() {
        slots.extend(slot(None, position, port));
        for companion in &pool.companions {
            let port = companion.ports.get(position);
            slots.extend(port.and_then(|port| slot(Some(companion.name.clone()), position, port)));
        }
    }
    slots
}

/// The candidate closest to a mistyped word, if one is close enough to be meant: at most a third of its
/// letters wrong, or one.
pub(crate) fn nearest<'a>(
    word: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let limit = (word.chars().count() / 3).max(1);
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(word, candidate), candidate))
        .filter(|(distance, _)| *distance <= limit)
        .min()
        .map(|(_, candidate)| candidate)
}
