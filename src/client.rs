//! The client: blocking, standard types, no runtime.

mod connection;
mod error;
mod lease;
mod place;
mod trust;
mod watch;

use std::io;
use std::os::fd::OwnedFd;
#[cfg(feature = "cli")]
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use connection::Connection;
pub use error::Error;
pub use lease::Lease;
pub use place::{socket_paths, system_socket, user_socket};
pub use watch::{Revocation, Watch};

use crate::protocol::{
    self, AcquireParameters, AcquireReply, Fault, ListParameters, ListReply, ReadyParameters,
    ReleaseParameters, ReloadReply, RevokeParameters, Slot, Socket, StatusReply, Want,
    WatchParameters,
};

/// How long who waits for a slot waits for another agent, where that it asked is gone.
const RETURN_PATIENCE: Duration = Duration::from_secs(10);

/// Between two tries to reach it.
const RETURN_PAUSE: Duration = Duration::from_millis(50);

/// A connection to the agent. Clones share it; calls from several threads take turns.
///
/// ```
/// # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc/agent.rs"));
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let agent = DocAgent::start();
/// # let path = agent.socket();
/// use portpool::Client;
/// use portpool::protocol::ListParameters;
///
/// let client = Client::connect_to(&path)?;
/// let first = client.acquire("web")?;
/// let second = client.acquire("web")?; // the pool's next port
/// assert_ne!(first.port(), second.port());
///
/// // There is no third: the error names who has the two.
/// let error = client.acquire("web").unwrap_err();
/// assert!(error.to_string().contains("pool web is exhausted"));
///
/// let slots = client.list(&ListParameters::default())?;
/// assert!(slots.iter().all(|slot| slot.state == "leased"));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Client {
    connection: Arc<Mutex<Connection>>,
    /// Where it was reached, for what needs a connection of its own.
    path: PathBuf,
}

/// What an answer without results carries.
#[derive(serde::Deserialize)]
struct Nothing {}

/// One slot as it was granted, with its sockets.
#[derive(Debug)]
pub struct Grant {
    /// What the agent says of it.
    pub lease: protocol::Lease,
    /// Its sockets, close-on-exec, each with what the agent says of it: checked, it is that.
    pub sockets: Vec<(Socket, OwnedFd)>,
}

impl Client {
    /// Connects to the agent at `$PORTPOOL_SOCKET`, else to the system's, else to the user's own.
    ///
    /// # Errors
    /// [`Error::NoAgent`] when none answers, [`Error::Untrusted`] when what answers is run neither
    /// by root, nor by portpool's user, nor by this process's user, where not only root can have put
    /// its socket.
    pub fn connect() -> Result<Client, Error> {
        Client::connect_to_first(&socket_paths())
    }

    /// Connects to the agent at a path.
    ///
    /// # Errors
    /// As for [`Client::connect`].
    pub fn connect_to(path: &Path) -> Result<Client, Error> {
        Client::connect_to_first(&[path.to_owned()])
    }

    /// Connects to the first path at which an agent answers.
    fn connect_to_first(paths: &[PathBuf]) -> Result<Client, Error> {
        let mut tried = Vec::new();
        for path in paths {
            match Connection::open(path) {
                Ok(connection) => {
                    let connection = Arc::new(Mutex::new(connection));
                    let path = path.clone();
                    return Ok(Client { connection, path });
                }
                Err(Error::Io(error)) => tried.push((path.clone(), error)),
                Err(other) => return Err(other),
            }
        }
        Err(Error::NoAgent { tried })
    }

    /// A client over a stream that is connected to an agent already, by whomever.
    #[cfg(feature = "cli")]
    pub(crate) fn over(stream: UnixStream) -> Result<Client, Error> {
        let path = PathBuf::new();
        let connection = Arc::new(Mutex::new(Connection::over(stream, &path)?));
        Ok(Client { connection, path })
    }

    /// A copy of the connected stream, for [`Client::over`] in another process, which then speaks
    /// for this one.
    #[cfg(feature = "cli")]
    pub(crate) fn stream(&self) -> io::Result<OwnedFd> {
        self.lock().socket().try_clone_to_owned()
    }

    /// Takes the first free slot of a pool, in instance `$PORTPOOL_INSTANCE`, else in the one that
    /// this process has claimed, else in 1.
    ///
    /// The lease belongs to this process. It ends when the [`Lease`] is dropped, at the latest
    /// when the process ends.
    ///
    /// # Errors
    /// [`Error::Refused`] says who is in the way or what is not allowed, [`Error::NotTcp`] for a
    /// pool of UDP ports (see [`Client::acquire_all`]).
    pub fn acquire(&self, pool: &str) -> Result<Lease, Error> {
        let wants = vec![Want {
            pool: pool.to_owned(),
            count: None,
        }];
        let instance = place::instance_from_environment();
        let grants = self.acquire_all(AcquireParameters {
            pools: wants,
            instance,
            ..AcquireParameters::default()
        })?;
        let grant = grants.into_iter().next();
        let grant = grant.ok_or(Error::Protocol("the agent granted nothing"))?;
        Lease::new(self.clone(), grant)
    }

    /// Takes all that is asked for, or nothing; TCP and UDP.
    ///
    /// These leases end with [`Client::release`], or with this process. With `wait` it blocks until
    /// they are granted or the time is over; other threads may use the client meanwhile.
    ///
    /// # Errors
    /// As for [`Client::acquire`], and [`Error::WrongSocket`] when a socket is not what the reply
    /// says; what was granted is then given back.
    pub fn acquire_all(&self, asked: AcquireParameters) -> Result<Vec<Grant>, Error> {
        let (AcquireReply { leases }, fds) = match asked.wait.unwrap_or(0) {
            0 => self.ask(|connection| {
                let mut fds = Vec::new();
                let reply = connection.call_for_fds("Acquire", &asked, &mut fds)?;
                Ok((reply, fds))
            })?,
            _ => self.await_slots(asked)?,
        };
        let ids: Vec<u64> = leases.iter().map(|lease| lease.lease_id).collect();
        let grants = sort_out(leases, fds);
        if grants.is_err() {
            for id in ids {
                // It ends with this process at the latest.
                drop(self.release(id));
            }
        }
        grants
    }

    /// Ends a lease of this process; its socket gets no further connection.
    ///
    /// # Errors
    /// [`Error::Refused`] for a lease that is somebody else's or has ended.
    pub fn release(&self, lease_id: u64) -> Result<(), Error> {
        let asked = ReleaseParameters { lease_id };
        self.ask(|connection| connection.call("Release", &asked))
            .map(|Nothing {}| ())
    }

    /// Says that this process can serve: of a lease acquired with
    /// [`Takeover::Ready`](protocol::Takeover::Ready) it gets the connections from now on, and the
    /// holder before it no more. Nothing to do for other leases.
    ///
    /// # Errors
    /// [`Error::Refused`] for a lease that is somebody else's or has ended.
    pub fn ready(&self, lease_id: u64) -> Result<(), Error> {
        let asked = ReadyParameters { lease_id };
        self.ask(|connection| connection.call("Ready", &asked))
            .map(|Nothing {}| ())
    }

    /// Ends anybody's lease, for administrators; others may end those of their own user's
    /// processes. `kill_connections` ends the established connections of the slot, too.
    ///
    /// # Errors
    /// [`Error::Refused`] where that is not allowed, or the lease has ended already.
    pub fn revoke(&self, lease_id: u64, kill_connections: bool) -> Result<(), Error> {
        let asked = RevokeParameters {
            lease_id,
            kill_connections: kill_connections.then_some(true),
        };
        self.ask(|connection| connection.call("Revoke", &asked))
            .map(|Nothing {}| ())
    }

    /// Has the agent read its configuration again, for administrators.
    ///
    /// # Errors
    /// [`Error::Refused`] where that is not allowed, or the configuration is wrong: then nothing
    /// has changed.
    pub fn reload(&self) -> Result<ReloadReply, Error> {
        self.ask(|connection| connection.call("Reload", &serde_json::json!({})))
    }

    /// Has the agent go over to the program that is installed now, with all it holds, for
    /// administrators; gives how the agent stands that goes on. This client's connection is over then,
    /// its leases are not.
    ///
    /// # Errors
    /// [`Error::Refused`] where that is not allowed, or the program cannot take over: then nothing has
    /// changed.
    pub fn upgrade(&self) -> Result<StatusReply, Error> {
        match self.lock().call("Upgrade", &serde_json::json!({})) {
            Err(Error::Io(_)) => Client::connect_to(&self.path)?.status(),
            Err(error) => Err(error),
            Ok(Nothing {}) => Err(Error::Protocol("it says that it went over, and did not")),
        }
    }

    /// Every change from now on, of all slots or of those asked for.
    ///
    /// # Errors
    /// As for [`Client::connect`], for it has a connection of its own; [`Error::Refused`] for a
    /// pool that does not exist.
    pub fn watch(&self, wanted: &WatchParameters) -> Result<Watch, Error> {
        Watch::begin(&self.path, wanted)
    }

    /// Learns when a lease ends: for those of [`Client::acquire_all`], as [`Lease::revoked`] does for
    /// others.
    ///
    /// # Errors
    /// As for [`Client::connect`]: it has a connection of its own.
    pub fn revocation(&self, lease_id: u64) -> Result<Revocation, Error> {
        Revocation::begin(&self.path, lease_id)
    }

    /// The slots the agent holds, or means to: all, or those of a pool or an instance.
    ///
    /// # Errors
    /// [`Error::Refused`] for a pool that does not exist.
    pub fn list(&self, wanted: &ListParameters) -> Result<Vec<Slot>, Error> {
        self.ask(|connection| {
            let mut slots = Vec::new();
            let each = |reply: ListReply| slots.extend(reply.slots);
            connection.call_for_more("List", wanted, each)?;
            Ok(slots)
        })
    }

    /// What the agent is and how it stands.
    ///
    /// # Errors
    /// When the agent does not answer.
    pub fn status(&self) -> Result<StatusReply, Error> {
        self.ask(|connection| connection.call("Status", &serde_json::json!({})))
    }

    /// The agent's process id as the kernel has it; `None` for one in another pid namespace.
    pub fn agent_pid(&self) -> Option<u32> {
        Some(self.lock().server_pid).filter(|pid| *pid != 0)
    }

    /// Makes a call, and makes it again to the agent that has come after the one that was connected,
    /// if that is gone: leases outlive it. What was granted to this process and never reached it
    /// ends with its asking again.
    fn ask<T>(&self, call: impl Fn(&mut Connection) -> Result<T, Error>) -> Result<T, Error> {
        let mut connection = self.lock();
        match call(&mut connection) {
            Err(Error::Io(error)) if is_gone(&error) => match Connection::open(&self.path) {
                Ok(next) => {
                    *connection = next;
                    call(&mut connection)
                }
                Err(_) => Err(Error::Io(error)),
            },
            outcome => outcome,
        }
    }

    /// Waits for slots on a connection of its own; where the agent goes meanwhile, with the next one,
    /// behind who has asked that before.
    fn await_slots(
        &self,
        mut asked: AcquireParameters,
    ) -> Result<(AcquireReply, Vec<OwnedFd>), Error> {
        let begun = Instant::now();
        let wait = asked.wait.unwrap_or(0);
        let mut gone_since: Option<Instant> = None;
        loop {
            let mut fds = Vec::new();
            let opened = Connection::open(&self.path);
            let is_open = opened.is_ok();
            let outcome =
                opened.and_then(|mut connection| connection.await_fds("Acquire", &asked, &mut fds));
            let error = match outcome {
                Err(Error::Io(error)) if is_gone(&error) => error,
                outcome => return Ok((outcome?, fds)),
            };
            if is_open {
                gone_since = None;
            }
            let since = *gone_since.get_or_insert_with(Instant::now);
            if !is_open && since.elapsed() >= RETURN_PATIENCE {
                return Err(Error::Io(error));
            }
            if wait > 0 {
                let waited = i64::try_from(begun.elapsed().as_millis()).unwrap_or(i64::MAX);
                // At least once more: the agent says who is in the way.
                asked.wait = Some(wait.saturating_sub(waited).max(1));
            }
            std::thread::sleep(RETURN_PAUSE);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        // A thread that panicked in a call left the connection between two messages, or broken,
        // which the next call finds out.
        self.connection
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Whether the agent at the other end has ended.
fn is_gone(error: &io::Error) -> bool {
    let kinds = [
        io::ErrorKind::UnexpectedEof,
        io::ErrorKind::ConnectionReset,
        io::ErrorKind::BrokenPipe,
        io::ErrorKind::NotConnected,
        io::ErrorKind::ConnectionRefused,
        io::ErrorKind::NotFound,
    ];
    kinds.contains(&error.kind())
}

/// Gives each lease its sockets, after a look at what they really are.
fn sort_out(leases: Vec<protocol::Lease>, fds: Vec<OwnedFd>) -> Result<Vec<Grant>, Error> {
    let mut fds: Vec<Option<OwnedFd>> = fds.into_iter().map(Some).collect();
    let mut grants = Vec::with_capacity(leases.len());
    for lease in leases {
        let mut sockets = Vec::with_capacity(lease.sockets.len());
        for socket in &lease.sockets {
            let fd = fds.get_mut(socket.file_descriptor).and_then(Option::take);
            let fd = fd.ok_or(Error::Protocol(
                "a reply names a file descriptor that did not come",
            ))?;
            check(socket, &lease.protocol, &fd)?;
            sockets.push((socket.clone(), fd));
        }
        grants.push(Grant { lease, sockets });
    }
    match fds.iter().all(Option::is_none) {
        true => Ok(grants),
        false => Err(Error::Protocol(
            "more file descriptors came than the reply names",
        )),
    }
}

fn check(socket: &Socket, protocol: &str, fd: &OwnedFd) -> Result<(), Error> {
    use std::os::fd::AsFd;
    let wrong = |what: String| Error::WrongSocket {
        name: socket.name.clone(),
        what,
    };
    let found = crate::sys::inspect::inspect(fd.as_fd())?;
    let found = found.ok_or_else(|| wrong("no internet socket".to_owned()))?;
    let written = socket.address.trim_start_matches('[').trim_end_matches(']');
    let is_right = found.address.ip().to_string() == written
        && found.address.port() == socket.bound_port.unwrap_or(socket.port)
        && found.is_stream == (protocol == "tcp")
        && (found.is_listening || !found.is_stream);
    match is_right {
        true => Ok(()),
        false => Err(wrong(format!("{found:?}"))),
    }
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Error {
        Error::Refused(Box::new(fault))
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Error {
        Error::Io(error)
    }
}
