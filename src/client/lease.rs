//! A lease that ends when it is dropped.

use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;

use super::{Client, Error, Grant, Revocation};
use crate::protocol;

/// The exclusive right to one slot of a pool.
///
/// **Dropping it ends the lease**: the agent shuts the listener, so also a copy that was taken
/// out of it gets no further connection, and another process may have the port at once. Keep it
/// as long as you serve. It ends in any case with the process that acquired it.
///
/// ```
/// # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc/agent.rs"));
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let agent = DocAgent::start();
/// # let path = agent.socket();
/// use std::net::TcpStream;
///
/// let lease = portpool::Client::connect_to(&path)?.acquire("web")?;
/// let address = lease.listener()?.local_addr()?;
/// TcpStream::connect(address)?; // it listens already: a client waits in its queue
///
/// lease.release()?;
/// assert!(TcpStream::connect(address).is_err()); // held, and refused, as before
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Lease {
    client: Client,
    lease: protocol::Lease,
    /// The slot's own listener, until [`Lease::into_parts`].
    listener: Option<TcpListener>,
    /// Those of further addresses and of companions.
    others: Vec<(protocol::Socket, OwnedFd)>,
    /// It was given back already.
    is_over: bool,
}

impl Lease {
    pub(super) fn new(client: Client, grant: Grant) -> Result<Lease, Error> {
        let Grant { lease, sockets } = grant;
        let mut sockets = sockets.into_iter();
        let first = sockets.next();
        let mut made = Lease {
            client,
            lease,
            listener: None,
            others: sockets.collect(),
            is_over: false,
        };
        // From here on an early return drops `made`, which gives the lease back.
        match (made.lease.protocol.as_str(), first) {
            ("tcp", Some((_, fd))) => made.listener = Some(TcpListener::from(fd)),
            ("tcp", None) => return Err(Error::Protocol("a lease without a socket")),
            _ => return Err(Error::NotTcp),
        }
        Ok(made)
    }

    /// A copy of the ready listener, in blocking mode: accept on it, never bind. With an
    /// asynchronous runtime, `set_nonblocking(true)` comes first.
    ///
    /// # Errors
    /// `NotConnected` after [`Lease::into_parts`], else what fcntl(2) says.
    pub fn listener(&self) -> io::Result<TcpListener> {
        let listener = self.listener.as_ref();
        listener.ok_or(io::ErrorKind::NotConnected)?.try_clone()
    }

    /// The listener itself, and the lease to be kept beside it as long as it serves.
    pub fn into_parts(mut self) -> (TcpListener, Lease)
    where
        Self: Sized,
    {
        match self.listener.take() {
            Some(listener) => (listener, self),
            None => unreachable!("into_parts consumes the only lease that has a listener"),
        }
    }

    /// The listeners of the slot's further addresses and of its companions, taken out.
    pub fn take_others(&mut self) -> Vec<(protocol::Socket, OwnedFd)> {
        std::mem::take(&mut self.others)
    }

    /// The slot's port.
    pub fn port(&self) -> u16 {
        self.lease.port
    }

    /// The pool's name.
    pub fn pool(&self) -> &str {
        &self.lease.pool
    }

    /// The pool's instance, from 1.
    pub fn instance(&self) -> u16 {
        self.lease.instance
    }

    /// The lease's id, for the calls of [`Client`] that name one.
    pub fn id(&self) -> u64 {
        self.lease.lease_id
    }

    /// Learns when the lease ends otherwise than by this value: revoked, taken over by a
    /// successor, or lost. A listener itself tells of nothing, it only gets no more connections.
    ///
    /// # Errors
    /// As for [`Client::connect`]: it has a connection of its own, and can be waited for while the
    /// lease is used.
    pub fn revoked(&self) -> Result<Revocation, Error> {
        self.client.revocation(self.lease.lease_id)
    }

    /// Ends the lease and says whether that worked, which dropping it does not.
    ///
    /// # Errors
    /// As for [`Client::release`].
    pub fn release(mut self) -> Result<(), Error> {
        // The destructor closes the sockets, and is not to give the lease back again.
        self.is_over = true;
        self.client.release(self.lease.lease_id)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if !self.is_over {
            // Where that fails the connection is broken; the lease then ends with the process.
            drop(self.client.release(self.lease.lease_id));
        }
    }
}
