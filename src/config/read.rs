//! The files, read and put together: who says what, and nothing twice.

use std::collections::HashMap;
use std::net::IpAddr;

use serde_spanned::Spanned;
use toml::de::DeTable;

use super::Machine;
use super::defaults::{ACCESS, AGENT, CATEGORY, DEFAULTS, HOST, PLAN, POOL, RANGE, TOP};
use super::diagnostic::{Diagnostic, Report, Span};
use super::pool::{self, Draft};
use super::ports::PortSet;
use super::raw::{self, Entry, Table, Value};
use super::settings::{Access, AgentSettings, Category, Config, Host, NumberRange, PoolDefaults};
use super::values::{self, Ports};
use crate::plan::nearest;

/// The stride of instances unless somebody says otherwise, in ports.
const STRIDE: u16 = 100;

/// How many leases one user may have, unless [access] says otherwise.
const LEASES_PER_USER: u16 = 1024;

/// How many processes of one user may wait, unless [access] says otherwise.
const WAITERS_PER_USER: u16 = 64;

/// A whole configuration with its places.
pub(super) struct Reading<'a> {
    pub(super) plan_name: Option<String>,
    pub(super) space: Option<Ports>,
    pub(super) agent: AgentSettings,
    pub(super) agent_keys: Table<'a>,
    pub(super) access: Access,
    pub(super) hosts: Vec<Host>,
    pub(super) categories: Vec<Category>,
    pub(super) ranges: Vec<RangeDraft<'a>>,
    pub(super) pools: Vec<Draft<'a>>,
    pub(super) pool_defaults: PoolDefaults,
}

/// `[range.NAME]` with its places.
pub(super) struct RangeDraft<'a> {
    pub(super) range: NumberRange,
    pub(super) name: Span,
    pub(super) ports: Ports,
    pub(super) keys: Table<'a>,
}

/// Reads all documents as one configuration. What is wrong is reported, and read as its default.
pub(super) fn read<'a>(
    documents: &'a [(usize, &'a str, Spanned<DeTable<'a>>)],
    report: &mut Report,
) -> Reading<'a> {
    let mut top = Top::default();
    for (index, text, document) in documents {
        top.add(raw::entries(document.get_ref(), text, *index), report);
    }
    let plan = Table::new(&PLAN, top.section("plan", "[plan]", report), report);
    let agent_keys = Table::new(&AGENT, top.section("agent", "[agent]", report), report);
    let access = Table::new(&ACCESS, top.section("access", "[access]", report), report);
    let defaults = Table::new(
        &DEFAULTS,
        top.section("defaults", "[defaults]", report),
        report,
    );
    let agent = agent(&agent_keys, report);
    let pool_defaults = pool::defaults(&defaults, &agent, report);
    let hosts = top
        .named("host", report)
        .iter()
        .filter_map(|entry| host(entry, report))
        .collect();
    let categories = top
        .named("category", report)
        .iter()
        .filter_map(|entry| category(entry, report))
        .collect();
    let ranges = top
        .named("range", report)
        .iter()
        .filter_map(|entry| range(entry, report))
        .collect();
    let pools = top
        .named("pool", report)
        .iter()
        .filter_map(|entry| pool::read(entry, &defaults, &agent, report))
        .collect();
    Reading {
        plan_name: plan.read("name", Value::owned_text, report),
        space: plan.read("space", values::ports, report),
        access: Access {
            admin: access
                .read("admin", values::allow, report)
                .unwrap_or_default(),
            leases_per_user: access
                .get("leases_per_user")
                .and_then(|value| value.number(1..=u16::MAX, report))
                .unwrap_or(LEASES_PER_USER),
            waiters_per_user: access
                .get("waiters_per_user")
                .and_then(|value| value.number(0..=u16::MAX, report))
                .unwrap_or(WAITERS_PER_USER),
        },
        agent,
        agent_keys,
        hosts,
        categories,
        ranges,
        pools,
        pool_defaults,
    }
}

/// The entries of the top level by name, of all files.
#[derive(Default)]
struct Top<'a>(HashMap<&'static str, Vec<Entry<'a>>>);

impl<'a> Top<'a> {
    fn add(&mut self, entries: Vec<Entry<'a>>, report: &mut Report) {
        for entry in entries {
            match TOP.iter().find(|known| **known == entry.name) {
                Some(known) => self.0.entry(known).or_default().push(entry),
                None => report.push(unknown_table(&entry)),
            }
        }
    }

    /// The keys a table has in all files together.
    fn section(&self, name: &str, header: &str, report: &mut Report) -> Vec<Entry<'a>> {
        let found = self.0.get(name).into_iter().flatten();
        found
            .flat_map(|entry| entry.section(header, report))
            .collect()
    }

    /// The tables `[kind.NAME]` of all files; one that is there twice is reported and left out.
    fn named(&self, kind: &str, report: &mut Report) -> Vec<Entry<'a>> {
        let mut seen: HashMap<&str, Span> = HashMap::new();
        let mut named = self.section(kind, &format!("[{kind}.NAME]"), report);
        named.retain(|entry| match seen.get(entry.name) {
            Some(first) => {
                report.push(raw::twice(
                    &format!("{kind} `{}`", entry.name),
                    *first,
                    entry.span,
                ));
                false
            }
            None => seen.insert(entry.name, entry.span).is_none(),
        });
        named
    }
}

fn unknown_table(entry: &Entry) -> Diagnostic {
    let home = [&PLAN, &AGENT, &ACCESS]
        .into_iter()
        .find(|section| section.key(entry.name).is_some());
    let help = match (nearest(entry.name, TOP), home) {
        (Some(table), _) => format!("did you mean `{table}`?"),
        (None, Some(section)) => format!("`{}` belongs under {}", entry.name, section.title),
        (None, None) if POOL.key(entry.name).is_some() => {
            format!(
                "`{}` belongs under [pool.NAME], or under [defaults] for all",
                entry.name
            )
        }
        (None, None) => format!("there are {}", TOP.join(", ")),
    };
    Diagnostic::error(
        format!("unknown table or key `{}`", entry.name),
        entry.span,
        "not known here",
    )
    .help(help)
}

fn agent(keys: &Table, report: &mut Report) -> AgentSettings {
    let mut number = |key: &str, least: u16| {
        keys.get(key)
            .and_then(|value| value.number(least..=u16::MAX, report))
    };
    let instances = number("instances", 1).unwrap_or(1);
    let max_instances = number("max_instances", 1);
    let stride = number("stride", 0).unwrap_or(STRIDE);
    if let (Some(max), Some(value)) = (max_instances, keys.get("max_instances"))
        && max < instances
    {
        let title =
            format!("max_instances is {max}, but {instances} instances are held from the start");
        let at = keys.get("instances").map_or(value.span, |value| value.span);
        let less = value
            .error(title, "fewer than `instances`")
            .also(at, "held from the start");
        report.push(less.help(format!(
            "set max_instances to {instances} or more, or leave it out"
        )));
    }
    AgentSettings {
        instances,
        max_instances: max_instances.unwrap_or(instances).max(instances),
        stride,
        strict: keys.read("strict", Value::boolean, report).unwrap_or(false),
        host: keys.read("host", Value::owned_text, report),
        metrics: keys.read("metrics", values::metrics, report),
    }
}

fn host(entry: &Entry, report: &mut Report) -> Option<Host> {
    let keys = Table::new(&HOST, entry.section("[host.NAME]", report), report);
    let name = plain_name(entry, "host", report)?;
    let address = keys.required("address", &format!("host `{name}`"), entry.span, report);
    // With a bad address it is still a host that pools may name.
    let address = address
        .and_then(|value| host_address(value, report))
        .unwrap_or_default();
    Some(Host { name, address })
}

/// An IP address, or a DNS name: labels of letters, digits, `-` and `_`, and not all digits.
fn host_address(value: Value, report: &mut Report) -> Option<String> {
    let text = value.text(report)?;
    let in_label = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    let is_label = |label: &str| !label.is_empty() && label.bytes().all(in_label);
    let is_dotted_number = text
        .bytes()
        .all(|byte| byte.is_ascii_digit() || byte == b'.');
    let is_name = text.split('.').all(is_label) && !is_dotted_number;
    if is_name || text.parse::<IpAddr>().is_ok() {
        return Some(text.to_owned());
    }
    let title = format!("`{text}` is not an address");
    report.push(value.error(title, "an IP address or a DNS name is expected"));
    None
}

fn category(entry: &Entry, report: &mut Report) -> Option<Category> {
    let keys = Table::new(&CATEGORY, entry.section("[category.NAME]", report), report);
    let tier = keys.read("tier", Value::owned_text, report);
    Some(Category {
        name: plain_name(entry, "category", report)?,
        tier,
    })
}

fn range<'a>(entry: &Entry<'a>, report: &mut Report) -> Option<RangeDraft<'a>> {
    let keys = Table::new(&RANGE, entry.section("[range.NAME]", report), report);
    let name = plain_name(entry, "range", report)?;
    let ports = keys.required("ports", &format!("range `{name}`"), entry.span, report);
    let ports = ports
        .and_then(|value| values::ports(value, report))
        .unwrap_or_default();
    let categories = keys
        .get("categories")
        .map(|value| value.texts(report))
        .unwrap_or_default();
    let step = keys
        .get("step")
        .and_then(|value| value.number(1..=u16::MAX, report));
    let range = NumberRange {
        name,
        ports: ports.set.clone(),
        purpose: keys.read("purpose", Value::owned_text, report),
        categories: categories
            .into_iter()
            .map(|(text, _)| text.to_owned())
            .collect(),
        step: step.unwrap_or(1),
    };
    Some(RangeDraft {
        range,
        name: entry.span,
        ports,
        keys,
    })
}

/// The name of a host, category or range: letters, digits, `.`, `_` and `-`.
fn plain_name(entry: &Entry, kind: &str, report: &mut Report) -> Option<String> {
    let plain = |c: char| c.is_alphanumeric() || matches!(c, '.' | '_' | '-');
    if !entry.name.is_empty() && entry.name.chars().all(plain) {
        return Some(entry.name.to_owned());
    }
    let title = format!("`{}` is not a name of a {kind}", entry.name.escape_debug());
    let refused = Diagnostic::error(
        title,
        entry.span,
        "letters, digits, `.`, `_` and `-` are expected",
    );
    report.push(refused.help(format!("write [{kind}.some-name]")));
    None
}

impl Reading<'_> {
    /// The ports the plan may use, if it says.
    pub(super) fn space_set(&self) -> Option<&PortSet> {
        self.space.as_ref().map(|space| &space.set)
    }

    /// The configuration without the places.
    pub(super) fn config(&self) -> Config {
        Config {
            plan_name: self.plan_name.clone(),
            space: self.space_set().cloned(),
            agent: self.agent.clone(),
            access: self.access.clone(),
            hosts: self.hosts.clone(),
            categories: self.categories.clone(),
            ranges: self
                .ranges
                .iter()
                .map(|draft| draft.range.clone())
                .collect(),
            pools: self.pools.iter().map(|draft| draft.pool.clone()).collect(),
            defaults: self.pool_defaults,
        }
    }

    /// What this machine is called under `[host]`; empty if nobody knows.
    pub(super) fn this_host(&self, machine: &Machine) -> String {
        self.agent
            .host
            .clone()
            .unwrap_or_else(|| machine.hostname.clone())
    }
}
