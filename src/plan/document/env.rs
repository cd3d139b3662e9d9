//! Environment variables, from the templates of `env`: one shared file in the order of the plan, or one a pool.

use std::collections::HashMap;
use std::fmt::Write as _;

use super::quote::{comment, dotenv};
use super::{File, View, title_of};
use crate::config::Pool;

pub(super) fn render(view: &View) -> String {
    let mut text = String::new();
    let mut set: HashMap<&str, &Pool> = HashMap::new();
    for pool in view.pools.iter().filter(|pool| !pool.env.is_empty()) {
        if !text.is_empty() {
            text.push('\n');
        }
        let _ = writeln!(text, "# {}", comment(title_of(pool)));
        for (name, template) in &pool.env {
            // A reader would keep the last, whichever that is.
            let first = *set.entry(name).or_insert(pool);
            if first.name != pool.name {
                let _ = writeln!(text, "# {name} is set by {} above", first.name);
                continue;
            }
            let value = dotenv(&view.fill(pool, template));
            let _ = writeln!(text, "{name}={value}");
        }
    }
    text
}

pub(super) fn files(view: &View) -> Vec<File> {
    let with_variables = view.pools.iter().filter(|pool| !pool.env.is_empty());
    with_variables
        .map(|pool| {
            let own = View {
                pools: vec![pool],
                ..view.clone()
            };
            File {
                name: format!("{}.env", pool.name),
                text: render(&own),
            }
        })
        .collect()
}
