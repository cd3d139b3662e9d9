//! Messages with descriptors between two processes, each whole or not at all: `SOCK_SEQPACKET` of
//! unix(7).

use std::io::{Error, ErrorKind, Result};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, connect, socket_with,
};

use super::{fd_passing, inspect};

/// The longest message, in bytes.
const MOST: usize = 1 << 17;

/// A connection.
#[derive(Debug)]
pub(crate) struct Packets(OwnedFd);

impl Packets {
    /// Connects to who listens there.
    ///
    /// # Errors
    /// What socket(2) and connect(2) say.
    pub(crate) fn connect(path: &Path, patience: Duration) -> Result<Packets> {
        let kind = SocketType::SEQPACKET;
        let socket = socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
        let packets = Packets(socket);
        packets.set_patience(patience)?;
        connect(&packets.0, &SocketAddrUnix::new(path)?)?;
        Ok(packets)
    }

    /// How long each message may take from now on.
    ///
    /// # Errors
    /// What setsockopt(2) says.
    pub(crate) fn set_patience(&self, patience: Duration) -> Result<()> {
        set_socket_timeout(&self.0, Timeout::Recv, Some(patience))?;
        Ok(set_socket_timeout(&self.0, Timeout::Send, Some(patience))?)
    }

    /// The user who connected.
    ///
    /// # Errors
    /// What getsockopt(2) says.
    pub(crate) fn user(&self) -> Result<u32> {
        Ok(inspect::credentials(self.0.as_fd())?.0)
    }

    /// Sends a message.
    ///
    /// # Errors
    /// What sendmsg(2) says.
    pub(crate) fn send(&self, message: &[u8], fds: &[BorrowedFd]) -> Result<()> {
        fd_passing::send(self.0.as_fd(), message, fds).map(drop)
    }

    /// Receives one.
    ///
    /// # Errors
    /// `UnexpectedEof` when there is none any more, `WouldBlock` when none came in time, else what
    /// recvmsg(2) says.
    pub(crate) fn receive(&self) -> Result<(Vec<u8>, Vec<OwnedFd>)> {
        let mut buffer = vec![0; MOST];
        let mut fds = Vec::new();
        match fd_passing::receive(self.0.as_fd(), &mut buffer, &mut fds)? {
            0 => Err(Error::from(ErrorKind::UnexpectedEof)),
            // It may have been longer.
            MOST => Err(Error::from(ErrorKind::InvalidData)),
            length => {
                buffer.truncate(length);
                Ok((buffer, fds))
            }
        }
    }
}

/// Serves one connection after the other, until none came for so long.
///
/// # Errors
/// What poll(2) and accept(2) say.
pub(crate) fn listen(
    socket: OwnedFd,
    idle: Duration,
    mut serve: impl FnMut(Packets),
) -> Result<()> {
    let idle = Timespec::try_from(idle).map_err(|_| ErrorKind::InvalidInput)?;
    loop {
        match poll(&mut [PollFd::new(&socket, PollFlags::IN)], Some(&idle)) {
            Ok(0) => return Ok(()),
            Ok(_) => serve(Packets(accept_with(&socket, SocketFlags::CLOEXEC)?)),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
