//! File descriptors that were sent and not read yet: bounded, because the kernel bounds them for
//! everybody together, and a client that never reads must not use that up.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::rc::Rc;

use tokio::net::UnixStream;

use super::limits::{MAX_FDS_IN_FLIGHT, MAX_FDS_IN_FLIGHT_PER_USER};
use crate::sys::fd_passing;

/// Replies with descriptors that their readers may not have read yet, by connection.
#[derive(Debug, Default)]
pub(crate) struct InFlight {
    replies: HashMap<u64, Unread>,
}

#[derive(Debug)]
struct Unread {
    stream: Rc<UnixStream>,
    uid: u32,
    fds: usize,
}

impl InFlight {
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
        total + fds <= MAX_FDS_IN_FLIGHT && users + fds <= MAX_FDS_IN_FLIGHT_PER_USER
    }

    /// A reply with descriptors goes out on a connection, which has no other such reply.
    pub(crate) fn sent(&mut self, connection: u64, stream: &Rc<UnixStream>, uid: u32, fds: usize) {
        self.replies.insert(
            connection,
            Unread {
                stream: Rc::clone(stream),
                uid,
                fds,
            },
        );
    }

    /// The connection's reply was read, or the connection is closed.
    pub(crate) fn settled(&mut self, connection: u64) {
        self.replies.remove(&connection);
    }
}

/// Whether the peer has read everything that was sent to it.
pub(crate) fn is_read(stream: &UnixStream) -> bool {
    // An error here is a connection that is over: its reader, too, reads nothing more.
    fd_passing::unread(stream.as_fd()).map_or(true, |unread| unread == 0)
}
