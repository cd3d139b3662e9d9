//! Commands of ufw, for a shell.

use std::fmt::Write as _;

use super::firewall::{network, rules};
use super::quote::comment;
use super::{View, run, title_of};
use crate::config::FirewallSource;

pub(super) fn render(view: &View) -> String {
    let mut text = String::new();
    for rules in rules(view) {
        let protocol = rules.pool.protocol;
        let _ = writeln!(text, "# {}", comment(title_of(rules.pool)));
        for source in rules.from {
            for (first, last) in &rules.runs {
                let ports = run(*first, *last, ":");
                let _ = match source {
                    FirewallSource::Any => writeln!(text, "ufw allow {ports}/{protocol}"),
                    FirewallSource::Net { ip, prefix } => writeln!(
                        text,
                        "ufw allow from {} to any port {ports} proto {protocol}",
                        network(*ip, *prefix)
                    ),
                };
            }
        }
    }
    text
}
