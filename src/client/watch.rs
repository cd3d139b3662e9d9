//! Changes as they happen: of all slots, or of one lease until it is over.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::vec;

use super::Error;
use super::connection::Connection;
use crate::protocol::{Transition, WatchParameters, WatchReply};

/// Every change from its making on, in order: an iterator that blocks until there is another.
///
/// It ends after an error, and with the lease where it watches one. It has a connection of its
/// own, so calls of the [`Client`](super::Client) do not wait for it.
#[derive(Debug)]
pub struct Watch {
    connection: Connection,
    /// Those that came and were not given out yet.
    arrived: vec::IntoIter<Transition>,
    /// More may come.
    goes_on: bool,
}

impl Watch {
    pub(super) fn begin(path: &Path, wanted: &WatchParameters) -> Result<Watch, Error> {
        let mut connection = Connection::open(path)?;
        let first = connection.subscribe::<WatchReply>("Watch", wanted)?;
        Ok(Watch {
            connection,
            arrived: first.parameters.transitions.into_iter(),
            goes_on: first.continues,
        })
    }
}

impl Iterator for Watch {
    type Item = Result<Transition, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(transition) = self.arrived.next() {
                return Some(Ok(transition));
            }
            if !self.goes_on {
                return None;
            }
            match self.connection.next::<WatchReply>() {
                Ok(reply) => {
                    self.arrived = reply.parameters.transitions.into_iter();
                    self.goes_on = reply.continues;
                }
                Err(error) => {
                    self.goes_on = false;
                    return Some(Err(error));
                }
            }
        }
    }
}

/// That a lease will be over: see [`Lease::revoked`](super::Lease::revoked).
///
/// Its descriptor ([`AsFd`]) is readable when something has come of the lease, or of the agent:
/// an event loop waits for that, and calls [`Revocation::wait`] then.
#[derive(Debug)]
pub struct Revocation(Watch);

impl Revocation {
    pub(super) fn begin(path: &Path, lease_id: u64) -> Result<Revocation, Error> {
        let wanted = WatchParameters {
            pool: None,
            lease_id: Some(lease_id),
        };
        Ok(Revocation(Watch::begin(path, &wanted)?))
    }

    /// Blocks until the lease is over; gives the change that ended it, or `None` where it was over
    /// from the beginning.
    ///
    /// # Errors
    /// [`Error::Io`] when the agent ends: nobody then takes the listener away, nor guards it.
    pub fn wait(self) -> Result<Option<Transition>, Error> {
        let mut last = None;
        for transition in self.0 {
            last = Some(transition?);
        }
        Ok(last)
    }

    /// Whether the lease was over already when this was made.
    pub fn is_over(&self) -> bool {
        !self.0.goes_on
    }
}

impl AsFd for Revocation {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.connection.socket()
    }
}
