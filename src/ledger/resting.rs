//! A process that gives a slot back and asks again a moment later gets the same listener: nobody
//! but itself and the agent ever had it. Meanwhile no new connection goes there.

use super::{Effect, HolderId, Ledger, Moment, Reason, SlotId, State};

/// How long a listener is kept for the process that gave it back. What it has not accepted waits
/// there so long, too.
pub(super) const REST: Moment = Moment::from_secs(1);

/// A generation that is kept for the process that gave it back.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rest {
    pub(super) holder: HolderId,
    pub(super) generation: u64,
    until: Moment,
}

impl Ledger {
    /// A ledger of slots whose connections can be steered away from a listener that goes on
    /// listening: what a process gives back may rest.
    pub fn that_lets_listeners_rest(mut self) -> Ledger {
        self.lets_rest = true;
        self
    }

    /// Makes free what a living process gave back.
    pub(super) fn give_back(&mut self, slot: SlotId, holder: HolderId) {
        let is_shut = self.slot(slot).shuts.is_open();
        let rests = self.lets_rest && !self.queues(slot) && !is_shut && self.wants_held(slot);
        let generation = match rests {
            true => self.slot_mut(slot).steered.take(),
            false => None,
        };
        let Some(generation) = generation else {
            self.vacate(slot, Some(holder), Reason::Released);
            return;
        };
        let until = self.now.saturating_add(REST);
        self.slot_mut(slot).rest = Some(Rest {
            holder,
            generation,
            until,
        });
        self.rests.insert((until, slot));
        self.effects.push(Effect::Rest(slot, generation));
        self.change(slot, State::Parked, Some(holder), Reason::Released);
    }

    /// Whether the slot's latest listener is kept for this process.
    pub(super) fn rests_for(&self, slot: SlotId, holder: HolderId) -> bool {
        self.slot(slot)
            .rest
            .is_some_and(|rest| rest.holder == holder)
    }

    /// What was kept is not any more: gives which generation that is.
    pub(super) fn wake(&mut self, slot: SlotId) -> Option<u64> {
        let rest = self.slot_mut(slot).rest.take()?;
        self.rests.remove(&(rest.until, slot));
        Some(rest.generation)
    }

    /// Ends what was kept, for the sake of others.
    pub(super) fn end_rest(&mut self, slot: SlotId) {
        if let Some(generation) = self.wake(slot) {
            self.effects.push(Effect::End(slot, generation));
        }
    }

    /// What was set aside for the process that gave it back is so no longer.
    pub(super) fn end_rest_if_over(&mut self, slot: SlotId) {
        if self
            .slot(slot)
            .rest
            .is_some_and(|rest| rest.until <= self.now)
        {
            self.end_rest(slot);
        }
    }

    pub(super) fn end_rests_of(&mut self, holder: HolderId) {
        let slots = self.rests.iter().map(|(_, slot)| *slot);
        let its: Vec<SlotId> = slots.filter(|slot| self.rests_for(*slot, holder)).collect();
        for slot in its {
            self.end_rest(slot);
        }
    }

    pub(super) fn end_rests_that_are_over(&mut self) {
        while let Some((until, slot)) = self.rests.first().copied()
            && until <= self.now
        {
            self.rests.remove(&(until, slot));
            // One that is promised is about to be its process's again.
            if self.slot(slot).promised.is_none() {
                self.end_rest(slot);
            }
        }
    }
}
