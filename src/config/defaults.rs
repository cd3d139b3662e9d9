//! Every key of a configuration: its type, default, unit and meaning. The reader refuses what is not here, and
//! `portpool check --defaults` and docs/configuration.md are printed from it.

use std::fmt::Write;

mod keys;

pub(super) use keys::{
    ACCESS, AGENT, ALLOW, CATEGORY, CONTAINER, FIREWALL, HEALTH, HOST, METRICS, PLAN, POOL, RANGE,
    SERVED_BY, TOP,
};

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
            let default = match key.default {
                "-" => "-".to_owned(),
                default => format!("`{default}`"),
            };
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
