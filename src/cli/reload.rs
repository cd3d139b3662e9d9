//! `portpool reload`: have the agent read its configuration again.

use std::path::PathBuf;

use clap::Args;

use super::failure::{Failure, print};

/// Have the agent read its configuration again, for administrators.
///
/// Slots that did not change are not touched, leased or not. A slot that is gone from the plan, or
/// has other addresses, goes at once, or with the end of its lease. With a wrong configuration
/// nothing changes: what is wrong is printed, and the exit code is 78.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Ask the agent that `exec --config FILE` started for this file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

pub(super) fn run(arguments: &Arguments, socket: Option<PathBuf>) -> Result<u8, Failure> {
    let client = super::connect_to(arguments.config.as_deref(), socket)?;
    let done = client.reload()?;
    print(&format!(
        "{} slots added, {} removed, {} to be removed with the end of their lease, {} unchanged\n",
        done.added, done.removed, done.draining, done.unchanged
    ))?;
    Ok(0)
}
