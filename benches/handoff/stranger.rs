//! Another process, whose connections we may speak on: what is taken on them is its own.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command};

use rustix::process::PidfdFlags;

use crate::Outcome;
use crate::caller::{receive, send};

/// What its arguments begin with; the socket that it connects to follows.
pub(crate) const ROLE: &str = "--stranger";

/// A process that lives as long as this value.
#[derive(Debug)]
pub(crate) struct Stranger {
    process: Child,
    us: UnixStream,
}

impl Stranger {
    pub(crate) fn start(socket: &Path) -> Outcome<Stranger> {
        let (us, them) = UnixStream::pair()?;
        let process = Command::new(std::env::current_exe()?)
            .arg(ROLE)
            .arg(socket)
            .stdin(OwnedFd::from(them))
            .spawn()?;
        Ok(Stranger { process, us })
    }

    /// A new connection of its own.
    pub(crate) fn connect(&self) -> Outcome<UnixStream> {
        send(self.us.as_fd(), b"c", None)?;
        let (_, fd) = receive(self.us.as_fd(), &mut [0])?;
        Ok(fd.ok_or("the other process is gone")?.into())
    }

    /// The process itself, whose end makes this readable.
    pub(crate) fn process(&self) -> Outcome<OwnedFd> {
        let pid = i32::try_from(self.process.id())?;
        let pid = rustix::process::Pid::from_raw(pid).ok_or("no process")?;
        Ok(rustix::process::pidfd_open(pid, PidfdFlags::empty())?)
    }

    /// Sends SIGKILL and does not wait.
    pub(crate) fn kill(&mut self) -> Outcome {
        Ok(self.process.kill()?)
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// The process: it connects when it is told to, until we are gone.
pub(crate) fn serve(socket: &Path) -> Outcome {
    let them = std::io::stdin();
    while !receive(them.as_fd(), &mut [0])?.0.is_empty() {
        let connection = UnixStream::connect(socket)?;
        send(them.as_fd(), b"c", Some(connection.as_fd()))?;
    }
    Ok(())
}
