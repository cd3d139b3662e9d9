//! `portpool status`: what the agent is and how it stands.

use std::fmt::Write;
use std::path::PathBuf;

use clap::Args;

use super::failure::{Failure, print};
use super::list::json;

/// Show what the agent is and how it stands.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// As JSON
    #[arg(long)]
    json: bool,

    /// Ask the agent that `exec --config FILE` started for this file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

pub(super) fn run(arguments: &Arguments, socket: Option<PathBuf>) -> Result<u8, Failure> {
    let client = super::connect_to(arguments.config.as_deref(), socket)?;
    let status = client.status()?;
    if arguments.json {
        return print(&json(&status)?).map(|()| 0);
    }
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{name:<15}{value}");
    };
    line("plan", status.plan.unwrap_or_else(|| "-".to_owned()));
    line(
        "level",
        format!("{} ({})", status.level, status.level_reason),
    );
    line(
        "slots",
        format!(
            "{}: {} leased, {} parked, {} in conflict, {} unavailable",
            status.slots, status.leased, status.parked, status.conflicts, status.unavailable
        ),
    );
    line("waiting", status.waiting.to_string());
    line("connections", status.connections.to_string());
    line("configuration", status.configuration.join(", "));
    line(
        "agent",
        format!(
            "pid {}, user {}, version {}",
            status.pid, status.uid, status.version
        ),
    );
    line("since", status.since);
    print(&text).map(|()| 0)
}
