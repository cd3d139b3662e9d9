//! One client: calls in, replies out, each bounded in size and in time.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;
use std::time::Duration;

use serde::Serialize;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::calls;
use super::core::{Shared, know};
use super::in_flight::is_read;
use super::kernel::Listeners;
use super::limits::{CALL_TIMEOUT, REPLY_TIMEOUT};
use crate::ledger::{Event, HolderId, LeaseId};
use crate::protocol::{Fault, FrameError, Inbox, framed};
use crate::sys::fd_passing;
use crate::sys::peer::peer;

/// A client's connection.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) agent: Shared,
    /// The user id it connected with.
    pub(crate) uid: u32,
    id: u64,
    stream: Rc<UnixStream>,
    inbox: Inbox,
    /// The process that connected, once it has asked for something that needs to know.
    holder: Option<HolderId>,
    /// The leases whose sockets went out with a reply that may not have been read yet.
    unread: Vec<LeaseId>,
}

/// The connection is of no more use.
#[derive(Debug)]
pub(crate) struct Gone;

/// Why no call came.
enum NoCall {
    /// The client went away.
    End,
    /// What came is no call; it is told why.
    Broken(&'static str),
}

impl Connection {
    /// A client that has connected; `id` is used for no other.
    pub(crate) fn new(agent: Shared, id: u64, uid: u32, stream: UnixStream) -> Connection {
        let inbox = Inbox::default();
        let stream = Rc::new(stream);
        Connection {
            agent,
            uid,
            id,
            stream,
            inbox,
            holder: None,
            unread: Vec::new(),
        }
    }

    /// Serves it until it goes away, breaks the protocol or stops reading.
    pub(crate) async fn serve(mut self) {
        loop {
            let message = match self.next_call().await {
                Ok(message) => message,
                Err(NoCall::End) => break,
                Err(NoCall::Broken(reason)) => {
                    let reason = reason.to_owned();
                    drop(self.reply(&Fault::ProtocolError { reason }).await);
                    break;
                }
            };
            if let Err(Gone) = calls::answer(&mut self, &message).await {
                break;
            }
        }
        self.undo_unread();
        let mut agent = self.agent.borrow_mut();
        agent.in_flight.settled(self.id);
        if let Some(holder) = self.holder {
            agent.disconnected(holder);
        }
    }

    /// The process that connected, watched from now on.
    ///
    /// # Errors
    /// What is wrong, as the client is told it.
    pub(crate) fn holder(&mut self) -> Result<HolderId, Fault> {
        let gone = || Fault::Busy {
            limit: "the process that opened this connection has ended".into(),
        };
        if let Some(holder) = self.holder {
            let is_alive = self.agent.borrow().holders.is_alive(holder);
            return if is_alive { Ok(holder) } else { Err(gone()) };
        }
        let known = peer(self.stream.as_fd()).and_then(|peer| know(&self.agent, peer));
        let holder = known.map_err(|error| match error.kind() {
            ErrorKind::NotFound => gone(),
            _ => Fault::Busy {
                limit: format!("the agent cannot watch your process: {error}"),
            },
        })?;
        self.holder = Some(holder);
        // A child that inherited the connection is not who connected; Linux tells of the dead too.
        match self.agent.borrow().holders.is_alive(holder) {
            true => Ok(holder),
            false => Err(gone()),
        }
    }

    /// The connected socket, for questions about the peer.
    pub(crate) fn socket(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    async fn next_call(&mut self) -> Result<Vec<u8>, NoCall> {
        let mut deadline = None;
        loop {
            match self.inbox.next_message() {
                Ok(Some(message)) => return Ok(message.to_vec()),
                Ok(None) => {}
                Err(FrameError::TooLarge | FrameError::NotJson) => {
                    return Err(NoCall::Broken(
                        "a message is at most 65536 bytes, its NUL byte included",
                    ));
                }
            }
            if self.inbox.is_partial() {
                let begun = || Instant::now() + CALL_TIMEOUT;
                let deadline = *deadline.get_or_insert_with(begun);
                match timeout_at(deadline, self.read()).await {
                    Ok(outcome) => outcome?,
                    Err(_) => {
                        return Err(NoCall::Broken("a call must be complete within 5 seconds"));
                    }
                }
            } else {
                self.read_first_bytes().await?;
            }
        }
    }

    /// Waits for a call to begin, for any time; but a reply with sockets must be read soon.
    async fn read_first_bytes(&mut self) -> Result<(), NoCall> {
        if !self.unread.is_empty() {
            match timeout(REPLY_TIMEOUT, self.read()).await {
                Ok(outcome) => {
                    outcome?;
                    // A client that sends its next call before it reads is looked at again later.
                    if is_read(&self.stream) {
                        self.settle();
                    }
                    return Ok(());
                }
                Err(_) if !is_read(&self.stream) => return Err(NoCall::End),
                Err(_) => self.settle(),
            }
        }
        self.read().await
    }

    async fn read(&mut self) -> Result<(), NoCall> {
        let inbox = &mut self.inbox;
        let stream = &self.stream;
        let receive = || {
            let mut buffer = [0; 8192];
            let length = fd_passing::receive_bytes(stream.as_fd(), &mut buffer)?;
            inbox.push(&buffer[..length]);
            Ok(length)
        };
        match stream.async_io(Interest::READABLE, receive).await {
            Ok(0) => {
                self.settle_at_end();
                Err(NoCall::End)
            }
            Ok(_) => Ok(()),
            Err(error) if error.kind() == ErrorKind::InvalidData => {
                Err(NoCall::Broken("a call carries no file descriptors"))
            }
            // Mostly ECONNRESET: the client closed its end without reading what we sent.
            Err(_) => Err(NoCall::End),
        }
    }

    /// At an orderly end of the stream everything was read, or the kernel would have said
    /// ECONNRESET (unix_release_sock of its `net/unix/af_unix.c`); half a close proves nothing.
    fn settle_at_end(&mut self) {
        if is_read(&self.stream) {
            self.settle();
        }
    }

    fn settle(&mut self) {
        self.unread.clear();
        self.agent.borrow_mut().in_flight.settled(self.id);
    }

    /// Ends the leases whose sockets the client never read.
    fn undo_unread(&mut self) {
        let leases = std::mem::take(&mut self.unread);
        if !leases.is_empty() {
            self.agent.borrow_mut().take_in(Event::Undelivered(leases));
        }
    }

    /// Sends a reply without sockets.
    ///
    /// # Errors
    /// When the client does not read, or is gone.
    pub(crate) async fn reply(&mut self, reply: &impl Serialize) -> Result<(), Gone> {
        let bytes = framed(reply).map_err(|error| {
            tracing::error!(?error, "a reply has no form");
            Gone
        })?;
        self.send(&bytes, &[]).await
    }

    /// Sends a reply with the sockets of new leases, which end if it cannot be sent or is not read.
    ///
    /// # Errors
    /// When the client does not read, or is gone.
    pub(crate) async fn hand_over(
        &mut self,
        reply: &impl Serialize,
        sockets: &[Listeners],
        leases: Vec<LeaseId>,
    ) -> Result<(), Gone> {
        let unsent = Rc::clone(&self.agent);
        let outcome = match (self.until_read().await, framed(reply)) {
            (Ok(()), Ok(bytes)) => {
                let fds: Vec<BorrowedFd> = sockets
                    .iter()
                    .flat_map(|sockets| sockets.iter())
                    .map(AsFd::as_fd)
                    .collect();
                self.count_in_flight(fds.len());
                self.send(&bytes, &fds).await
            }
            _ => Err(Gone),
        };
        match outcome {
            Ok(()) => self.unread = leases,
            Err(Gone) => unsent.borrow_mut().take_in(Event::Undelivered(leases)),
        }
        outcome
    }

    fn count_in_flight(&self, fds: usize) {
        let mut agent = self.agent.borrow_mut();
        agent.in_flight.sent(self.id, &self.stream, self.uid, fds);
    }

    /// Waits until all replies were read: Linux may merge two messages into one read, and the
    /// second one's descriptors would come to a reader of the first.
    async fn until_read(&mut self) -> Result<(), Gone> {
        let deadline = Instant::now() + REPLY_TIMEOUT;
        let mut pause = Duration::from_micros(50);
        while !is_read(&self.stream) {
            if Instant::now() >= deadline {
                return Err(Gone);
            }
            // Nothing wakes us when the peer has read all: epoll tells of half a buffer only.
            sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(20));
        }
        if !self.unread.is_empty() {
            self.settle();
        }
        Ok(())
    }

    async fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), Gone> {
        let mut sent = match fd_passing::send(self.stream.as_fd(), bytes, fds) {
            Ok(sent) => sent,
            Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
            Err(error) => return Err(gone(&error)),
        };
        let deadline = Instant::now() + REPLY_TIMEOUT;
        while sent < bytes.len() {
            let rest = &bytes[sent..];
            let fds = if sent == 0 { fds } else { &[] };
            let send = || fd_passing::send(self.stream.as_fd(), rest, fds);
            match timeout_at(deadline, self.stream.async_io(Interest::WRITABLE, send)).await {
                Ok(Ok(more)) => sent += more,
                Ok(Err(error)) => return Err(gone(&error)),
                Err(_) => return Err(gone(&io::Error::from(ErrorKind::TimedOut))),
            }
        }
        Ok(())
    }
}

fn gone(error: &io::Error) -> Gone {
    tracing::debug!(%error, "a client is gone before its reply");
    Gone
}
