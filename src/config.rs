//! Configuration: TOML in, types that cannot be invalid out.
//!
//! [`load_files`] reads, [`parse`] checks. What is wrong comes back as [`Diagnostic`]s with file, line, column
//! and a way out, all of them at once; what is right as a [`Config`] and the [`Plan`] of this host. Only
//! [`load_files`] and [`system_files`] touch the disk; facts about the machine are passed in as [`Machine`].

mod check;
mod defaults;
mod diagnostic;
mod facts;
mod files;
mod numbering;
mod pool;
mod ports;
mod raw;
mod read;
mod settings;
mod template;
mod values;
mod warn;

use std::ops::RangeInclusive;
use std::path::PathBuf;

use serde_spanned::Spanned;
use toml::de::DeTable;

pub use defaults::{defaults_markdown, defaults_text};
pub use diagnostic::{Diagnostic, Label, MAX_FINDINGS, Severity, Span};
pub use files::{LoadError, MAX_FILE, load_files, system_files};
pub use ports::{PortSet, PortsError, PortsErrorKind};
pub use settings::{
    Access, AgentSettings, Allow, BadSource, Category, Companion, Config, Container,
    FirewallSource, Health, Host, NumberRange, OnRevoke, Pool, PoolDefaults, Probe, ServedBy,
    Signal, State, UnknownSignal, Unleased,
};
pub use template::{Reference, Template, TemplateError, TemplateErrorKind};

use crate::plan::Plan;
use diagnostic::Report;

/// One file of a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Where it was read from, as messages name it.
    pub path: PathBuf,
    /// What it says.
    pub text: String,
}

/// What is known of the machine the configuration is for. The default is that nothing is, which warns of nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// The hostname; empty if unknown. It is which `[host]` this is, unless `[agent] host` says.
    pub hostname: String,
    /// net.ipv4.ip_local_port_range: the ports the kernel gives to outgoing connections.
    pub ephemeral: Option<RangeInclusive<u16>>,
    /// net.ipv4.ip_local_reserved_ports: those of them it does not.
    pub reserved: Vec<RangeInclusive<u16>>,
    /// net.ipv4.ip_unprivileged_port_start: the first port anybody may bind.
    pub unprivileged_start: u16,
    /// Whether the agent has CAP_NET_BIND_SERVICE.
    pub may_bind_privileged: bool,
    /// RLIMIT_NOFILE of the agent, in descriptors; 0 if unknown.
    pub fd_limit: u64,
}

/// A configuration that passed every check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// What it says.
    pub config: Config,
    /// The slots of this host.
    pub plan: Plan,
    /// What is allowed but will surprise somebody, in the order of the files.
    pub warnings: Vec<Diagnostic>,
}

/// Checks the files as one configuration. The error is never empty: everything that is wrong, in the order of
/// the files, at most [`MAX_FINDINGS`].
pub fn parse(sources: &[Source], machine: &Machine) -> Result<Checked, Vec<Diagnostic>> {
    let mut report = Report::default();
    let documents = documents(sources, &mut report);
    // Half a configuration would be full of names of nothing.
    let mut report = report.refuse_errors()?;
    let reading = read::read(&documents, &mut report);
    check::check(&reading, &mut report);
    numbering::check(&reading, machine, &mut report);
    // A plan of what was refused could be of any size.
    let mut report = report.refuse_errors()?;
    let config = reading.config();
    let plan = Plan::new(&config, &reading.this_host(machine));
    warn::check(&reading, &plan, machine, &mut report);
    Ok(Checked {
        config,
        plan,
        warnings: report.into_sorted(),
    })
}

/// The same without the proof that no two slots meet, for whoever is to find other numbers for those that do.
#[cfg(feature = "cli")]
pub(crate) fn parse_unnumbered(sources: &[Source]) -> Result<Config, Vec<Diagnostic>> {
    let mut report = Report::default();
    let documents = documents(sources, &mut report);
    let mut report = report.refuse_errors()?;
    let reading = read::read(&documents, &mut report);
    check::check(&reading, &mut report);
    report.refuse_errors()?;
    Ok(reading.config())
}

/// A file's index, its text and what TOML makes of it.
type Document<'a> = (usize, &'a str, Spanned<DeTable<'a>>);

fn documents<'a>(sources: &'a [Source], report: &mut Report) -> Vec<Document<'a>> {
    let sources = sources.iter().enumerate();
    sources
        .filter_map(|(index, source)| {
            let document = raw::document(source, index, report)?;
            Some((index, source.text.as_str(), document))
        })
        .collect()
}
