//! Making leases of what is left where no record says whose it was: of each listener that a living
//! process has.

use std::collections::{HashMap, HashSet};
use std::os::fd::AsFd;

use super::core::{Agent, Shared, know_again};
use super::inspector;
use super::kernel::Adopted;
use super::restore::OfSlot;
use crate::ledger::{HolderId, KeptSlot, Lease, LeaseId, Obstacle, SlotId, State, UserId};
use crate::sys::clock::since_boot;
use crate::sys::inspect::inode;
use crate::sys::peer;
use crate::sys::process;

/// Takes over the sockets of these slots. Where living processes have the listener of one, it is
/// leased to the one that began first; else it is free. What is queued is not: for whom nobody knows.
pub(super) fn rescue(agent: &Shared, slots: &[SlotId], sockets: &mut HashMap<SlotId, OfSlot>) {
    if slots.is_empty() {
        return;
    }
    tracing::warn!(
        slots = slots.len(),
        "of these slots nothing is known but their sockets"
    );
    let of_all = slots.iter().filter_map(|slot| sockets.get(slot));
    let owners = inspector::owners(&of_all.flat_map(inodes).collect()).unwrap_or_default();
    let mut mains: HashMap<SlotId, Option<LeaseId>> = HashMap::new();
    for slot in slots {
        let its = sockets.remove(slot).unwrap_or_default();
        // The latest that somebody has.
        let generations = its.generations.iter();
        let owned = generations.filter_map(|(number, sockets)| {
            let inodes = sockets.fds.iter().filter_map(|fd| inode(fd.as_fd()).ok());
            let pids = inodes.filter_map(|inode| owners.get(&inode)).flatten();
            let first = pids.min_by_key(|pid| (process::start_time(**pid), **pid))?;
            Some((*number, *first))
        });
        let owned = owned.max();
        let latest = its.generations.iter().map(|(number, _)| *number).max();
        let standing = agent.borrow_mut().kernel.adopt(
            *slot,
            Adopted {
                reservation: its.reservation,
                generations: its.generations,
                current: owned.map(|(generation, _)| generation),
                standby: None,
            },
        );
        let place = agent.borrow().ledger.place(*slot);
        let lease = match (owned.filter(|_| standing.current), place.companion_of) {
            (None, _) => None,
            (Some((_, pid)), None) => lease(agent, *slot, pid),
            // It goes with the slot that it is the companion of.
            (Some(_), Some(main)) => mains.get(&main).copied().flatten().map(|id| (id, None)),
        };
        mains.insert(*slot, lease.as_ref().map(|(id, _)| *id));
        let kept = KeptSlot {
            state: match (&lease, standing.reserved) {
                (Some((id, _)), _) => State::Leased(*id),
                (None, true) => State::Parked,
                (None, false) => State::Unheld(Obstacle::Untried),
            },
            generation: latest.unwrap_or(0),
            steered: owned.map(|(generation, _)| generation),
            standby: None,
            former_label: None,
            draining: false,
        };
        let leases: Vec<(LeaseId, Lease)> = lease
            .into_iter()
            .filter_map(|(id, lease)| Some((id, lease?)))
            .collect();
        agent.borrow_mut().ledger.restore(*slot, &kept, &leases);
    }
}

fn inodes(of_slot: &OfSlot) -> HashSet<u64> {
    let fds = of_slot
        .generations
        .iter()
        .flat_map(|(_, sockets)| &sockets.fds);
    fds.filter_map(|fd| inode(fd.as_fd()).ok()).collect()
}

/// A lease of the slot for a process that has its listener.
fn lease(agent: &Shared, slot: SlotId, pid: u32) -> Option<(LeaseId, Option<Lease>)> {
    let found = peer::of_pid(pid).and_then(|peer| know_again(agent, peer));
    let holder = found
        .inspect_err(
            |error| tracing::warn!(pid, %error, "a process that has a listener cannot be watched"),
        )
        .ok()?;
    let mut known = agent.borrow_mut();
    let id = known.ledger.next_lease();
    known.ledger.skip_leases(LeaseId(id.0 + 1));
    tracing::warn!(
        pid,
        slot = known.slots[slot.0 as usize].name(),
        "leased to the process that has its listener"
    );
    Some((id, Some(known.lease_of(holder, slot))))
}

impl Agent {
    fn lease_of(&mut self, holder: HolderId, slot: SlotId) -> Lease {
        let (kin, user) = self.kin_of(holder);
        Lease {
            holder,
            kin,
            user: UserId(user),
            label: None,
            slot,
            since: since_boot(),
            standby: false,
            resumed: false,
            is_uncertain: false,
        }
    }
}
