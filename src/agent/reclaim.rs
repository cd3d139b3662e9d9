//! Taking back what holders of an earlier agent still have, where nobody kept anything: an agent that
//! was killed without a service manager.
//!
//! A holder is known by what `portpool exec` told its program, which only that process and root can
//! change, and it must be allowed to have the slot today; its listener by its place, and by its user,
//! which is the one that made it. Everything else stays in conflict, with who has it.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::core::{Agent, Shared};
use super::inspector;
use super::kernel::Sockets;
use super::rescue::rescue;
use super::restore::OfSlot;
use crate::ledger::{Event, Obstacle, SlotId, State};
use crate::policy::Peer as Client;
use crate::sys::hold::{Endpoint, Transport, reserve_beside};
use crate::sys::inspect::{inspect, own_uid};
use crate::sys::sock_diag::{self, BoundSocket};
use crate::sys::{peer, process};

/// The generation that what is taken back counts as.
const FIRST: u64 = 1;

/// Takes back what can be, of the slots that are in conflict at the start.
pub(super) fn reclaim(agent: &Shared) {
    let groups = agent.borrow().groups_in_conflict();
    if groups.is_empty() {
        return;
    }
    let bound = bound_by_us();
    let inodes = bound.values().flatten().map(|socket| socket.inode);
    let owners = inspector::owners(&inodes.collect()).unwrap_or_default();
    let mut sockets = HashMap::new();
    for group in groups {
        let found: Option<Vec<(SlotId, OfSlot)>> = group
            .iter()
            .map(|slot| Some((*slot, agent.borrow().take_back(*slot, &bound, &owners)?)))
            .collect();
        // With all its companions, or not at all.
        sockets.extend(found.into_iter().flatten());
    }
    let mut slots: Vec<SlotId> = sockets.keys().copied().collect();
    slots.sort_unstable();
    if slots.is_empty() {
        return;
    }
    rescue(agent, &slots, &mut sockets);
    let mut agent = agent.borrow_mut();
    agent.steer_as_restored();
    for slot in slots {
        agent.conflicts.resolved(slot);
    }
    agent.take_in(Event::Restored);
}

/// Listeners of our user, by their port.
fn bound_by_us() -> HashMap<u16, Vec<BoundSocket>> {
    let mut bound: HashMap<u16, Vec<BoundSocket>> = HashMap::new();
    for transport in [Transport::Tcp, Transport::Udp] {
        let sockets = sock_diag::bound(transport).unwrap_or_default();
        for socket in sockets.into_iter().filter(|socket| socket.uid == own_uid()) {
            bound.entry(socket.port).or_default().push(socket);
        }
    }
    bound
}

impl Agent {
    /// The slots in conflict, each with its companions, in the order of the plan.
    fn groups_in_conflict(&self) -> Vec<Vec<SlotId>> {
        let is_main = |slot: &SlotId| self.ledger.place(*slot).companion_of.is_none();
        let is_in_conflict =
            |slot: &SlotId| self.ledger.state(*slot) == State::Unheld(Obstacle::Conflict);
        let mains = self.ledger.slots().filter(is_main).filter(is_in_conflict);
        let group = |main: SlotId| {
            let companions = self.ledger.companions(main).iter().copied();
            let group: Vec<SlotId> = std::iter::once(main).chain(companions).collect();
            group.iter().all(is_in_conflict).then_some(group)
        };
        mains.filter_map(group).collect()
    }

    /// Copies of the slot's listeners out of the process that holds it, and a reservation beside
    /// them; `None` where anything does not fit.
    fn take_back(
        &self,
        slot: SlotId,
        bound: &HashMap<u16, Vec<BoundSocket>>,
        owners: &HashMap<u64, Vec<u32>>,
    ) -> Option<OfSlot> {
        let endpoints = self.kernel.endpoints(slot);
        let (port, transport) = self.kernel.port(slot)?;
        let is_any = |endpoint: &Endpoint| endpoint.address.ip().is_unspecified();
        if transport == Transport::Udp && endpoints.iter().any(is_any) {
            // A reservation that comes later could get its datagrams.
            return None;
        }
        let mut fds = Vec::with_capacity(endpoints.len());
        for endpoint in endpoints {
            let at = bound.get(&port)?.iter();
            let mut here = at.filter(|socket| socket.address == endpoint.address.ip());
            let fd = here.find_map(|socket| {
                let pids = owners.get(&socket.inode)?.iter();
                let mut holders = pids.filter(|pid| self.was_holder(**pid, slot));
                let taken = holders.find_map(|pid| copy(*pid, socket.inode).ok())?;
                is_listener(taken.as_fd(), endpoint).then_some(taken)
            })?;
            fds.push(fd);
        }
        let copies: Vec<BorrowedFd> = fds.iter().map(AsFd::as_fd).collect();
        let reservation = reserve_beside(port, transport, &copies);
        let reservation = reservation
            .inspect_err(
                |error| tracing::debug!(port, %error, "cannot be reserved beside its holder"),
            )
            .ok()?;
        let sockets = |fds| Sockets { fds, kept: None };
        Some(OfSlot {
            reservation: Some(sockets(vec![reservation])),
            generations: vec![(FIRST, sockets(fds))],
        })
    }

    /// Whether a process was begun as the holder of the slot, and may be it today.
    fn was_holder(&self, pid: u32, slot: SlotId) -> bool {
        let planned = &self.slots[slot.0 as usize];
        let Some(environment) = process::environment(pid) else {
            return false;
        };
        let value = |name: &str| {
            let mut variables = environment.iter();
            variables.find_map(|variable| variable.strip_prefix(name)?.strip_prefix('='))
        };
        let names = value("LISTEN_FDNAMES").unwrap_or_default();
        let is_named = names.split(':').any(|name| name == planned.name());
        let is_instance = value("PORTPOOL_INSTANCE") == Some(&planned.instance.to_string());
        let (Some(uid), groups) = (process::uid(pid), process::groups(pid)) else {
            return false;
        };
        let unit = process::system_unit(pid);
        let client = Client {
            uid,
            groups: &groups,
            unit: unit.as_deref(),
        };
        is_named
            && is_instance
            && self
                .policy
                .may_acquire(planned.pool.as_str(), client)
                .is_ok()
    }
}

/// A copy of a process's socket.
fn copy(pid: u32, inode: u64) -> io::Result<OwnedFd> {
    let holder = peer::of_pid(pid)?;
    let number = process::number_of(pid, inode).ok_or(io::ErrorKind::NotFound)?;
    let copy = process::copy_out(holder.pidfd.as_fd(), number)?;
    match crate::sys::inspect::inode(copy.as_fd())? == inode {
        true => Ok(copy),
        false => Err(io::ErrorKind::NotFound.into()),
    }
}

fn is_listener(socket: BorrowedFd, endpoint: &Endpoint) -> bool {
    let Ok(Some(seen)) = inspect(socket) else {
        return false;
    };
    seen.address == endpoint.address
        && seen.is_stream == endpoint.is_tcp()
        && seen.is_listening == endpoint.is_tcp()
}
