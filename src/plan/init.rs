//! A first plan, of what is there already: services of Compose, or what a machine listens on.

pub(crate) mod compose;

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::net::IpAddr;

use super::document::quoted;
use super::{PoolName, Port, Protocol};
use crate::config::PortSet;
use crate::protocol::visible;

/// A service and what it listens on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Service {
    /// What it is called by whoever runs it: anything.
    pub(crate) name: String,
    /// Where it listens, in the order found.
    pub(crate) listens: Vec<Listens>,
    /// Who binds the ports.
    pub(crate) by: By,
    /// What could not be put into the plan.
    pub(crate) remarks: Vec<String>,
}

/// One port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Listens {
    pub(crate) port: Port,
    pub(crate) protocol: Protocol,
    /// `None`: every address.
    pub(crate) address: Option<IpAddr>,
    /// The port inside of a container.
    pub(crate) inner: Option<Port>,
}

/// Who binds a service's ports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum By {
    /// Nobody knows.
    #[default]
    Unknown,
    /// A program of that name.
    Program(String),
    /// A system unit.
    Unit(String),
    /// A container's name, and its service's in the Compose file.
    Container(String, String),
}

/// The services as a configuration, each port once. `origin` says what they were read from.
pub(crate) fn configuration(origin: &str, plan: Option<&str>, services: &[Service]) -> String {
    let mut text = format!(
        "# A first plan, written by portpool init from {}. Read it, and change what is not so.\n",
        visible(origin)
    );
    if let Some(plan) = plan.filter(|plan| !plan.trim().is_empty()) {
        let _ = writeln!(text, "[plan]\nname = {}\n", quoted(plan));
    }
    text.push_str(
        "[defaults]\n\
         external = true      # other programs bind these; without it portpool holds a pool's ports\n\
         instances = 1\n",
    );
    let mut names = HashSet::new();
    let mut taken: HashMap<(Protocol, Port), PoolName> = HashMap::new();
    for service in services {
        text.push('\n');
        for remark in &service.remarks {
            let _ = writeln!(text, "# {}: {}", visible(&service.name), visible(remark));
        }
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let of_protocol = service.listens.iter().filter(|it| it.protocol == protocol);
            let name = pool_name(&service.name, protocol, &names);
            let (free, others): (Vec<&Listens>, Vec<&Listens>) =
                of_protocol.partition(|it| !taken.contains_key(&(protocol, it.port)));
            for other in others {
                if let Some(owner) = taken.get(&(protocol, other.port)) {
                    let _ = writeln!(
                        text,
                        "# {name} has {}/{protocol}, too, which {owner} has",
                        other.port
                    );
                }
            }
            if free.is_empty() {
                continue;
            }
            taken.extend(free.iter().map(|it| ((protocol, it.port), name.clone())));
            pool(&mut text, &name, protocol, &free, &service.by);
            names.insert(name);
        }
    }
    text
}

/// `[pool.NAME]`: the first port and those that follow it are its own, the others go with it.
fn pool(text: &mut String, name: &PoolName, protocol: Protocol, listens: &[&Listens], by: &By) {
    let set: PortSet = listens.iter().map(|it| it.port).collect();
    let ports: Vec<Port> = set.iter().collect();
    let mut runs = ports.chunk_by(|one, next| one.get().checked_add(1) == Some(next.get()));
    let own: PortSet = runs.next().unwrap_or_default().iter().copied().collect();
    let _ = writeln!(text, "[pool.{name}]");
    let _ = match own.first().filter(|_| own.len() == 1) {
        Some(port) => writeln!(text, "ports = {port}"),
        None => writeln!(text, "ports = \"{own}\""),
    };
    let others = runs.flatten();
    let extra: Vec<String> = others.map(|port| format!("port-{port} = {port}")).collect();
    if !extra.is_empty() {
        let _ = writeln!(
            text,
            "extra = {{ {} }}      # give them names",
            extra.join(", ")
        );
    }
    if protocol == Protocol::Udp {
        text.push_str("protocol = \"udp\"\n");
    }
    let addresses = addresses(listens);
    match addresses.as_slice() {
        [one] if one == "127.0.0.1" => {}
        [one] => {
            let _ = writeln!(text, "address = {}", quoted(one));
        }
        several => {
            let several: Vec<String> = several.iter().map(|it| quoted(it)).collect();
            let _ = writeln!(text, "address = [{}]", several.join(", "));
        }
    }
    let is_named = |name: &str| !name.trim().is_empty();
    let _ = match by {
        By::Program(program) if is_named(program) => {
            writeln!(text, "served_by = {{ program = {} }}", quoted(program))
        }
        By::Unit(unit) if is_named(unit) => {
            writeln!(text, "served_by = {{ unit = {} }}", quoted(unit))
        }
        By::Container(container, service) if is_named(container) && is_named(service) => {
            let inner = listens.first().and_then(|it| it.inner);
            let inner = inner.map_or_else(String::new, |inner| format!(", port = {inner}"));
            let (container, service) = (quoted(container), quoted(service));
            writeln!(
                text,
                "container = {{ name = {container}, compose = {service}{inner} }}"
            )
        }
        _ => Ok(()),
    };
}

/// Each place to bind once; every address of a family stands for all of it.
fn addresses(listens: &[&Listens]) -> Vec<String> {
    let every = IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED);
    let mut found: Vec<IpAddr> = Vec::new();
    for address in listens.iter().map(|it| it.address.unwrap_or(every)) {
        let address = address.to_canonical();
        if !found.contains(&address) && !address.is_multicast() {
            found.push(address);
        }
    }
    let covers = |other: &IpAddr, own: &IpAddr| {
        other != own && other.is_unspecified() && other.is_ipv4() == own.is_ipv4()
    };
    let all = found.clone();
    found.retain(|own| !all.iter().any(|other| covers(other, own)));
    if found.is_empty() {
        found.push(every);
    }
    found.sort_unstable();
    let shown = found.iter().map(|address| match address {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    });
    shown.collect()
}

/// The nearest name a pool may have, that none has yet.
fn pool_name(name: &str, protocol: Protocol, taken: &HashSet<PoolName>) -> PoolName {
    let plain = |c: char| match c.to_ascii_lowercase() {
        c @ ('a'..='z' | '0'..='9') => c,
        _ => '-',
    };
    let base: String = name.chars().map(plain).take(40).collect();
    let base = base.trim_matches('-');
    let base = if base.is_empty() { "service" } else { base };
    let base = match protocol {
        Protocol::Tcp => base.to_owned(),
        Protocol::Udp => format!("{base}-udp"),
    };
    let mut numbered = (2..).map(|number: u32| format!("{base}-{number}"));
    let mut candidate = base.clone();
    loop {
        match candidate.parse::<PoolName>() {
            Ok(name) if !taken.contains(&name) => return name,
            _ => candidate = numbered.next().unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Machine, Source, parse};
    use std::path::PathBuf;

    fn listens(port: u16, address: &str) -> Listens {
        Listens {
            port: Port::new(port).unwrap(),
            protocol: Protocol::Tcp,
            address: address.parse().ok(),
            inner: None,
        }
    }

    #[test]
    fn whatever_services_are_called_the_plan_is_accepted_and_has_each_port_once() {
        let service = |name: &str, ports: &[Listens]| Service {
            name: name.to_owned(),
            listens: ports.to_vec(),
            by: By::Program(name.to_owned()),
            remarks: vec!["\n[pool.x]".to_owned()],
        };
        let udp = Listens {
            protocol: Protocol::Udp,
            ..listens(53, "::")
        };
        let services = [
            service(
                "A\u{1b}[2J\n\"b",
                &[
                    listens(80, "0.0.0.0"),
                    listens(443, "::"),
                    listens(80, "10.0.0.1"),
                ],
            ),
            service(
                "a--2j--b",
                &[listens(80, "127.0.0.1"), listens(9000, "127.0.0.1"), udp],
            ),
            service(
                "",
                &[listens(1, "::ffff:127.0.0.1"), listens(2, "127.0.0.1")],
            ),
            service("日本", &[listens(3, "::1")]),
        ];
        let text = configuration("a\ntest", Some("\"x\"\n"), &services);
        let path = PathBuf::from("portpool.toml");
        let sources = [Source {
            path,
            text: text.clone(),
        }];
        let checked = parse(&sources, &Machine::default());
        let config = checked
            .unwrap_or_else(|found| panic!("{found:?}\n{text}"))
            .config;
        let pools: Vec<String> = config
            .pools
            .iter()
            .map(|pool| format!("{} {}/{}", pool.name, pool.ports, pool.protocol))
            .collect();
        let expected = [
            "a--2j--b 80/tcp",
            "a--2j--b-2 9000/tcp",
            "a--2j--b-udp 53/udp",
            "service 1-2/tcp",
            "service-2 3/tcp",
        ];
        assert_eq!(pools, expected, "{text}");
        assert!(
            text.contains("# a--2j--b-2 has 80/tcp, too, which a--2j--b has"),
            "{text}"
        );
        assert!(text.contains("address = [\"0.0.0.0\", \"[::]\"]"), "{text}");
    }
}
