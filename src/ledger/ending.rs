//! How a lease ends: given back, taken back, never received, or with its holder's life.

use super::{Effect, HolderId, Lease, LeaseId, Ledger, Notice, Reason, Refusal, RequestId, SlotId};

impl Ledger {
    pub(super) fn release(&mut self, request: RequestId, holder: HolderId, lease: LeaseId) {
        if !self.is_lease_of(lease, holder) {
            self.effects
                .push(Effect::Refuse(request, Refusal::UnknownLease(lease)));
            return;
        }
        self.end(lease, Reason::Released);
        self.effects.push(Effect::Done(request));
    }

    pub(super) fn revoke(&mut self, request: RequestId, lease: LeaseId) {
        let known = self.lease(lease).map(|lease| (lease.slot, lease.holder));
        let Some((slot, holder)) = known else {
            self.effects
                .push(Effect::Refuse(request, Refusal::UnknownLease(lease)));
            return;
        };
        // Whoever waits to take the slot over would be its next holder: that is revoked with it.
        if self.generation_of(lease, slot) == self.slot(slot).steered
            && let Some(successor) = self.successor(slot)
        {
            self.end(successor, Reason::Revoked);
        }
        self.end(lease, Reason::Revoked);
        // With the last of what it has there its claim is taken back, too.
        self.unclaim_if_unused(self.place(slot).instance, holder);
        self.effects.push(Effect::Done(request));
    }

    pub(super) fn died(&mut self, holder: HolderId) {
        self.forget_requests_of(holder);
        self.ex_holders.remove(&holder);
        for lease in self.holders.remove(&holder).unwrap_or_default() {
            self.end(lease, Reason::HolderDied);
        }
        self.end_rests_of(holder);
        // After the leases: a slot that restarts outlives the claim.
        self.unclaim_all_of(holder);
    }

    /// Ends a lease: the slot's generation first, so that nobody sees it parked and served.
    pub(super) fn end(&mut self, lease: LeaseId, reason: Reason) {
        let Some(ended) = self.remove_lease(lease) else {
            return;
        };
        let Lease { holder, slot, .. } = ended;
        if reason == Reason::Revoked {
            self.remember_ex_holder(holder, slot);
            self.effects
                .push(Effect::Notify(holder, slot, Notice::Revoked));
        }
        if ended.standby {
            self.abandon_takeover(slot, holder);
            return;
        }
        self.reconsider_takeovers_of(slot);
        if let Some(successor) = self.successor(slot) {
            self.pass_on(slot, &ended, successor, reason);
            return;
        }
        let resumes = match reason {
            Reason::HolderDied => true,
            // The process that it was for had taken over what another had queued.
            Reason::Undelivered => ended.resumed,
            _ => false,
        };
        if resumes && self.keeps_for_successor(slot) {
            self.keep_for_successor(&ended, reason);
            return;
        }
        for member in self.group(slot) {
            match reason {
                Reason::Released => self.give_back(member, holder),
                _ => self.vacate(member, Some(holder), reason),
            }
        }
    }

    pub(super) fn is_lease_of(&self, lease: LeaseId, holder: HolderId) -> bool {
        self.lease(lease)
            .is_some_and(|known| known.holder == holder)
    }

    pub(super) fn remove_lease(&mut self, lease: LeaseId) -> Option<Lease> {
        let ended = self.leases.remove(&lease)?;
        if let Some(leases) = self.leases_of_users.get_mut(&ended.user) {
            *leases -= 1;
            if *leases == 0 {
                self.leases_of_users.remove(&ended.user);
            }
        }
        if let Some(leases) = self.holders.get_mut(&ended.holder) {
            leases.retain(|other| *other != lease);
            if leases.is_empty() {
                self.holders.remove(&ended.holder);
            }
        }
        Some(ended)
    }

    pub(super) fn remember_ex_holder(&mut self, holder: HolderId, slot: SlotId) {
        self.ex_holders.entry(holder).or_default().insert(slot);
    }

    /// The process has the slot again.
    pub(super) fn forget_ex_holder(&mut self, holder: HolderId, slot: SlotId) {
        if let Some(slots) = self.ex_holders.get_mut(&holder) {
            slots.remove(&slot);
            if slots.is_empty() {
                self.ex_holders.remove(&holder);
            }
        }
    }
}
