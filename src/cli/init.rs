//! `portpool init`: a first plan of what is there already.

use std::collections::{BTreeMap, HashSet};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::Args;

use super::failure::{FINDINGS, Failure, UNKNOWN, print, warn};
use crate::config::{self, Source};
use crate::plan::init::{By, Listens, Service, compose, configuration};
use crate::plan::{Port, Protocol};
use crate::sys::hold::Transport;
use crate::sys::process;
use crate::sys::sock_diag;

/// Write a first plan of what is there already: what Compose publishes, or what this machine listens on.
///
/// Every pool in it is external: it is documented and counted with, and portpool holds none until you say so.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("from").required(true))]
pub(super) struct Arguments {
    /// A Compose file
    #[arg(long, value_name = "FILE", group = "from")]
    from_compose: Option<PathBuf>,

    /// What listens on this machine; as root, also what others run
    #[arg(long, group = "from")]
    from_machine: bool,

    /// Into this file, which must not be there yet, instead of to standard output
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

pub(super) fn run(arguments: &Arguments) -> Result<u8, Failure> {
    let text = match &arguments.from_compose {
        Some(file) => from_compose(file)?,
        None => configuration("what this machine listens on", None, &machine()?),
    };
    // It was made of others' words: whatever those are, what is written must be accepted.
    let source = Source {
        path: "the new plan".into(),
        text: text.clone(),
    };
    let sources = [source];
    config::parse(&sources, &crate::agent::facts()).map_err(|diagnostics| {
        let found = super::check::rendered(&diagnostics, &sources);
        Failure::new(FINDINGS, format_args!("no plan can be made of it\n{found}"))
    })?;
    let Some(file) = &arguments.output else {
        return print(&text).map(|()| 0);
    };
    let written =
        std::fs::File::create_new(file).and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|error| {
        let way_out = match error.kind() {
            io::ErrorKind::AlreadyExists => "; move it away, or write to standard output",
            _ => "",
        };
        Failure::new(
            FINDINGS,
            format_args!("cannot write {}: {error}{way_out}", file.display()),
        )
    })?;
    warn(format_args!(
        "{} is written; see it with: portpool plan --config {0}",
        file.display()
    ));
    Ok(0)
}

fn from_compose(file: &Path) -> Result<String, Failure> {
    let failed = |reason: &dyn std::fmt::Display| {
        Failure::new(UNKNOWN, format_args!("{}: it {reason}", file.display()))
    };
    let sources = config::load_files(&[file.to_owned()])
        .map_err(|error| failed(&format!("cannot be read: {}", error.source)))?;
    let text = sources.first().map_or("", |source| source.text.as_str());
    let (name, services) = compose::read(text).map_err(|reason| failed(&reason))?;
    Ok(configuration(
        &file.to_string_lossy(),
        name.as_deref(),
        &services,
    ))
}

/// What listens here, by who listens: a unit, else a program.
fn machine() -> Result<Vec<Service>, Failure> {
    let failed = |error: io::Error| {
        Failure::new(
            UNKNOWN,
            format_args!("cannot ask the kernel what is bound: {error}"),
        )
    };
    let mut sockets = Vec::new();
    for (transport, protocol) in [
        (Transport::Tcp, Protocol::Tcp),
        (Transport::Udp, Protocol::Udp),
    ] {
        let bound = sock_diag::bound(transport).map_err(failed)?;
        sockets.extend(bound.into_iter().map(|socket| (protocol, socket)));
    }
    let ephemeral = crate::agent::facts().ephemeral;
    // A client's datagrams come from such a port, too.
    sockets.retain(|(protocol, socket)| {
        let is_given = ephemeral
            .as_ref()
            .is_some_and(|range| range.contains(&socket.port));
        *protocol == Protocol::Tcp || !is_given
    });
    sockets.sort_by_key(|(protocol, socket)| (socket.port, *protocol));
    let inodes: HashSet<u64> = sockets.iter().map(|(_, socket)| socket.inode).collect();
    let owners = process::processes_with_sockets(&inodes);
    let mut services: BTreeMap<String, Service> = BTreeMap::new();
    for (protocol, socket) in &sockets {
        let Some(port) = Port::new(socket.port) else {
            continue;
        };
        let pid = owners.get(&socket.inode).and_then(|pids| pids.first());
        let program = pid.and_then(|pid| process::program(*pid));
        let unit = pid.and_then(|pid| process::system_unit(*pid));
        let unit = unit.filter(|unit| unit.ends_with(".service"));
        let (name, by) = match (unit, program) {
            (Some(unit), _) => (unit.trim_end_matches(".service").to_owned(), By::Unit(unit)),
            (None, Some(program)) => (program.clone(), By::Program(program)),
            (None, None) => (format!("port-{port}"), By::Unknown),
        };
        let service = services.entry(name.clone()).or_insert_with(|| Service {
            name,
            remarks: match by {
                By::Unknown => vec![format!(
                    "a process of user {} that you may not see",
                    socket.uid
                )],
                _ => Vec::new(),
            },
            by,
            listens: Vec::new(),
        });
        service.listens.push(Listens {
            port,
            protocol: *protocol,
            address: Some(socket.address),
            inner: None,
        });
    }
    Ok(services.into_values().collect())
}
