//! Targets for Prometheus' `file_sd_configs`: the services' own metrics, which are their companions of that name.

use serde_json::{Value, json};

use super::{View, in_instances, quote};

/// The companion that is scraped.
const METRICS: &str = "metrics";

pub(super) fn render(view: &View) -> String {
    let mut targets = Vec::new();
    for pool in view
        .pools
        .iter()
        .filter(|pool| pool.state != crate::config::State::Disabled)
    {
        let companions = pool.companions.iter();
        for companion in companions.filter(|it| it.name.as_str() == METRICS) {
            // Whoever scrapes several machines is on one of them at most.
            let host = match (view.on, pool.host.as_deref()) {
                (None, Some(host)) => view.address_of(host),
                _ => view.host_of(pool),
            };
            for (instance, port) in in_instances(pool, &companion.ports) {
                let mut labels = json!({
                    "portpool_pool": pool.name.as_str(),
                    "portpool_instance": instance.to_string(),
                    "portpool_state": pool.state.to_string(),
                });
                if let (Some(category), Value::Object(labels)) = (&pool.category, &mut labels) {
                    labels.insert("portpool_category".to_owned(), json!(category));
                }
                targets.push(json!({ "targets": [format!("{host}:{port}")], "labels": labels }));
            }
        }
    }
    let text = serde_json::to_string_pretty(&targets);
    quote::json(&text.unwrap_or_default()) + "\n"
}
