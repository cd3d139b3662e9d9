//! Going on where an earlier agent ended: its plan, its sockets, its leases.

use std::collections::HashMap;
use std::os::fd::OwnedFd;

use super::core::{Agent, IsDormant, Shared, know_again};
use super::kernel::{Adopted, Sockets};
use super::rescue::rescue;
use super::store::record::{LeaseRecord, ProcessRecord, SlotRecord, Text, moment};
use super::store::{Past, PastLedger};
use crate::config::Source;
use crate::ledger::{
    Event, HolderId, KeptClaim, KeptSlot, Kin, Label, Lease, LeaseId, Obstacle, SlotId, State,
    UnitId, UserId,
};
use crate::plan::Slot;
use crate::sys::hold::Transport;
use crate::sys::peer::{Identity, Peer};
use crate::sys::shelf::{Found, Kept};

/// The sockets of one slot.
#[derive(Debug, Default)]
pub(super) struct OfSlot {
    pub(super) reservation: Option<Sockets>,
    pub(super) generations: Vec<(u64, Sockets)>,
}

/// The processes that an earlier agent knew, by what it wrote of them.
#[derive(Debug, Default)]
struct Processes {
    known: HashMap<ProcessRecord, HolderId>,
    dead: Vec<HolderId>,
}

impl PastLedger {
    /// Its slots, in its order.
    pub(crate) fn planned(&self) -> Vec<(Slot, IsDormant)> {
        let slots = self.description.slots.iter();
        slots
            .filter_map(|planned| Some((planned.slot()?, planned.dormant)))
            .collect()
    }

    /// Its configuration.
    pub(crate) fn sources(&self) -> Vec<Source> {
        let source = |text: &Text| Source {
            path: text.path.clone().into(),
            text: text.text.clone(),
        };
        self.description.sources.iter().map(source).collect()
    }
}

/// Brings back what an earlier agent with these very slots had, and finds out what became of its
/// holders meanwhile. Connections go on all the time.
pub(super) fn restore(agent: &Shared, past: Past) {
    let Past {
        ledger,
        shelves,
        reservations,
        listeners,
    } = past;
    let found = Labelled {
        reservations,
        listeners,
    };
    let is_known = ledger.is_some();
    let (mut sockets, under_old_labels) = found.by_slot(&agent.borrow(), is_known);
    let mut processes = Processes::default();
    // The slots of which nothing is known but what sockets there are.
    let mut unknown: Vec<SlotId> = match is_known {
        true => Vec::new(),
        false => agent.borrow().ledger.slots().collect(),
    };
    if let Some(mut ledger) = ledger {
        for (instance, claim) in &ledger.claims {
            let holder = processes.find(agent, claim.holder);
            agent.borrow_mut().ledger.restore_claim(KeptClaim {
                instance: *instance,
                holder,
                user: UserId(claim.holder.uid),
                unit: claim.unit.map(UnitId),
            });
        }
        let records = std::mem::take(&mut ledger.slots)
            .into_iter()
            .zip(&ledger.sent);
        for (slot, (record, sent)) in (0..).map(SlotId).zip(records) {
            let Some(record) = record else {
                unknown.push(slot);
                continue;
            };
            let its = sockets.remove(&slot).unwrap_or_default();
            let is_companion = agent.borrow().ledger.place(slot).companion_of.is_some();
            let leases = match is_companion {
                // They came with the slot that it goes with.
                true => Vec::new(),
                false => leases(agent, &mut processes, slot, &record, *sent),
            };
            agent.borrow_mut().restore_slot(slot, &record, &leases, its);
        }
        let mut known = agent.borrow_mut();
        known.ledger.skip_leases(LeaseId(ledger.next_lease));
        known.claims_written = known.ledger.claim_changes();
        known.store = Some(ledger.store);
    }
    rescue(agent, &unknown, &mut sockets);
    let mut known = agent.borrow_mut();
    // What nobody has taken goes.
    drop(sockets);
    known.kernel.outlive(shelves);
    drop(under_old_labels);
    known.steer_as_restored();
    known.take_in(Event::Restored);
    for holder in processes.dead {
        known.died(holder);
    }
}

/// What was found on the shelves.
struct Labelled {
    reservations: Vec<(super::kernel::Label, Found)>,
    listeners: Vec<(super::kernel::Label, Found)>,
}

impl Labelled {
    /// Sorts it by slots. Where no ledger says what the labels' slots are, by their ports; then what is
    /// in use is to be labelled anew before the second thing that this gives is dropped.
    fn by_slot(self, agent: &Agent, is_known: bool) -> (HashMap<SlotId, OfSlot>, Vec<Kept>) {
        let slots = agent.ledger.slots();
        let ports: HashMap<(u16, Transport), SlotId> = slots
            .filter_map(|slot| Some((agent.kernel.port(slot)?, slot)))
            .collect();
        let mut old = Vec::new();
        let mut relabelled = |found: Found| match is_known {
            true => Sockets {
                fds: found.fds,
                kept: Some(found.kept),
            },
            false => {
                old.push(found.kept);
                Sockets {
                    fds: found.fds,
                    kept: None,
                }
            }
        };
        let slot_of = |label: &super::kernel::Label| match is_known {
            true => Some(label.slot),
            false => ports.get(&(label.port, label.transport)).copied(),
        };
        let mut sockets: HashMap<SlotId, OfSlot> = HashMap::new();
        for (label, found) in self.reservations {
            if let Some(slot) = slot_of(&label) {
                // What was sent again, and not yet taken out where it was, is there twice.
                sockets.entry(slot).or_default().reservation = Some(relabelled(found));
            }
        }
        for (label, found) in self.listeners {
            if let Some(slot) = slot_of(&label) {
                let generations = &mut sockets.entry(slot).or_default().generations;
                generations.retain(|(known, _)| *known != label.generation);
                generations.push((label.generation, relabelled(found)));
            }
        }
        (sockets, old)
    }
}

fn leases(
    agent: &Shared,
    processes: &mut Processes,
    slot: SlotId,
    record: &SlotRecord,
    sent: u64,
) -> Vec<(LeaseId, Lease)> {
    let standby = record.standby.as_ref().map(|(lease, _)| (lease, true));
    let leased = record.lease.as_ref().map(|lease| (lease, false));
    let mut leases = Vec::new();
    for (written, standby) in leased.into_iter().chain(standby) {
        let holder = processes.find(agent, written.holder);
        describe(agent, holder, written);
        let lease = Lease {
            holder,
            kin: Kin(written.kin),
            user: UserId(written.holder.uid),
            label: written.label.map(Label),
            slot,
            since: moment(written.since),
            standby,
            resumed: false,
            is_uncertain: written.id > sent,
        };
        leases.push((LeaseId(written.id), lease));
    }
    leases
}

fn describe(agent: &Shared, holder: HolderId, lease: &LeaseRecord) {
    if let Some(known) = agent.borrow_mut().holders.get_mut(holder) {
        known.label = lease.called.clone().or(known.label.take());
        let wanted = lease.on_revoke.as_ref().and_then(|word| word.parse().ok());
        known.on_revoke = wanted.or(known.on_revoke);
    }
}

impl Processes {
    /// The process, as this agent knows it; one that has ended has an id, too.
    fn find(&mut self, agent: &Shared, record: ProcessRecord) -> HolderId {
        if let Some(known) = self.known.get(&record) {
            return *known;
        }
        let identity = Identity::new(record.pid, record.number);
        let revive = |pidfd: OwnedFd| {
            let peer = Peer {
                pid: record.pid,
                uid: record.uid,
                gid: 0,
                pidfd,
                identity,
            };
            know_again(agent, peer)
        };
        let holder = identity.open().and_then(revive).unwrap_or_else(|error| {
            tracing::info!(pid = record.pid, %error, "a holder is gone, or cannot be watched; its leases end");
            let dead = agent.borrow_mut().holders.of_the_dead();
            self.dead.push(dead);
            dead
        });
        self.known.insert(record, holder);
        holder
    }
}

impl Agent {
    fn restore_slot(
        &mut self,
        slot: SlotId,
        record: &SlotRecord,
        leases: &[(LeaseId, Lease)],
        sockets: OfSlot,
    ) {
        let state = state(record);
        let is_served = matches!(
            state,
            State::Leased(_) | State::Queueing | State::Restarting { .. }
        );
        let standby = record.standby.as_ref();
        let place = self.ledger.place(slot);
        let is_claimed = self.ledger.claimed_by(place.instance).is_some();
        let is_wanted = !record.draining && (!place.dormant || is_claimed);
        let sockets = match matches!(state, State::Unheld(_)) && !is_wanted {
            // It was being given up.
            true => OfSlot::default(),
            false => sockets,
        };
        let standing = self.kernel.adopt(
            slot,
            Adopted {
                reservation: sockets.reservation,
                generations: sockets.generations,
                current: record.steered.filter(|_| is_served),
                standby: standby.map(|(_, generation)| *generation),
            },
        );
        let state = match state {
            State::Parked if !standing.reserved => State::Unheld(Obstacle::Untried),
            state => state,
        };
        // Without its listener nothing can wait there. A holder may have it all the same.
        let is_leased = matches!(state, State::Leased(_));
        let kept = KeptSlot {
            state,
            generation: record.generation,
            steered: record.steered.filter(|_| standing.current || is_leased),
            standby: standby
                .filter(|_| standing.standby)
                .map(|(lease, generation)| (LeaseId(lease.id), *generation)),
            former_label: record.former_label.map(Label),
            draining: record.draining,
        };
        let without_standby = |(_, lease): &&(LeaseId, Lease)| !lease.standby || standing.standby;
        let leases: Vec<_> = leases.iter().filter(without_standby).cloned().collect();
        self.ledger.restore(slot, &kept, &leases);
    }

    pub(super) fn steer_as_restored(&mut self) {
        for slot in self.ledger.slots() {
            if let Err(error) = self.kernel.steer_as_adopted(slot) {
                let slot = self.slots[slot.0 as usize].name();
                tracing::warn!(slot, %error, "cannot steer to a listener as before");
            }
        }
        if let Err(error) = self.kernel.own_no_other() {
            tracing::error!(%error, "cannot leave ports to others that are in the plan no more");
        }
    }
}

fn state(record: &SlotRecord) -> State {
    match (record.state.as_str(), &record.lease) {
        ("leased", Some(lease)) => State::Leased(LeaseId(lease.id)),
        ("queueing", _) => State::Queueing,
        ("restarting", _) => match (record.until, record.successor) {
            (Some(until), Some(successor)) => State::Restarting {
                until: moment(until),
                successor: Kin(successor),
            },
            _ => State::Parked,
        },
        ("parked" | "leased" | "hostage", _) => State::Parked,
        _ => State::Unheld(Obstacle::Untried),
    }
}
