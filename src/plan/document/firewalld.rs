//! Commands of firewall-cmd, for a shell: ports of the default zone, and rich rules for networks.

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
                let ports = run(*first, *last, "-");
                let _ = match source {
                    FirewallSource::Any => {
                        writeln!(
                            text,
                            "firewall-cmd --permanent --add-port={ports}/{protocol}"
                        )
                    }
                    FirewallSource::Net { ip, prefix } => {
                        let family = if ip.is_ipv4() { "ipv4" } else { "ipv6" };
                        let network = network(*ip, *prefix);
                        writeln!(
                            text,
                            "firewall-cmd --permanent --add-rich-rule='rule family=\"{family}\" source \
                             address=\"{network}\" port port=\"{ports}\" protocol=\"{protocol}\" accept'"
                        )
                    }
                };
            }
        }
    }
    if !text.is_empty() {
        text.push_str("firewall-cmd --reload\n");
    }
    text
}
