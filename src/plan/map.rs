//! The numbering space as a picture: a mark for each port, in rows.

pub(crate) mod svg;
pub(crate) mod terminal;

use super::{Instance, Port};
use crate::config::{Config, Pool, State};

/// How many ports a row has: with their numbers before and names after them they fit 80 columns.
const WIDTH: u16 = 50;

/// What a port is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Mark {
    /// Nobody's.
    Free,
    /// Nobody's yet: of a range.
    SetAside,
    /// Proposed for a pool that is elsewhere.
    Proposed,
    /// Of an instance that is held only when it is claimed.
    Dormant,
    /// Of a pool that is switched off.
    Disabled,
    /// Of a pool that another program binds.
    External,
    /// Of a pool that the agent of its host holds.
    Held,
    /// Held, says the agent, and nobody has it.
    Parked,
    /// Clients wait.
    Queueing,
    /// Somebody has it.
    Leased,
    /// Kept for its holder's successor.
    Restarting,
    /// Not held: somebody had it first, or its address does not exist.
    Trouble,
}

impl Mark {
    pub(crate) const ALL: [Mark; 12] = [
        Mark::Free,
        Mark::SetAside,
        Mark::Proposed,
        Mark::Dormant,
        Mark::Disabled,
        Mark::External,
        Mark::Held,
        Mark::Parked,
        Mark::Queueing,
        Mark::Leased,
        Mark::Restarting,
        Mark::Trouble,
    ];

    /// What the agent's word for a slot's state is drawn as.
    fn of_state(state: &str) -> Mark {
        match state {
            "leased" => Mark::Leased,
            "queueing" => Mark::Queueing,
            "restarting" => Mark::Restarting,
            "conflict" | "unavailable" | "hostage" => Mark::Trouble,
            _ => Mark::Parked,
        }
    }

    /// In a word or two, for the legend.
    fn words(self) -> &'static str {
        match self {
            Mark::Free => "free",
            Mark::SetAside => "set aside",
            Mark::Proposed => "proposed",
            Mark::Dormant => "further instances",
            Mark::Disabled => "disabled",
            Mark::External => "another program's",
            Mark::Held => "held",
            Mark::Parked => "parked",
            Mark::Queueing => "queueing",
            Mark::Leased => "leased",
            Mark::Restarting => "restarting",
            Mark::Trouble => "trouble",
        }
    }
}

/// Ports that follow each other, as many as a row has, or a gap where nothing is planned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Row {
    /// From this port on, a cell each; `None` is outside of the space.
    Ports(u16, Vec<Option<Cell>>),
    /// Rows without anything, left out.
    Gap,
}

/// A port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cell {
    /// What it is.
    pub(crate) mark: Mark,
    /// Whose: a range's name, or a slot's such as `web/2`; empty if it is nobody's.
    pub(crate) label: String,
}

/// The whole space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Map {
    /// What the plan is called.
    pub(crate) title: String,
    /// Rising.
    pub(crate) rows: Vec<Row>,
}

impl Map {
    /// Draws a configuration. `state` is the agent's word for a slot's state, by name, instance and port.
    pub(crate) fn new(config: &Config, state: impl Fn(&str, u16, u16) -> Option<String>) -> Map {
        let free = || Cell {
            mark: Mark::Free,
            label: String::new(),
        };
        let mut cells: Vec<Option<Cell>> = vec![None; usize::from(u16::MAX) + 1];
        let every: Vec<u16> = match &config.space {
            Some(space) => space.iter().map(Port::get).collect(),
            None => (1..=u16::MAX).collect(),
        };
        for port in every {
            cells[usize::from(port)] = Some(free());
        }
        let mut draw = |port: Port, mark: Mark, label: &str| {
            let cell = cells[usize::from(port.get())].get_or_insert_with(free);
            if cell.mark < mark {
                label.clone_into(&mut cell.label);
                cell.mark = mark;
            }
        };
        for range in &config.ranges {
            let ports = range.ports.iter();
            ports.for_each(|port| draw(port, Mark::SetAside, &range.name));
        }
        for pool in &config.pools {
            for (port, instance, name) in slots(pool) {
                let said = state(&name, instance.get(), port.get());
                let mark = match said {
                    Some(state) => Mark::of_state(&state),
                    None if instance.get() > pool.instances => Mark::Dormant,
                    None if pool.state == State::Disabled => Mark::Disabled,
                    None if pool.external => Mark::External,
                    None => Mark::Held,
                };
                draw(port, mark, &format!("{name}/{instance}"));
            }
            let proposed = pool.planned.iter();
            proposed.for_each(|port| draw(port, Mark::Proposed, pool.name.as_str()));
        }
        Map {
            title: config
                .plan_name
                .clone()
                .unwrap_or_else(|| "Ports".to_owned()),
            rows: rows(&cells, config.space.is_some()),
        }
    }

    /// The marks that are in it, each once.
    fn marks(&self) -> impl Iterator<Item = Mark> + '_ {
        let has = |wanted: Mark| {
            self.rows.iter().any(|row| match row {
                Row::Ports(_, cells) => cells.iter().flatten().any(|cell| cell.mark == wanted),
                Row::Gap => false,
            })
        };
        Mark::ALL.into_iter().filter(move |mark| has(*mark))
    }
}

/// Every port of a pool in every instance there may be, with the name its slot has.
fn slots(pool: &Pool) -> impl Iterator<Item = (Port, Instance, String)> + '_ {
    let own = pool.ports.iter().map(|port| (port, pool.name.to_string()));
    let companions = pool.companions.iter().flat_map(|companion| {
        let name = format!("{}.{}", pool.name, companion.name);
        companion.ports.iter().map(move |port| (port, name.clone()))
    });
    own.chain(companions).flat_map(move |(port, name)| {
        Instance::up_to(pool.max_instances).filter_map(move |instance| {
            let port = port.in_instance(instance, pool.stride)?;
            Some((port, instance, name.clone()))
        })
    })
}

/// The rows with something in them; of a plan with a space every one that has a port of it. One empty row
/// between two others is as short as the sign for a gap.
fn rows(cells: &[Option<Cell>], has_space: bool) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut left_out = Vec::new();
    for (index, row) in cells.chunks(usize::from(WIDTH)).enumerate() {
        let first = u16::try_from(index)
            .unwrap_or(u16::MAX)
            .saturating_mul(WIDTH);
        let mut ports = row.iter().flatten();
        let is_shown = match has_space {
            true => ports.next().is_some(),
            false => ports.any(|cell| cell.mark != Mark::Free),
        };
        left_out.push(Row::Ports(first, row.to_vec()));
        if !is_shown {
            continue;
        }
        if left_out.len() > 2 {
            left_out.drain(..left_out.len() - 1);
            if !rows.is_empty() {
                rows.push(Row::Gap);
            }
        } else if rows.is_empty() {
            left_out.drain(..left_out.len() - 1);
        }
        rows.append(&mut left_out);
    }
    rows
}

/// Whose ports begin in a row, with the first of them, each once.
fn names(first: u16, cells: &[Option<Cell>], before: Option<&Cell>) -> Vec<(u16, String)> {
    let mut names: Vec<(u16, String)> = Vec::new();
    let mut last = before.map(|cell| cell.label.as_str());
    for (port, cell) in (first..).zip(cells) {
        let label = cell.as_ref().map(|cell| cell.label.as_str());
        let is_known = |label: &str| names.iter().any(|(_, known)| known == label);
        if let Some(name) =
            label.filter(|name| !name.is_empty() && label != last && !is_known(name))
        {
            names.push((port, name.to_owned()));
        }
        last = label;
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Source, parse_unnumbered};
    use std::path::PathBuf;

    fn map(text: &str, state: impl Fn(&str, u16, u16) -> Option<String>) -> Map {
        let path = PathBuf::from("portpool.toml");
        let text = text.to_owned();
        Map::new(&parse_unnumbered(&[Source { path, text }]).unwrap(), state)
    }

    const PLAN: &str = "[plan]\nspace = \"100-199\"\n[agent]\ninstances = 2\nmax_instances = 3\nstride = 10\n\
                        [pool.a]\nports = \"105-106\"\nextra = { m = 150 }\n\
                        [pool.b]\nports = 140\nexternal = true\ninstances = 1\nplanned = 141\n\
                        [range.r]\nports = \"138-145\"\n";

    #[test]
    fn every_port_has_the_mark_of_whose_it_is() {
        let expected = ".....##........##........oo...........--xn----....";
        let drawn = terminal::render(&map(PLAN, |_, _, _| None), false);
        assert!(drawn.contains(expected), "{drawn}");
        assert!(
            drawn.contains("#.........#.........o"),
            "companions: {drawn}"
        );
    }

    #[test]
    fn colour_adds_nothing_but_colour() {
        let map = map(PLAN, |_, _, _| None);
        let coloured = terminal::render(&map, true);
        let codes = ["0", "2", "36", "35", "2;34", "33", "34"];
        let plain = codes.iter().fold(coloured.clone(), |text, code| {
            text.replace(&format!("\u{1b}[{code}m"), "")
        });
        assert_ne!(plain, coloured);
        assert_eq!(plain, terminal::render(&map, false));
    }

    #[test]
    fn what_the_agent_says_of_a_slot_is_drawn() {
        let state = |name: &str, instance, port| {
            let state = match (name, instance, port) {
                ("a", 1, 105) => "leased",
                ("a", 1, 106) => "conflict",
                ("a.m", 1, 150) => "restarting",
                ("a", ..) => "parked",
                _ => return None,
            };
            Some(state.to_owned())
        };
        let drawn = terminal::render(&map(PLAN, state), false);
        assert!(drawn.contains(".....L!........pp"), "{drawn}");
        assert!(drawn.contains("  150 r"), "{drawn}");
    }

    #[test]
    fn rows_without_anything_are_left_out_where_there_is_no_space() {
        let drawn = map("[pool.a]\nports = [80, 9000]\n", |_, _, _| None);
        let firsts: Vec<Option<u16>> = drawn
            .rows
            .iter()
            .map(|row| match row {
                Row::Ports(first, _) => Some(*first),
                Row::Gap => None,
            })
            .collect();
        assert_eq!(firsts, [Some(50), None, Some(9000)]);
    }
}
