//! Letting clients in: as many as there is room for, of every user and process a bounded share.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::os::fd::AsFd;
use std::rc::Rc;

use super::connection::Connection;
use super::core::Shared;
use super::limits::{
    ACCEPT_PAUSE, MAX_CONNECTIONS, MAX_CONNECTIONS_PER_PROCESS, MAX_CONNECTIONS_PER_USER, SPARE_FDS,
};
use crate::protocol::{Fault, framed};
use crate::sys::fd_passing;
use crate::sys::inspect::credentials;
use crate::sys::stream::{Listener, Stream};

/// Who is connected, and how often.
#[derive(Debug, Default)]
struct Census {
    all: usize,
    by_user: HashMap<u32, usize>,
    by_process: HashMap<i32, usize>,
}

/// Accepts clients for ever, each served by a task of its own. `fds` is how many descriptors this
/// process may have beside those of the slots.
pub(crate) async fn serve_clients(agent: Shared, listener: Listener, fds: usize) {
    // A client costs two: its connection, and its process while that has leases.
    let room = (fds.saturating_sub(SPARE_FDS) / 2).clamp(1, MAX_CONNECTIONS);
    let census = Rc::new(RefCell::new(Census::default()));
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
        let Ok((uid, pid)) = credentials(stream.as_fd()) else {
            continue;
        };
        if let Err(limit) = census.borrow_mut().admit(uid, pid, room) {
            send_away(&stream, limit);
            continue;
        }
        connections += 1;
        let connection = Connection::new(Rc::clone(&agent), connections, uid, stream);
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
    /// Counts a client in, or names the limit that it meets.
    fn admit(&mut self, uid: u32, pid: i32, room: usize) -> Result<(), &'static str> {
        let of_user = self.by_user.get(&uid).copied().unwrap_or(0);
        let of_process = self.by_process.get(&pid).copied().unwrap_or(0);
        if self.all >= room {
            return Err("connections to this agent");
        }
        if of_user >= MAX_CONNECTIONS_PER_USER {
            return Err("connections of your user");
        }
        if of_process >= MAX_CONNECTIONS_PER_PROCESS {
            return Err("connections of your process");
        }
        self.all += 1;
        self.by_user.insert(uid, of_user + 1);
        self.by_process.insert(pid, of_process + 1);
        Ok(())
    }

    fn dismiss(&mut self, uid: u32, pid: i32) {
        self.all -= 1;
        subtract(&mut self.by_user, uid);
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
