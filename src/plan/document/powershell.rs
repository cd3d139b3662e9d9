//! `New-NetFirewallRule` for Windows.

use std::fmt::Write as _;

use super::firewall::{network, rules};
use super::quote::powershell;
use super::{View, run, title_of};
use crate::config::FirewallSource;

pub(super) fn render(view: &View) -> String {
    let mut text = String::new();
    for rules in rules(view) {
        let several = rules.runs.len() > 1;
        let ports: Vec<String> = rules
            .runs
            .iter()
            .map(|(first, last)| match several && first != last {
                // A list is an expression, where a bare hyphen would be a minus.
                true => format!("\"{first}-{last}\""),
                false => run(*first, *last, "-"),
            })
            .collect();
        let ports = ports.join(",");
        let protocol = rules.pool.protocol.to_string().to_uppercase();
        for source in rules.from {
            let mut name = title_of(rules.pool).to_owned();
            if let Some(plan) = &view.config.plan_name {
                name = format!("{plan} {name}");
            }
            let mut remote = String::new();
            if let FirewallSource::Net { ip, prefix } = source {
                let network = network(*ip, *prefix);
                name = format!("{name} from {network}");
                remote = format!(" -RemoteAddress {network}");
            }
            let _ = writeln!(
                text,
                "New-NetFirewallRule -DisplayName {} -Direction Inbound -LocalPort {ports} \
                 -Protocol {protocol}{remote} -Action Allow",
                powershell(&name)
            );
        }
    }
    text
}
