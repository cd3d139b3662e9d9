//! Values that several tables have: ports, addresses, durations, who is allowed.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

use super::defaults::{ALLOW, METRICS};
use super::diagnostic::{Report, Span};
use super::ports::{PortSet, PortsError, PortsErrorKind};
use super::raw::Value;
use super::settings::Allow;
use crate::plan::{ListenAddress, Port};

/// Ports, and where each was written.
#[derive(Default)]
pub(super) struct Ports {
    pub(super) set: PortSet,
    pub(super) spans: Vec<Span>,
}

impl Ports {
    /// Each port with its place.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Port, Span)> + '_ {
        self.set.iter().zip(self.spans.iter().copied())
    }
}

/// Ports as a number, a text, or a list of them. `None` if there is no port at all, which is reported.
pub(super) fn ports(value: Value, report: &mut Report) -> Option<Ports> {
    let mut seen: HashMap<Port, Span> = HashMap::new();
    let mut spans = Vec::new();
    let mut all = Vec::new();
    let elements = value.elements();
    if elements.is_empty() {
        report.push(value.error(
            format!("`{}` is empty", value.key.name),
            "there is no port in it",
        ));
    }
    for element in elements {
        let Some(set) = port_set(element, report) else {
            continue;
        };
        for port in set.iter() {
            if let Some(first) = seen.insert(port, element.span) {
                let title = format!("port {port} is in `{}` twice", value.key.name);
                let twice = element.error(title, "here again").also(first, "first here");
                report.push(twice.help("write it once"));
                break;
            }
            all.push(port);
            spans.push(element.span);
        }
    }
    (!all.is_empty()).then(|| Ports {
        set: all.into_iter().collect(),
        spans,
    })
}

/// One number, or one text of numbers and ranges.
fn port_set(value: Value, report: &mut Report) -> Option<PortSet> {
    if let Some(number) = value.integer() {
        let port: Option<Port> = number.parse().ok();
        if port.is_none() {
            let title = format!(
                "{number} of `{}` is not a port: ports are 1 to 65535",
                value.key.name
            );
            report.push(value.error(title, "not within 1 to 65535"));
        }
        return port.map(|port| PortSet::from_iter([port]));
    }
    let Some(text) = value.as_text() else {
        let title = format!("`{}` must be ports", value.key.name);
        report.push(value.error(title, "neither a number nor a text"));
        return None;
    };
    text.parse()
        .map_err(|error: PortsError| {
            let title = format!("`{}`: {error}", value.key.name);
            let refused = value.error_at(value.part(error.at), title, "");
            report.push(match error.kind {
                PortsErrorKind::Reversed(first, last) => {
                    refused.help(format!("write \"{last}-{first}\""))
                }
                PortsErrorKind::Twice(_) => refused.help("write it once"),
                _ => refused,
            });
        })
        .ok()
}

/// The addresses of a pool, if there is one; a `[::]` serves IPv4 too, unless an IPv4 address stands beside it.
pub(super) fn addresses(value: Value, report: &mut Report) -> Option<Vec<ListenAddress>> {
    let mut found: Vec<(IpAddr, Value)> = Vec::new();
    if value.elements().is_empty() {
        report.push(value.error("`address` is empty", "there is no address in it"));
    }
    for (text, element) in value.texts(report) {
        let Some(ip) = address(text, element, report) else {
            continue;
        };
        let clash = found
            .iter()
            .find(|(other, _)| covers(*other, ip) || covers(ip, *other));
        if let Some((other, first)) = clash {
            let title = format!("`{ip}` and `{other}` are the same place to bind");
            let help = if ip == *other {
                "leave it out once"
            } else {
                "keep the unspecified address: it covers the other"
            };
            report.push(
                element
                    .error(title, "no socket can be bound here")
                    .also(first.span, "beside this one")
                    .help(help),
            );
            continue;
        }
        found.push((ip, element));
    }
    let any_v4 = found.iter().any(|(ip, _)| ip.is_ipv4());
    let listen = |(ip, _): (IpAddr, Value)| ListenAddress {
        ip,
        v6_only: ip.is_ipv6() && (any_v4 || !ip.is_unspecified()),
    };
    (!found.is_empty()).then(|| found.into_iter().map(listen).collect())
}

/// Whether a socket on `wide` keeps one on `other` from being bound, in one pool.
fn covers(wide: IpAddr, other: IpAddr) -> bool {
    wide == other || (wide.is_unspecified() && wide.is_ipv4() == other.is_ipv4())
}

fn address(text: &str, value: Value, report: &mut Report) -> Option<IpAddr> {
    let bare = text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    let ip = match bare {
        Some(bare) => bare.parse().map(IpAddr::V6).ok(),
        None => text.parse().ok(),
    };
    let Some(ip) = ip else {
        let refused = value.error(
            format!("`{text}` is not an address"),
            "an IP address is expected",
        );
        report.push(match text {
            "localhost" => {
                refused.help("write \"127.0.0.1\", or [\"127.0.0.1\", \"[::1]\"] for both families")
            }
            "*" => refused
                .help("write \"[::]\" for every address of both families, \"0.0.0.0\" for IPv4"),
            _ => refused,
        });
        return None;
    };
    let broadcast = IpAddr::V4(std::net::Ipv4Addr::BROADCAST);
    let mapped = matches!(ip, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some());
    if ip.is_multicast() || ip == broadcast || mapped {
        let help = if mapped {
            "write the IPv4 address itself"
        } else {
            "write an address of this machine"
        };
        report.push(
            value
                .error(
                    format!("`{text}` cannot be listened on"),
                    "not an address of one machine",
                )
                .help(help),
        );
        return None;
    }
    Some(ip)
}

/// A duration such as `30s` or `1m 30s`, within bounds.
pub(super) fn duration(
    value: Value,
    bounds: RangeInclusive<Duration>,
    report: &mut Report,
) -> Option<Duration> {
    let text = value.text(report)?;
    let Ok(duration) = humantime::parse_duration(text) else {
        let title = format!("`{text}` of `{}` is not a duration", value.key.name);
        report.push(value.error(title, "a number with its unit is expected: ms, s, m, h"));
        return None;
    };
    if bounds.contains(&duration) {
        return Some(duration);
    }
    let (least, most) = bounds.into_inner();
    let (least, most) = (
        humantime::format_duration(least),
        humantime::format_duration(most),
    );
    let title = format!(
        "`{}` is {text}, but must be {least} to {most}",
        value.key.name
    );
    report.push(value.error(title, format!("not within {least} to {most}")));
    None
}

/// `{ users = […], groups = […], units = […] }`.
pub(super) fn allow(value: Value, report: &mut Report) -> Option<Allow> {
    let table = value.table(&ALLOW, report)?;
    let each =
        |key: &str, reader: fn(&str, Value, &mut Report) -> Option<String>, report: &mut Report| {
            let texts = table
                .get(key)
                .map(|value| value.texts(report))
                .unwrap_or_default();
            texts
                .into_iter()
                .filter_map(|(text, value)| reader(text, value, report))
                .collect()
        };
    Some(Allow {
        users: each("users", account, report),
        groups: each("groups", account, report),
        units: each("units", unit, report),
    })
}

/// A user or group: no database has names with these characters (passwd(5)).
fn account(text: &str, value: Value, report: &mut Report) -> Option<String> {
    if text.contains(|c: char| c.is_whitespace() || c.is_control() || matches!(c, ':' | ',' | '/'))
    {
        let title = format!("`{text}` is not a name of `{}`", value.key.name);
        report.push(value.error(title, "one name, or one number, is expected"));
        return None;
    }
    Some(text.to_owned())
}

fn unit(text: &str, value: Value, report: &mut Report) -> Option<String> {
    let suffixed = [".service", ".scope", ".slice"]
        .iter()
        .any(|suffix| text.ends_with(suffix));
    if suffixed && !text.contains(|c: char| c.is_whitespace() || c == '/') {
        return Some(text.to_owned());
    }
    let refused = value.error(
        format!("`{text}` is not a unit"),
        "a unit's name with its suffix is expected",
    );
    report.push(match suffixed || text.contains('.') {
        true => refused,
        false => refused.help(format!("write \"{text}.service\"")),
    });
    None
}

/// `{ listen = "127.0.0.1:9180" }`.
pub(super) fn metrics(value: Value, report: &mut Report) -> Option<SocketAddr> {
    let table = value.table(&METRICS, report)?;
    let listen = table.required("listen", "`metrics`", value.span, report)?;
    let address: SocketAddr =
        listen.parsed(|_| "is not an address with a port".to_owned(), report)?;
    if address.port() == 0 {
        report.push(listen.error(
            "`listen` has port 0, which is none",
            "a port from 1 to 65535 is expected",
        ));
        return None;
    }
    Some(address)
}
