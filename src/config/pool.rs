//! One pool: its own keys over those of `[defaults]`.

use std::time::Duration;

use super::defaults::POOL;
use super::diagnostic::{Diagnostic, Report, Span};
use super::facts::{self, Variable};
use super::raw::{Entry, Table, Value};
use super::settings::{
    AgentSettings, Companion, OnRevoke, Pool, PoolDefaults, Signal, State, Unleased,
};
use super::values::{self, Ports};
use crate::plan::{BadWord, ListenAddress, PoolName, Protocol};

/// What a pool has unless it says otherwise; see the table of keys.
const BACKLOG: u16 = 4096;
const LOOPBACK: ListenAddress = ListenAddress {
    ip: std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST),
    v6_only: false,
};
const PROTOCOLS: [(&str, Protocol); 2] = [("tcp", Protocol::Tcp), ("udp", Protocol::Udp)];
const UNLEASED: [(&str, Unleased); 2] = [("refuse", Unleased::Refuse), ("queue", Unleased::Queue)];
const STATES: [(&str, State); 4] = [
    ("active", State::Active),
    ("development", State::Development),
    ("on-demand", State::OnDemand),
    ("disabled", State::Disabled),
];
const LONGEST_RESTART_WINDOW: Duration = Duration::from_secs(3600);
/// The file descriptors one message carries: SCM_MAX_FD of Linux, include/net/scm.h.
const MOST_SOCKETS: usize = 253;

/// A pool with the places the checks across pools point at. What could not be read has its default, so that
/// the checks can go on.
pub(super) struct Draft<'a> {
    pub(super) pool: Pool,
    pub(super) name: Span,
    pub(super) ports: Ports,
    pub(super) companions: Vec<Ports>,
    pub(super) variables: Vec<Variable<'a>>,
    keys: Keys<'a>,
}

impl<'a> Draft<'a> {
    /// The value of a key, the pool's own or that of `[defaults]`.
    pub(super) fn value(&self, key: &str) -> Option<Value<'a>> {
        self.keys.get(key)
    }

    /// Where a key's value stands; the pool's name, if it is nowhere.
    pub(super) fn span(&self, key: &str) -> Span {
        self.value(key).map_or(self.name, |value| value.span)
    }
}

struct Keys<'a> {
    own: Table<'a>,
    defaults: Table<'a>,
}

impl<'a> Keys<'a> {
    fn get(&self, key: &str) -> Option<Value<'a>> {
        self.own.get(key).or_else(|| self.defaults.get(key))
    }

    fn read<T>(
        &self,
        key: &str,
        reader: impl FnOnce(Value<'a>, &mut Report) -> Option<T>,
        report: &mut Report,
    ) -> Option<T> {
        reader(self.get(key)?, report)
    }

    fn number(&self, key: &str, least: u16, report: &mut Report) -> Option<u16> {
        self.get(key)?.number(least..=u16::MAX, report)
    }

    fn word<T: Copy>(&self, key: &str, words: &[(&str, T)], report: &mut Report) -> Option<T> {
        self.get(key)?.word(words, report)
    }
}

/// Reads `[pool.NAME]`.
pub(super) fn read<'a>(
    entry: &Entry<'a>,
    defaults: &Table<'a>,
    agent: &AgentSettings,
    report: &mut Report,
) -> Option<Draft<'a>> {
    let name = pool_name(entry, report);
    let own = Table::new(&POOL, entry.section("[pool.NAME]", report), report);
    let keys = Keys {
        own,
        defaults: defaults.clone(),
    };
    let name = name?;
    if keys.get("ports").is_none() {
        keys.own
            .required("ports", &format!("pool `{name}`"), entry.span, report);
    }
    let draft = build(name, entry.span, keys, agent, report);
    check(&draft, agent, report);
    Some(draft)
}

/// What a pool has that says nothing itself. Reports what is wrong in `[defaults]` even if no pool comes to
/// read it.
pub(super) fn defaults(
    defaults: &Table,
    agent: &AgentSettings,
    report: &mut Report,
) -> PoolDefaults {
    let nothing = Table::new(&POOL, Vec::new(), report);
    let keys = Keys {
        own: defaults.clone(),
        defaults: nothing,
    };
    let nowhere = Span {
        source: 0,
        start: 0,
        end: 0,
    };
    let pool = "defaults"
        .parse()
        .map(|name| build(name, nowhere, keys, agent, report).pool);
    PoolDefaults {
        protocol: pool.as_ref().map_or(Protocol::Tcp, |pool| pool.protocol),
        stride: pool.as_ref().map_or(agent.stride, |pool| pool.stride),
        max_instances: pool.map_or(agent.max_instances, |pool| pool.max_instances),
    }
}

fn build<'a>(
    name: PoolName,
    name_span: Span,
    keys: Keys<'a>,
    agent: &AgentSettings,
    report: &mut Report,
) -> Draft<'a> {
    let ports = keys
        .read("ports", values::ports, report)
        .unwrap_or_default();
    let (companions, companion_ports) = companions(&keys, &ports, report).into_iter().unzip();
    let instances = keys.number("instances", 1, report);
    let variables = keys.read("env", facts::env, report).unwrap_or_default();
    let env = variables
        .iter()
        .map(|variable| (variable.name.clone(), variable.template.clone()));
    let pool = Pool {
        name,
        ports: ports.set.clone(),
        companions,
        addresses: keys
            .read("address", values::addresses, report)
            .unwrap_or_else(|| vec![LOOPBACK]),
        protocol: keys
            .word("protocol", &PROTOCOLS, report)
            .unwrap_or(Protocol::Tcp),
        backlog: keys.number("backlog", 1, report).unwrap_or(BACKLOG).into(),
        unleased: keys
            .word("unleased", &UNLEASED, report)
            .unwrap_or(Unleased::Refuse),
        restart_window: keys
            .read("restart_window", restart_window, report)
            .unwrap_or_default(),
        on_revoke: keys
            .read("on_revoke", on_revoke, report)
            .unwrap_or(OnRevoke::Signal(Signal::TERM)),
        allow: keys.read("allow", values::allow, report),
        stride: keys.number("stride", 0, report).unwrap_or(agent.stride),
        instances: instances.unwrap_or(agent.instances),
        max_instances: instances.unwrap_or(agent.max_instances),
        host: keys.read("host", Value::owned_text, report),
        fixed: keys.read("fixed", Value::boolean, report).unwrap_or(false),
        external: keys
            .read("external", Value::boolean, report)
            .unwrap_or(false),
        state: keys.word("state", &STATES, report).unwrap_or(State::Active),
        category: keys.read("category", Value::owned_text, report),
        title: keys.read("title", Value::owned_text, report),
        description: keys.read("description", Value::owned_text, report),
        was: keys
            .read("was", values::ports, report)
            .unwrap_or_default()
            .set,
        planned: keys
            .read("planned", values::ports, report)
            .unwrap_or_default()
            .set,
        alternative_to: keys.read("alternative_to", alternative_to, report),
        container: keys.read("container", facts::container, report),
        served_by: keys.read("served_by", facts::served_by, report),
        firewall: keys
            .read("firewall", facts::firewall, report)
            .unwrap_or_default(),
        health: keys.read("health", facts::health, report),
        env: env.collect(),
        note: keys.read("note", Value::owned_text, report),
    };
    Draft {
        pool,
        name: name_span,
        ports,
        companions: companion_ports,
        variables,
        keys,
    }
}

/// The name of a pool, or what a better one would be.
fn pool_name(entry: &Entry, report: &mut Report) -> Option<PoolName> {
    let refusal = match entry.name.parse() {
        Ok(name) => return Some(name),
        Err(refusal) => refusal,
    };
    let title = format!("the pool name `{}` {refusal}", entry.name.escape_debug());
    let refused = Diagnostic::error(title, entry.span, "not a pool name");
    let better: String = entry
        .name
        .to_lowercase()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .take(crate::plan::MAX_NAME)
        .collect();
    let better = better.trim_matches('-');
    report.push(match better {
        "" => refused.help("names are 1 to 64 of a-z, 0-9 and -"),
        better => refused.help(format!("write [pool.{better}]")),
    });
    None
}

fn companions(keys: &Keys, own: &Ports, report: &mut Report) -> Vec<(Companion, Ports)> {
    let mut found = Vec::new();
    let Some(extra) = keys.get("extra") else {
        return found;
    };
    for entry in extra.entries(report).unwrap_or_default() {
        let value = entry.value(extra.key);
        let name = match entry.name.parse() {
            Ok(name) => name,
            Err(refusal) => {
                let title = format!(
                    "the companion name `{}` {refusal}",
                    entry.name.escape_debug()
                );
                report.push(value.error_at(entry.span, title, "not a name"));
                continue;
            }
        };
        let Some(ports) = values::ports(value, report) else {
            continue;
        };
        if ports.set.len() > own.set.len() && !own.set.is_empty() {
            let (more, fewer) = (ports.set.len(), own.set.len());
            let title = format!("companion `{name}` has {more} ports, but the pool has {fewer}");
            let help = "the i-th port of a companion goes with the i-th of the pool: leave out what is too much";
            report.push(value.error(title, "more ports than the pool").help(help));
        }
        found.push((
            Companion {
                name,
                ports: ports.set.clone(),
            },
            ports,
        ));
    }
    found
}

fn restart_window(value: Value, report: &mut Report) -> Option<Duration> {
    values::duration(value, Duration::ZERO..=LONGEST_RESTART_WINDOW, report)
}

fn on_revoke(value: Value, report: &mut Report) -> Option<OnRevoke> {
    value.parsed(|error| format!("is {error}, none"), report)
}

fn alternative_to(value: Value, report: &mut Report) -> Option<PoolName> {
    value.parsed(|error: &BadWord| error.to_string(), report)
}

/// What one pool can have wrong in itself, beyond single values.
fn check(draft: &Draft, agent: &AgentSettings, report: &mut Report) {
    let pool = &draft.pool;
    if let (true, Some(value)) = (
        pool.instances > agent.max_instances,
        draft.value("instances"),
    ) {
        let title = format!(
            "`{}` has {} instances, but max_instances is {}",
            pool.name, pool.instances, agent.max_instances
        );
        let help = format!("set max_instances = {} in [agent]", pool.instances);
        report.push(value.error(title, "more than there may be").help(help));
    }
    let sockets = pool.addresses.len() * (1 + pool.companions.len());
    if sockets > MOST_SOCKETS {
        let title = format!(
            "one slot of `{}` has {sockets} sockets, but a message carries {MOST_SOCKETS}",
            pool.name
        );
        let at = draft.span("address");
        report.push(
            Diagnostic::error(title, at, "too many addresses and companions")
                .help("listen on \"[::]\" instead"),
        );
    }
    if let (Protocol::Udp, Some(health)) = (pool.protocol, draft.value("health")) {
        let title = format!(
            "`{}` is udp: nothing can be asked about its health",
            pool.name
        );
        report.push(
            health
                .error(title, "http, tcp and tls need tcp")
                .help("leave `health` out"),
        );
    }
    if pool.stride == 0 && pool.max_instances > 1 && !pool.ports.is_empty() {
        let title = format!(
            "`{}` has stride 0: its instances would have the same ports",
            pool.name
        );
        let at = if draft.value("stride").is_some() {
            draft.span("stride")
        } else {
            draft.name
        };
        let help = "set stride to the distance between instances, or instances = 1 for a pool that exists once";
        report.push(Diagnostic::error(title, at, "no distance between instances").help(help));
    }
}
