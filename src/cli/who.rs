//! `portpool who`: whose a port of this machine is, planned or not, and what to do about it.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::failure::{FINDINGS, Failure, print, warn};
use crate::client::{Client, Error};
use crate::protocol::{ListParameters, Process, Slot, describe_conflict, program_and_pid, user};
use crate::sys::hold::Transport;
use crate::sys::process;
use crate::sys::sock_diag::{self, BoundSocket};

/// Say who has a port of this machine, what the plan says of it, and what to do.
///
/// Exit code 0 when somebody has it, portpool for a pool included, 1 when nobody has.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The port
    #[arg(value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,

    /// Print what is known as JSON
    #[arg(long)]
    json: bool,

    /// Ask the agent that `exec --config FILE` started for this file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// What is known of a port in one protocol.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Known {
    port: u16,
    protocol: &'static str,
    /// The slots of the plan that are this port.
    slots: Vec<Slot>,
    /// The processes that have a socket bound to it, the agent aside.
    processes: Vec<Process>,
    /// A socket is bound to it of which the kernel does not say whose it is.
    hidden_users: Vec<u32>,
}

pub(super) fn run(arguments: &Arguments, socket: Option<PathBuf>) -> Result<u8, Failure> {
    let client = super::connect_to(arguments.config.as_deref(), socket).ok();
    if client.is_none() {
        warn("no agent answers: what the plan says of the port is not known");
    }
    let slots = client
        .as_ref()
        .map_or(Ok(Vec::new()), |client| planned(client, arguments.port))?;
    let agent = client.as_ref().and_then(Client::agent_pid);
    let known: Vec<Known> = [(Transport::Tcp, "tcp"), (Transport::Udp, "udp")]
        .into_iter()
        .map(|(transport, protocol)| look(arguments.port, transport, protocol, &slots, agent))
        .collect();
    let is_anybodys = known.iter().any(|known| {
        !known.slots.is_empty() || !known.processes.is_empty() || !known.hidden_users.is_empty()
    });
    if arguments.json {
        let text = serde_json::to_string_pretty(&known).unwrap_or_default();
        print(&format!("{text}\n"))?;
    } else if is_anybodys {
        print(&known.iter().map(describe).collect::<String>())?;
    }
    match (is_anybodys, arguments.json) {
        (true, _) => Ok(0),
        (false, true) => Ok(FINDINGS),
        (false, false) => Err(Failure::new(
            FINDINGS,
            format_args!("nobody has port {}, and no pool", arguments.port),
        )),
    }
}

fn planned(client: &Client, port: u16) -> Result<Vec<Slot>, Error> {
    let mut slots = client.list(&ListParameters::default())?;
    slots.retain(|slot| slot.port == port);
    Ok(slots)
}

fn look(
    port: u16,
    transport: Transport,
    protocol: &'static str,
    slots: &[Slot],
    agent: Option<u32>,
) -> Known {
    let bound = sock_diag::bound_to(port, transport).unwrap_or_default();
    let inodes: HashSet<u64> = bound.iter().map(|socket| socket.inode).collect();
    let owners = process::processes_with_sockets(&inodes);
    let mut pids: Vec<u32> = owners.values().flatten().copied().collect();
    pids.sort_unstable();
    pids.dedup();
    pids.retain(|pid| Some(*pid) != agent);
    let is_hidden = |socket: &&BoundSocket| !owners.contains_key(&socket.inode);
    let mut hidden_users: Vec<u32> = bound.iter().filter(is_hidden).map(|it| it.uid).collect();
    hidden_users.sort_unstable();
    hidden_users.dedup();
    let of_protocol = slots.iter().filter(|slot| slot.protocol == protocol);
    let slots: Vec<Slot> = of_protocol.cloned().collect();
    if !slots.is_empty() {
        // The agent's own sockets, for whom may not look into it.
        hidden_users.clear();
    }
    Known {
        port,
        protocol,
        slots,
        processes: pids.into_iter().map(describe_process).collect(),
        hidden_users,
    }
}

fn describe_process(pid: u32) -> Process {
    let uid = process::uid(pid).unwrap_or(0);
    Process {
        pid,
        uid,
        user: process::user_name(uid),
        program: process::program(pid),
        unit: process::system_unit(pid),
        ..Process::default()
    }
}

fn describe(known: &Known) -> String {
    let Known {
        port,
        protocol,
        slots,
        processes,
        hidden_users,
    } = known;
    let mut text = String::new();
    for slot in slots {
        text.push_str(&describe_slot(slot));
    }
    if !slots.is_empty() {
        return text;
    }
    for process in processes {
        let _ = writeln!(
            text,
            "{port}/{protocol}: not in the plan; {} has it",
            who(process)
        );
    }
    for uid in hidden_users {
        let _ = writeln!(
            text,
            "{port}/{protocol}: not in the plan; a process of user {uid} has it that you may not \
             see: ask as root"
        );
    }
    text
}

fn who(process: &Process) -> String {
    let mut text = format!("{} {}", program_and_pid(process), user(process));
    if let Some(unit) = &process.unit {
        let _ = write!(text, " {}", crate::protocol::printable(unit));
    }
    text
}

fn describe_slot(slot: &Slot) -> String {
    let Slot {
        pool,
        instance,
        port,
        protocol,
        state,
        ..
    } = slot;
    let place = format!("{port}/{protocol}: {pool}/{instance}");
    let base = pool.split('.').next().unwrap_or(pool);
    match (&slot.holder, state.as_str()) {
        (Some(holder), _) => format!(
            "{place}, {state}: {} has it\n  to take it back: portpool revoke {port}\n",
            who(holder)
        ),
        (None, "conflict") => format!(
            "{place}, conflict: {}\n  portpool takes it when that has ended, and takes nothing away\n",
            describe_conflict(slot)
        ),
        (None, "hostage") => format!(
            "{place}, hostage: a former holder's copy of the socket is in the way: {}\n  end that \
             process\n",
            slot.orphans.first().map_or("?".to_owned(), who)
        ),
        (None, "unavailable") => {
            format!("{place}, unavailable: the address does not exist (yet) on this machine\n")
        }
        (None, state) => format!(
            "{place}, {state}: held by portpool for {base}\n  start it with: portpool exec {base} -- CMD\n"
        ),
    }
}
