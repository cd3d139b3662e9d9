//! Everything the other documents say, for programs. Keys are stable.

use serde_json::{Value, json};

use super::{View, bound_by, in_instances, quote};
use crate::config::{NumberRange, Pool, PortSet};
use crate::plan::Instance;
use crate::plan::next::Scope;

pub(super) fn render(view: &View) -> String {
    let config = view.config;
    let pools: Vec<Value> = view.pools.iter().map(|pool| of_pool(view, pool)).collect();
    let ranges: Vec<Value> = config
        .ranges
        .iter()
        .map(|range| of_range(view, range))
        .collect();
    let hosts: Vec<Value> = config
        .hosts
        .iter()
        .map(|host| json!({ "name": host.name, "address": host.address }))
        .collect();
    let plan = json!({
        "name": config.plan_name,
        "space": config.space.as_ref().map(ToString::to_string),
        "next": view.next_of(Scope::Space).map(|port| port.get()),
        "agentMetrics": config.agent.metrics.map(|metrics| metrics.to_string()),
        "hosts": hosts,
        "ranges": ranges,
        "pools": pools,
    });
    quote::json(&serde_json::to_string_pretty(&plan).unwrap_or_default()) + "\n"
}

fn numbers(ports: &PortSet) -> Vec<u16> {
    ports.iter().map(|port| port.get()).collect()
}

fn of_range(view: &View, range: &NumberRange) -> Value {
    json!({
        "name": range.name,
        "ports": range.ports.to_string(),
        "purpose": range.purpose,
        "categories": range.categories,
        "step": range.step,
        "next": view.next_of(Scope::Range(range.name.clone())).map(|port| port.get()),
    })
}

fn of_pool(view: &View, pool: &Pool) -> Value {
    let instances: Vec<Value> = Instance::up_to(pool.instances)
        .map(|instance| {
            let of = |ports| {
                let here = in_instances(pool, ports).filter(move |(own, _)| *own == instance);
                here.map(|(_, port)| port.get()).collect::<Vec<u16>>()
            };
            let companions: serde_json::Map<String, Value> = pool
                .companions
                .iter()
                .map(|it| (it.name.to_string(), json!(of(&it.ports))))
                .collect();
            json!({ "instance": instance.get(), "ports": of(&pool.ports), "extra": companions })
        })
        .collect();
    let env: serde_json::Map<String, Value> = pool
        .env
        .iter()
        .map(|(name, template)| (name.clone(), json!(view.fill(pool, template))))
        .collect();
    let addresses: Vec<String> = pool.addresses.iter().map(ToString::to_string).collect();
    let firewall: Vec<String> = pool.firewall.iter().map(ToString::to_string).collect();
    json!({
        "name": pool.name.as_str(),
        "title": pool.title,
        "description": pool.description,
        "category": pool.category,
        "host": pool.host,
        "protocol": pool.protocol.to_string(),
        "addresses": addresses,
        "instances": instances,
        "stride": pool.stride,
        "maxInstances": pool.max_instances,
        "held": pool.is_held(),
        "boundBy": bound_by(pool),
        "state": pool.state.to_string(),
        "fixed": pool.fixed,
        "was": numbers(&pool.was),
        "planned": numbers(&pool.planned),
        "alternativeTo": pool.alternative_to.as_ref().map(|name| name.as_str()),
        "firewall": firewall,
        "env": env,
        "note": pool.note,
    })
}
