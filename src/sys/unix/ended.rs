//! Waiting for the end of a process, among everything else the agent waits for.
// UNSAFETY: tokio wants a promise that the descriptor stays what it is.
#![expect(unsafe_code)]

use std::io::Result;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A process whose end is waited for.
#[derive(Debug)]
pub(crate) struct Ended(AsyncFd<OwnedFd>);

impl Ended {
    /// Begins to watch a process by its pidfd, which is readable once the process has ended:
    /// pidfd_open(2). Within a tokio runtime only.
    ///
    /// # Errors
    /// What epoll_ctl(2) says.
    pub(crate) fn watch(pidfd: OwnedFd) -> Result<Ended> {
        // SAFETY: an OwnedFd stays open, and stays the same descriptor, as long as it lives, and
        // the AsyncFd owns it.
        let watched = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) };
        Ok(Ended(watched?))
    }

    /// Whether the process lives, this very moment.
    pub(crate) fn is_not_yet(&self) -> bool {
        super::process::is_alive(self.pidfd())
    }

    /// The process itself.
    pub(crate) fn pidfd(&self) -> BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }

    /// Waits until the process has ended.
    ///
    /// # Errors
    /// When the runtime is going away.
    pub(crate) async fn wait(&self) -> Result<()> {
        self.0.readable().await.map(drop)
    }
}
