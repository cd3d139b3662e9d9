//! What a pool says about its service beside its ports: container, health, firewall, environment.

use std::time::Duration;

use super::defaults::{CONTAINER, FIREWALL, HEALTH, SERVED_BY};
use super::diagnostic::{Report, Span};
use super::raw::{Table, Value};
use super::settings::{Container, FirewallSource, Health, Probe, ServedBy};
use super::template::{Template, TemplateErrorKind};
use super::values;
use crate::plan::Port;

/// `{ name = "tv-api", compose = "api", port = 8000 }`.
pub(super) fn container(value: Value, report: &mut Report) -> Option<Container> {
    let table = value.table(&CONTAINER, report)?;
    let name = table.required("name", "`container`", value.span, report);
    let name = name
        .and_then(|value| value.text(report))
        .unwrap_or_default();
    Some(Container {
        name: name.to_owned(),
        compose: table.read("compose", Value::owned_text, report),
        port: table
            .read(
                "port",
                |value, report| value.number(1..=u16::MAX, report),
                report,
            )
            .and_then(Port::new),
    })
}

/// `{ program = "ollama" }`, or `unit`, or `container`.
pub(super) fn served_by(value: Value, report: &mut Report) -> Option<ServedBy> {
    let table = value.table(&SERVED_BY, report)?;
    let (kind, name) = exactly_one(&table, value, &["program", "unit", "container"], report)?;
    let name = name.text(report)?.to_owned();
    Some(match kind {
        "program" => ServedBy::Program(name),
        "unit" => ServedBy::Unit(name),
        _ => ServedBy::Container(name),
    })
}

/// `{ from = ["any", "192.168.1.0/24"] }`.
pub(super) fn firewall(value: Value, report: &mut Report) -> Option<Vec<FirewallSource>> {
    let table = value.table(&FIREWALL, report)?;
    let from = table.required("from", "`firewall`", value.span, report)?;
    let sources = from.texts(report).into_iter();
    Some(
        sources
            .filter_map(|(_, value)| value.parsed(|error| format!("is {error}"), report))
            .collect(),
    )
}

/// `{ http = "/health", expect = 200, timeout = "2s" }`, or `tcp = true`, or `tls = true`.
pub(super) fn health(value: Value, report: &mut Report) -> Option<Health> {
    let table = value.table(&HEALTH, report)?;
    let bounds = Duration::from_millis(1)..=Duration::from_secs(300);
    let timeout = table
        .get("timeout")
        .and_then(|value| values::duration(value, bounds, report));
    let expect = table
        .get("expect")
        .and_then(|value| value.number(100..=599, report));
    let (kind, probe) = exactly_one(&table, value, &["http", "tcp", "tls"], report)?;
    if let (true, Some(expect)) = (kind != "http", table.get("expect")) {
        let title = format!("`{kind}` has no status to expect");
        report.push(
            expect
                .error(title, "only http answers with one")
                .help("leave `expect` out"),
        );
    }
    let probe = match kind {
        "http" => http_probe(probe, expect.unwrap_or(200), report)?,
        _ => {
            if !probe.boolean(report)? {
                let title = format!("`{kind} = false` asks for nothing");
                report.push(probe.error(title, "true is expected"));
                return None;
            }
            if kind == "tcp" {
                Probe::Tcp
            } else {
                Probe::Tls
            }
        }
    };
    Some(Health {
        probe,
        timeout: timeout.unwrap_or(Duration::from_secs(2)),
    })
}

fn http_probe(value: Value, expect: u16, report: &mut Report) -> Option<Probe> {
    let path = value.text(report)?;
    if !path.starts_with('/') {
        let title = format!("the path `{path}` does not begin with `/`");
        report.push(
            value
                .error(title, "a path is expected")
                .help(format!("write \"/{path}\"")),
        );
        return None;
    }
    if path.contains(|c: char| c.is_whitespace() || c.is_control()) {
        report.push(value.error(
            format!("the path `{}` has blanks in it", path.escape_debug()),
            "write %20",
        ));
        return None;
    }
    Some(Probe::Http {
        path: path.to_owned(),
        expect,
    })
}

/// The one key of several which is there.
fn exactly_one<'a>(
    table: &Table<'a>,
    whole: Value<'a>,
    keys: &[&'static str],
    report: &mut Report,
) -> Option<(&'static str, Value<'a>)> {
    let mut there = keys.iter().filter_map(|key| Some((*key, table.get(key)?)));
    let first = there.next();
    if let (Some((one, value)), Some((other, second))) = (first, there.next()) {
        let title = format!("`{}` has both `{one}` and `{other}`", whole.key.name);
        report.push(
            second
                .error(title, "one too many")
                .also(value.span, "beside this one"),
        );
        return None;
    }
    if first.is_none() && table.understood {
        let title = format!("`{}` has none of {}", whole.key.name, keys.join(", "));
        report.push(whole.error(title, "one of them is expected"));
    }
    first
}

/// An environment variable of a pool, and where its value stands.
pub(super) struct Variable<'a> {
    pub(super) name: String,
    pub(super) name_span: Span,
    pub(super) template: Template,
    pub(super) value: Value<'a>,
}

/// `{ API_URL = "http://{host}:{port}" }`. Whether the pools named exist is checked when all are read.
pub(super) fn env<'a>(value: Value<'a>, report: &mut Report) -> Option<Vec<Variable<'a>>> {
    let mut variables = Vec::new();
    for entry in value.entries(report)? {
        let value = entry.value(value.key);
        let good_start = entry
            .name
            .starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        if !good_start
            || !entry
                .name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        {
            let title = format!("`{}` is not a name of an environment variable", entry.name);
            report.push(value.error_at(
                entry.span,
                title,
                "letters, digits and _ are expected, and no digit first",
            ));
        }
        let Some(text) = value.text(report) else {
            continue;
        };
        match Template::parse(text) {
            Ok(template) => {
                variables.push(Variable {
                    name: entry.name.to_owned(),
                    name_span: entry.span,
                    template,
                    value,
                });
            }
            Err(error) => {
                let refused = value.error_at(value.part(error.at.clone()), error.to_string(), "");
                report.push(refused.help(match error.kind {
                    TemplateErrorKind::Unclosed => "close it with }, or write {{ for a brace",
                    TemplateErrorKind::Unopened => "open it with {, or write }} for a brace",
                    TemplateErrorKind::Unknown(_) => {
                        "there are {port}, {host}, {address}, {POOL.port} and {POOL.inner}; write {{ for a brace"
                    }
                }));
            }
        }
    }
    Some(variables)
}
