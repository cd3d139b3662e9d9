//! Where candidates for the next port come from, and after which they begin.

use super::Scope;
use crate::config::{Config, NumberRange, Pool};
use crate::plan::{PoolName, Port};

/// Where numbers begin in a plan without a space: below, only the privileged may bind.
const FIRST_UNPRIVILEGED: u16 = 1024;

pub(super) fn pool<'c>(config: &'c Config, name: &PoolName) -> Option<&'c Pool> {
    config.pools.iter().find(|pool| pool.name == *name)
}

pub(super) fn range<'c>(config: &'c Config, name: &str) -> Option<&'c NumberRange> {
    config.ranges.iter().find(|range| range.name == name)
}

/// The pool with the highest port of the plan, companions aside: those go with a service and number nothing.
pub(super) fn highest_pool(config: &Config) -> Option<(&Pool, Port)> {
    let tops = config
        .pools
        .iter()
        .filter_map(|pool| Some((pool, pool.ports.iter().max()?)));
    tops.max_by_key(|(_, port)| *port)
}

/// A set of ports: a mark for each there is.
pub(super) struct Marks(Vec<bool>);

impl Marks {
    pub(super) fn contains(&self, port: Port) -> bool {
        self.0
            .get(usize::from(port.get()))
            .is_some_and(|mark| *mark)
    }
}

impl FromIterator<Port> for Marks {
    fn from_iter<T: IntoIterator<Item = Port>>(ports: T) -> Marks {
        let mut marks = vec![false; usize::from(u16::MAX) + 1];
        for port in ports {
            if let Some(mark) = marks.get_mut(usize::from(port.get())) {
                *mark = true;
            }
        }
        Marks(marks)
    }
}

/// Ports that candidates come from, and how they follow each other.
pub(super) struct Domain {
    /// The lowest of them.
    first: Option<Port>,
    pub(super) members: Marks,
    step: u16,
    /// The highest port that is taken; candidates come after it.
    highest: Option<Port>,
}

impl Domain {
    fn new(ports: &[Port], step: u16, highest: Option<Port>) -> Domain {
        Domain {
            first: ports.iter().min().copied(),
            members: ports.iter().copied().collect(),
            step,
            highest,
        }
    }

    /// A range as a whole: after the highest port that any pool has in it.
    fn of_range(config: &Config, range: &NumberRange) -> Domain {
        let ports: Vec<Port> = range.ports.iter().collect();
        let mut domain = Domain::new(&ports, range.step, None);
        let own = config.pools.iter().flat_map(|pool| pool.ports.iter());
        domain.highest = own.filter(|port| domain.members.contains(*port)).max();
        domain
    }

    /// Where to try, in rising order.
    pub(super) fn candidates(&self, lowest: bool) -> impl Iterator<Item = Port> + '_ {
        let step = usize::from(self.step.max(1));
        let first = self.first.map(Port::get);
        let begin = match self.highest.filter(|_| !lowest) {
            Some(highest) => highest.get().checked_add(self.step),
            None => first,
        };
        // After a port below them all, the first of them is next.
        let begin = begin.into_iter().flat_map(move |begin| {
            let begin = begin.max(first.unwrap_or(begin));
            (begin..=u16::MAX).step_by(step)
        });
        begin
            .filter_map(Port::new)
            .filter(|port| self.members.contains(*port))
    }
}

/// Where candidates come from, in the order they are tried.
pub(super) fn domains(config: &Config, scope: &Scope, category: Option<&str>) -> Vec<Domain> {
    match scope {
        Scope::Range(name) => range(config, name)
            .map(|range| Domain::of_range(config, range))
            .into_iter()
            .collect(),
        Scope::Category(name) => {
            let listed = |range: &&NumberRange| range.categories.contains(name);
            let ranges: Vec<Domain> = config
                .ranges
                .iter()
                .filter(listed)
                .map(|range| Domain::of_range(config, range))
                .collect();
            if !ranges.is_empty() {
                return ranges;
            }
            let mut domain = Domain::new(&open(config, category, None), 1, None);
            let pools = config.pools.iter();
            let own = pools
                .filter(|pool| pool.category.as_ref() == Some(name))
                .flat_map(|pool| pool.ports.iter());
            domain.highest = own.filter(|port| domain.members.contains(*port)).max();
            vec![domain]
        }
        Scope::Pool(name) => {
            let highest = pool(config, name).and_then(|pool| pool.ports.iter().max());
            vec![Domain::new(&open(config, category, highest), 1, highest)]
        }
        Scope::Space => {
            let highest = highest_pool(config).map(|(_, port)| port);
            let lies_in =
                |range: &&NumberRange| highest.is_some_and(|port| range.ports.contains(port));
            let step = config.ranges.iter().find(lies_in).map_or(1, |it| it.step);
            vec![Domain::new(&open(config, category, highest), step, highest)]
        }
    }
}

/// The ports of the plan that are set aside for nobody else: `at` is in the range already.
fn open(config: &Config, category: Option<&str>, at: Option<Port>) -> Vec<Port> {
    let may_enter = |range: &NumberRange| {
        let listed = category.is_some_and(|own| range.categories.iter().any(|it| it == own));
        listed || at.is_some_and(|port| range.ports.contains(port))
    };
    let closed: Marks = config
        .ranges
        .iter()
        .filter(|range| !may_enter(range))
        .flat_map(|range| range.ports.iter())
        .collect();
    let mut open: Vec<Port> = match &config.space {
        Some(space) => space.iter().collect(),
        None => (FIRST_UNPRIVILEGED..=u16::MAX)
            .filter_map(Port::new)
            .collect(),
    };
    open.retain(|port| !closed.contains(*port));
    open
}
