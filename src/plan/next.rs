//! Which port is next: after the highest of a range, a category, a pool or the whole plan, and free.
//!
//! A range that is set aside is entered only by whom it is for: by its name, by a category that it lists, or
//! by a pool that is in it already. What a machine says of its ports is passed in.

mod domain;

use std::collections::HashSet;
use std::fmt;

use domain::{Domain, Marks, domains, highest_pool, pool, range};

use super::{Instance, PoolName, Port, Protocol, nearest};
use crate::config::{Config, NumberRange, PoolDefaults};

/// After whose highest port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// That of the whole plan.
    Space,
    /// That of a range.
    Range(String),
    /// That of a category.
    Category(String),
    /// That of a pool, which gets the ports.
    Pool(PoolName),
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// After whose highest port.
    pub(crate) scope: Scope,
    /// tcp or udp; `None`: as the pool, or the defaults.
    pub(crate) protocol: Option<Protocol>,
    /// How many ports, at least 1.
    pub(crate) count: u16,
    /// Whether they are to follow each other without a gap.
    pub(crate) consecutive: bool,
    /// Whether gaps below the highest port are filled.
    pub(crate) lowest: bool,
}

/// Why a machine would not give a port that no pool has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Obstacle {
    /// A socket has it.
    Bound,
    /// The kernel may give it to an outgoing connection: ip_local_port_range.
    Ephemeral,
}

/// The ports, and how they came about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Proposal {
    /// As many as were asked for, in rising order.
    pub(crate) ports: Vec<Port>,
    /// Their protocol.
    pub(crate) protocol: Protocol,
    /// The category of a pool that takes them, where one follows from what was asked.
    pub(crate) category: Option<String>,
    /// The range the first lies in.
    pub(crate) range: Option<String>,
    /// What the machine has of those that no pool has, in rising order.
    pub(crate) passed_over: Vec<(Port, Obstacle)>,
}

/// Why there is no such port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NoneLeft {
    scope: Scope,
    wanted: u16,
    lowest: bool,
    passed_over: usize,
}

impl fmt::Display for NoneLeft {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = match &self.scope {
            Scope::Space => "the plan's space".to_owned(),
            Scope::Range(name) => format!("range {name}"),
            Scope::Category(name) => format!("what category {name} may use"),
            Scope::Pool(name) => format!("what pool {name} may use"),
        };
        let gaps = if self.lowest {
            ""
        } else {
            " after its highest port"
        };
        write!(f, "{place} has no free port left{gaps}")?;
        if self.wanted > 1 {
            write!(f, ": {} were asked for", self.wanted)?;
        }
        if self.passed_over > 0 {
            write!(
                f,
                "; {} are free in the plan, but not on this machine (--plan-only does not ask it)",
                self.passed_over
            )?;
        }
        match self.lowest {
            true => f.write_str("\nwiden it, or free ports"),
            false => f.write_str("\nwiden it, or fill the gaps below: --lowest"),
        }
    }
}

impl Scope {
    /// What a word means: a range, else a category, else a pool; `range:`, `category:` and `pool:` say which.
    pub(crate) fn parse(word: &str, config: &Config) -> Result<Scope, String> {
        let is_range = |name: &str| config.ranges.iter().any(|range| range.name == name);
        let is_category = |name: &str| categories(config).any(|category| category == name);
        let pool = |name: &str| {
            let mut pools = config.pools.iter();
            pools.find(|pool| pool.name.as_str() == name)
        };
        let (kind, name) = word.split_once(':').unwrap_or(("", word));
        let any = kind.is_empty();
        if (any || kind == "range") && is_range(name) {
            return Ok(Scope::Range(name.to_owned()));
        }
        if (any || kind == "category") && is_category(name) {
            return Ok(Scope::Category(name.to_owned()));
        }
        if let Some(pool) = pool(name).filter(|_| any || kind == "pool") {
            return Ok(Scope::Pool(pool.name.clone()));
        }
        let ranges = config.ranges.iter().map(|range| range.name.as_str());
        let pools = config.pools.iter().map(|pool| pool.name.as_str());
        let near = nearest(name, ranges.chain(categories(config)).chain(pools));
        let hint = match near {
            Some(near) => format!("did you mean `{near}`?"),
            None => "see: portpool plan".to_owned(),
        };
        Err(format!(
            "there is no pool, range or category {word:?}; {hint}"
        ))
    }
}

/// Every category there is: declared, listed by a range, or a pool's.
fn categories(config: &Config) -> impl Iterator<Item = &str> {
    let declared = config
        .categories
        .iter()
        .map(|category| category.name.as_str());
    let listed = config.ranges.iter().flat_map(|range| &range.categories);
    let pools = config
        .pools
        .iter()
        .filter_map(|pool| pool.category.as_deref());
    declared.chain(listed.map(String::as_str)).chain(pools)
}

/// Finds the ports. `obstacle` is asked only about ports that the plan leaves free.
pub(crate) fn next(
    config: &Config,
    wanted: &Wanted,
    obstacle: impl Fn(Protocol, Port) -> Option<Obstacle>,
) -> Result<Proposal, NoneLeft> {
    let mut search = Search::new(config, wanted, obstacle);
    let count = usize::from(wanted.count);
    let mut found = Vec::new();
    let mut range = None;
    for domain in domains(config, &wanted.scope, search.category.as_deref()) {
        for first in domain.candidates(wanted.lowest) {
            let run = match wanted.consecutive {
                true => search.run(&domain, first, wanted.count),
                false => search.run(&domain, first, 1),
            };
            if run.is_empty() {
                continue;
            }
            range = range.or_else(|| range_at(config, first));
            found.extend(run);
            if found.len() >= count {
                return Ok(Proposal {
                    ports: found,
                    protocol: search.protocol,
                    category: search.category,
                    range,
                    passed_over: search.passed_over,
                });
            }
        }
    }
    Err(NoneLeft {
        scope: wanted.scope.clone(),
        wanted: wanted.count,
        lowest: wanted.lowest,
        passed_over: search.passed_over.len(),
    })
}

/// The category of whom is asked for, as far as what was asked says.
fn category(config: &Config, scope: &Scope) -> Option<String> {
    match scope {
        Scope::Space => highest_pool(config).and_then(|(pool, _)| pool.category.clone()),
        Scope::Category(name) => Some(name.clone()),
        Scope::Pool(name) => pool(config, name).and_then(|pool| pool.category.clone()),
        Scope::Range(name) => {
            let allowed = &range(config, name)?.categories;
            let same = allowed.iter().find(|category| *category == name);
            let only = allowed.first().filter(|_| allowed.len() == 1);
            same.or(only).cloned()
        }
    }
}

fn range_at(config: &Config, port: Port) -> Option<String> {
    let mut ranges = config.ranges.iter();
    let range = ranges.find(|range| range.ports.contains(port))?;
    Some(range.name.clone())
}

/// What is known while candidates are tried.
struct Search<O> {
    space: Option<Marks>,
    /// Ports of ranges that list categories, without the asker's.
    barred: Marks,
    /// By any pool in any instance, as planned for later, or for this proposal.
    taken: HashSet<(Protocol, Port)>,
    obstacle: O,
    protocol: Protocol,
    /// The numbers of who is to have the port.
    numbers: PoolDefaults,
    category: Option<String>,
    passed_over: Vec<(Port, Obstacle)>,
}

impl<O: Fn(Protocol, Port) -> Option<Obstacle>> Search<O> {
    fn new(config: &Config, wanted: &Wanted, obstacle: O) -> Self {
        let numbers = match &wanted.scope {
            Scope::Pool(name) => pool(config, name).map_or(config.defaults, |pool| PoolDefaults {
                protocol: pool.protocol,
                stride: pool.stride,
                max_instances: pool.max_instances,
            }),
            _ => config.defaults,
        };
        let category = category(config, &wanted.scope);
        let is_barred = |range: &&NumberRange| {
            let listed = category
                .as_ref()
                .is_some_and(|own| range.categories.contains(own));
            let named = matches!(&wanted.scope, Scope::Range(name) if *name == range.name);
            !range.categories.is_empty() && !listed && !named
        };
        let barred = config.ranges.iter().filter(is_barred);
        Self {
            space: config.space.as_ref().map(|space| space.iter().collect()),
            barred: barred.flat_map(|range| range.ports.iter()).collect(),
            taken: taken(config),
            obstacle,
            protocol: wanted.protocol.unwrap_or(numbers.protocol),
            numbers,
            category,
            passed_over: Vec::new(),
        }
    }

    /// `count` ports from `first` on, if all of them can be had; they are taken then.
    fn run(&mut self, domain: &Domain, first: Port, count: u16) -> Vec<Port> {
        let mut run = Vec::new();
        let mut own = Vec::new();
        for offset in 0..count {
            let port = first.get().checked_add(offset).and_then(Port::new);
            let port = port.filter(|port| domain.members.contains(*port));
            let Some(all) = port.and_then(|port| self.everywhere(port)) else {
                break;
            };
            own.extend(
                all.iter()
                    .filter(|port| self.taken.insert((self.protocol, **port))),
            );
            run.extend(port);
        }
        if run.len() == usize::from(count) {
            return run;
        }
        for port in own {
            self.taken.remove(&(self.protocol, port));
        }
        Vec::new()
    }

    /// The port in each instance there may be, if all of them can be had.
    fn everywhere(&mut self, port: Port) -> Option<Vec<Port>> {
        let PoolDefaults {
            stride,
            max_instances,
            ..
        } = self.numbers;
        let mut all = Vec::new();
        for instance in Instance::up_to(max_instances) {
            let there = port.in_instance(instance, stride)?;
            let outside = self.space.as_ref().is_some_and(|it| !it.contains(there));
            let is_taken = self.taken.contains(&(self.protocol, there)) || all.contains(&there);
            if outside || is_taken || self.barred.contains(there) {
                return None;
            }
            all.push(there);
        }
        for there in &all {
            if let Some(obstacle) = (self.obstacle)(self.protocol, *there) {
                self.passed_over.push((*there, obstacle));
                return None;
            }
        }
        Some(all)
    }
}

/// Every port that the plan gives to somebody: pools and companions in every instance there may be, former
/// ports aside, proposed ones included; and the agent's own.
fn taken(config: &Config) -> HashSet<(Protocol, Port)> {
    let mut taken = HashSet::new();
    for pool in &config.pools {
        let companions = pool.companions.iter().map(|companion| &companion.ports);
        let sets = [&pool.ports, &pool.planned].into_iter().chain(companions);
        for port in sets.flat_map(|set| set.iter()) {
            for instance in Instance::up_to(pool.max_instances) {
                let Some(there) = port.in_instance(instance, pool.stride) else {
                    break;
                };
                taken.insert((pool.protocol, there));
            }
        }
    }
    let metrics = config.agent.metrics.map(|metrics| metrics.port());
    taken.extend(
        metrics
            .and_then(Port::new)
            .map(|port| (Protocol::Tcp, port)),
    );
    taken
}

#[cfg(test)]
mod tests;
