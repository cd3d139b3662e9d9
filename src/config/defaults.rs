//! Every key of a configuration: its type, default, unit and meaning. The reader refuses what is not here, and
//! `portpool check --defaults` and docs/configuration.md are printed from it.

use std::fmt::Write;

mod keys;
mod pool_keys;

pub(super) use keys::{
    ACCESS, AGENT, ALLOW, CATEGORY, CONTAINER, DEFAULTS, FIREWALL, HEALTH, HOST, METRICS, PLAN,
    RANGE, SERVED_BY, TOP,
};

pub(super) use pool_keys::POOL;

/// A table: `[agent]`, or the value of `allow = { … }`.
#[derive(Debug)]
pub(super) struct Section {
    /// What it is called in messages: `[agent]`, `allow`.
    pub(super) title: &'static str,
    pub(super) meaning: &'static str,
    pub(super) keys: &'static [Key],
}

/// One key of a table.
#[derive(Debug)]
pub(super) struct Key {
    pub(super) name: &'static str,
    /// The type and, where there is one, the unit.
    pub(super) kind: &'static str,
    /// As it would be written; `-` where there is none.
    pub(super) default: &'static str,
    /// The whole line of an example, as it would be written.
    pub(super) example: &'static str,
    pub(super) meaning: &'static str,
}

impl Section {
    pub(super) fn key(&self, name: &str) -> Option<&'static Key> {
        self.keys.iter().find(|key| key.name == name)
    }
}

const INTRODUCTION: &str = "\
The system's configuration is /etc/portpool/portpool.toml and /etc/portpool/conf.d/*.toml, a user's is
$XDG_CONFIG_HOME/portpool/portpool.toml; --config FILE or $PORTPOOL_CONFIG beats both. The files are one configuration:
a later file may add tables, and keys to [plan], [agent], [access] and [defaults]; saying anything a second time is an error.
`portpool check` says what is wrong and where.";

/// Every key with its type, default and meaning, for a terminal: what `portpool check --defaults` prints.
pub fn defaults_text() -> String {
    let mut text = format!("{INTRODUCTION}\n");
    for section in keys::SECTIONS {
        let _ = write!(text, "\n{}: {}\n", section.title, section.meaning);
        for key in section.keys {
            let _ = writeln!(
                text,
                "  {:15} {}; default: {}",
                key.name, key.kind, key.default
            );
            let _ = writeln!(text, "  {:15} {}", "", key.meaning);
        }
    }
    text
}

/// The same as a document: the text of docs/configuration.md.
pub fn defaults_markdown() -> String {
    let mut text = format!(
        "# Configuration\n<!-- Generated: portpool check --defaults --markdown > docs/configuration.md -->\n\n{INTRODUCTION}\n"
    );
    for section in keys::SECTIONS {
        let _ = write!(text, "\n## `{}`\n{}\n\n", section.title, section.meaning);
        text.push_str("| key | type | default | meaning | example |\n|---|---|---|---|---|\n");
        for key in section.keys {
            let literal = toml::de::DeValue::parse(key.default).is_ok();
            let quote = if literal { "`" } else { "" };
            let default = format!("{quote}{}{quote}", key.default);
            let _ = writeln!(
                text,
                "| `{}` | {} | {default} | {} | `{}` |",
                key.name,
                cell(key.kind),
                cell(key.meaning),
                cell(key.example)
            );
        }
    }
    text
}

/// A bar would end the cell.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    use super::super::{Checked, Machine, Source, parse};
    use super::*;

    /// Everything an example may name.
    const AROUND: &str = "[host.main]\naddress = \"10.0.0.1\"\n[host.pi]\naddress = \"10.0.0.2\"\n\
                          [category.backend]\n[pool.backoffice]\nports = 7500\n";

    fn checked(text: &str) -> Checked {
        let sources = [Source {
            path: "portpool.toml".into(),
            text: format!("{text}\n{AROUND}"),
        }];
        let told = |findings: Vec<crate::config::Diagnostic>| {
            findings
                .iter()
                .map(|finding| finding.render(&sources, false))
                .collect::<String>()
        };
        parse(&sources, &Machine::default()).map_err(told).unwrap()
    }

    /// Where a key of the section is written, up to its line.
    fn header(section: &Section, key: &Key) -> String {
        let others = match (section.title, key.name) {
            ("[range.NAME]" | "[pool.NAME]", "ports") | ("[host.NAME]", _) => "",
            ("[range.NAME]" | "[pool.NAME]", _) => "ports = 9100\n",
            _ => "",
        };
        format!("{}\n{others}", section.title.replace("NAME", "some"))
    }

    #[test]
    fn every_example_is_accepted() {
        for section in keys::SECTIONS
            .iter()
            .filter(|section| section.title.starts_with('['))
        {
            for key in section.keys {
                let agent = if key.name == "max_instances" {
                    "instances = 2\n"
                } else {
                    ""
                };
                checked(&format!("{}{agent}{}", header(section, key), key.example));
            }
        }
    }

    #[test]
    fn a_default_written_out_changes_nothing() {
        let mut literals = 0;
        for section in [&AGENT, &RANGE, &POOL] {
            for key in section.keys {
                if toml::de::DeValue::parse(key.default).is_err() {
                    continue;
                }
                literals += 1;
                let header = header(section, key);
                let written = checked(&format!("{header}{} = {}", key.name, key.default));
                assert_eq!(
                    written,
                    checked(&header),
                    "{} of {}",
                    key.name,
                    section.title
                );
            }
        }
        assert!(literals > 12, "{literals} defaults only were tried");
    }

    #[test]
    fn the_defaults_of_health_are_what_they_say() {
        let short = checked("[pool.some]\nports = 9100\nhealth = { http = \"/\" }");
        let long =
            "[pool.some]\nports = 9100\nhealth = { http = \"/\", expect = 200, timeout = \"2s\" }";
        assert_eq!(short, checked(long));
    }
}
