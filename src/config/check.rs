//! What must be right between tables: the names they use of each other.

use std::collections::HashMap;

use super::diagnostic::{Diagnostic, Report, Span};
use super::pool::Draft;
use super::raw::Value;
use super::read::Reading;
use super::template::Reference;
use crate::plan::nearest;

/// How many names a message lists; beyond that nobody reads it.
const MOST_LISTED: usize = 12;

/// Reports names of nothing, and names that cannot be told apart.
pub(super) fn check(reading: &Reading, report: &mut Report) {
    for draft in &reading.pools {
        if report.is_full() {
            return;
        }
        host(draft, reading, report);
        category(draft, reading, report);
        alternative(draft, reading, report);
        templates(draft, reading, report);
    }
    environment_names(reading, report);
    ranges_in_space(reading, report);
}

/// A name nobody has, and the one that was meant.
fn unknown<'n>(
    value: Value,
    at: Span,
    title: String,
    known: impl Iterator<Item = &'n str>,
    wrong: &str,
) -> Diagnostic {
    let known: Vec<_> = known.collect();
    let error = value.error_at(at, title, "not known");
    match nearest(wrong, known.iter().copied()) {
        Some(near) => error.help(format!("did you mean `{near}`?")),
        None if known.is_empty() => error.help("declare it, or leave this out"),
        None if known.len() > MOST_LISTED => error.help("`portpool plan` lists what there is"),
        None => error.help(format!("known are: {}", known.join(", "))),
    }
}

fn host(draft: &Draft, reading: &Reading, report: &mut Report) {
    let Some((host, value)) = draft.pool.host.as_deref().zip(draft.value("host")) else {
        return;
    };
    let mut known = reading.hosts.iter().map(|host| host.name.as_str());
    if !known.any(|name| name == host) {
        let title = format!("there is no [host.{host}]");
        let known = reading.hosts.iter().map(|host| host.name.as_str());
        let error = unknown(value, value.span, title, known, host);
        report.push(match reading.hosts.is_empty() {
            true => error.help(format!("add [host.{host}] with its address")),
            false => error,
        });
    }
}

/// Free text until the first `[category]`; from then on only what is declared, or listed by a range.
fn category(draft: &Draft, reading: &Reading, report: &mut Report) {
    let Some((category, value)) = draft.pool.category.as_deref().zip(draft.value("category"))
    else {
        return;
    };
    let declared = reading
        .categories
        .iter()
        .map(|category| category.name.as_str());
    let listed = reading
        .ranges
        .iter()
        .flat_map(|range| range.range.categories.iter().map(String::as_str));
    let known: Vec<_> = declared.chain(listed).collect();
    if !reading.categories.is_empty() && !known.contains(&category) {
        let title = format!("there is no [category.{category}]");
        report.push(unknown(
            value,
            value.span,
            title,
            known.into_iter(),
            category,
        ));
    }
}

fn alternative(draft: &Draft, reading: &Reading, report: &mut Report) {
    let Some((name, value)) = draft
        .pool
        .alternative_to
        .as_ref()
        .zip(draft.value("alternative_to"))
    else {
        return;
    };
    if *name == draft.pool.name {
        let error = value.error(
            format!("`{name}` is an alternative to itself"),
            "another pool is expected",
        );
        report.push(error.help("name the other pool, or leave it out"));
    } else if !reading.pools.iter().any(|other| other.pool.name == *name) {
        let others = reading
            .pools
            .iter()
            .map(|other| other.pool.name.as_str())
            .filter(|other| *other != draft.pool.name.as_str());
        report.push(unknown(
            value,
            value.span,
            format!("there is no pool `{name}`"),
            others,
            name.as_str(),
        ));
    }
}

fn templates(draft: &Draft, reading: &Reading, report: &mut Report) {
    for variable in &draft.variables {
        for (reference, at) in variable.template.references() {
            if report.is_full() {
                return;
            }
            let (slot, inner) = match reference {
                Reference::PortOf(slot) => (slot, false),
                Reference::InnerOf(slot) => (slot, true),
                Reference::Port | Reference::Host | Reference::Address => continue,
            };
            let at = variable.value.part(at);
            let (pool, companion) = slot
                .split_once('.')
                .map_or((slot.as_str(), None), |(pool, rest)| (pool, Some(rest)));
            let Some(target) = reading
                .pools
                .iter()
                .find(|other| other.pool.name.as_str() == pool)
            else {
                let known = reading.pools.iter().map(|other| other.pool.name.as_str());
                report.push(unknown(
                    variable.value,
                    at,
                    format!("there is no pool `{pool}`"),
                    known,
                    pool,
                ));
                continue;
            };
            let companions = || {
                target
                    .pool
                    .companions
                    .iter()
                    .map(|companion| companion.name.as_str())
            };
            if let Some(companion) =
                companion.filter(|wanted| inner || !companions().any(|name| name == *wanted))
            {
                let title = format!("pool `{pool}` has no companion `{companion}`");
                let error = match inner {
                    true => variable
                        .value
                        .error_at(
                            at,
                            format!("a companion has no inner port of its own: `{slot}`"),
                            "",
                        )
                        .help(format!("write {{{pool}.inner}}")),
                    false => unknown(variable.value, at, title, companions(), companion),
                };
                report.push(error);
            } else if inner && target.pool.container.is_none() {
                let title = format!("pool `{pool}` has no container, so nothing is inside");
                let error = variable
                    .value
                    .error_at(at, title, "")
                    .also(target.name, "`container` is missing here");
                report.push(error.help(format!(
                    "add `container` to it, or write {{host}}:{{{pool}.port}}"
                )));
            }
        }
    }
}

/// `exec` sets PORTPOOL_<POOL>_PORT, where `-` and `.` become `_`: `a-b` and companion `b` of `a` would be one.
fn environment_names(reading: &Reading, report: &mut Report) {
    let mut seen: HashMap<String, (String, Span)> = HashMap::new();
    for draft in &reading.pools {
        let pool = draft.pool.name.to_string();
        let companions =
            draft
                .pool
                .companions
                .iter()
                .zip(&draft.companions)
                .map(|(companion, ports)| {
                    let at = ports.spans.first().copied().unwrap_or(draft.name);
                    (format!("{}.{}", draft.pool.name, companion.name), at)
                });
        for (name, at) in std::iter::once((pool, draft.name)).chain(companions) {
            let variable = format!(
                "PORTPOOL_{}_PORT",
                name.to_uppercase().replace(['-', '.'], "_")
            );
            if let Some((other, first)) = seen.get(&variable) {
                let title = format!("`{other}` and `{name}` have one environment name, {variable}");
                let error = Diagnostic::error(title, at, format!("`{name}`"))
                    .also(*first, format!("`{other}`"));
                report.push(error.help("rename one of the two"));
            } else {
                seen.insert(variable, (name, at));
            }
        }
    }
}

/// What is set aside must be the plan's to set aside.
fn ranges_in_space(reading: &Reading, report: &mut Report) {
    let Some(space) = &reading.space else { return };
    let inside: std::collections::HashSet<_> = space.set.iter().collect();
    for range in &reading.ranges {
        if let Some((port, at)) = range.ports.iter().find(|(port, _)| !inside.contains(port)) {
            let title = format!(
                "range `{}` has port {port}, which is outside the plan's space",
                range.range.name
            );
            let mut error = Diagnostic::error(title, at, "not in the space");
            if let Some(first) = space.spans.first() {
                error = error.also(*first, "the space");
            }
            report.push(error.help(format!("use ports of {}, or widen the space", space.set)));
        }
    }
}
