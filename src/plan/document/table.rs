//! The plan for a terminal: pools by category, what is set aside, what is next.

use std::fmt::Write as _;

use tabled::builder::Builder;
use tabled::settings::{Padding, Style};

use super::quote::comment;
use super::{View, bound_by, remarks};
use crate::config::{Pool, State};
use crate::plan::Protocol;
use crate::plan::next::Scope;

pub(super) fn render(view: &View) -> String {
    let mut text = format!("{}: {}\n\n", comment(view.title()), view.summary());
    let mut rows = Builder::default();
    let with_hosts = view.pools.iter().any(|pool| pool.host.is_some());
    let mut record = |cells: [String; 6]| {
        let [pool, port, host, by, state, notes] = cells;
        let host = with_hosts.then_some(host);
        let cells = [pool, port].into_iter().chain(host);
        rows.push_record(cells.chain([by, state, notes]));
    };
    record(["POOL", "PORT", "HOST", "BOUND BY", "STATE", "NOTES"].map(str::to_owned));
    for group in view.groups() {
        let heading = comment(&group.heading());
        // An underscore keeps the heading from being taken for a pool, whose names have none.
        record([
            format!("[{heading}]"),
            String::new(),
            String::new(),
            String::new(),
            String::new(),
            String::new(),
        ]);
        for pool in &group.pools {
            for row in of_pool(pool) {
                record(row);
            }
        }
    }
    push(&mut text, rows);
    set_aside(&mut text, view);
    text
}

fn of_pool(pool: &Pool) -> Vec<[String; 6]> {
    let protocol = match pool.protocol {
        Protocol::Tcp => "",
        Protocol::Udp => "/udp",
    };
    let state = match pool.state {
        State::Active if pool.fixed => "fixed".to_owned(),
        State::Active => String::new(),
        other => other.to_string(),
    };
    let mut rows = vec![[
        pool.name.to_string(),
        format!("{}{protocol}", pool.ports),
        pool.host.clone().unwrap_or_default(),
        comment(&bound_by(pool)),
        state,
        comment(&remarks(pool).join("; ")),
    ]];
    rows.extend(pool.companions.iter().map(|companion| {
        let name = format!(".{}", companion.name);
        let ports = format!("{}{protocol}", companion.ports);
        [
            name,
            ports,
            String::new(),
            String::new(),
            String::new(),
            String::new(),
        ]
    }));
    rows
}

fn set_aside(text: &mut String, view: &View) {
    if view.config.ranges.is_empty() {
        return;
    }
    let mut rows = Builder::default();
    rows.push_record(["SET ASIDE", "PORTS", "NEXT", "FOR", "PURPOSE"]);
    for range in &view.config.ranges {
        let next = view.next_of(Scope::Range(range.name.clone()));
        rows.push_record([
            range.name.clone(),
            range.ports.to_string(),
            next.map_or_else(|| "full".to_owned(), |port| port.to_string()),
            match range.categories.is_empty() {
                true => "who names it".to_owned(),
                false => comment(&range.categories.join(", ")),
            },
            comment(range.purpose.as_deref().unwrap_or_default()),
        ]);
    }
    text.push('\n');
    push(text, rows);
}

fn push(text: &mut String, rows: Builder) {
    let mut table = rows.build();
    table.with(Style::empty()).with(Padding::new(0, 1, 0, 0));
    for line in table.to_string().lines() {
        let _ = writeln!(text, "{}", line.trim_end());
    }
}
