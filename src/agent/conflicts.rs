//! Slots that are not held: what is in the way, who it is, and trying again until it is gone.

use std::collections::{HashMap, HashSet};
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::core::Shared;
use super::inspector;
use super::limits::{IDENTIFY_INTERVAL, RETRY_INTERVAL, RETRY_STRETCH};
use crate::ledger::{Moment, Obstacle, SlotId};
use crate::sys::clock::since_boot;
use crate::sys::hold::Transport;
use crate::sys::{process, sock_diag};

/// What is in the way of which slot.
#[derive(Debug, Default)]
pub(crate) struct Conflicts {
    obstructed: HashMap<SlotId, Obstruction>,
    /// Wakes the task that tries again.
    first: Rc<Notify>,
}

#[derive(Debug)]
struct Obstruction {
    error: io::Error,
    since: Moment,
    intruder: Option<Intruder>,
}

/// The process that has a slot's port, as far as the kernel tells us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Intruder {
    /// `None` where the kernel does not let us see it.
    pub(crate) pid: Option<u32>,
    /// The user its socket belongs to.
    pub(crate) uid: u32,
    /// Its name.
    pub(crate) program: Option<String>,
    /// The unit it runs in.
    pub(crate) unit: Option<String>,
}

impl Conflicts {
    /// Something is in the way of a slot, or still is.
    pub(crate) fn noticed(&mut self, slot: SlotId, obstacle: Obstacle, error: io::Error) {
        if obstacle == Obstacle::Conflict || !self.obstructed.contains_key(&slot) {
            tracing::trace!(slot = slot.0, %error, "not held");
        }
        match self.obstructed.get_mut(&slot) {
            Some(known) => known.error = error,
            None => {
                let obstruction = Obstruction {
                    error,
                    since: since_boot(),
                    intruder: None,
                };
                self.obstructed.insert(slot, obstruction);
                self.first.notify_one();
            }
        }
    }

    /// Nothing is in the way any more.
    pub(crate) fn resolved(&mut self, slot: SlotId) {
        self.obstructed.remove(&slot);
    }

    /// Whether something is in the way.
    pub(crate) fn is_known(&self, slot: SlotId) -> bool {
        self.obstructed.contains_key(&slot)
    }

    /// What the kernel said last.
    pub(crate) fn error(&self, slot: SlotId) -> Option<String> {
        self.obstructed
            .get(&slot)
            .map(|obstruction| obstruction.error.to_string())
    }

    /// Who is in the way, and since when something is.
    pub(crate) fn intruder(&self, slot: SlotId) -> Option<(&Intruder, Moment)> {
        let obstruction = self.obstructed.get(&slot)?;
        Some((obstruction.intruder.as_ref()?, obstruction.since))
    }
}

/// Tries again and again to hold what is not held, and finds out who has it. Never returns.
pub(crate) async fn keep_trying(agent: Shared) {
    let first = Rc::clone(&agent.borrow().conflicts.first);
    let mut next_look = Instant::now();
    let mut last_round = Duration::ZERO;
    let mut looking: Option<JoinHandle<()>> = None;
    loop {
        if agent.borrow().conflicts.obstructed.is_empty() {
            first.notified().await;
        }
        let looks = looking.as_ref().is_some_and(|task| !task.is_finished());
        if !looks && next_look <= Instant::now() {
            // Beside the tries: it takes longer than a slot may wait once its intruder has left.
            let agent = Rc::clone(&agent);
            let look = async move { identify(&agent).await };
            looking = Some(tokio::task::spawn_local(look));
            next_look = Instant::now() + IDENTIFY_INTERVAL;
        }
        // Never more than half of the time goes into it.
        tokio::time::sleep(RETRY_INTERVAL.max(last_round)).await;
        let slots: Vec<SlotId> = agent
            .borrow()
            .conflicts
            .obstructed
            .keys()
            .copied()
            .collect();
        let begun = Instant::now();
        let mut stretch = begun;
        for slot in slots {
            agent.borrow_mut().hold(std::iter::once(slot));
            if stretch.elapsed() >= RETRY_STRETCH {
                tokio::task::yield_now().await;
                stretch = Instant::now();
            }
        }
        last_round = begun.elapsed();
    }
}

/// Finds out who is in the way of each slot.
pub(crate) async fn identify(agent: &Shared) {
    let questions: Vec<Question> = {
        let agent = agent.borrow();
        let slots = agent.conflicts.obstructed.keys();
        let question = |slot: &SlotId| {
            let (port, transport) = agent.kernel.port(*slot)?;
            let own = agent.kernel.own_inodes(*slot);
            Some(Question {
                slot: *slot,
                port,
                transport,
                own,
            })
        };
        slots.filter_map(question).collect()
    };
    if questions.is_empty() {
        return;
    }
    let answers = tokio::task::spawn_blocking(move || find(&questions))
        .await
        .unwrap_or_default();
    let mut agent = agent.borrow_mut();
    let agent = &mut *agent;
    for (slot, intruder) in answers {
        let Some(obstruction) = agent.conflicts.obstructed.get_mut(&slot) else {
            continue;
        };
        if obstruction.intruder.as_ref() != intruder.as_ref()
            && let Some(intruder) = &intruder
        {
            let name = agent.slots[slot.0 as usize].name();
            let port = agent.slots[slot.0 as usize].port.get();
            let Intruder {
                pid,
                uid,
                program,
                unit,
            } = intruder;
            tracing::warn!(
                pool = name,
                port,
                pid,
                uid,
                program,
                unit,
                "the port is held by this process"
            );
        }
        obstruction.intruder = intruder;
    }
}

struct Question {
    slot: SlotId,
    port: u16,
    transport: Transport,
    own: Vec<u64>,
}

/// Asks the kernel; takes milliseconds, so not on the thread that serves.
fn find(questions: &[Question]) -> Vec<(SlotId, Option<Intruder>)> {
    let mut bound: HashMap<(Transport, u16), Vec<sock_diag::BoundSocket>> = HashMap::new();
    for transport in [Transport::Tcp, Transport::Udp] {
        if questions.iter().all(|asked| asked.transport != transport) {
            continue;
        }
        match sock_diag::bound(transport) {
            Ok(sockets) => {
                for socket in sockets {
                    let of_port = bound.entry((transport, socket.port)).or_default();
                    of_port.push(socket);
                }
            }
            Err(error) => tracing::debug!(?transport, %error, "cannot list the sockets"),
        }
    }
    let mut sockets = Vec::new();
    for Question {
        slot,
        port,
        transport,
        own,
    } in questions
    {
        let of_port = bound.get(&(*transport, *port));
        let mut others = of_port.into_iter().flatten();
        let other = others.find(|socket| !own.contains(&socket.inode)).cloned();
        sockets.push((*slot, other));
    }
    let is_unsolved = |((_, found), asked): (&(_, Option<_>), &Question)| {
        found.is_none() && asked.transport == Transport::Tcp
    };
    if sockets.iter().zip(questions).any(is_unsolved) {
        let connections = sock_diag::connections().unwrap_or_else(|error| {
            tracing::debug!(%error, "cannot list the connections");
            Vec::new()
        });
        for ((_, found), asked) in sockets.iter_mut().zip(questions) {
            if found.is_none() && asked.transport == Transport::Tcp {
                // One that is only half made belongs to nobody yet.
                let is_it = |socket: &&sock_diag::BoundSocket| {
                    socket.port == asked.port && socket.inode != 0
                };
                *found = connections.iter().find(is_it).cloned();
            }
        }
    }
    let inodes: HashSet<u64> = sockets
        .iter()
        .flat_map(|(_, s)| s)
        .map(|s| s.inode)
        .collect();
    let owners = inspector::owners(&inodes).unwrap_or_default();
    let describe = |socket: sock_diag::BoundSocket| {
        let pid = owners
            .get(&socket.inode)
            .and_then(|pids| pids.first().copied());
        Intruder {
            pid,
            uid: pid.and_then(process::uid).unwrap_or(socket.uid),
            program: pid.and_then(process::program),
            unit: pid.and_then(process::system_unit),
        }
    };
    sockets
        .into_iter()
        .map(|(slot, socket)| (slot, socket.map(describe)))
        .collect()
}
