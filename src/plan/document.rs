//! The numbering plan as documents: tables to read, files and commands for other programs to use.
//!
//! All of them are made of one [`View`] of a configuration, so they cannot disagree. One file a format;
//! what strangers wrote (titles, notes, values) is quoted as each reader wants it: `quote.rs`.

mod compose;
mod env;
mod firewall;
mod firewalld;
mod json;
mod markdown;
mod nftables;
mod powershell;
mod prometheus;
mod quote;
mod systemd;
mod table;
mod ufw;

pub(super) use quote::{quoted, xml};

use std::fmt::Write as _;

use super::next::{Scope, Wanted, next};
use super::{Instance, Port, nearest};
use crate::config::{Config, Host, Pool, PortSet, Reference, ServedBy, State, Template};

/// What a plan can be written as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// A table by category, for a terminal
    Table,
    /// A document to commit
    Markdown,
    /// Environment variables: .env
    Env,
    /// `ports:` of Docker Compose
    Compose,
    /// Commands of ufw
    Ufw,
    /// A table for nft -f
    Nftables,
    /// Commands of firewall-cmd
    Firewalld,
    /// New-NetFirewallRule for Windows
    Powershell,
    /// Socket units
    Systemd,
    /// Targets for file_sd_configs: the companions called metrics
    Prometheus,
    /// Everything, for programs
    Json,
}

/// A configuration, seen from somewhere.
#[derive(Clone, Debug)]
pub(crate) struct View<'a> {
    config: &'a Config,
    /// The machine it is seen from; `None`: each service's own.
    on: Option<&'a Host>,
    /// The instance that templates get the ports of.
    instance: Instance,
    pools: Vec<&'a Pool>,
}

/// One of several files a document consists of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct File {
    /// Its name, without a folder.
    pub(crate) name: String,
    /// What is in it.
    pub(crate) text: String,
}

impl<'a> View<'a> {
    /// A view of some pools, or of all if none is named. The error names what there is not.
    pub(crate) fn new(
        config: &'a Config,
        on: Option<&str>,
        instance: Instance,
        pools: &[String],
    ) -> Result<View<'a>, String> {
        let on = on.map(|name| host(config, name)).transpose()?;
        let known = || config.pools.iter().map(|pool| pool.name.as_str());
        if let Some(unknown) = pools.iter().find(|name| !known().any(|own| own == *name)) {
            let near = nearest(unknown, known());
            let hint = near.map_or_else(
                || "see: portpool plan".to_owned(),
                |near| format!("did you mean {near:?}?"),
            );
            return Err(format!("there is no pool {unknown:?}; {hint}"));
        }
        let wanted =
            |pool: &&Pool| pools.is_empty() || pools.iter().any(|it| *it == pool.name.as_str());
        Ok(View {
            config,
            on,
            instance,
            pools: config.pools.iter().filter(wanted).collect(),
        })
    }

    /// The document, whole.
    pub(crate) fn render(&self, format: Format) -> String {
        match format {
            Format::Table => table::render(self),
            Format::Markdown => markdown::render(self),
            Format::Env => env::render(self),
            Format::Compose => compose::render(self),
            Format::Ufw => ufw::render(self),
            Format::Nftables => nftables::render(self),
            Format::Firewalld => firewalld::render(self),
            Format::Powershell => powershell::render(self),
            Format::Systemd => systemd::render(self),
            Format::Prometheus => prometheus::render(self),
            Format::Json => json::render(self),
        }
    }

    /// The document as a file for each pool; `None` for a format that is one file.
    pub(crate) fn files(&self, format: Format) -> Option<Vec<File>> {
        match format {
            Format::Env => Some(env::files(self)),
            Format::Systemd => Some(systemd::files(self)),
            _ => None,
        }
    }

    /// What the plan is called.
    fn title(&self) -> &str {
        self.config.plan_name.as_deref().unwrap_or("Ports")
    }

    /// The pools that are on the machine it is seen from, if it is seen from one; those switched off aside.
    fn in_use(&self) -> impl Iterator<Item = &'a Pool> + '_ {
        let here = |pool: &&Pool| self.on.is_none_or(|host| pool.is_on(&host.name));
        let pools = self.pools.iter().copied();
        pools
            .filter(here)
            .filter(|pool| pool.state != State::Disabled)
    }

    /// The pools by category: those declared in their order, then the others as they appear, then the rest.
    fn groups(&self) -> Vec<Group<'a>> {
        let declared = self.config.categories.iter();
        let mut groups: Vec<Group> = declared
            .map(|category| Group {
                tier: category.tier.as_deref(),
                category: Some(category.name.as_str()),
                pools: Vec::new(),
            })
            .collect();
        let mut rest = Vec::new();
        for pool in &self.pools {
            let Some(name) = pool.category.as_deref() else {
                rest.push(*pool);
                continue;
            };
            match groups.iter_mut().find(|group| group.category == Some(name)) {
                Some(group) => group.pools.push(pool),
                None => groups.push(Group {
                    tier: None,
                    category: Some(name),
                    pools: vec![pool],
                }),
            }
        }
        groups.push(Group {
            tier: None,
            category: None,
            pools: rest,
        });
        groups.retain(|group| !group.pools.is_empty());
        groups
    }

    /// How the pool's machine is reached from where this is seen: as in a URL.
    fn host_of(&self, pool: &Pool) -> String {
        match (self.on, pool.host.as_deref()) {
            (Some(on), Some(host)) if on.name != host => self.address_of(host),
            _ => "localhost".to_owned(),
        }
    }

    /// The address of a host, as in a URL.
    fn address_of(&self, host: &str) -> String {
        let found = self.config.hosts.iter().find(|known| known.name == host);
        let address = found.map_or(host, |host| host.address.as_str());
        match address.contains(':') {
            true => format!("[{address}]"),
            false => address.to_owned(),
        }
    }

    /// A pool's template, filled in. That what it refers to exists was checked with the configuration.
    fn fill(&self, pool: &Pool, template: &Template) -> String {
        let fill = |reference: &Reference| {
            Ok::<String, std::convert::Infallible>(match reference {
                Reference::Port => self.first_port(pool),
                Reference::Host => self.host_of(pool),
                Reference::Address => pool
                    .addresses
                    .first()
                    .map_or_else(String::new, ToString::to_string),
                Reference::PortOf(name) => self.port_of(name),
                Reference::InnerOf(name) => self.inner_of(name),
            })
        };
        match template.render(fill) {
            Ok(text) => text,
        }
    }

    fn first_port(&self, pool: &Pool) -> String {
        pool.ports_in(self.instance)
            .next()
            .or(pool.ports.first())
            .map_or_else(String::new, |port| port.to_string())
    }

    /// The port of `POOL` or `POOL.COMPANION`.
    fn port_of(&self, name: &str) -> String {
        let (pool, companion) = name.split_once('.').unwrap_or((name, ""));
        let Some(pool) = self.pool(pool) else {
            return String::new();
        };
        let found = pool
            .companions
            .iter()
            .find(|own| own.name.as_str() == companion);
        match found.and_then(|companion| companion.ports.first()) {
            Some(port) => port
                .in_instance(self.instance, pool.stride)
                .unwrap_or(port)
                .to_string(),
            None => self.first_port(pool),
        }
    }

    /// Container name and inner port.
    fn inner_of(&self, name: &str) -> String {
        let pool = self.pool(name);
        let container = pool.and_then(|pool| Some((pool, pool.container.as_ref()?)));
        container.map_or_else(String::new, |(pool, container)| {
            let port = container.port.or(pool.ports.first());
            let port = port.map_or_else(String::new, |port| port.to_string());
            format!("{}:{port}", container.name)
        })
    }

    fn pool(&self, name: &str) -> Option<&'a Pool> {
        let mut pools = self.config.pools.iter();
        pools.find(|pool| pool.name.as_str() == name)
    }

    /// The next port of a scope, as far as the plan alone tells.
    fn next_of(&self, scope: Scope) -> Option<Port> {
        let wanted = Wanted {
            scope,
            protocol: None,
            count: 1,
            consecutive: false,
            lowest: false,
        };
        let proposal = next(self.config, &wanted, |_, _| None).ok()?;
        proposal.ports.first().copied()
    }

    /// One sentence: how much of the space is used, and what is next.
    fn summary(&self) -> String {
        let ports: PortSet = self
            .config
            .pools
            .iter()
            .flat_map(|pool| {
                let companions = pool.companions.iter().map(|companion| &companion.ports);
                let sets = std::iter::once(&pool.ports).chain(companions);
                sets.flat_map(move |set| in_instances(pool, set))
            })
            .map(|(_, port)| port)
            .collect();
        let count = |count: usize, what: &str| match count {
            1 => format!("1 {what}"),
            _ => format!("{count} {what}s"),
        };
        let pools = count(self.config.pools.len(), "pool");
        let mut text = format!("{pools} with {}", count(ports.len(), "port"));
        if let Some(space) = &self.config.space {
            let _ = write!(text, " of the {} in {space}", space.len());
        }
        if let Some(port) = self.next_of(Scope::Space) {
            let _ = write!(text, "; the next free one is {port}");
        }
        text
    }
}

/// Pools that stand together.
struct Group<'a> {
    tier: Option<&'a str>,
    category: Option<&'a str>,
    pools: Vec<&'a Pool>,
}

impl Group<'_> {
    /// `Backend`, or `Infrastructure: cache` where the tier does not say it.
    fn heading(&self) -> String {
        match (self.tier, self.category) {
            (Some(tier), Some(category)) if !tier.eq_ignore_ascii_case(category) => {
                format!("{tier}: {category}")
            }
            (Some(tier), _) => tier.to_owned(),
            (None, Some(category)) => category.to_owned(),
            (None, None) => "Other".to_owned(),
        }
    }
}

fn host<'a>(config: &'a Config, name: &str) -> Result<&'a Host, String> {
    let known = config.hosts.iter().map(|host| host.name.as_str());
    let found = config.hosts.iter().find(|host| host.name == name);
    found.ok_or_else(|| match nearest(name, known.clone()) {
        Some(near) => format!("there is no [host.{name}]; did you mean {near:?}?"),
        None if config.hosts.is_empty() => {
            format!("the plan has no hosts; add [host.{name}] with its address")
        }
        None => {
            let known: Vec<&str> = known.collect();
            format!("there is no [host.{name}]; there are {}", known.join(", "))
        }
    })
}

/// What people call the pool.
fn title_of(pool: &Pool) -> &str {
    pool.title.as_deref().unwrap_or(pool.name.as_str())
}

/// Who binds the pool's ports.
fn bound_by(pool: &Pool) -> String {
    let container = pool.container.as_ref();
    match (&pool.served_by, container) {
        _ if pool.is_held() => "portpool".to_owned(),
        (Some(ServedBy::Program(name)), _) => name.clone(),
        (Some(ServedBy::Unit(name)), _) => format!("unit {name}"),
        (Some(ServedBy::Container(name)), _) => format!("container {name}"),
        (None, Some(container)) => format!("container {}", container.name),
        (None, None) if pool.external => "another program".to_owned(),
        (None, None) => "nobody".to_owned(),
    }
}

/// What there is to say of a pool beside its numbers.
fn remarks(pool: &Pool) -> Vec<String> {
    let mut remarks = Vec::new();
    let inner = pool.container.as_ref().and_then(|it| it.port);
    if let Some(inner) = inner.filter(|inner| pool.ports.first() != Some(*inner)) {
        remarks.push(format!("{inner} inside"));
    }
    if pool.instances > 1 {
        let (count, stride) = (pool.instances, pool.stride);
        remarks.push(format!("{count} instances, {stride} apart"));
    }
    if !pool.planned.is_empty() {
        remarks.push(format!("{} planned", pool.planned));
    }
    if !pool.was.is_empty() {
        remarks.push(format!("was {}", pool.was));
    }
    if let Some(other) = &pool.alternative_to {
        remarks.push(format!("or {other}"));
    }
    remarks.extend(pool.note.clone());
    remarks
}

/// The ports of a pool or companion in every instance that is there from the start.
fn in_instances<'a>(
    pool: &'a Pool,
    ports: &'a PortSet,
) -> impl Iterator<Item = (Instance, Port)> + 'a {
    Instance::up_to(pool.instances).flat_map(move |instance| {
        let ports = ports.iter();
        ports.filter_map(move |port| Some((instance, port.in_instance(instance, pool.stride)?)))
    })
}

/// First and last of each run of ports that follow each other.
fn runs(ports: impl IntoIterator<Item = Port>) -> Vec<(Port, Port)> {
    let mut ports: Vec<Port> = ports.into_iter().collect();
    ports.sort_unstable();
    let runs = ports.chunk_by(|one, next| one.get().checked_add(1) == Some(next.get()));
    runs.filter_map(|run| Some((*run.first()?, *run.last()?)))
        .collect()
}

/// A run with a word between its ends, or its only port.
fn run(first: Port, last: Port, between: &str) -> String {
    match first == last {
        true => first.to_string(),
        false => format!("{first}{between}{last}"),
    }
}
