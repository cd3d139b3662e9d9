//! Letting clients in: as many as there is room for, of every user and process a bounded share.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::os::fd::AsFd;
use std::rc::Rc;

use tokio::sync::Mutex;

use super::connection::Connection;
use super::core::Shared;
use super::limits::{
    ACCEPT_PAUSE, CONNECTIONS_WITHOUT_TURNS, MAX_CONNECTIONS, MAX_CONNECTIONS_PER_PROCESS,
    MAX_CONNECTIONS_PER_USER, REPLY_BUFFER, SHARE_OF_ADMINISTRATORS, SPARE_FDS,
};
use crate::protocol::{Fault, framed};
use crate::sys::fd_passing;
use crate::sys::inspect::credentials;
use crate::sys::stream::{Listener, Stream};

/// Who is connected, and how often.
#[derive(Debug)]
struct Census {
    room: usize,
    /// The agent's own user, who has a share of the room kept free, as root has.
    own_uid: u32,
    all: usize,
    by_user: HashMap<u32, Rc<User>>,
    /// By process id; all those that we cannot see have 0, and no limit of their own.
    by_process: HashMap<u32, usize>,
}

/// A user who is connected.
#[derive(Debug)]
pub(crate) struct User {
    pub(crate) uid: u32,
    /// Taken for one call after another, where there are many connections.
    pub(crate) turn: Mutex<()>,
    connections: Cell<usize>,
}

impl User {
    /// Whether the user's calls take turns.
    pub(crate) fn is_crowded(&self) -> bool {
        self.connections.get() > CONNECTIONS_WITHOUT_TURNS
    }
}

/// Accepts clients for ever, each served by a task of its own. `fds` is how many descriptors this
/// process may have beside those of the slots.
pub(crate) async fn serve_clients(agent: Shared, listener: Listener, fds: usize) {
    // A client costs two: its connection, and its process while that has leases.
    let room = (fds.saturating_sub(SPARE_FDS) / 2).clamp(1, MAX_CONNECTIONS);
    let census = Census::new(room, agent.borrow().about.uid);
    let census = Rc::new(RefCell::new(census));
    let mut connections: u64 = 0;
    let mut complained = false;
    loop {
        let stream = match listener.accept().await {
            Ok(stream) => stream,
            Err(error) => {
                // Mostly EMFILE or ENOMEM. It must not end us, and it passes.
                if !std::mem::replace(&mut complained, true) {
                    tracing::error!(%error, "cannot let a client in; trying again");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        complained = false;
        let (uid, pid) = match credentials(stream.as_fd()) {
            Ok(credentials) => credentials,
            Err(error) => {
                tracing::error!(%error, "cannot find out who a client is; it is not served");
                continue;
            }
        };
        let admitted = census.borrow_mut().admit(uid, pid);
        let user = match admitted {
            Ok(user) => user,
            Err(limit) => {
                send_away(&stream, limit);
                continue;
            }
        };
        // A smaller one than asked for would do as well.
        drop(socket2::SockRef::from(&stream).set_send_buffer_size(REPLY_BUFFER));
        connections += 1;
        let connection = Connection::new(Rc::clone(&agent), connections, user, stream);
        agent.borrow_mut().connections = census.borrow().all;
        agent.borrow_mut().visitors = connections;
        let (agent, census) = (Rc::clone(&agent), Rc::clone(&census));
        tokio::task::spawn_local(async move {
            connection.serve().await;
            census.borrow_mut().dismiss(uid, pid);
            agent.borrow_mut().connections = census.borrow().all;
        });
    }
}

impl Census {
    fn new(room: usize, own_uid: u32) -> Census {
        Census {
            room,
            own_uid,
            all: 0,
            by_user: HashMap::new(),
            by_process: HashMap::new(),
        }
    }

    /// Counts a client in, or names the limit that it meets.
    fn admit(&mut self, uid: u32, pid: u32) -> Result<Rc<User>, &'static str> {
        let of_user = self
            .by_user
            .get(&uid)
            .map_or(0, |user| user.connections.get());
        let of_process = self.by_process.get(&pid).copied().unwrap_or(0);
        let is_administrator = uid == 0 || uid == self.own_uid;
        let room = match is_administrator {
            true => self.room,
            false => self.room - self.room.div_ceil(SHARE_OF_ADMINISTRATORS),
        };
        if self.all >= room {
            return Err("connections to this agent");
        }
        if of_user >= MAX_CONNECTIONS_PER_USER.min(self.room.div_ceil(2)) {
            return Err("connections of your user");
        }
        if pid != 0 && of_process >= MAX_CONNECTIONS_PER_PROCESS.min(self.room.div_ceil(4)) {
            return Err("connections of your process");
        }
        self.all += 1;
        let user = self.by_user.entry(uid).or_insert_with(|| {
            Rc::new(User {
                uid,
                turn: Mutex::new(()),
                connections: Cell::new(0),
            })
        });
        user.connections.set(of_user + 1);
        self.by_process.insert(pid, of_process + 1);
        Ok(Rc::clone(user))
    }

    fn dismiss(&mut self, uid: u32, pid: u32) {
        self.all -= 1;
        if let Some(user) = self.by_user.get(&uid) {
            user.connections.set(user.connections.get() - 1);
            if user.connections.get() == 0 {
                self.by_user.remove(&uid);
            }
        }
        subtract(&mut self.by_process, pid);
    }
}

fn subtract<K: Eq + std::hash::Hash>(counts: &mut HashMap<K, usize>, key: K) {
    if let Some(count) = counts.get_mut(&key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(&key);
        }
    }
}

/// Says why, if that can be said without waiting.
fn send_away(stream: &Stream, limit: &str) {
    if let Ok(bytes) = framed(&Fault::Busy {
        limit: limit.to_owned(),
    }) {
        let sent: io::Result<usize> = fd_passing::send(stream.as_fd(), &bytes, &[]);
        tracing::debug!(limit, told = sent.is_ok(), "a client was sent away");
    }
}
