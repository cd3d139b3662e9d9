//! What of the ledger outlives the agent: of each slot what the kernel has for it and whose it is,
//! and who has claimed an instance. Whoever waits, and what is being made, does not.

use super::instances::Claim;
use super::slots::Standby;
use super::{HolderId, Label, Lease, LeaseId, Ledger, Obstacle, SlotId, State, UnitId, UserId};

/// What of a slot outlives the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptSlot {
    /// What it is.
    pub state: State,
    /// The number of its latest generation.
    pub generation: u64,
    /// The generation that new connections go to.
    pub steered: Option<u64>,
    /// The lease of a successor that is not ready, and its generation.
    pub standby: Option<(LeaseId, u64)>,
    /// While it restarts: what its former holder called itself.
    pub former_label: Option<Label>,
    /// It is not in the plan any more, and goes when its lease ends.
    pub draining: bool,
}

/// A claim to an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeptClaim {
    /// The instance.
    pub instance: u16,
    /// Whose.
    pub holder: HolderId,
    /// Its user.
    pub user: UserId,
    /// Its unit.
    pub unit: Option<UnitId>,
}

impl Ledger {
    /// What of the slot is to outlive the agent.
    pub fn kept(&self, slot: SlotId) -> KeptSlot {
        let known = self.slot(slot);
        let standby = known
            .standby
            .map(|standby| (standby.lease, standby.generation));
        KeptSlot {
            state: known.state,
            generation: known.generation,
            steered: known.steered,
            standby,
            former_label: known.former_label,
            draining: known.draining,
        }
    }

    /// Every claim.
    pub fn kept_claims(&self) -> impl Iterator<Item = KeptClaim> + '_ {
        self.claims.iter().map(|(instance, claim)| KeptClaim {
            instance: *instance,
            holder: claim.holder,
            user: claim.user,
            unit: claim.unit,
        })
    }

    /// Grows with every claim that begins or ends.
    pub fn claim_changes(&self) -> u64 {
        self.claim_changes
    }

    /// The first lease that there never was.
    pub fn next_lease(&self) -> LeaseId {
        LeaseId(self.next_lease)
    }

    /// From now on no lease has a number below this one.
    pub fn skip_leases(&mut self, next: LeaseId) {
        self.next_lease = self.next_lease.max(next.0);
    }

    /// Brings back a claim, before any slot.
    pub fn restore_claim(&mut self, claim: KeptClaim) {
        let KeptClaim {
            instance,
            holder,
            user,
            unit,
        } = claim;
        self.claims.insert(instance, Claim { holder, user, unit });
    }

    /// Brings back a slot that nobody tried to hold yet, with its leases: those of its state and its
    /// standby. [`super::Event::Restored`] follows once all are there.
    ///
    /// A state that the leases do not fit is what it can be without them: parked.
    pub fn restore(&mut self, slot: SlotId, kept: &KeptSlot, leases: &[(LeaseId, Lease)]) {
        // A companion's leases came with the slot that it goes with.
        for (id, lease) in leases.iter().filter(|(_, lease)| lease.slot == slot) {
            self.skip_leases(LeaseId(id.0 + 1));
            if self.leases.insert(*id, lease.clone()).is_none() {
                self.holders.entry(lease.holder).or_default().push(*id);
                *self.leases_of_users.entry(lease.user).or_default() += 1;
            }
        }
        let is_there = |lease: &LeaseId| self.leases.contains_key(lease);
        let state = match kept.state {
            State::Leased(lease) if !is_there(&lease) => State::Parked,
            // It has no listener left to go on with.
            State::Restarting { .. } | State::Queueing if kept.steered.is_none() => State::Parked,
            State::Unheld(_) | State::Hostage => State::Unheld(Obstacle::Untried),
            state => state,
        };
        let is_served = !matches!(state, State::Parked | State::Unheld(_));
        let standby = kept.standby.filter(|(lease, _)| is_there(lease));
        let standby = standby.map(|(lease, generation)| Standby { lease, generation });
        let known = self.slot_mut(slot);
        known.state = state;
        known.generation = kept.generation;
        known.steered = kept.steered.filter(|_| is_served);
        known.standby = standby.filter(|_| is_served);
        known.former_label = kept.former_label;
        known.draining = kept.draining;
        if let State::Restarting { until, .. } = state {
            self.windows.insert((until, slot));
        }
    }

    /// All that was kept is back: what is free follows the rules.
    pub(super) fn restored(&mut self) {
        self.end_half_leases();
        // Whoever had only asked asks again, and claims again.
        for claim in self.kept_claims().collect::<Vec<_>>() {
            self.unclaim_if_unused(claim.instance, claim.holder);
        }
        self.reloaded();
    }

    /// A companion follows the slot it goes with. Where it does not, the agent ended in between; that
    /// lease never was whole.
    fn end_half_leases(&mut self) {
        for slot in self.slots() {
            let main = self.main(slot);
            if main == slot {
                continue;
            }
            let is_used = |slot| {
                matches!(
                    self.state(slot),
                    State::Leased(_) | State::Restarting { .. }
                )
            };
            let is_half = self.state(slot) != self.state(main);
            if is_half && (is_used(slot) || is_used(main)) {
                for member in self.group(main) {
                    self.forget_lease_of(member);
                }
            }
        }
    }

    fn forget_lease_of(&mut self, slot: SlotId) {
        if let State::Leased(lease) = self.state(slot) {
            self.remove_lease(lease);
        }
        if let Some(standby) = self.slot_mut(slot).standby.take() {
            self.remove_lease(standby.lease);
        }
        if !matches!(self.state(slot), State::Unheld(_)) {
            self.vacate(slot, None, super::Reason::Undelivered);
        }
    }

    /// The leases of a process of which it is not known whether it ever got them.
    pub fn uncertain(&self, holder: HolderId) -> Vec<LeaseId> {
        let leases = self.holders.get(&holder).into_iter().flatten().copied();
        let is_uncertain = |id: &LeaseId| self.lease(*id).is_some_and(|lease| lease.is_uncertain);
        leases.filter(is_uncertain).collect()
    }

    /// Its holder has what the lease is about.
    pub fn confirm(&mut self, lease: LeaseId) {
        if let Some(lease) = self.leases.get_mut(&lease) {
            lease.is_uncertain = false;
        }
    }
}
