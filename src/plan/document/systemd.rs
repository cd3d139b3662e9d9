//! Socket units, for who moves a pool to systemd: one a pool and instance, for the service of the same name.

use std::fmt::Write as _;

use super::quote::unit;
use super::{File, View, title_of};
use crate::config::{Pool, PortSet};
use crate::plan::{Instance, Protocol};

pub(super) fn render(view: &View) -> String {
    let files = files(view);
    let mut text = String::new();
    for (index, file) in files.iter().enumerate() {
        let gap = if index == 0 { "" } else { "\n" };
        let _ = write!(text, "{gap}# {}\n{}", file.name, file.text);
    }
    text
}

/// Pools that another program binds are left out: it would find their ports in use.
pub(super) fn files(view: &View) -> Vec<File> {
    let held = view.in_use().filter(|pool| pool.is_held());
    held.flat_map(|pool| Instance::up_to(pool.instances).map(move |instance| (pool, instance)))
        .flat_map(|(pool, instance)| of_pool(view, pool, instance))
        .collect()
}

/// The unit of the pool's own ports, and one for each companion: a unit gives all its sockets one name.
fn of_pool(view: &View, pool: &Pool, instance: Instance) -> Vec<File> {
    let service = match pool.instances {
        1 => format!("{}.service", pool.name),
        _ => format!("{}@{instance}.service", pool.name),
    };
    let own = (pool.name.to_string(), &pool.ports);
    let companions = pool.companions.iter();
    let companions = companions.map(|it| (format!("{}.{}", pool.name, it.name), &it.ports));
    std::iter::once(own)
        .chain(companions)
        .map(|(name, ports)| File {
            name: match pool.instances {
                1 => format!("{name}.socket"),
                _ => format!("{name}@{instance}.socket"),
            },
            text: text(view, pool, instance, &service, (&name, ports)),
        })
        .collect()
}

fn text(
    view: &View,
    pool: &Pool,
    instance: Instance,
    service: &str,
    (name, ports): (&str, &PortSet),
) -> String {
    let mut text = format!(
        "[Unit]\nDescription={}: {} ({name})\n\n[Socket]\nService={service}\nFileDescriptorName={name}\n",
        unit(view.title()),
        unit(title_of(pool)),
    );
    let listen = match pool.protocol {
        Protocol::Tcp => "ListenStream",
        Protocol::Udp => "ListenDatagram",
    };
    for port in ports
        .iter()
        .filter_map(|port| port.in_instance(instance, pool.stride))
    {
        for address in &pool.addresses {
            let _ = writeln!(text, "{listen}={address}:{port}");
        }
    }
    if pool.protocol == Protocol::Tcp {
        let _ = writeln!(text, "Backlog={}", pool.backlog);
    }
    if let Some(address) = pool.addresses.iter().find(|it| it.ip.is_ipv6()) {
        let only = if address.v6_only { "ipv6-only" } else { "both" };
        let _ = writeln!(text, "BindIPv6Only={only}");
    }
    text.push_str("\n[Install]\nWantedBy=sockets.target\n");
    text
}
