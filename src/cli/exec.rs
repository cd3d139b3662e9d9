//! `portpool exec`: take slots, then become the service that finds its sockets in LISTEN_FDS.

mod options;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use clap::Args;

use self::options::{FOR_EVER, Instance, MAX_READY_FD, instance, on_revoke, takeover, wait, want};
use super::failure::{Failure, NO_AGENT, USAGE, warn};
use super::{own_agent, ready};
use crate::client::{Client, Error, Grant};
use crate::protocol::{AcquireParameters, Fault, MAX_LABEL, Takeover, Want};
use crate::sys::activation;

/// Take one slot of each POOL, all or none, and become CMD.
///
/// CMD finds its sockets at file descriptor 3 and up, in the order of POOLs and then of ports, as
/// systemd passes them: LISTEN_FDS, LISTEN_PID, LISTEN_FDNAMES. It also finds PORT,
/// PORTPOOL_INSTANCE, PORTPOOL_LEASE_IDS and PORTPOOL_<POOL>_PORT, PORTPOOL_<POOL>_PORTS. In CMD's arguments {port} is
/// replaced by the port and {POOL.port} by that pool's. Put exec innermost: npm, cargo-watch and
/// Python launchers close descriptors they do not know.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Pools to take a slot of; POOL*N takes N of them
    #[arg(required = true, value_name = "POOL")]
    pools: Vec<String>,

    /// The program to become, and its arguments
    #[arg(required = true, last = true, value_name = "CMD")]
    command: Vec<OsString>,

    /// Of which instance; auto: the lowest that is nobody's, claimed for CMD's life [default: 1]
    #[arg(long, value_name = "N|auto", env = "PORTPOOL_INSTANCE", value_parser = instance)]
    instance: Option<Instance>,

    /// Wait for slots that are taken, in the order of arrival: for so long, or for ever
    #[arg(long, value_name = "DURATION", num_args = 0..=1, require_equals = true,
        default_missing_value = FOR_EVER, value_parser = wait)]
    wait: Option<i64>,

    /// Take the slot over from CMD's other life, which goes on serving what it has: now, or once
    /// CMD is ready
    #[arg(long, value_name = "now|ready", num_args = 0..=1, require_equals = true,
        default_missing_value = "now", value_parser = takeover)]
    takeover: Option<Takeover>,

    /// CMD is ready once it writes a line to this descriptor; until then the slot stays as it is
    #[arg(long, value_name = "N", requires = "takeover", value_parser = clap::value_parser!(i32).range(3..=MAX_READY_FD))]
    ready_fd: Option<i32>,

    /// The signal that CMD gets when a lease is revoked or taken over, or none [default: the pool's]
    #[arg(long, value_name = "SIGNAL|none", value_parser = on_revoke)]
    on_revoke: Option<String>,

    /// Take a slot of this pool too, but go on without it where there is none
    #[arg(long, value_name = "POOL")]
    optional: Vec<String>,

    /// Set no LISTEN_PID: for watchers and launchers that fork the service
    #[arg(long)]
    no_pid: bool,

    /// What this holder is called in lists
    #[arg(long, value_name = "TEXT")]
    label: Option<String>,

    /// Use an agent of one's own for exactly this file, started on demand and gone when idle
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// How long that agent stays without a client and a lease
    #[arg(long, hide = true, env = "PORTPOOL_AGENT_IDLE", hide_env = true,
        default_value = "10s", value_parser = humantime::parse_duration)]
    agent_idle: Duration,
}

/// A pool asked for.
#[derive(Debug, Clone)]
struct Asked {
    want: Want,
    is_optional: bool,
}

pub(super) fn run(arguments: Arguments, socket: Option<PathBuf>) -> Result<u8, Failure> {
    let mut asked = Vec::new();
    for (text, is_optional) in arguments.pools.iter().map(|pool| (pool, false)) {
        asked.push(Asked {
            want: want(text)?,
            is_optional,
        });
    }
    for text in &arguments.optional {
        asked.push(Asked {
            want: want(text)?,
            is_optional: true,
        });
    }
    check_placeholders(&arguments.command, &asked)?;

    if arguments.ready_fd.is_some() && arguments.takeover != Some(Takeover::Ready) {
        let text = "--ready-fd goes with --takeover=ready";
        return Err(Failure::new(USAGE, text));
    }

    let (client, grants) = acquire(&arguments, socket, asked)?;
    let Some(first) = grants.first() else {
        return become_command(&arguments.command, Vec::new(), Vec::new(), None);
    };
    let ready = match arguments.ready_fd {
        Some(place) => Some((place, listen_for_ready(place, &client, &grants)?)),
        None => None,
    };
    let command = fill_in(&arguments.command, &grants, first.lease.port);
    let environment = environment(&grants, arguments.no_pid);
    let sockets = grants
        .into_iter()
        .flat_map(|grant| grant.sockets)
        .map(|(_, fd)| fd)
        .collect();
    become_command(&command, environment, sockets, ready)
}

/// What CMD writes to at this descriptor, to say that it is ready.
fn listen_for_ready(place: i32, client: &Client, grants: &[Grant]) -> Result<OwnedFd, Failure> {
    let sockets: usize = grants.iter().map(|grant| grant.sockets.len()).sum();
    let is_free = usize::try_from(place).is_ok_and(|place| place >= 3 + sockets);
    if !is_free {
        let text = format!(
            "--ready-fd {place} is where CMD finds a socket: they are at 3 to {}; take a number above",
            2 + sockets
        );
        return Err(Failure::new(USAGE, text));
    }
    let leases: Vec<u64> = grants.iter().map(|grant| grant.lease.lease_id).collect();
    ready::listen(client, &leases)
}

/// Takes all that is not optional, and of the optional what there is; gives also the client that
/// took it.
fn acquire(
    arguments: &Arguments,
    socket: Option<PathBuf>,
    mut asked: Vec<Asked>,
) -> Result<(Client, Vec<Grant>), Failure> {
    let connect = || match &arguments.config {
        Some(file) => own_agent::connect(file, arguments.agent_idle),
        None => super::connect(socket.clone()),
    };
    let mut client: Client = connect()?;
    let mut may_reconnect = arguments.config.is_some();
    loop {
        let pools: Vec<Want> = asked.iter().map(|asked| asked.want.clone()).collect();
        if pools.is_empty() {
            return Ok((client, Vec::new()));
        }
        let error = match client.acquire_all(parameters(arguments, pools)) {
            Ok(grants) => return Ok((client, grants)),
            Err(error) => error,
        };
        if let Some(pool) = missing_pool(&error)
            && let Some(position) = asked
                .iter()
                .position(|a| a.is_optional && a.want.pool == pool)
        {
            warn(format_args!("going on without {pool}: {error}"));
            asked.remove(position);
            continue;
        }
        match error {
            // An agent of one's own that was just leaving for lack of work.
            Error::Io(_) if std::mem::take(&mut may_reconnect) => client = connect()?,
            error => return Err(error.into()),
        }
    }
}

fn parameters(arguments: &Arguments, pools: Vec<Want>) -> AcquireParameters {
    let (instance, auto) = match arguments.instance {
        Some(Instance::Number(number)) => (Some(number), None),
        Some(Instance::Auto) => (None, Some(true)),
        None => (None, None),
    };
    AcquireParameters {
        pools,
        instance,
        auto,
        label: arguments.label.clone(),
        program: arguments.command.first().and_then(|cmd| file_name(cmd)),
        wait: arguments.wait,
        takeover: arguments.takeover,
        on_revoke: arguments.on_revoke.clone(),
    }
}

/// The last part of CMD's path, as much of it as the protocol takes.
fn file_name(command: &OsStr) -> Option<String> {
    let name = Path::new(command).file_name()?.to_string_lossy();
    let end = |(at, character): (usize, char)| at + character.len_utf8();
    let ends = name.char_indices().map(end);
    let end = ends.take_while(|end| *end <= MAX_LABEL).last();
    Some(name[..end.unwrap_or(0)].to_owned())
}

fn missing_pool(error: &Error) -> Option<String> {
    let Error::Refused(fault) = error else {
        return None;
    };
    match &**fault {
        Fault::PoolExhausted { pool, .. }
        | Fault::UnknownPool { pool, .. }
        | Fault::UnknownInstance { pool, .. } => Some(pool.clone()),
        _ => None,
    }
}

/// A bare `{port}` must mean one pool. A `{POOL.port}` of a pool that was not asked for may be the
/// command's own, and is left as it is.
fn check_placeholders(command: &[OsString], asked: &[Asked]) -> Result<(), Failure> {
    let contains = |text: &str| {
        command.iter().any(|part| {
            part.as_bytes()
                .windows(text.len())
                .any(|w| w == text.as_bytes())
        })
    };
    if asked.len() > 1 && contains("{port}") {
        let pools: Vec<&str> = asked.iter().map(|asked| asked.want.pool.as_str()).collect();
        return Err(Failure::new(
            USAGE,
            format_args!(
                "{{port}} could be any of {}: write {{{}.port}}",
                pools.join(", "),
                pools[0]
            ),
        ));
    }
    Ok(())
}

fn fill_in(command: &[OsString], grants: &[Grant], first_port: u16) -> Vec<OsString> {
    let mut values = vec![("{port}".to_owned(), first_port.to_string())];
    for (name, ports) in ports_by_name(grants) {
        values.push((format!("{{{name}.port}}"), ports[0].to_string()));
    }
    let fill = |part: &OsString| {
        values
            .iter()
            .fold(part.clone(), |text, (from, to)| replace(&text, from, to))
    };
    command.iter().map(fill).collect()
}

fn replace(text: &OsStr, from: &str, to: &str) -> OsString {
    let mut rest = text.as_bytes();
    let mut replaced = Vec::with_capacity(rest.len());
    while let Some(at) = rest
        .windows(from.len())
        .position(|window| window == from.as_bytes())
    {
        replaced.extend_from_slice(&rest[..at]);
        replaced.extend_from_slice(to.as_bytes());
        rest = &rest[at + from.len()..];
    }
    replaced.extend_from_slice(rest);
    OsString::from_vec(replaced)
}

/// Every name's ports, in order: pools and companions (`api-server.metrics`). Never empty lists.
fn ports_by_name(grants: &[Grant]) -> BTreeMap<&str, Vec<u16>> {
    let mut ports: BTreeMap<&str, Vec<u16>> = BTreeMap::new();
    for (socket, _) in grants.iter().flat_map(|grant| &grant.sockets) {
        let of_name = ports.entry(&socket.name).or_default();
        // A slot on several addresses has a socket for each.
        if of_name.last() != Some(&socket.port) {
            of_name.push(socket.port);
        }
    }
    ports
}

/// The environment's new variables; `None` takes one away.
fn environment(grants: &[Grant], no_pid: bool) -> Vec<(String, Option<String>)> {
    let names: Vec<&str> = grants
        .iter()
        .flat_map(|grant| &grant.sockets)
        .map(|(socket, _)| socket.name.as_str())
        .collect();
    let pid = (!no_pid).then(|| std::process::id().to_string());
    let pidfd = activation::own_pidfd_id()
        .filter(|_| !no_pid)
        .map(|id| id.to_string());
    let mut variables = vec![
        ("LISTEN_FDS".to_owned(), Some(names.len().to_string())),
        ("LISTEN_FDNAMES".to_owned(), Some(names.join(":"))),
        ("LISTEN_PID".to_owned(), pid),
        ("LISTEN_PIDFDID".to_owned(), pidfd),
        // A Node parent's channel would be at a descriptor that is a socket, or closed, now.
        ("NODE_CHANNEL_FD".to_owned(), None),
        ("NODE_CHANNEL_SERIALIZATION_MODE".to_owned(), None),
    ];
    if let Some(first) = grants.first() {
        variables.push(("PORT".to_owned(), Some(first.lease.port.to_string())));
        variables.push((
            "PORTPOOL_INSTANCE".to_owned(),
            Some(first.lease.instance.to_string()),
        ));
        // For a service that calls the agent by itself.
        let leases = grants.iter().map(|grant| grant.lease.lease_id.to_string());
        variables.push((
            "PORTPOOL_LEASE_IDS".to_owned(),
            Some(leases.collect::<Vec<_>>().join(",")),
        ));
    }
    for (name, ports) in ports_by_name(grants) {
        let name = name.to_uppercase().replace(['-', '.'], "_");
        let all: Vec<String> = ports.iter().map(u16::to_string).collect();
        variables.push((format!("PORTPOOL_{name}_PORT"), Some(all[0].clone())));
        variables.push((format!("PORTPOOL_{name}_PORTS"), Some(all.join(","))));
    }
    variables
}

/// Becomes the command. Returns only when that fails; the leases then end with this process.
fn become_command(
    command: &[OsString],
    environment: Vec<(String, Option<String>)>,
    sockets: Vec<OwnedFd>,
    ready: Option<(i32, OwnedFd)>,
) -> Result<u8, Failure> {
    let Some((program, arguments)) = command.split_first() else {
        return Err(Failure::new(USAGE, "there is no command after --"));
    };
    let mut process = Command::new(program);
    process.args(arguments);
    for (name, value) in environment {
        match value {
            Some(value) => process.env(name, value),
            None => process.env_remove(name),
        };
    }
    activation::place(sockets, ready).map_err(|error| {
        Failure::new(NO_AGENT, format_args!("cannot place the sockets: {error}"))
    })?;
    let error = process.exec();
    let code = match error.kind() {
        ErrorKind::NotFound => 127,
        _ => 126,
    };
    let program = crate::protocol::printable(&program.to_string_lossy());
    Err(Failure::new(
        code,
        format_args!("cannot run {program}: {error}"),
    ))
}
