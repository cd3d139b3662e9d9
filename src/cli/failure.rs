//! What went wrong, in words for a person and in a number for a script.

use std::fmt::Display;
use std::io::Write;

use crate::client::Error;
use crate::protocol::Fault;

/// The command line is wrong: `EX_USAGE` of sysexits.h.
pub(super) const USAGE: u8 = 64;
/// No agent answers: `EX_UNAVAILABLE`.
pub(super) const NO_AGENT: u8 = 69;
/// Not now, perhaps later: `EX_TEMPFAIL`.
pub(super) const EXHAUSTED: u8 = 75;
/// The policy says no: `EX_NOPERM`.
pub(super) const DENIED: u8 = 77;
/// The configuration is wrong: `EX_CONFIG`.
pub(super) const CONFIGURATION: u8 = 78;
/// A lint found something; or what was asked for is done in part, or is not there.
pub(super) const FINDINGS: u8 = 1;
/// A lint could not look.
pub(super) const UNKNOWN: u8 = 2;

/// Why a verb did not do what it was to do.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) code: u8,
    text: String,
}

impl Failure {
    pub(super) fn new(code: u8, text: impl Display) -> Failure {
        Failure {
            code,
            text: text.to_string(),
        }
    }

    /// Says it, once, on standard error.
    pub(super) fn print(&self) {
        if !self.text.is_empty() {
            warn(&self.text);
        }
    }
}

/// A word to the person at the terminal, on standard error.
pub(super) fn warn(text: impl Display) {
    // Where standard error is gone there is nobody to tell.
    drop(writeln!(std::io::stderr(), "portpool: {text}"));
}

/// Writes what was asked for. A reader that has seen enough and closed the pipe is no error.
pub(super) fn print(text: &str) -> Result<(), Failure> {
    match anstream::stdout()
        .write_all(text.as_bytes())
        .and_then(|()| anstream::stdout().flush())
    {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(Failure::new(
            FINDINGS,
            format_args!("cannot write: {error}"),
        )),
        _ => Ok(()),
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        let code = match &error {
            Error::Refused(fault) => match **fault {
                Fault::PoolExhausted { .. }
                | Fault::NoInstance { .. }
                | Fault::TakeoverUnderWay { .. }
                | Fault::CannotListen { .. }
                | Fault::Draining { .. }
                | Fault::Lagged { .. }
                | Fault::Busy { .. } => EXHAUSTED,
                Fault::PermissionDenied { .. } | Fault::Claimed { .. } => DENIED,
                Fault::ConnectionsRemain { .. } => FINDINGS,
                Fault::ReloadRefused { .. } => CONFIGURATION,
                Fault::UnknownPool { .. }
                | Fault::UnknownInstance { .. }
                | Fault::UnknownLease { .. }
                | Fault::TooManySockets { .. }
                | Fault::InvalidParameter { .. } => USAGE,
                _ => NO_AGENT,
            },
            Error::Untrusted { .. } => DENIED,
            _ => NO_AGENT,
        };
        Failure::new(code, error)
    }
}
