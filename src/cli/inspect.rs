//! `portpool inspect`: the agent's eyes and hands where it has an own user.

use clap::Args;

use super::failure::{Failure, NO_AGENT};

/// Say who has a socket, and send a signal, for an agent that may not; by socket activation only.
#[derive(Debug, Args)]
pub(super) struct Arguments {}

pub(super) fn run(_arguments: &Arguments) -> Result<u8, Failure> {
    let failed = |error| Failure::new(NO_AGENT, format_args!("cannot serve the agent: {error}"));
    crate::agent::inspect().map_err(failed)?;
    Ok(0)
}
