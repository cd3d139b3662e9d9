//! The proof that no two slots meet: every port of every instance there may be, one after the other.
//!
//! Instances are walked in the outer loop, so that the first collision found is the one with the lowest
//! instance, and the instance below it is what fits. A pool that meets itself or runs out of ports is not
//! followed any further, which bounds the walk by 65535 ports a pool whatever the numbers say; and the walk
//! ends when the report is full.

use std::collections::{HashMap, HashSet};

use super::Machine;
use super::diagnostic::{Diagnostic, Report, Span};
use super::pool::Draft;
use super::ports::PortSet;
use super::read::{RangeDraft, Reading};
use super::settings::Pool;
use crate::plan::{Instance, Port, Protocol};

/// A port in the plan: whose, and where it is written.
#[derive(Clone, Copy)]
struct Occupant<'a> {
    pool: usize,
    draft: &'a Draft<'a>,
    /// The position among the pool's companions, if it is one's.
    companion: Option<usize>,
    instance: Instance,
    written: Port,
    at: Span,
}

/// Reports collisions, ports beyond 65535, ports outside the space, and pools in ranges of other categories.
pub(super) fn check(reading: &Reading, machine: &Machine, report: &mut Report) {
    let mut walk = Walk {
        reading,
        space: reading.space_set().map(|set| set.iter().collect()),
        ranges: restricted(&reading.ranges),
        taken: HashMap::new(),
        reported: HashSet::new(),
        report,
    };
    let mut walked: Vec<(usize, &Draft)> = reading.pools.iter().enumerate().collect();
    for instance in Instance::up_to(u16::MAX) {
        let last = |draft: &Draft| match draft.pool.stride {
            0 => 1,
            _ => draft.pool.max_instances,
        };
        walked.retain(|(_, draft)| last(draft) >= instance.get());
        walked.retain(|(pool, draft)| walk.instance(*pool, draft, instance));
        if walked.is_empty() || walk.report.is_full() {
            break;
        }
    }
    walk.metrics(machine);
}

/// The ports some categories only may use, with the ranges that say so.
fn restricted<'a>(ranges: &'a [RangeDraft<'a>]) -> HashMap<Port, Vec<usize>> {
    let mut ports: HashMap<Port, Vec<usize>> = HashMap::new();
    for (index, range) in ranges.iter().enumerate() {
        for port in range
            .range
            .ports
            .iter()
            .filter(|_| !range.range.categories.is_empty())
        {
            ports.entry(port).or_default().push(index);
        }
    }
    ports
}

struct Walk<'a, 'r> {
    reading: &'a Reading<'a>,
    space: Option<HashSet<Port>>,
    /// The ranges a port lies in which are not for every category, by their index.
    ranges: HashMap<Port, Vec<usize>>,
    taken: HashMap<(Protocol, Port), Vec<Occupant<'a>>>,
    /// What was said of which pools: one collision a pair is enough.
    reported: HashSet<(usize, &'static str, usize)>,
    report: &'r mut Report,
}

impl<'a> Walk<'a, '_> {
    /// Walks a pool's ports in one instance; false if it need not be followed further.
    fn instance(&mut self, pool: usize, draft: &'a Draft<'a>, instance: Instance) -> bool {
        let own = draft.ports.iter().map(|port| (None, port));
        let extra = draft.companions.iter().enumerate();
        let extra =
            extra.flat_map(|(index, ports)| ports.iter().map(move |port| (Some(index), port)));
        for (companion, (written, at)) in own.chain(extra) {
            if self.report.is_full() {
                return false;
            }
            let occupant = Occupant {
                pool,
                draft,
                companion,
                instance,
                written,
                at,
            };
            let Some(port) = written.in_instance(instance, draft.pool.stride) else {
                self.too_high(&occupant);
                return false;
            };
            self.within_space(&occupant, port);
            self.within_ranges(&occupant, port);
            if !self.free(occupant, port) {
                return false;
            }
        }
        true
    }

    fn first_time(&mut self, occupant: &Occupant, what: &'static str, other: usize) -> bool {
        self.reported.insert((occupant.pool, what, other))
    }

    /// What asks for so many instances: the key, and where it stands.
    fn asked_for(&self, occupant: &Occupant<'a>) -> Option<(&'static str, Span)> {
        if let Some(value) = occupant.draft.value("instances") {
            return Some(("instances", value.span));
        }
        let key = match occupant.instance.get() > self.reading.agent.instances {
            true => "max_instances",
            false => "instances",
        };
        self.reading
            .agent_keys
            .get(key)
            .map(|value| (key, value.span))
    }

    /// Begins an error about an occupant: at what asks for the instance, or at the port for the first.
    fn blame(&self, occupant: &Occupant<'a>, title: String, label: String) -> Diagnostic {
        match self
            .asked_for(occupant)
            .filter(|_| occupant.instance > Instance::FIRST)
        {
            Some((_, span)) => Diagnostic::error(
                title,
                span,
                format!("instance {} is wanted here", occupant.instance),
            )
            .also(occupant.at, label),
            None => Diagnostic::error(title, occupant.at, label),
        }
    }

    /// "max_instances = 10", the most that keeps clear of what was found at this instance.
    fn fewer(&self, occupant: &Occupant<'a>) -> Option<String> {
        let (key, _) = self.asked_for(occupant)?;
        let fits = occupant
            .instance
            .get()
            .checked_sub(1)
            .filter(|fits| *fits > 0)?;
        Some(format!("{key} = {fits}"))
    }

    fn too_high(&mut self, occupant: &Occupant<'a>) {
        let title = format!(
            "{} would have port {}, but ports end at 65535",
            occupant.name(),
            occupant.number()
        );
        let error = self.blame(occupant, title, occupant.sum());
        let fewer = self
            .fewer(occupant)
            .map(|fewer| format!("{fewer} fits, or "))
            .unwrap_or_default();
        self.report
            .push(error.help(format!("{fewer}use lower ports or a smaller stride")));
    }

    fn within_space(&mut self, occupant: &Occupant<'a>, port: Port) {
        let outside = self
            .space
            .as_ref()
            .is_some_and(|space| !space.contains(&port));
        if !outside || !self.first_time(occupant, "space", 0) {
            return;
        }
        let space = self.reading.space.as_ref();
        let allowed = space.map(|space| space.set.to_string()).unwrap_or_default();
        let title = format!(
            "{} has port {port}, which is outside the plan's space",
            occupant.name()
        );
        let mut error = self.blame(occupant, title, occupant.sum());
        if let Some(at) = space.and_then(|space| space.spans.first()) {
            error = error.also(*at, "the space");
        }
        self.report
            .push(error.help(format!("use ports of {allowed}, or widen the space")));
    }

    fn within_ranges(&mut self, occupant: &Occupant<'a>, port: Port) {
        let Some(ranges) = self.ranges.get(&port).cloned() else {
            return;
        };
        for index in ranges {
            let range = &self.reading.ranges[index];
            let allowed = &range.range.categories;
            let category = occupant.draft.pool.category.as_ref();
            let may_use = category.is_some_and(|category| allowed.contains(category));
            if may_use || !self.first_time(occupant, "range", index) {
                continue;
            }
            let title = format!(
                "{} has port {port}, which is set aside for others",
                occupant.name()
            );
            let label = match category {
                Some(category) => format!("{}; the pool's category is {category}", occupant.sum()),
                None => format!("{}; the pool has no category", occupant.sum()),
            };
            let error = self.blame(occupant, title, label).also(
                range.name,
                format!("range {} is for {}", range.range.name, allowed.join(", ")),
            );
            let help = "move the pool out of the range, set its category, or add its category to the range";
            self.report.push(error.help(help));
        }
    }

    /// Takes the port for the occupant; false if its own pool has it already.
    fn free(&mut self, occupant: Occupant<'a>, port: Port) -> bool {
        let there = self
            .taken
            .entry((occupant.draft.pool.protocol, port))
            .or_default();
        let met: Vec<_> = there
            .iter()
            .filter(|other| other.excludes(&occupant))
            .copied()
            .collect();
        there.push(occupant);
        for other in &met {
            let (one, two) = (occupant.pool.min(other.pool), occupant.pool.max(other.pool));
            if self.reported.insert((one, "pool", two)) {
                self.collision(&occupant, other, port);
            }
        }
        !met.iter().any(|other| other.pool == occupant.pool)
    }

    fn collision(&mut self, one: &Occupant<'a>, other: &Occupant<'a>, port: Port) {
        let (high, low) = if one.instance > other.instance {
            (one, other)
        } else {
            (other, one)
        };
        let protocol = one.draft.pool.protocol;
        let title = format!(
            "{} and {} meet on port {port}/{protocol}",
            high.name(),
            low.name()
        );
        let error = self.blame(high, title, high.sum()).also(low.at, low.sum());
        let help = match (self.fewer(high), one.pool == other.pool) {
            (Some(_), true) => {
                format!(
                    "a stride of {} or more keeps the instances apart",
                    width(&one.draft.pool.ports)
                )
            }
            (Some(fewer), false) => {
                format!("{fewer} keeps these two apart; or move one of them, or change the stride")
            }
            (None, true) => "give each a port of its own".to_owned(),
            (None, false) if one.same_service(other) => {
                "the agent can hold one of the two only: set external or state = \"disabled\" on the other".to_owned()
            }
            (None, false) => {
                let name = &high.draft.pool.name;
                format!("move one of the two: `portpool next {name}` proposes a free port")
            }
        };
        self.report.push(error.help(help));
    }

    /// The agent's own port is no pool's.
    fn metrics(&mut self, machine: &Machine) {
        let Some(metrics) = self.reading.agent.metrics else {
            return;
        };
        let Some(port) = Port::new(metrics.port()) else {
            return;
        };
        let Some(value) = self.reading.agent_keys.get("metrics") else {
            return;
        };
        let host = self.reading.this_host(machine);
        let there = self.taken.get(&(Protocol::Tcp, port)).into_iter().flatten();
        for occupant in there.filter(|occupant| occupant.draft.pool.is_on(&host)) {
            let title = format!(
                "the agent's metrics and {} meet on port {port}/tcp",
                occupant.name()
            );
            let error = Diagnostic::error(title, value.span, "the agent's own port")
                .also(occupant.at, occupant.sum());
            self.report
                .push(error.help("serve metrics on another port, or move the pool"));
        }
    }
}

impl Occupant<'_> {
    /// `api-server.metrics/2`.
    fn name(&self) -> String {
        let pool = &self.draft.pool;
        match self.companion.and_then(|index| pool.companions.get(index)) {
            Some(companion) => format!("{}.{}/{}", pool.name, companion.name, self.instance),
            None => format!("{}/{}", pool.name, self.instance),
        }
    }

    fn number(&self) -> u32 {
        u32::from(self.written.get())
            + u32::from(self.instance.get() - 1) * u32::from(self.draft.pool.stride)
    }

    /// How its port comes about: `mcp-universal/11 is 6000 + 10 * 100 = 7000`.
    fn sum(&self) -> String {
        if self.instance == Instance::FIRST {
            return format!("{} is {}", self.name(), self.written);
        }
        let (times, stride) = (self.instance.get() - 1, self.draft.pool.stride);
        format!(
            "{} is {} + {times} * {stride} = {}",
            self.name(),
            self.written,
            self.number()
        )
    }

    /// Whether both cannot have one port: they may be on one host, and are not the same service run two ways,
    /// of which one at most is held.
    fn excludes(&self, other: &Self) -> bool {
        let (one, two) = (&self.draft.pool, &other.draft.pool);
        let one_host = one.host.is_none() || two.host.is_none() || one.host == two.host;
        let both_held = one.is_held() && two.is_held();
        one_host && (both_held || !self.same_service(other))
    }

    /// Whether they are two pools of which one is an alternative to the other, or both to a third.
    fn same_service(&self, other: &Self) -> bool {
        let service = |pool: &Pool| {
            pool.alternative_to
                .clone()
                .unwrap_or_else(|| pool.name.clone())
        };
        self.pool != other.pool && service(&self.draft.pool) == service(&other.draft.pool)
    }
}

/// From the lowest port to the highest, both included.
fn width(ports: &PortSet) -> u32 {
    let low = ports.iter().min().map_or(0, Port::get);
    let high = ports.iter().max().map_or(0, Port::get);
    u32::from(high) - u32::from(low) + 1
}
