//! One slot: what is known of it, and how it comes to be held, free, or neither.

use super::{
    Change, Effect, HolderId, Label, LeaseId, Ledger, Obstacle, Place, PoolId, Reason, RequestId,
    Rules, SlotId, State, Unleased,
};
use crate::ledger::healing::Shuts;
use crate::ledger::resting::Rest;

#[derive(Debug)]
pub(super) struct Slot {
    pub(super) place: Place,
    pub(super) state: State,
    pub(super) companions: Vec<SlotId>,
    /// The number of the latest generation; 0 before the first.
    pub(super) generation: u64,
    /// The generation that new connections go to.
    pub(super) steered: Option<u64>,
    /// The generation that is being made.
    pub(super) making: Option<u64>,
    /// The request that the slot is set aside for, while its other slots are made ready.
    pub(super) promised: Option<RequestId>,
    /// Who waits to take it over.
    pub(super) standby: Option<Standby>,
    /// While it restarts: what its former holder called itself.
    pub(super) former_label: Option<Label>,
    pub(super) shuts: Shuts,
    /// While it is parked: the listener of who gave it back.
    pub(super) rest: Option<Rest>,
    pub(super) draining: bool,
    /// [`Effect::Hold`] is not answered yet.
    pub(super) holding: bool,
}

/// A successor that is not ready, and its listener.
#[derive(Debug, Clone, Copy)]
pub(super) struct Standby {
    pub(super) lease: LeaseId,
    pub(super) generation: u64,
}

impl Slot {
    pub(super) fn new(place: Place) -> Slot {
        Slot {
            place,
            state: State::Unheld(Obstacle::Untried),
            companions: Vec::new(),
            generation: 0,
            steered: None,
            making: None,
            promised: None,
            standby: None,
            former_label: None,
            shuts: Shuts::default(),
            rest: None,
            draining: false,
            holding: false,
        }
    }

    /// Whether nobody is about to change it.
    pub(super) fn is_settled(&self) -> bool {
        self.making.is_none() && self.promised.is_none()
    }
}

impl Ledger {
    pub(super) fn held(&mut self, slot: SlotId) {
        self.slot_mut(slot).holding = false;
        if !matches!(self.state(slot), State::Unheld(_)) {
            return;
        }
        if self.wants_held(slot) {
            self.change(slot, State::Parked, None, Reason::Held);
        } else {
            self.effects.push(Effect::Drop(slot));
        }
    }

    pub(super) fn obstructed(&mut self, slot: SlotId, obstacle: Obstacle) {
        self.slot_mut(slot).holding = false;
        let is_free = match self.state(slot) {
            State::Unheld(_) | State::Parked | State::Queueing => self.slot(slot).is_settled(),
            _ => false,
        };
        if is_free && self.wants_held(slot) {
            self.end_steered(slot);
            self.change(slot, State::Unheld(obstacle), None, Reason::Obstructed);
        }
    }

    pub(super) fn hostage(&mut self, slot: SlotId) {
        let is_free = matches!(self.state(slot), State::Unheld(_) | State::Parked);
        if is_free && self.slot(slot).is_settled() && self.wants_held(slot) {
            self.end_rest(slot);
            self.change(slot, State::Hostage, None, Reason::Hostage);
        }
    }

    pub(super) fn freed(&mut self, slot: SlotId) {
        if self.state(slot) == State::Hostage {
            self.change(slot, State::Parked, None, Reason::Freed);
        }
    }

    pub(super) fn drain(&mut self, slot: SlotId) {
        for member in self.group(self.main(slot)) {
            self.slot_mut(member).draining = true;
            self.drop_unless_used(member, Reason::Drained);
        }
    }

    /// Drops a slot that is not wanted any more, unless a lease, or a successor, has yet to end.
    pub(super) fn drop_unless_used(&mut self, slot: SlotId, reason: Reason) {
        if self.slot(slot).promised.is_some() {
            return;
        }
        match self.state(slot) {
            State::Leased(_) => {}
            // A claim may come back for it within the window; a drained pool never does.
            State::Restarting { .. } if !self.is_draining(slot) => {}
            State::Unheld(Obstacle::Untried) => {}
            _ => self.vacate(slot, None, reason),
        }
    }

    /// Ends what the slot listens with and makes it free, or drops it if it is not wanted.
    pub(super) fn vacate(&mut self, slot: SlotId, holder: Option<HolderId>, reason: Reason) {
        self.end_steered(slot);
        if let Some(generation) = self.slot_mut(slot).making.take() {
            self.effects.push(Effect::End(slot, generation));
        }
        if self.wants_held(slot) {
            self.change(slot, State::Parked, holder, reason);
        } else {
            self.effects.push(Effect::Drop(slot));
            let to = State::Unheld(Obstacle::Untried);
            self.change(slot, to, holder, reason);
        }
    }

    /// Lets clients wait at the slots that nobody took although they are free now.
    pub(super) fn queue_on_idle_slots(&mut self) {
        for slot in std::mem::take(&mut self.idle) {
            if self.queues(slot)
                && self.state(slot) == State::Parked
                && self.slot(slot).is_settled()
            {
                self.make_generation(slot);
            }
        }
    }

    pub(super) fn make_generation(&mut self, slot: SlotId) {
        self.end_rest(slot);
        let known = self.slot_mut(slot);
        known.generation += 1;
        known.making = Some(known.generation);
        let generation = known.generation;
        self.effects.push(Effect::Listen(slot, generation));
    }

    /// Steers to the first generation of a slot that has none.
    pub(super) fn steer(&mut self, slot: SlotId, generation: u64) {
        self.slot_mut(slot).steered = Some(generation);
        self.effects.push(Effect::Steer(slot, generation));
    }

    fn end_steered(&mut self, slot: SlotId) {
        self.end_rest(slot);
        if let Some(generation) = self.slot_mut(slot).steered.take() {
            self.effects.push(Effect::End(slot, generation));
        }
    }

    pub(super) fn change(
        &mut self,
        slot: SlotId,
        to: State,
        holder: Option<HolderId>,
        reason: Reason,
    ) {
        let from = std::mem::replace(&mut self.slot_mut(slot).state, to);
        if let State::Restarting { until, .. } = from {
            self.windows.remove(&(until, slot));
        }
        if let State::Restarting { until, .. } = to {
            self.windows.insert((until, slot));
        }
        if !matches!(to, State::Leased(_) | State::Restarting { .. }) {
            self.forget_shuts(slot);
        }
        if to == State::Parked {
            self.idle.push(slot);
        }
        if from != to {
            self.effects.push(Effect::Changed(Change {
                slot,
                from,
                to,
                holder,
                reason,
            }));
        }
    }

    /// Tells of what happened to a slot that is what it was.
    pub(super) fn remark(&mut self, slot: SlotId, holder: Option<HolderId>, reason: Reason) {
        let state = self.state(slot);
        self.effects.push(Effect::Changed(Change {
            slot,
            from: state,
            to: state,
            holder,
            reason,
        }));
    }

    pub(super) fn slot(&self, slot: SlotId) -> &Slot {
        &self.slots[slot.0 as usize]
    }

    pub(super) fn slot_mut(&mut self, slot: SlotId) -> &mut Slot {
        let known = &mut self.slots[slot.0 as usize];
        self.touched.add(known.place.pool, known.place.instance);
        known
    }

    pub(super) fn rules(&self, pool: PoolId) -> Rules {
        self.rules.get(pool.0 as usize).copied().unwrap_or_default()
    }

    /// Whether clients may wait there while nobody has the slot.
    pub(super) fn queues(&self, slot: SlotId) -> bool {
        self.rules(self.place(slot).pool).unleased == Unleased::Queue
    }

    pub(super) fn is_draining(&self, slot: SlotId) -> bool {
        self.slot(slot).draining
    }

    /// The slot that a companion goes with, or the slot itself.
    pub(super) fn main(&self, slot: SlotId) -> SlotId {
        self.place(slot).companion_of.unwrap_or(slot)
    }

    /// The slot with its companions.
    pub(super) fn group(&self, slot: SlotId) -> Vec<SlotId> {
        let companions = self.companions(slot).iter().copied();
        std::iter::once(slot).chain(companions).collect()
    }

    /// Whether a condition holds for the slot and its companions.
    pub(super) fn whole_group(&self, slot: SlotId, condition: impl Fn(&Slot) -> bool) -> bool {
        condition(self.slot(slot))
            && self
                .companions(slot)
                .iter()
                .all(|companion| condition(self.slot(*companion)))
    }
}
