//! A successor gets the slot of a holder that lives: at once, or as soon as it is ready.
//!
//! Two generations live side by side while the successor is not ready. Until then the lease is
//! the old holder's, and the end of the successor changes nothing. The end of the old holder
//! makes the slot the successor's at once: clients wait in its queue until it is ready.

use super::acquire::Request;
use super::slots::Standby;
use super::{
    Effect, HolderId, Lease, LeaseId, Ledger, Notice, Reason, Refusal, RequestId, SlotId, State,
    When, Whom,
};

impl Ledger {
    /// The slot to take over from a holder of the asker's kin, or from one of others: the
    /// one whose label fits, then the one leased for the longest time, so that a rolling deploy
    /// replaces each old process once.
    ///
    /// # Errors
    /// All there are have a successor already.
    pub(super) fn to_take_over(
        &self,
        request: &Request,
        slots: &[SlotId],
        of_kin: bool,
    ) -> Result<Option<SlotId>, Refusal> {
        let asker = &request.asker;
        let of_user = matches!(request.takeover, Some(takeover) if takeover.whom == Whom::User);
        let lease_of = |slot: SlotId| match self.state(slot) {
            // A waiter replaces who was there when it asked, not who came before it got its turn.
            State::Leased(lease) if !self.is_draining(slot) && lease < request.before => {
                self.lease(lease)
            }
            _ => None,
        };
        let leased: Vec<(SlotId, &Lease)> = slots
            .iter()
            .filter_map(|slot| Some((*slot, lease_of(*slot)?)))
            .filter(|(_, lease)| lease.holder != asker.holder)
            .filter(|(_, lease)| (lease.kin == asker.kin) == of_kin)
            .filter(|(_, lease)| of_kin || !of_user || lease.user == asker.user)
            .collect();
        let is_untouched = |slot| self.slot(slot).standby.is_none() && self.slot(slot).is_settled();
        let untouched = leased.iter().filter(|(slot, _)| is_untouched(*slot));
        let oldest = untouched.min_by_key(|(_, lease)| (lease.label != asker.label, lease.since));
        match (oldest, leased.first()) {
            (Some((slot, _)), _) => Ok(Some(*slot)),
            (None, Some((slot, _))) => Err(Refusal::TakeoverUnderWay(*slot)),
            (None, None) => Ok(None),
        }
    }

    /// The successor's listeners are made.
    pub(super) fn take_over(&mut self, slot: SlotId, successor: LeaseId, when: When) {
        for member in self.group(slot) {
            let generation = self.slot(member).generation;
            self.slot_mut(member).standby = Some(Standby {
                lease: successor,
                generation,
            });
        }
        if let Some(lease) = self.leases.get_mut(&successor) {
            lease.standby = true;
        }
        match when {
            When::Now => self.switch_over(slot, successor),
            When::Ready => {
                let holder = self.lease(successor).map(|lease| lease.holder);
                for member in self.group(slot) {
                    self.remark(member, holder, Reason::TakeoverBegun);
                }
            }
        }
    }

    pub(super) fn ready(&mut self, request: RequestId, holder: HolderId, lease: LeaseId) {
        if !self.is_lease_of(lease, holder) {
            self.effects
                .push(Effect::Refuse(request, Refusal::UnknownLease(lease)));
            return;
        }
        let waits = self.lease(lease).filter(|lease| lease.standby);
        if let Some(slot) = waits.map(|lease| lease.slot) {
            self.switch_over(slot, lease);
        }
        self.effects.push(Effect::Done(request));
    }

    /// The successor has the slot; the old holder lives, drains its queue and is told.
    fn switch_over(&mut self, slot: SlotId, successor: LeaseId) {
        let State::Leased(lease) = self.state(slot) else {
            return;
        };
        let Some(old) = self.remove_lease(lease) else {
            return;
        };
        self.remember_ex_holder(old.holder, slot);
        self.pass_on(slot, &old, successor, Reason::TakenOver);
        self.effects
            .push(Effect::Notify(old.holder, slot, Notice::TakenOver));
    }

    /// Steers to the successor, whose slot it is from now on.
    pub(super) fn pass_on(
        &mut self,
        slot: SlotId,
        old: &Lease,
        successor: LeaseId,
        reason: Reason,
    ) {
        let Some(lease) = self.leases.get_mut(&successor) else {
            return;
        };
        lease.standby = false;
        let (holder, is_kin) = (lease.holder, lease.kin == old.kin);
        let drained_by = (reason == Reason::TakenOver).then_some(old.holder);
        for member in self.group(slot) {
            let known = self.slot_mut(member);
            let (Some(standby), Some(steered)) = (known.standby.take(), known.steered) else {
                continue;
            };
            known.steered = Some(standby.generation);
            self.effects.push(match is_kin {
                true => Effect::Succeed(member, steered, standby.generation, drained_by),
                false => Effect::Replace(member, steered, standby.generation, drained_by),
            });
            self.forget_shuts(member);
            self.change(member, State::Leased(successor), Some(holder), reason);
        }
    }

    /// The successor is gone before it was ready: nothing has changed.
    pub(super) fn abandon_takeover(&mut self, slot: SlotId, successor: HolderId) {
        for member in self.group(slot) {
            if let Some(standby) = self.slot_mut(member).standby.take() {
                self.effects.push(Effect::End(member, standby.generation));
                self.remark(member, Some(successor), Reason::TakeoverFailed);
            }
        }
    }
}
