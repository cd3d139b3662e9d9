//! The plan as a document to commit. It says nothing of the machine it was written on, so it is the same
//! wherever it is written, and `--check` can tell whether it is stale.

use std::fmt::Write as _;

use super::quote::markdown;
use super::{View, bound_by, remarks, title_of};
use crate::config::Pool;
use crate::plan::Port;
use crate::plan::next::Scope;

pub(super) fn render(view: &View) -> String {
    let mut text = format!(
        "# {}: ports\n\
         <!-- Generated from the configuration of portpool; edit that, and write this again:\n\
         portpool plan --format markdown -->\n\n\
         {}.\n",
        markdown(view.title()),
        view.summary()
    );
    let with_hosts = view.pools.iter().any(|pool| pool.host.is_some());
    for group in view.groups() {
        let _ = writeln!(text, "\n## {}\n", markdown(&group.heading()));
        let columns: &[&str] = match with_hosts {
            true => &["port", "service", "bound by", "state", "notes", "host"],
            false => &["port", "service", "bound by", "state", "notes"],
        };
        table(&mut text, columns);
        for pool in &group.pools {
            rows(&mut text, pool, columns.len());
        }
    }
    outside(&mut text, view);
    proposals(&mut text, view);
    former(&mut text, view);
    set_aside(&mut text, view);
    hosts(&mut text, view);
    text
}

fn table(text: &mut String, columns: &[&str]) {
    let _ = writeln!(text, "| {} |", columns.join(" | "));
    let _ = writeln!(text, "|{}", "---|".repeat(columns.len()));
}

fn row(text: &mut String, cells: &[String]) {
    let _ = writeln!(text, "| {} |", cells.join(" | "));
}

/// The pool's line and those of its companions, in as many columns.
fn rows(text: &mut String, pool: &Pool, columns: usize) {
    let title = match &pool.title {
        Some(title) => format!("{} (`{}`)", markdown(title), pool.name),
        None => format!("`{}`", pool.name),
    };
    let mut state = pool.state.to_string();
    if pool.fixed {
        state.push_str(", fixed");
    }
    let mut notes: Vec<String> = remarks(pool);
    notes.splice(0..0, pool.description.clone());
    let mut cells = vec![
        format!("{}/{}", pool.ports, pool.protocol),
        title,
        markdown(&bound_by(pool)),
        state,
        markdown(&notes.join("; ")),
        markdown(pool.host.as_deref().unwrap_or("every one")),
    ];
    cells.truncate(columns);
    row(text, &cells);
    for companion in &pool.companions {
        let ports = format!("{}/{}", companion.ports, pool.protocol);
        let mut cells = vec![ports, format!("`{}.{}`", pool.name, companion.name)];
        cells.resize(columns, String::new());
        row(text, &cells);
    }
}

/// Ports that are no pool's, and yet taken.
fn outside(text: &mut String, view: &View) {
    if let Some(metrics) = view.config.agent.metrics {
        text.push_str("\n## Outside of pools\n\n");
        table(text, &["port", "what"]);
        let what = format!("metrics of portpool's agent, on {}", metrics.ip());
        row(text, &[format!("{}/tcp", metrics.port()), what]);
    }
}

fn proposals(text: &mut String, view: &View) {
    let proposed: Vec<&&Pool> = view
        .pools
        .iter()
        .filter(|it| !it.planned.is_empty())
        .collect();
    if proposed.is_empty() {
        return;
    }
    text.push_str("\n## Current against proposed\n\n");
    table(text, &["service", "now", "proposed"]);
    for pool in proposed {
        let cells = [
            markdown(title_of(pool)),
            pool.ports.to_string(),
            pool.planned.to_string(),
        ];
        row(text, &cells);
    }
}

fn former(text: &mut String, view: &View) {
    let mut former: Vec<(Port, &Pool)> = view
        .pools
        .iter()
        .flat_map(|pool| pool.was.iter().map(move |port| (port, *pool)))
        .collect();
    if former.is_empty() {
        return;
    }
    former.sort_by_key(|(port, _)| *port);
    text.push_str("\n## Former ports\n\n");
    table(text, &["port", "was of", "which is now on"]);
    for (port, pool) in former {
        let cells = [
            port.to_string(),
            markdown(title_of(pool)),
            pool.ports.to_string(),
        ];
        row(text, &cells);
    }
}

fn set_aside(text: &mut String, view: &View) {
    if view.config.ranges.is_empty() {
        return;
    }
    text.push_str("\n## Set aside\n\n");
    table(text, &["ports", "range", "purpose", "categories", "next"]);
    for range in &view.config.ranges {
        let next = view.next_of(Scope::Range(range.name.clone()));
        row(
            text,
            &[
                range.ports.to_string(),
                markdown(&range.name),
                markdown(range.purpose.as_deref().unwrap_or_default()),
                markdown(&range.categories.join(", ")),
                next.map_or_else(|| "full".to_owned(), |port| port.to_string()),
            ],
        );
    }
}

fn hosts(text: &mut String, view: &View) {
    if view.config.hosts.is_empty() {
        return;
    }
    text.push_str("\n## Hosts\n\n");
    table(text, &["host", "address"]);
    for host in &view.config.hosts {
        row(text, &[markdown(&host.name), markdown(&host.address)]);
    }
}
