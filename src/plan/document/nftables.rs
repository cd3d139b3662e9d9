//! A table for `nft -f`: it closes the ports of pools that say from where they may be reached to everybody
//! else, and leaves all other ports to other tables.

use std::fmt::Write as _;

use super::firewall::{Rules, network, rules};
use super::quote::comment;
use super::{View, run, title_of};
use crate::config::FirewallSource;

pub(super) fn render(view: &View) -> String {
    let mut text = format!(
        "# {}: who may reach which port. Loaded again, it replaces itself: nft -f FILE\n\
         # Where another table drops by default, that one has to accept these ports, too.\n\
         table inet portpool\n\
         delete table inet portpool\n\
         table inet portpool {{\n\
         \tchain input {{\n\
         \t\ttype filter hook input priority filter; policy accept;\n\
         \t\tiif \"lo\" accept\n",
        comment(view.title())
    );
    for rules in rules(view) {
        pool(&mut text, &rules);
    }
    text.push_str("\t}\n}\n");
    text
}

fn pool(text: &mut String, rules: &Rules) {
    let protocol = rules.pool.protocol;
    let ports: Vec<String> = rules
        .runs
        .iter()
        .map(|(first, last)| run(*first, *last, "-"))
        .collect();
    let ports = match ports.as_slice() {
        [one] => one.clone(),
        _ => format!("{{ {} }}", ports.join(", ")),
    };
    let _ = writeln!(text, "\t\t# {}", comment(title_of(rules.pool)));
    for source in rules.from {
        let _ = match source {
            FirewallSource::Any => writeln!(text, "\t\t{protocol} dport {ports} accept"),
            FirewallSource::Net { ip, prefix } => {
                let family = if ip.is_ipv4() { "ip" } else { "ip6" };
                let network = network(*ip, *prefix);
                writeln!(
                    text,
                    "\t\t{family} saddr {network} {protocol} dport {ports} accept"
                )
            }
        };
    }
    let _ = writeln!(text, "\t\t{protocol} dport {ports} drop");
}
