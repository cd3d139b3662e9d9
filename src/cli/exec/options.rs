//! What the words of `exec`'s arguments mean.

use crate::cli::failure::{Failure, USAGE};
use crate::config::OnRevoke;
use crate::protocol::{Takeover, WAIT_FOR_EVER, Want};

/// The highest descriptor that `--ready-fd` may name: what a process may have open without asking
/// for more, less one, getrlimit(2).
pub(super) const MAX_READY_FD: i64 = 1023;

/// `--wait` without a duration.
pub(super) const FOR_EVER: &str = "forever";

/// What `--instance` says.
#[derive(Debug, Clone, Copy)]
pub(super) enum Instance {
    Number(u16),
    Auto,
}

pub(super) fn instance(text: &str) -> Result<Instance, &'static str> {
    match (text, text.parse()) {
        ("auto", _) => Ok(Instance::Auto),
        (_, Ok(number)) if number > 0 => Ok(Instance::Number(number)),
        _ => Err("neither a number from 1 to 65535 nor auto"),
    }
}

/// A duration in milliseconds, as the protocol has it.
pub(super) fn wait(text: &str) -> Result<i64, humantime::DurationError> {
    if text == FOR_EVER {
        return Ok(WAIT_FOR_EVER);
    }
    let duration = humantime::parse_duration(text)?;
    Ok(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX))
}

pub(super) fn takeover(text: &str) -> Result<Takeover, &'static str> {
    match text {
        "now" => Ok(Takeover::Now),
        "ready" => Ok(Takeover::Ready),
        _ => Err("neither now nor ready"),
    }
}

pub(super) fn on_revoke(text: &str) -> Result<String, String> {
    let signal: Result<OnRevoke, _> = text.parse();
    signal
        .map(|_| text.to_owned())
        .map_err(|error| format!("{error}, none"))
}

/// `POOL`, or `POOL*N`.
pub(super) fn want(text: &str) -> Result<Want, Failure> {
    let Some((pool, count)) = text.split_once('*') else {
        return Ok(Want {
            pool: text.to_owned(),
            count: None,
        });
    };
    match count.parse() {
        Ok(count) if count > 0 => Ok(Want {
            pool: pool.to_owned(),
            count: Some(count),
        }),
        _ => Err(Failure::new(
            USAGE,
            format_args!("{text:?}: after the * goes how many slots of {pool}, such as {pool}*2"),
        )),
    }
}
