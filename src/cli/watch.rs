//! `portpool watch`: changes as they happen.

use std::io::{ErrorKind, Write};
use std::path::PathBuf;

use clap::Args;

use super::failure::{FINDINGS, Failure, warn};
use crate::protocol::{WatchParameters, describe_transition};

/// Show every change of a slot as it happens, one a line, until interrupted.
///
/// Says `watching` on standard error once no change is missed any more.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Only of this pool
    #[arg(value_name = "POOL")]
    pool: Option<String>,

    /// Each as a line of JSON
    #[arg(long)]
    json: bool,

    /// Ask the agent that `exec --config FILE` started for this file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

pub(super) fn run(arguments: &Arguments, socket: Option<PathBuf>) -> Result<u8, Failure> {
    let client = super::connect_to(arguments.config.as_deref(), socket)?;
    let watch = client.watch(&WatchParameters {
        pool: arguments.pool.clone(),
        lease_id: None,
    })?;
    warn("watching");
    let mut output = anstream::stdout();
    for transition in watch {
        let transition = transition?;
        let line = match arguments.json {
            true => {
                serde_json::to_string(&transition).map_err(|error| Failure::new(FINDINGS, error))?
            }
            false => describe_transition(&transition),
        };
        // A line at a time: whoever reads it acts on it.
        match writeln!(output, "{line}").and_then(|()| output.flush()) {
            Ok(()) => {}
            // The reader has seen enough.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => break,
            Err(error) => {
                return Err(Failure::new(
                    FINDINGS,
                    format_args!("cannot write: {error}"),
                ));
            }
        }
    }
    Ok(0)
}
