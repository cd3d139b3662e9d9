//! Noticing that somebody shut a listener down: whoever has a copy can do that to all of them.
//!
//! An epoll of its own, because it is asked for nothing but what is always told: EPOLLHUP,
//! EPOLLERR. So connections that arrive wake nobody here (`ep_poll_callback` of the kernel's
//! `fs/eventpoll.c`), and each shutdown once (EPOLLET).
// UNSAFETY: tokio wants a promise that the descriptor stays what it is.
#![expect(unsafe_code)]

use std::io::{ErrorKind, Result};
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The listeners that are watched, each with a number that says which it is.
#[derive(Debug)]
pub(crate) struct Shut(OwnedFd);

/// How many are told of at a time.
const AT_A_TIME: usize = 64;

impl Shut {
    /// Watches nothing yet.
    ///
    /// # Errors
    /// What epoll_create1(2) says.
    pub(crate) fn new() -> Result<Shut> {
        Ok(Shut(epoll::create(epoll::CreateFlags::CLOEXEC)?))
    }

    /// Watches a listener until [`Shut::forget`]: closing our copy is not enough while others have
    /// one.
    ///
    /// # Errors
    /// What epoll_ctl(2) says.
    pub(crate) fn watch(&self, listener: BorrowedFd, number: u64) -> Result<()> {
        let data = epoll::EventData::new_u64(number);
        Ok(epoll::add(&self.0, listener, data, epoll::EventFlags::ET)?)
    }

    /// Watches it no longer; one that was not watched is nothing to do.
    pub(crate) fn forget(&self, listener: BorrowedFd) {
        let _not_watched = epoll::delete(&self.0, listener);
    }

    /// Something to wait with for the next. Within a tokio runtime only.
    ///
    /// # Errors
    /// What dup(2) and epoll_ctl(2) say.
    pub(crate) fn waiter(&self) -> Result<Waiter> {
        let copy = self.0.try_clone()?;
        // SAFETY: an OwnedFd stays open, and stays the same descriptor, as long as it lives, and
        // the AsyncFd owns it.
        Ok(Waiter(unsafe {
            AsyncFd::register_with_interest(copy, Interest::READABLE)
        }?))
    }
}

/// Waits for listeners that were shut.
#[derive(Debug)]
pub(crate) struct Waiter(AsyncFd<OwnedFd>);

impl Waiter {
    /// The numbers of listeners that were shut since the last time, at least one.
    ///
    /// # Errors
    /// When the runtime is going away.
    pub(crate) async fn next(&self) -> Result<Vec<u64>> {
        loop {
            let mut ready = self.0.readable().await?;
            let mut events = Vec::with_capacity(AT_A_TIME);
            let at_once = Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            };
            match epoll::wait(
                self.0.get_ref(),
                spare_capacity(&mut events),
                Some(&at_once),
            ) {
                Ok(0) => ready.clear_ready(),
                Ok(_) => return Ok(events.iter().map(|event| event.data.u64()).collect()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Shutdown, TcpListener, TcpStream};
    use std::os::fd::AsFd;

    use socket2::SockRef;

    use super::*;

    #[test]
    fn a_listener_that_is_shut_is_told_of_and_one_that_gets_a_client_is_not() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .unwrap();
        runtime.block_on(async {
            let shut = Shut::new().unwrap();
            let waiter = shut.waiter().unwrap();
            let listeners = [7, 8].map(|number| {
                let listener = TcpListener::bind("127.0.0.1:0").unwrap();
                shut.watch(listener.as_fd(), number).unwrap();
                listener
            });
            let _client = TcpStream::connect(listeners[0].local_addr().unwrap()).unwrap();
            SockRef::from(&listeners[1])
                .shutdown(Shutdown::Both)
                .unwrap();
            assert_eq!(waiter.next().await.unwrap(), [8]);

            SockRef::from(&listeners[1]).listen(1).unwrap();
            SockRef::from(&listeners[1])
                .shutdown(Shutdown::Both)
                .unwrap();
            assert_eq!(waiter.next().await.unwrap(), [8], "each time");
            shut.forget(listeners[1].as_fd());
            shut.forget(listeners[1].as_fd());
        });
    }
}
