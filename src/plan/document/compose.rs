//! `ports:` of Docker Compose: what each service publishes.

use std::fmt::Write as _;

use super::quote::{comment, quoted};
use super::{View, run, runs};
use crate::config::{Pool, PortSet, ServedBy};
use crate::plan::{Port, Protocol};

pub(super) fn render(view: &View) -> String {
    let mut text = String::from("services:\n");
    let mut services: Vec<(&str, Vec<&Pool>)> = Vec::new();
    for pool in view.in_use().filter(|pool| may_be_published(pool)) {
        let name = service(pool);
        match services.iter_mut().find(|(known, _)| *known == name) {
            Some((_, pools)) => pools.push(pool),
            None => services.push((name, vec![pool])),
        }
    }
    if services.is_empty() {
        return "services: {}\n".to_owned();
    }
    for (name, pools) in services {
        let _ = writeln!(text, "  {}:", key(name));
        text.push_str("    ports:\n");
        for pool in pools {
            if pool.is_held() {
                let name = comment(pool.name.as_str());
                let _ = writeln!(
                    text,
                    "      # portpool holds these; for Compose to publish them: external = true in [pool.{name}]"
                );
            }
            for line in published(pool) {
                let _ = writeln!(text, "      - {}", quoted(&line));
            }
        }
    }
    text
}

/// Whether it is not known to run outside of containers.
fn may_be_published(pool: &Pool) -> bool {
    let outside = matches!(
        pool.served_by,
        Some(ServedBy::Program(_) | ServedBy::Unit(_))
    );
    pool.container.is_some() || !outside
}

fn service(pool: &Pool) -> &str {
    let container = pool.container.as_ref();
    let compose = container.map(|it| it.compose.as_deref().unwrap_or(&it.name));
    compose.unwrap_or(pool.name.as_str())
}

/// A name as Compose allows it needs no quotes, unless YAML takes it for something else.
fn key(name: &str) -> String {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_".contains(&b);
    let is_word = matches!(
        name,
        "true" | "false" | "null" | "yes" | "no" | "on" | "off" | "y" | "n"
    );
    let begins = name.bytes().next().is_some_and(|b| b.is_ascii_lowercase());
    match begins && !is_word && name.bytes().all(plain) {
        true => name.to_owned(),
        false => quoted(name),
    }
}

fn published(pool: &Pool) -> Vec<String> {
    let inner = pool.container.as_ref().and_then(|it| it.port);
    let own = lines(pool, &pool.ports, inner);
    let companions = pool.companions.iter();
    let companions = companions.flat_map(|companion| lines(pool, &companion.ports, None));
    own.into_iter().chain(companions).collect()
}

/// `[ADDRESS:]HOST:CONTAINER[/udp]`, each run of ports on a line.
fn lines(pool: &Pool, ports: &PortSet, inner: Option<Port>) -> Vec<String> {
    let protocol = match pool.protocol {
        Protocol::Tcp => "",
        Protocol::Udp => "/udp",
    };
    let mut lines = Vec::new();
    for address in &pool.addresses {
        let address = match address.ip.is_unspecified() {
            true => String::new(),
            false => format!("{address}:"),
        };
        for (first, last) in runs(ports.iter()) {
            let outer = run(first, last, "-");
            // Several ports before one inside: Compose takes the first free one of them.
            let inner = inner.map_or_else(|| outer.clone(), |inner| inner.to_string());
            let line = format!("{address}{outer}:{inner}{protocol}");
            if !lines.contains(&line) {
                lines.push(line);
            }
        }
    }
    lines
}
