//! What is allowed but will surprise somebody, mostly on this very machine.

use std::collections::HashMap;

use super::Machine;
use super::diagnostic::{Diagnostic, Report, Span};
use super::pool::Draft;
use super::ports::PortSet;
use super::read::Reading;
use crate::plan::{Plan, PoolName, Port, Protocol, Slot, nearest};

/// The file descriptors the agent needs beside its sockets: its own, and its clients'.
const SPARE_FDS: u64 = 64;

/// Reports warnings about a configuration that has no errors.
pub(super) fn check(reading: &Reading, plan: &Plan, machine: &Machine, report: &mut Report) {
    // A plan has the slots of a pool one after the other.
    let runs = plan.slots.chunk_by(|one, next| one.pool == next.pool);
    let held: HashMap<&PoolName, &[Slot]> = runs
        .filter_map(|run| Some((&run.first()?.pool, run)))
        .collect();
    let held = |draft: &Draft| held.get(&draft.pool.name).copied().unwrap_or_default();
    known_host(reading, plan, report);
    enough_fds(
        plan,
        machine,
        reading.pools.iter().max_by_key(|draft| held(draft).len()),
        report,
    );
    overlapping_ranges(reading, report);
    unused_categories(reading, report);
    variables_set_twice(reading, report);
    for draft in &reading.pools {
        useless_window(draft, report);
        ephemeral(draft, held(draft), machine, report);
        privileged(draft, held(draft), machine, report);
    }
}

/// The ports that match, of all instances, companions included.
fn ports_of(slots: &[Slot], wanted: impl Fn(u16) -> bool) -> PortSet {
    let mut ports: Vec<Port> = slots
        .iter()
        .map(|slot| slot.port)
        .filter(|port| wanted(port.get()))
        .collect();
    ports.sort();
    ports.into_iter().collect()
}

fn useless_window(draft: &Draft, report: &mut Report) {
    if draft.pool.protocol == Protocol::Udp && !draft.pool.restart_window.is_zero() {
        let title = format!(
            "restart_window of `{}` does nothing: udp has no connections to keep",
            draft.pool.name
        );
        let warning = Diagnostic::warning(title, draft.span("restart_window"), "no queue to keep");
        report.push(warning.help("leave it out"));
    }
}

fn at_ports(draft: &Draft) -> Span {
    draft.ports.spans.first().copied().unwrap_or(draft.name)
}

fn ephemeral(draft: &Draft, slots: &[Slot], machine: &Machine, report: &mut Report) {
    let Some(range) = &machine.ephemeral else {
        return;
    };
    let reserved = |port: u16| machine.reserved.iter().any(|range| range.contains(&port));
    let ports = ports_of(slots, |port| range.contains(&port) && !reserved(port));
    if ports.is_empty() {
        return;
    }
    let (first, last) = (range.start(), range.end());
    let title = format!(
        "the kernel may take {ports} of `{}` for outgoing connections",
        draft.pool.name
    );
    let label = format!("within ip_local_port_range, {first}-{last}");
    let list = ports.to_string().replace(' ', "");
    let help = format!(
        "the agent reserves them when it may; else add {list} to sysctl net.ipv4.ip_local_reserved_ports"
    );
    report.push(Diagnostic::warning(title, at_ports(draft), label).help(help));
}

fn privileged(draft: &Draft, slots: &[Slot], machine: &Machine, report: &mut Report) {
    if machine.may_bind_privileged {
        return;
    }
    let ports = ports_of(slots, |port| port < machine.unprivileged_start);
    if ports.is_empty() {
        return;
    }
    let start = machine.unprivileged_start;
    let title = format!(
        "{ports} of `{}` cannot be bound without a privilege",
        draft.pool.name
    );
    let label = format!("below ip_unprivileged_port_start, {start}");
    let help = "run the agent with CAP_NET_BIND_SERVICE, or lower sysctl net.ipv4.ip_unprivileged_port_start";
    report.push(Diagnostic::warning(title, at_ports(draft), label).help(help));
}

/// A slot has a socket an address, and its reservation. Blamed is the pool with the most slots.
fn enough_fds(plan: &Plan, machine: &Machine, largest: Option<&Draft>, report: &mut Report) {
    let needed: usize = plan.slots.iter().map(|slot| slot.addresses.len() + 1).sum();
    let needed = u64::try_from(needed)
        .unwrap_or(u64::MAX)
        .saturating_add(SPARE_FDS);
    let Some(largest) = largest.filter(|_| machine.fd_limit > 0 && needed > machine.fd_limit)
    else {
        return;
    };
    let (slots, limit) = (plan.slots.len(), machine.fd_limit);
    let title = format!("{slots} slots need {needed} file descriptors, but the limit is {limit}");
    let help =
        format!("set LimitNOFILE={needed} or more in the agent's unit, or hold fewer instances");
    report.push(Diagnostic::warning(title, at_ports(largest), "the largest pool").help(help));
}

fn known_host(reading: &Reading, plan: &Plan, report: &mut Report) {
    let known = || reading.hosts.iter().map(|host| host.name.as_str());
    let Some(elsewhere) = reading.pools.iter().find(|draft| draft.pool.host.is_some()) else {
        return;
    };
    if plan.host().is_empty() || known().any(|name| name == plan.host()) {
        return;
    }
    let list: Vec<_> = known().collect();
    let title = format!(
        "this machine is `{}`, which is no [host]: pools with a host are not held here",
        plan.host()
    );
    let (at, label) = match reading.agent_keys.get("host") {
        Some(value) => (value.span, "not among the hosts"),
        None => (elsewhere.span("host"), "the first pool with a host"),
    };
    let help = match nearest(plan.host(), known()) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("set host in [agent] to one of {}", list.join(", ")),
    };
    report.push(Diagnostic::warning(title, at, label).help(help));
}

fn overlapping_ranges(reading: &Reading, report: &mut Report) {
    let mut owners = HashMap::new();
    for (index, range) in reading.ranges.iter().enumerate() {
        let other = range.ports.iter().find_map(|(port, at)| {
            let owner = *owners.entry(port).or_insert(index);
            (owner != index).then_some((port, at, owner))
        });
        let Some((port, at, owner)) = other else {
            continue;
        };
        let Some(first) = reading.ranges.get(owner) else {
            continue;
        };
        let title = format!(
            "ranges `{}` and `{}` both have port {port}",
            first.range.name, range.range.name
        );
        let warning =
            Diagnostic::warning(title, at, "set aside again").also(first.name, "set aside here");
        report.push(warning.help(
            "let each port be set aside once: `portpool next` takes the first range that fits",
        ));
    }
}

/// A range for a category that is nearly another's name is a slip of the pen.
fn unused_categories(reading: &Reading, report: &mut Report) {
    let declared = || {
        reading
            .categories
            .iter()
            .map(|category| category.name.as_str())
    };
    for range in &reading.ranges {
        let Some(value) = range.keys.get("categories") else {
            continue;
        };
        for element in value.elements() {
            let Some(name) = element.as_text() else {
                continue;
            };
            let used = reading
                .pools
                .iter()
                .any(|draft| draft.pool.category.as_deref() == Some(name));
            if used || declared().any(|known| known == name) {
                continue;
            }
            if let Some(near) = nearest(name, declared()) {
                let title = format!(
                    "range `{}` is for `{name}`, which no pool is in",
                    range.range.name
                );
                let warning = Diagnostic::warning(title, element.span, "not a category");
                report.push(warning.help(format!("did you mean `{near}`?")));
            }
        }
    }
}

/// Whoever writes one environment file for all pools would keep the last.
fn variables_set_twice(reading: &Reading, report: &mut Report) {
    let mut seen: HashMap<&str, (&Draft, Span)> = HashMap::new();
    for draft in &reading.pools {
        for variable in &draft.variables {
            let here = (draft, variable.name_span);
            let (other, first) = *seen.entry(&variable.name).or_insert(here);
            if first == variable.name_span {
                continue;
            }
            let name = &variable.name;
            let title = format!(
                "`{}` and `{}` both set {name}",
                other.pool.name, draft.pool.name
            );
            let warning =
                Diagnostic::warning(title, variable.name_span, "set again").also(first, "set here");
            report.push(
                warning.help("rename one of the two: a generated .env file has one value of each"),
            );
        }
    }
}
