//! One client: calls in, replies out, each bounded in size and in time.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;
use std::time::Duration;

use serde::Serialize;
use tokio::time::{Instant, sleep, timeout_at};

use super::accept::User;
use super::calls;
use super::core::{Shared, know};
use super::in_flight::{is_read, was_reset};
use super::kernel::Listeners;
use super::limits::{CALL_TIMEOUT, MAX_PAUSE, MAX_PAUSE_FOR_THE_LATE, REPLY_TIMEOUT};
use crate::ledger::{Event, HolderId, LeaseId};
use crate::protocol::{Fault, FrameError, Inbox, MAX_MESSAGE, framed};
use crate::sys::fd_passing;
use crate::sys::peer::peer;
use crate::sys::stream::Stream;

/// A client's connection.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) agent: Shared,
    /// The user id it connected with.
    pub(crate) uid: u32,
    id: u64,
    stream: Rc<Stream>,
    inbox: Inbox,
    user: Rc<User>,
    /// The process that connected, once it has asked for something that needs to know.
    holder: Option<HolderId>,
    /// A reply with sockets that may not have been read yet.
    unread: Option<Unread>,
}

/// A reply with sockets on its way.
#[derive(Debug)]
struct Unread {
    /// They end if it is not read.
    leases: Vec<LeaseId>,
    /// By when it must have been read, whatever else the client sends meanwhile.
    deadline: Instant,
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
    pub(crate) fn new(agent: Shared, id: u64, user: Rc<User>, stream: Stream) -> Connection {
        let inbox = Inbox::default();
        let stream = Rc::new(stream);
        Connection {
            agent,
            uid: user.uid,
            user,
            id,
            stream,
            inbox,
            holder: None,
            unread: None,
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
            if self.user.is_crowded() || self.inbox.is_partial() {
                self.turn().await;
            }
            if let Err(Gone) = calls::answer(&mut self, &message).await {
                break;
            }
        }
        self.undo_unread();
        if let Some(holder) = self.holder {
            self.agent.borrow_mut().disconnected(holder);
        }
        self.outlast_what_is_unread().await;
    }

    /// Keeps our end until the client has read what was sent, or closed its own. What it never
    /// reads stays in the kernel after we have closed, and its sockets in flight, where nobody
    /// could count them any more: so they count against its user, and the connection does, too.
    async fn outlast_what_is_unread(mut self) {
        self.inbox = Inbox::default();
        let mut pause = Duration::from_millis(1);
        if !is_read(&self.stream) {
            self.stream.shut();
        }
        while !is_read(&self.stream) {
            sleep(pause).await;
            pause = (pause * 2).min(MAX_PAUSE_FOR_THE_LATE);
        }
        self.agent.borrow_mut().in_flight.settled(self.id);
    }

    /// Lets everybody else go first, and of this user one call at a time: a thousand connections
    /// of one user get no more of the agent's time than another's one.
    pub(crate) async fn turn(&self) {
        let turn = self.user.turn.lock().await;
        tokio::task::yield_now().await;
        drop(turn);
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
            // Not as soon as the reply is sent, when it cannot have been read yet.
            if self.inbox.is_partial() {
                self.look_at_unread()?;
            }
            match self.inbox.next_message() {
                Ok(Some(message)) => return Ok(message.to_vec()),
                Ok(None) => {}
                Err(FrameError::TooLarge | FrameError::NotJson) => {
                    return Err(NoCall::Broken(
                        "a message is at most 65536 bytes, its NUL byte included",
                    ));
                }
            }
            if !self.inbox.is_partial() {
                // For any time; but see [`super::in_flight::keep_in_time`].
                self.read().await?;
                continue;
            }
            let deadline = *deadline.get_or_insert_with(|| Instant::now() + CALL_TIMEOUT);
            match timeout_at(deadline, self.read()).await {
                Ok(outcome) => outcome?,
                Err(_) => {
                    return Err(NoCall::Broken("a call must be complete within 5 seconds"));
                }
            }
        }
    }

    /// Sees what became of a reply with sockets: read, still on its way, or too late.
    fn look_at_unread(&mut self) -> Result<(), NoCall> {
        let Some(unread) = &self.unread else {
            return Ok(());
        };
        match is_read(&self.stream) {
            true if was_reset(&self.stream) => Err(NoCall::End),
            true => {
                self.settle();
                Ok(())
            }
            false if Instant::now() >= unread.deadline => Err(NoCall::End),
            false => Ok(()),
        }
    }

    /// Does what may take long, for as long as the client is there; calls that it sends meanwhile are
    /// kept for later. One that has closed its end, or half of it, is not there.
    ///
    /// # Errors
    /// When the client is gone, or sends what cannot be kept.
    pub(crate) async fn unless_it_goes<T>(
        &mut self,
        work: impl Future<Output = T>,
    ) -> Result<T, Gone> {
        let mut work = std::pin::pin!(work);
        loop {
            let arrived = tokio::select! {
                // Done is done, even at the very end.
                biased;
                outcome = &mut work => return Ok(outcome),
                arrived = self.read() => arrived,
            };
            let reason = match arrived {
                Ok(()) if self.inbox.kept() <= MAX_MESSAGE => continue,
                Ok(()) => "of further calls, at most 65536 bytes are kept while one is answered",
                Err(NoCall::Broken(reason)) => reason,
                Err(NoCall::End) => return Err(Gone),
            };
            let reason = reason.to_owned();
            drop(self.reply(&Fault::ProtocolError { reason }).await);
            return Err(Gone);
        }
    }

    async fn read(&mut self) -> Result<(), NoCall> {
        let mut buffer = [0; 4096];
        match self.stream.receive(&mut buffer).await {
            Ok(0) => {
                self.settle_at_end().await;
                Err(NoCall::End)
            }
            Ok(length) => {
                self.inbox.push(&buffer[..length]);
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::InvalidData => {
                Err(NoCall::Broken("a call carries no file descriptors"))
            }
            // Mostly ECONNRESET: the client closed its end without reading what we sent.
            Err(_) => Err(NoCall::End),
        }
    }

    /// A client that sends nothing more may go on reading: half a close proves nothing.
    async fn settle_at_end(&mut self) {
        let mut pause = Duration::from_millis(1);
        while self.unread.is_some() && self.look_at_unread().is_ok() {
            sleep(pause).await;
            pause = (pause * 2).min(MAX_PAUSE);
        }
    }

    fn settle(&mut self) {
        self.unread = None;
        self.agent.borrow_mut().in_flight.settled(self.id);
    }

    /// Ends the leases whose sockets the client never read.
    fn undo_unread(&mut self) {
        if let Some(Unread { leases, .. }) = self.unread.take() {
            self.agent.borrow_mut().take_in(Event::Undelivered(leases));
        }
    }

    /// Sends a reply without sockets.
    ///
    /// # Errors
    /// When the client does not read, or is gone.
    pub(crate) async fn reply(&mut self, reply: &impl Serialize) -> Result<(), Gone> {
        match framed(reply) {
            Ok(bytes) => self.send(&bytes, &[]).await,
            Err(_) => self.too_large().await,
        }
    }

    async fn too_large(&mut self) -> Result<(), Gone> {
        let limit = format!("the reply would be larger than {MAX_MESSAGE} bytes");
        let bytes = framed(&Fault::Busy { limit }).map_err(|_| Gone)?;
        self.send(&bytes, &[]).await
    }

    /// Sends a reply with the sockets of new leases, which end if it cannot be sent or is not read.
    /// All that was sent before must have been read: [`Connection::until_read`].
    ///
    /// # Errors
    /// When the client does not read, or is gone.
    pub(crate) async fn hand_over(
        &mut self,
        reply: &impl Serialize,
        sockets: &[Listeners],
        leases: Vec<LeaseId>,
    ) -> Result<(), Gone> {
        let Ok(bytes) = framed(reply) else {
            self.agent.borrow_mut().take_in(Event::Undelivered(leases));
            return self.too_large().await;
        };
        let fds: Vec<BorrowedFd> = sockets
            .iter()
            .flat_map(|sockets| sockets.iter())
            .map(AsFd::as_fd)
            .collect();
        self.count_in_flight(fds.len());
        // First, so that they end with the connection if this task goes no further.
        self.unread = Some(Unread {
            leases,
            deadline: Instant::now() + REPLY_TIMEOUT,
        });
        match self.try_send(&bytes, &fds).await {
            Ok(()) => {
                if let Some(Unread { leases, .. }) = &self.unread {
                    self.agent.borrow_mut().sent(leases);
                }
                Ok(())
            }
            // Processes of our user beside us count as well: nothing was sent, and it passes.
            Err(error) if error.raw_os_error() == Some(libc::ETOOMANYREFS) => {
                self.undo_unread();
                self.settle();
                let limit = "file descriptors on their way from the agent's user".to_owned();
                self.reply(&Fault::Busy { limit }).await
            }
            Err(error) => Err(gone(&error)),
        }
    }

    fn count_in_flight(&self, fds: usize) {
        let mut agent = self.agent.borrow_mut();
        agent.in_flight.sent(self.id, &self.stream, self.uid, fds);
    }

    /// Waits until all replies were read: Linux may merge two messages into one read, and the
    /// second one's descriptors would come to a reader of the first.
    ///
    /// # Errors
    /// When the client does not read, or is gone.
    pub(crate) async fn until_read(&mut self) -> Result<(), Gone> {
        let deadline = Instant::now() + REPLY_TIMEOUT;
        let mut pause = Duration::from_micros(50);
        while !is_read(&self.stream) {
            if Instant::now() >= deadline || self.look_at_unread().is_err() {
                return Err(Gone);
            }
            // Nothing wakes us when the peer has read all: epoll tells of half a buffer only.
            sleep(pause).await;
            pause = (pause * 2).min(MAX_PAUSE);
        }
        self.look_at_unread().map_err(|_| Gone)
    }

    async fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), Gone> {
        let outcome = self.try_send(bytes, fds).await;
        outcome.map_err(|error| gone(&error))
    }

    /// Never cancelled, and so never a message cut in two: the only timer is its own.
    async fn try_send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut sent = 0;
        let mut deadline = None;
        loop {
            let fds = if sent == 0 { fds } else { &[] };
            match fd_passing::send(self.stream.as_fd(), &bytes[sent..], fds) {
                Ok(more) => sent += more,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            if sent == bytes.len() {
                return Ok(());
            }
            let deadline = *deadline.get_or_insert_with(|| Instant::now() + REPLY_TIMEOUT);
            match timeout_at(deadline, self.stream.writable()).await {
                Ok(outcome) => outcome?,
                Err(_) => return Err(ErrorKind::TimedOut.into()),
            }
        }
    }
}

fn gone(error: &io::Error) -> Gone {
    tracing::debug!(%error, "a client is gone before its reply");
    Gone
}
