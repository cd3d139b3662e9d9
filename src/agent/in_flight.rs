//! File descriptors that were sent and not read yet: bounded, because the kernel bounds them for
//! everybody together, and a client that never reads must not use that up.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::rc::Rc;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use super::core::Shared;
use super::limits::{MAX_FDS_IN_FLIGHT, MAX_FDS_IN_FLIGHT_PER_USER, REPLY_TIMEOUT};
use crate::protocol::MAX_FDS;
use crate::sys::fd_passing;
use crate::sys::stream::Stream;

/// Replies with descriptors that their readers may not have read yet, by connection.
#[derive(Debug)]
pub(crate) struct InFlight {
    replies: HashMap<u64, Unread>,
    most: usize,
    most_per_user: usize,
    /// Wakes the task that looks after them.
    first: Rc<Notify>,
}

#[derive(Debug)]
struct Unread {
    stream: Rc<Stream>,
    uid: u32,
    fds: usize,
    since: Instant,
}

impl InFlight {
    /// None yet. `fd_limit` is what this process may have open: the kernel lets as many be in
    /// flight, of all that it sends (`too_many_unix_fds` of its `net/core/scm.c`).
    pub(crate) fn new(fd_limit: usize) -> InFlight {
        let most = (fd_limit / 2).clamp(MAX_FDS, MAX_FDS_IN_FLIGHT);
        InFlight {
            replies: HashMap::new(),
            most,
            most_per_user: (most / 4).clamp(MAX_FDS, MAX_FDS_IN_FLIGHT_PER_USER),
            first: Rc::default(),
        }
    }

    /// Whether so many more descriptors may be sent to a user.
    pub(crate) fn has_room(&mut self, uid: u32, fds: usize) -> bool {
        if self.fits(uid, fds) {
            return true;
        }
        // Some may have been read since it was looked at last.
        self.replies.retain(|_, reply| !is_read(&reply.stream));
        self.fits(uid, fds)
    }

    fn fits(&self, uid: u32, fds: usize) -> bool {
        let total: usize = self.replies.values().map(|reply| reply.fds).sum();
        let of_user = |reply: &&Unread| reply.uid == uid;
        let users: usize = self
            .replies
            .values()
            .filter(of_user)
            .map(|reply| reply.fds)
            .sum();
        total + fds <= self.most && users + fds <= self.most_per_user
    }

    /// A reply with descriptors goes out on a connection, which has no other such reply.
    pub(crate) fn sent(&mut self, connection: u64, stream: &Rc<Stream>, uid: u32, fds: usize) {
        if self.replies.is_empty() {
            self.first.notify_one();
        }
        self.replies.insert(
            connection,
            Unread {
                stream: Rc::clone(stream),
                uid,
                fds,
                since: Instant::now(),
            },
        );
    }

    /// The connection's reply was read, or is gone with its reader.
    pub(crate) fn settled(&mut self, connection: u64) {
        self.replies.remove(&connection);
    }

    fn end_the_slow(&mut self) {
        self.replies.retain(|_, reply| !is_read(&reply.stream));
        for reply in self.replies.values() {
            if reply.since.elapsed() >= REPLY_TIMEOUT {
                // Its task sees the end of the stream, and ends the leases that nobody took.
                reply.stream.shut();
            }
        }
    }
}

/// Ends every connection whose reply was not read in time. Never returns.
///
/// One timer for all of them: one for each reply would cost it two more system calls.
pub(crate) async fn keep_in_time(agent: Shared) {
    let first = Rc::clone(&agent.borrow().in_flight.first);
    loop {
        if agent.borrow().in_flight.replies.is_empty() {
            first.notified().await;
        }
        sleep(REPLY_TIMEOUT / 10).await;
        agent.borrow_mut().in_flight.end_the_slow();
    }
}

/// Whether nothing is left that the peer has not read. That it was *read* needs [`was_reset`]
/// to be asked afterwards: a peer that closes leaves nothing either.
pub(crate) fn is_read(stream: &Stream) -> bool {
    // An error here is a connection that is over: its reader, too, reads nothing more.
    fd_passing::unread(stream.as_fd()).map_or(true, |unread| unread == 0)
}

/// Whether the peer closed its end with something unread. The kernel says so once, and before it
/// lets go of what was unread (`unix_release_sock` of its `net/unix/af_unix.c`).
pub(crate) fn was_reset(stream: &Stream) -> bool {
    !matches!(socket2::SockRef::from(stream).take_error(), Ok(None))
}
