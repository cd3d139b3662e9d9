//! Taking over what an earlier agent had in the kernel for a slot.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::Kernel;
use super::held::{Generation, inodes};
use crate::ledger::SlotId;
use crate::sys::hold::{Endpoint, Transport};
use crate::sys::inspect::{Inspected, inspect};
use crate::sys::shelf::Kept;
use crate::sys::steer::Steering;

/// Sockets, and that they outlive this agent, too, if they do already.
#[derive(Debug)]
pub(crate) struct Sockets {
    pub(crate) fds: Vec<OwnedFd>,
    pub(crate) kept: Option<Kept>,
}

/// What an earlier agent had for a slot, and which of it is in use.
#[derive(Debug, Default)]
pub(crate) struct Adopted {
    /// What reserves the port.
    pub(crate) reservation: Option<Sockets>,
    /// The listeners, by their generations.
    pub(crate) generations: Vec<(u64, Sockets)>,
    /// The generation that gets the connections.
    pub(crate) current: Option<u64>,
    /// The generation of a successor that is not ready.
    pub(crate) standby: Option<u64>,
}

/// What is there of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Standing {
    /// The port is reserved.
    pub(crate) reserved: bool,
    /// The generation that is to get the connections is there.
    pub(crate) current: bool,
    /// The successor's generation is there.
    pub(crate) standby: bool,
}

impl Kernel {
    /// Makes the sockets of an earlier agent the slot's own, and says of what is in use what is there.
    /// Each is looked at: what is no such socket is closed. What is not in use any more ends, but
    /// what a holder may still be draining does not.
    pub(crate) fn adopt(&mut self, slot: SlotId, adopted: Adopted) -> Standing {
        let is_steered = self.steering.is_some();
        let held = &mut self.slots[slot.0 as usize];
        let Some(first) = held.endpoints.first().copied() else {
            return Standing::default();
        };
        if let Some(mut found) = adopted.reservation
            && reserves(&found, &first)
        {
            held.reservation = found.fds.pop();
            held.reservation_kept = found.kept;
        }
        let mut generations = adopted.generations;
        generations.sort_unstable_by_key(|(number, _)| *number);
        for (number, found) in generations {
            if !held.are_listeners(&found) {
                tracing::warn!(
                    port = first.address.port(),
                    "a stored socket is no listener of its slot; closed"
                );
                continue;
            }
            let mut generation = Generation {
                number,
                listeners: found.fds.into(),
                inodes: Vec::new(),
                drained_by: None,
                is_over: false,
                kept: found.kept,
            };
            let is_used = [adopted.current, adopted.standby].contains(&Some(number));
            let watched = is_used
                .then(|| generation.watch(slot, &held.endpoints, &self.shut))
                .transpose();
            match watched {
                Ok(Some(())) => {}
                // Its holder may still accept what waits there: it gets nothing more all the same.
                Ok(None) if is_steered && adopted.current.is_some() && held.is_tcp() => {
                    generation.is_over = true;
                    generation.inodes = inodes(generation.listeners.iter());
                    generation.let_go();
                    self.with_former.insert(slot);
                }
                Ok(None) => {
                    generation.end(&held.endpoints, &self.shut, is_steered);
                    self.with_former.insert(slot);
                }
                Err(error) => {
                    tracing::error!(%error, "cannot watch a listener");
                    continue;
                }
            }
            held.generations.push(generation);
        }
        held.current = adopted.current;
        let is_there = |number: Option<u64>| number.is_some_and(|n| held.generation(n).is_some());
        Standing {
            reserved: held.reservation.is_some(),
            current: is_there(adopted.current),
            standby: is_there(adopted.standby),
        }
    }

    /// Sends a slot's connections where its state says, after an agent that may have ended at any
    /// moment: what goes there already is not interrupted.
    ///
    /// # Errors
    /// What bpf(2) says.
    pub(crate) fn steer_as_adopted(&mut self, slot: SlotId) -> io::Result<()> {
        let held = &self.slots[slot.0 as usize];
        let (Some(steering), Some((port, transport))) = (&self.steering, self.port(slot)) else {
            return Ok(());
        };
        if held.reservation.is_none() {
            return Ok(());
        }
        match held.current {
            Some(number) if held.generation(number).is_some() => self.steer(slot, number)?,
            // Leased, and nobody but its holder has the listener: as it is.
            Some(_) => {}
            None => {
                let mut endpoints = held.endpoints.iter();
                endpoints.try_for_each(|endpoint| steering.park(endpoint))?;
            }
        }
        match &self.steering {
            Some(steering) => steering.own(port, transport),
            None => Ok(()),
        }
    }

    /// No port is ours but those of the slots that are held.
    ///
    /// # Errors
    /// What bpf(2) says.
    pub(crate) fn own_no_other(&self) -> io::Result<()> {
        let Some(steering) = &self.steering else {
            return Ok(());
        };
        let held = self.slots.iter().filter(|held| held.reservation.is_some());
        let ports = held.filter_map(|held| held.endpoints.first());
        steering.retain(ports.map(|first| (first.address.port(), first.transport)))
    }

    /// What steers, for who is to keep it.
    pub(crate) fn steering(&self) -> Option<&Steering> {
        self.steering.as_ref()
    }
}

impl super::Held {
    /// Whether these are one socket for each endpoint, of its kind. Steering may have put them
    /// elsewhere.
    fn are_listeners(&self, found: &Sockets) -> bool {
        let is_one = |(fd, endpoint): (&OwnedFd, &Endpoint)| {
            look(fd.as_fd()).is_some_and(|seen| seen.is_stream == endpoint.is_tcp())
        };
        found.fds.len() == self.endpoints.len() && found.fds.iter().zip(&self.endpoints).all(is_one)
    }
}

fn reserves(found: &Sockets, first: &Endpoint) -> bool {
    let [fd] = &found.fds[..] else {
        return false;
    };
    let is_right = look(fd.as_fd()).is_some_and(|seen| {
        seen.is_stream == (first.transport == Transport::Tcp)
            && !seen.is_listening
            && seen.address.port() == first.address.port()
            && seen.address.ip().is_unspecified()
    });
    if !is_right {
        tracing::warn!(
            port = first.address.port(),
            "a stored socket does not reserve its port; closed"
        );
    }
    is_right
}

fn look(fd: BorrowedFd) -> Option<Inspected> {
    inspect(fd).ok().flatten()
}
