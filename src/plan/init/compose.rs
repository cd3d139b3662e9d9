//! What a Compose file publishes: `services.*.ports`, in both of its forms.

use std::net::IpAddr;

use saphyr::{LoadableYamlNode, Yaml};

use super::{By, Listens, Service};
use crate::config::PortSet;
use crate::plan::{Port, Protocol};

/// What a file says: the project's name, and its services in their order. The error completes "it …".
pub(crate) fn read(text: &str) -> Result<(Option<String>, Vec<Service>), String> {
    let documents = Yaml::load_from_str(text).map_err(|error| format!("is not YAML: {error}"))?;
    let document = documents.first().ok_or("is empty")?;
    let services = get(document, "services").and_then(Yaml::as_mapping);
    let services = services.ok_or("has no services, so it is no Compose file")?;
    let name = get(document, "name").and_then(Yaml::as_str);
    let services = services.iter().filter_map(|(name, service)| {
        let service = read_service(name.as_str()?, service);
        (!service.listens.is_empty() || !service.remarks.is_empty()).then_some(service)
    });
    Ok((name.map(str::to_owned), services.collect()))
}

/// A key of a mapping, its own or one it merges: `<<: *defaults`.
fn get<'a>(node: &'a Yaml<'a>, key: &str) -> Option<&'a Yaml<'a>> {
    if let Some(value) = node.as_mapping_get(key) {
        return Some(value);
    }
    let merged = node.as_mapping_get("<<")?;
    match merged.as_vec() {
        Some(several) => several.iter().find_map(|one| one.as_mapping_get(key)),
        None => merged.as_mapping_get(key),
    }
}

fn read_service(name: &str, node: &Yaml) -> Service {
    let container = get(node, "container_name").and_then(Yaml::as_str);
    let container = container.and_then(|text| interpolated(text).ok());
    let container = container.unwrap_or_else(|| name.to_owned());
    let mut service = Service {
        name: name.to_owned(),
        by: By::Container(container, name.to_owned()),
        ..Service::default()
    };
    let ports = get(node, "ports").and_then(|ports| ports.as_vec());
    for port in ports.into_iter().flatten() {
        match published(port) {
            Ok(listens) => service.listens.extend(listens),
            Err(remark) => service.remarks.push(remark),
        }
    }
    service
}

/// One entry of `ports`.
fn published(node: &Yaml) -> Result<Vec<Listens>, String> {
    if node.as_mapping().is_some() {
        let part = |key| {
            get(node, key)
                .and_then(scalar)
                .map(|text| interpolated(&text))
                .transpose()
        };
        let target = part("target")?.ok_or("an entry of ports has no target")?;
        let Some(published) = part("published")? else {
            return Err(format!("{target} is published on any port that is free"));
        };
        return listens(
            &published,
            &target,
            part("host_ip")?.as_deref(),
            part("protocol")?.as_deref(),
        );
    }
    let text = scalar(node).ok_or("an entry of ports is neither a text nor a mapping")?;
    let text = interpolated(&text)?;
    let (rest, protocol) = match text.rsplit_once('/') {
        Some((rest, protocol)) => (rest, Some(protocol)),
        None => (text.as_str(), None),
    };
    let Some((rest, target)) = rest.rsplit_once(':') else {
        return Err(format!("{rest} is published on any port that is free"));
    };
    let (address, outer) = match rest.rsplit_once(':') {
        Some((address, outer)) => (Some(address), outer),
        None => (None, rest),
    };
    listens(outer, target, address, protocol)
}

fn listens(
    outer: &str,
    inner: &str,
    address: Option<&str>,
    protocol: Option<&str>,
) -> Result<Vec<Listens>, String> {
    let whole = || format!("{outer}:{inner} is not understood");
    let ports = |text: &str| text.parse::<PortSet>().map_err(|_| whole());
    let (outer, inner) = (ports(outer)?, ports(inner)?);
    let protocol = protocol
        .unwrap_or("tcp")
        .parse::<Protocol>()
        .map_err(|_| whole())?;
    let bare = address.map(|text| text.trim_start_matches('[').trim_end_matches(']'));
    let address = bare.filter(|text| !text.is_empty());
    let address = address
        .map(str::parse::<IpAddr>)
        .transpose()
        .map_err(|_| whole())?;
    // Several ports for one inside are for several containers.
    let inner: Vec<Port> = inner.iter().collect();
    let at = |index: usize| inner.get(index).or(inner.first()).copied();
    let outer = outer.iter().enumerate();
    Ok(outer
        .map(|(index, port)| Listens {
            port,
            protocol,
            address,
            inner: at(index),
        })
        .collect())
}

fn scalar(node: &Yaml) -> Option<String> {
    let number = || node.as_integer().map(|number| number.to_string());
    node.as_str().map(str::to_owned).or_else(number)
}

/// The text with the defaults of `${VAR:-default}` and `${VAR-default}`; what has none is not known here.
fn interpolated(text: &str) -> Result<String, String> {
    let mut filled = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        filled.push_str(before);
        if let Some(after) = after.strip_prefix('$') {
            filled.push('$');
            rest = after;
            continue;
        }
        let unknown = || format!("{text} depends on a variable without a default");
        let (name, after) = after
            .strip_prefix('{')
            .and_then(|it| it.split_once('}'))
            .ok_or_else(unknown)?;
        let (_, default) = name.split_once('-').ok_or_else(unknown)?;
        filled.push_str(default);
        rest = after;
    }
    filled.push_str(rest);
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each service in a line.
    fn told(text: &str) -> Vec<String> {
        let (_, services) = read(text).unwrap();
        let told = services.iter().map(|service| {
            let ports = service.listens.iter().map(|it| {
                let inner = it.inner.map_or(0, Port::get);
                let address = it.address.map_or("*".to_owned(), |it| it.to_string());
                format!("{address} {}:{inner}/{}", it.port, it.protocol)
            });
            let said = ports.chain(service.remarks.iter().cloned());
            format!("{}: {}", service.name, said.collect::<Vec<_>>().join(", "))
        });
        told.collect()
    }

    #[test]
    fn both_forms_of_ports_are_read() {
        let text = r#"
name: shop
x-common: &common
  ports: ["5000:5000"]
services:
  web: { container_name: tv-web, ports: ["8050:8000", "127.0.0.1:2112:2112", 53:53/udp] }
  many: { ports: ["9000-9001:80-81", "[::1]:7000:7000"] }
  long:
    ports:
      - { target: 80, published: "${PORT:-8080}", host_ip: 10.0.0.1, protocol: tcp }
      - { target: 81, published: 8081 }
  merged:
    <<: *common
  open: { ports: [3000, "${SECRET}:80", "a:b"] }
  none: { image: x }
"#;
        let expected = [
            "web: * 8050:8000/tcp, 127.0.0.1 2112:2112/tcp, * 53:53/udp",
            "many: * 9000:80/tcp, * 9001:81/tcp, ::1 7000:7000/tcp",
            "long: 10.0.0.1 8080:80/tcp, * 8081:81/tcp",
            "merged: * 5000:5000/tcp",
            "open: 3000 is published on any port that is free, ${SECRET}:80 depends on a variable \
             without a default, a:b is not understood",
        ];
        assert_eq!(told(text), expected);
        assert!(read("a: 1").unwrap_err().contains("no Compose file"));
        assert!(read("[").unwrap_err().contains("not YAML"));
    }

    #[test]
    fn a_file_that_grows_without_bound_is_refused() {
        let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..12 {
            let before = format!("*a{}, ", level - 1).repeat(9);
            text += &format!("a{level}: &a{level} [{before}]\n");
        }
        assert!(read(&text).unwrap_err().contains("is not YAML"));
    }
}
