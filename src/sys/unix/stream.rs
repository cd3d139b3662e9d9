//! Clients' connections, among everything else the agent waits for.
//!
//! tokio's own Unix sockets always wait for room to write, too: the kernel would wake the agent
//! once more for every reply that is read, on the way of the client that has just read it.
// UNSAFETY: tokio wants a promise that the descriptor stays what it is.
#![expect(unsafe_code)]

use std::io::{Error, ErrorKind, Result};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::time::Duration;

use rustix::net::{Shutdown, SocketFlags, accept_with, shutdown};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::fd_passing;

/// A connected Unix stream socket that does not block.
#[derive(Debug)]
pub(crate) struct Stream(AsyncFd<OwnedFd>);

impl Stream {
    /// Waits for bytes; gives how many came, 0 at the end of the stream.
    ///
    /// # Errors
    /// Those of [`fd_passing::receive_bytes`].
    pub(crate) async fn receive(&self, buffer: &mut [u8]) -> Result<usize> {
        loop {
            let mut readable = self.0.readable().await?;
            match fd_passing::receive_bytes(self.as_fd(), buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => readable.clear_ready(),
                // There is no more, so do not ask: what comes later is told again, epoll(7).
                Ok(length) if length > 0 && length < buffer.len() => {
                    readable.clear_ready();
                    return Ok(length);
                }
                outcome => return outcome,
            }
        }
    }

    /// Waits until there is room to send.
    ///
    /// # Errors
    /// What dup(2) and epoll_ctl(2) say.
    pub(crate) async fn writable(&self) -> Result<()> {
        match self.0.get_ref().try_clone() {
            Ok(copy) => watch(copy, Interest::WRITABLE)?.writable().await.map(drop),
            // No descriptor to wait with: it is tried again a moment later, as long as the caller likes.
            Err(error) if is_want_of_descriptors(&error) => {
                tokio::time::sleep(PAUSE_WITHOUT_DESCRIPTORS).await;
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Ends the connection in both directions; who waits for bytes sees the end of the stream.
    pub(crate) fn shut(&self) {
        // A connection that is over already is all we want.
        let _over = shutdown(self.as_fd(), Shutdown::Both);
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }
}

/// See [`Stream::writable`].
const PAUSE_WITHOUT_DESCRIPTORS: Duration = Duration::from_millis(2);

fn is_want_of_descriptors(error: &Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

/// The socket that clients connect to.
#[derive(Debug)]
pub(crate) struct Listener(AsyncFd<OwnedFd>);

impl Listener {
    /// Begins to watch a listener that does not block. Within a tokio runtime only.
    ///
    /// # Errors
    /// What epoll_ctl(2) says.
    pub(crate) fn watch(listener: UnixListener) -> Result<Listener> {
        Ok(Listener(watch(listener.into(), Interest::READABLE)?))
    }

    /// Waits for a client.
    ///
    /// # Errors
    /// What accept(2) and epoll_ctl(2) say.
    pub(crate) async fn accept(&self) -> Result<Stream> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let accept = |listener: &OwnedFd| Ok(accept_with(listener, flags)?);
        let client = self.0.async_io(Interest::READABLE, accept).await?;
        Ok(Stream(watch(client, Interest::READABLE)?))
    }
}

fn watch(fd: OwnedFd, interest: Interest) -> Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd stays open, and stays the same descriptor, as long as it lives, and the
    // AsyncFd owns it.
    Ok(unsafe { AsyncFd::register_with_interest(fd, interest) }?)
}
