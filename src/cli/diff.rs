//! `portpool diff`: what another configuration moves, adds and frees, and which live leases it touches.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::failure::{FINDINGS, Failure, UNKNOWN, print, warn};
use crate::config::PortSet;
use crate::plan::diff::{Change, Kind, changes, touched};
use crate::protocol::{ListParameters, Slot, program_and_pid, user};

/// Say what another configuration moves, adds and frees, and which live leases it would touch.
///
/// The agent is asked for leases, if one answers. What `reload` would refuse, because a pool is fixed, is
/// marked. Exit code 0 when nothing differs, 1 when something does, 2 when a file cannot be read or is wrong.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The configuration as it is
    #[arg(value_name = "OLD")]
    old: PathBuf,

    /// As it is to be
    #[arg(value_name = "NEW")]
    new: PathBuf,

    /// Ask no agent for leases
    #[arg(long)]
    plan_only: bool,

    /// As JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments, socket: Option<PathBuf>) -> Result<u8, Failure> {
    let (_, old) = super::plan::checked(Some(arguments.old.clone()), UNKNOWN)?;
    let (_, new) = super::plan::checked(Some(arguments.new.clone()), UNKNOWN)?;
    let changes = changes(&old, &new);
    let sockets: HashSet<(String, u16, u16)> = touched(&old.plan, &new.plan)
        .iter()
        .map(|slot| (slot.name(), slot.instance.get(), slot.port.get()))
        .collect();
    let leases = match arguments.plan_only || sockets.is_empty() {
        true => Vec::new(),
        false => leases(socket, &sockets)?,
    };
    let text = match arguments.json {
        true => super::list::json(&Printed::new(&changes, &leases))?,
        false => text(&changes, &leases),
    };
    print(&text)?;
    Ok(if changes.is_empty() { 0 } else { FINDINGS })
}

/// The leases of slots that would not stay.
fn leases(
    socket: Option<PathBuf>,
    touched: &HashSet<(String, u16, u16)>,
) -> Result<Vec<Slot>, Failure> {
    let Ok(client) = super::connect(socket) else {
        warn("no agent answers: whether a live lease is touched is not known");
        return Ok(Vec::new());
    };
    let mut slots = client.list(&ListParameters::default())?;
    slots.retain(|slot| {
        let key = (slot.pool.clone(), slot.instance, slot.port);
        slot.holder.is_some() && touched.contains(&key)
    });
    Ok(slots)
}

fn text(changes: &[Change], leases: &[Slot]) -> String {
    let mut text = String::new();
    for change in changes {
        let Change {
            pool,
            before,
            after,
            adds,
            frees,
            ..
        } = change;
        let what = match change.kind {
            Kind::Moves if before == after => {
                format!("moves    {pool} {before}, but not the first instance")
            }
            Kind::Moves => format!("moves    {pool} {before} -> {after}"),
            Kind::Added => format!("adds     {pool} {after}"),
            Kind::Freed => format!("frees    {pool} {before}"),
            Kind::Altered => format!("changes  {pool} {before}"),
        };
        text.push_str(&what);
        if change.kind == Kind::Moves {
            for (sign, ports) in [('+', adds), ('-', frees)] {
                if !ports.is_empty() {
                    let _ = write!(text, "  {sign}{ports}");
                }
            }
        }
        if !change.keys.is_empty() {
            let _ = write!(text, "  ({})", change.keys.join(", "));
        }
        text.push('\n');
        if change.refused {
            let _ = writeln!(
                text,
                "REFUSED  {pool} is fixed: reload changes nothing at all until fixed = true is taken away"
            );
        }
    }
    for slot in leases {
        let who = slot.holder.as_ref();
        let who = who.map_or_else(String::new, |holder| {
            format!("{} {}", program_and_pid(holder), user(holder))
        });
        let _ = writeln!(
            text,
            "LEASED   {}/{} {}: {who} has it; it drains: no new lease, and it goes when this one ends",
            slot.pool, slot.instance, slot.port
        );
    }
    if changes.is_empty() {
        text.push_str("nothing differs\n");
    }
    text
}

/// What is printed as JSON.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Printed<'a> {
    changes: Vec<PrintedChange<'a>>,
    leases: &'a [Slot],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PrintedChange<'a> {
    pool: &'a str,
    change: &'static str,
    before: Vec<u16>,
    after: Vec<u16>,
    adds: Vec<u16>,
    frees: Vec<u16>,
    keys: &'a [&'static str],
    refused: bool,
}

impl<'a> Printed<'a> {
    fn new(changes: &'a [Change], leases: &'a [Slot]) -> Printed<'a> {
        let numbers = |ports: &PortSet| ports.iter().map(|port| port.get()).collect();
        let changes = changes.iter().map(|change| PrintedChange {
            pool: change.pool.as_str(),
            change: match change.kind {
                Kind::Moves => "moves",
                Kind::Added => "added",
                Kind::Freed => "freed",
                Kind::Altered => "altered",
            },
            before: numbers(&change.before),
            after: numbers(&change.after),
            adds: numbers(&change.adds),
            frees: numbers(&change.frees),
            keys: &change.keys,
            refused: change.refused,
        });
        Printed {
            changes: changes.collect(),
            leases,
        }
    }
}
