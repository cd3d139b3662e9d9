//! Between a successor and the agent: waits for the successor's word that it can serve.
//!
//! `exec --takeover=ready --ready-fd N` becomes the service, which knows nothing of the agent. So a
//! process of its own stays behind with exec's connection, whose holder the service now is, and
//! speaks for it. It ends with the service, or once it has spoken.

use std::io::ErrorKind;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::Command;

use clap::Args;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{PidfdFlags, getpid, pidfd_open};

use super::failure::{Failure, NO_AGENT};
use crate::client::Client;
use crate::sys::activation;

/// This very program, also when another version has been installed at its path meanwhile: proc(5).
const OWN_PROGRAM: &str = "/proc/self/exe";

/// How much of the service's words is looked at in one go, in bytes.
const BUFFER: usize = 256;

/// What a service says that knows systemd's words better than a line's end: sd_notify(3).
const READY: &[u8] = b"READY=1";

/// Tell the agent that a successor is ready, once it says so.
///
/// Standard input is what it says, standard output its connection to the agent, standard error the
/// pidfd of its process.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The leases that it takes over
    #[arg(required = true, value_name = "LEASE")]
    leases: Vec<u64>,

    /// Wait in a process of its own, and be nobody's child
    #[arg(long)]
    background: bool,
}

/// Leaves a process behind that waits for this one's word, also once this one is another program;
/// gives the end of the pipe on which the word is said: a line, or `READY=1`.
pub(super) fn listen(client: &Client, leases: &[u64]) -> Result<OwnedFd, Failure> {
    let failed = |error| cannot(&error);
    let (word, says) = std::io::pipe().map_err(failed)?;
    let process =
        pidfd_open(getpid(), PidfdFlags::empty()).map_err(|error| failed(error.into()))?;
    let connection = client.stream().map_err(failed)?;
    let mut between = Command::new(OWN_PROGRAM);
    between
        .arg0("portpool")
        .args(["ready", "--background"])
        .args(leases.iter().map(u64::to_string))
        .stdin(word)
        .stdout(connection)
        .stderr(process)
        .current_dir("/");
    // The sockets, and what else is open, are the service's alone.
    activation::keep_from_children().map_err(failed)?;
    let status = between.status().map_err(failed)?;
    match status.success() {
        true => Ok(says.into()),
        false => Err(cannot(&ErrorKind::BrokenPipe.into())),
    }
}

fn cannot(error: &std::io::Error) -> Failure {
    Failure::new(
        NO_AGENT,
        format_args!(
            "cannot wait for the command to be ready: {error}\nits slots stay whose they were"
        ),
    )
}

pub(super) fn run(arguments: &Arguments) -> Result<u8, Failure> {
    if arguments.background {
        return go_to_background();
    }
    let failed = |error| cannot(&error);
    // The link by which it was run has a name that says nothing.
    let _has_that_name = std::fs::write("/proc/self/comm", "portpool");
    // A terminal's signals are for the service; our end is its end.
    let _leads_already = rustix::process::setsid();
    if is_said().map_err(failed)? {
        let stream = std::io::stdout().as_fd().try_clone_to_owned();
        let client = Client::over(UnixStream::from(stream.map_err(failed)?))?;
        for lease in &arguments.leases {
            client.ready(*lease)?;
        }
    }
    Ok(0)
}

/// The service is to have no child that it did not make itself.
fn go_to_background() -> Result<u8, Failure> {
    let arguments = std::env::args_os()
        .skip(1)
        .filter(|argument| argument != "--background");
    let child = Command::new(OWN_PROGRAM)
        .arg0("portpool")
        .args(arguments)
        .spawn();
    child.map(|_| 0).map_err(|error| cannot(&error))
}

/// Waits until the word is said; false when the service is gone, or will not say it any more.
fn is_said() -> std::io::Result<bool> {
    let (stdin, stderr) = (std::io::stdin(), std::io::stderr());
    let mut said: Vec<u8> = Vec::new();
    loop {
        let mut waits = [
            PollFd::new(&stdin, PollFlags::IN),
            PollFd::new(&stderr, PollFlags::IN),
        ];
        match poll(&mut waits, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        if waits[0].revents().is_empty() {
            match waits[1].revents().is_empty() {
                true => continue,
                // Its end, and nothing that it said before.
                false => return Ok(false),
            }
        }
        let mut buffer = [0; BUFFER];
        // Past the buffer of the standard library, of which poll(2) knows nothing.
        let length = match rustix::io::read(&stdin, &mut buffer) {
            Ok(0) => return Ok(false),
            Ok(length) => length,
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        };
        said.extend_from_slice(&buffer[..length]);
        if said.contains(&b'\n') || said.windows(READY.len()).any(|words| words == READY) {
            return Ok(true);
        }
        // Words may come in parts; what is longer than any of them is none.
        said.drain(..said.len().saturating_sub(READY.len()));
    }
}
