//! `portpool next`: the next free port, free in the plan and on this machine.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use super::failure::{CONFIGURATION, EXHAUSTED, FINDINGS, Failure, USAGE, print, warn};
use crate::config::{self, Config, Machine, Source};
use crate::plan::edit::{self, EditError, NewPool};
use crate::plan::next::{Obstacle, Proposal, Scope, Wanted, next};
use crate::plan::{PoolName, Port, Protocol};
use crate::protocol::{Process, program_and_pid, user, visible};
use crate::sys::hold::Transport;
use crate::sys::process;
use crate::sys::sock_diag::{self, BoundSocket};

/// Print the next free port of a range, a category, a pool or the plan, one a line.
///
/// It comes after the highest port there is, with the range's step. What is set aside is entered only by
/// whom it is for: a category that the range lists, a pool that is in it, or who names the range. A port
/// that is bound on this machine, or that the kernel may give to outgoing connections, is passed over and
/// named. Without a name, the port is for one more pool of the kind that has the highest one.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// A range, a category or a pool; range:NAME, category:NAME or pool:NAME where several have the name
    #[arg(value_name = "NAME")]
    name: Option<String>,

    /// How many
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    count: u16,

    /// Without a gap between them
    #[arg(long)]
    consecutive: bool,

    /// The lowest that is free, in gaps too
    #[arg(long)]
    lowest: bool,

    /// For UDP
    #[arg(long)]
    udp: bool,

    /// By the plan alone: do not ask this machine, which is not the one it is for
    #[arg(long)]
    plan_only: bool,

    /// Write it into the configuration: as this new pool, or without a name as more ports of the pool
    #[arg(long, value_name = "POOL", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    write: Option<String>,

    /// As JSON
    #[arg(long, conflicts_with = "write")]
    json: bool,

    /// The configuration [default: the installed one]
    #[arg(long, value_name = "FILE", env = "PORTPOOL_CONFIG")]
    config: Option<PathBuf>,
}

pub(super) fn run(arguments: &Arguments) -> Result<u8, Failure> {
    let files = super::agent::configuration(arguments.config.clone());
    let mut sources = files
        .load()
        .map_err(|error| Failure::new(CONFIGURATION, error))?;
    // Pools that meet are what it is asked about.
    let config = config::parse_unnumbered(&sources).map_err(|diagnostics| {
        Failure::new(
            CONFIGURATION,
            super::check::rendered(&diagnostics, &sources),
        )
    })?;
    let scope = match &arguments.name {
        Some(name) => Scope::parse(name, &config).map_err(|error| Failure::new(USAGE, error))?,
        None => Scope::Space,
    };
    let wanted = Wanted {
        scope,
        protocol: arguments.udp.then_some(Protocol::Udp),
        count: arguments.count,
        consecutive: arguments.consecutive,
        lowest: arguments.lowest,
    };
    let machine = match arguments.plan_only {
        true => Bound::default(),
        false => Bound::look()?,
    };
    let proposal = next(&config, &wanted, |protocol, port| {
        machine.obstacle(protocol, port)
    })
    .map_err(|error| Failure::new(EXHAUSTED, error))?;
    machine.explain(&proposal);
    if let Some(name) = &arguments.write {
        write(name, &wanted.scope, &proposal, &config, &mut sources)?;
    }
    print(&text(&proposal, arguments.json)?).map(|()| 0)
}

/// What is printed as JSON.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Printed<'a> {
    ports: Vec<u16>,
    protocol: String,
    range: Option<&'a str>,
    category: Option<&'a str>,
    passed_over: Vec<u16>,
}

fn text(proposal: &Proposal, as_json: bool) -> Result<String, Failure> {
    let ports = proposal.ports.iter();
    if !as_json {
        return Ok(ports.map(|port| format!("{port}\n")).collect());
    }
    super::list::json(&Printed {
        ports: ports.map(|port| port.get()).collect(),
        protocol: proposal.protocol.to_string(),
        range: proposal.range.as_deref(),
        category: proposal.category.as_deref(),
        passed_over: proposal
            .passed_over
            .iter()
            .map(|(port, _)| port.get())
            .collect(),
    })
}

/// What this machine has bound, and what it may bind by itself.
#[derive(Default)]
struct Bound {
    sockets: HashMap<(Protocol, u16), Vec<BoundSocket>>,
    machine: Machine,
}

impl Bound {
    fn look() -> Result<Bound, Failure> {
        let failed = |error: io::Error| {
            Failure::new(
                FINDINGS,
                format_args!(
                    "cannot ask the kernel what is bound: {error}; --plan-only does without"
                ),
            )
        };
        let mut bound = Bound {
            machine: crate::agent::facts(),
            ..Bound::default()
        };
        let tcp = sock_diag::bound(Transport::Tcp).map_err(failed)?;
        // A connection can keep others from its port as well.
        let connections = sock_diag::connections().map_err(failed)?;
        let udp = sock_diag::bound(Transport::Udp).map_err(failed)?;
        let tcp = tcp.into_iter().chain(connections);
        let tcp = tcp.map(|socket| (Protocol::Tcp, socket));
        for (protocol, socket) in tcp.chain(udp.into_iter().map(|it| (Protocol::Udp, it))) {
            let key = (protocol, socket.port);
            bound.sockets.entry(key).or_default().push(socket);
        }
        Ok(bound)
    }

    fn obstacle(&self, protocol: Protocol, port: Port) -> Option<Obstacle> {
        let number = port.get();
        if self.sockets.contains_key(&(protocol, number)) {
            return Some(Obstacle::Bound);
        }
        let may_be_given = self.machine.ephemeral.as_ref();
        let may_be_given = may_be_given.is_some_and(|range| range.contains(&number));
        let reserved = self.machine.reserved.iter();
        let is_reserved = reserved.into_iter().any(|range| range.contains(&number));
        (may_be_given && !is_reserved).then_some(Obstacle::Ephemeral)
    }

    /// Says which ports were passed over, and who has them.
    fn explain(&self, proposal: &Proposal) {
        let passed = &proposal.passed_over;
        let bound = passed.iter().filter(|(_, why)| *why == Obstacle::Bound);
        for (port, _) in bound {
            let key = (proposal.protocol, port.get());
            let who = self
                .sockets
                .get(&key)
                .map_or_else(String::new, |it| owner(it));
            warn(format_args!("{port} is passed over: {who}"));
        }
        let ephemeral = passed.iter().filter(|(_, why)| *why == Obstacle::Ephemeral);
        let count = ephemeral.count();
        if let (true, Some(range)) = (count > 0, &self.machine.ephemeral) {
            warn(format_args!(
                "{count} ports are passed over that the kernel gives to outgoing connections \
                 (ip_local_port_range {}-{}); what is in ip_local_reserved_ports it does not",
                range.start(),
                range.end()
            ));
        }
    }
}

/// Who has a port, in words.
fn owner(sockets: &[BoundSocket]) -> String {
    let inodes: HashSet<u64> = sockets.iter().map(|socket| socket.inode).collect();
    let owners = process::processes_with_sockets(&inodes);
    let Some(pid) = owners.values().flatten().min().copied() else {
        let uid = sockets.first().map_or(0, |socket| socket.uid);
        return format!("a process of user {uid} has it that you may not see");
    };
    let uid = process::uid(pid).unwrap_or(0);
    let who = Process {
        pid,
        uid,
        user: process::user_name(uid),
        program: process::program(pid),
        ..Process::default()
    };
    format!("{} {} has it", program_and_pid(&who), user(&who))
}

/// Puts the ports into the configuration, if it is right then.
fn write(
    name: &str,
    scope: &Scope,
    proposal: &Proposal,
    config: &Config,
    sources: &mut [Source],
) -> Result<(), Failure> {
    let edited = match (name, scope) {
        ("", Scope::Pool(pool)) => sources
            .iter()
            .position(|source| edit::add_ports(&source.text, pool, &[]).is_ok())
            .ok_or_else(|| EditError::Missing(pool.clone()))
            .and_then(|index| {
                let text = &sources[index].text;
                Ok((index, edit::add_ports(text, pool, &proposal.ports)?))
            }),
        ("", _) => {
            let text = "say what the new pool is called: --write=NAME";
            return Err(Failure::new(USAGE, text));
        }
        (name, _) => {
            let name: PoolName = name.parse().map_err(|error| {
                Failure::new(
                    USAGE,
                    format_args!("{:?} is no name of a pool: it {error}", visible(name)),
                )
            })?;
            if config.pools.iter().any(|pool| pool.name == name) {
                Err(EditError::Exists(name))
            } else {
                let pool = NewPool {
                    name: &name,
                    ports: &proposal.ports,
                    category: proposal.category.as_deref(),
                    protocol: (proposal.protocol != config.defaults.protocol)
                        .then_some(proposal.protocol),
                };
                let text = sources.first().map_or("", |source| source.text.as_str());
                edit::add_pool(text, &pool).map(|text| (0, text))
            }
        }
    };
    let failed = |error| Failure::new(CONFIGURATION, format_args!("the configuration {error}"));
    let (index, text) = edited.map_err(failed)?;
    let Some(source) = sources.get_mut(index) else {
        return Err(Failure::new(CONFIGURATION, "there is no file to write to"));
    };
    source.text = text;
    let (path, text) = (source.path.clone(), source.text.clone());
    config::parse(sources, &crate::agent::facts()).map_err(|diagnostics| {
        let found = super::check::rendered(&diagnostics, sources);
        Failure::new(
            CONFIGURATION,
            format_args!("nothing is written: the configuration would be wrong then\n{found}"),
        )
    })?;
    replace(&path, &text).map_err(|error| {
        Failure::new(
            FINDINGS,
            format_args!("cannot write {}: {error}", path.display()),
        )
    })?;
    let ports = &proposal.ports;
    let ports: Vec<String> = ports.iter().map(ToString::to_string).collect();
    warn(format_args!(
        "{}: written to {}; the agent goes over to it with: portpool reload",
        ports.join(", "),
        path.display()
    ));
    Ok(())
}

/// Replaces a file as a whole or not at all, with its mode; a link stays one.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let path = fs::canonicalize(path)?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let new = path.with_file_name(name);
    let written = fs::write(&new, text)
        .and_then(|()| fs::set_permissions(&new, fs::metadata(&path)?.permissions()))
        .and_then(|()| fs::File::open(&new)?.sync_all())
        .and_then(|()| fs::rename(&new, &path));
    written.inspect_err(|_| drop(fs::remove_file(&new)))
}
