//! A plan that changes while slots are held: what stays is not touched, what goes drains.

use super::slots::Slot;
use super::{Ledger, Obstacle, Place, PoolId, Quotas, Reason, Rules, SlotId, State};

impl Ledger {
    /// Adds a slot that nobody tried to hold yet; its id is the next after the last one there was.
    /// A companion comes after the slot it goes with. It takes its turn in the rotation with
    /// [`Ledger::order`].
    pub fn add(&mut self, place: Place) {
        let id = SlotId(u32::try_from(self.slots.len()).unwrap_or(u32::MAX));
        self.slots.push(Slot::new(place));
        if let Some(main) = place.companion_of {
            self.slot_mut(main).companions.push(id);
        }
    }

    /// From now on the slots of a pool in an instance are given in this order; those that are
    /// draining come after them.
    pub fn order(&mut self, pool: PoolId, instance: u16, slots: Vec<SlotId>) {
        let known = self
            .slots_of(pool, instance)
            .collect::<Vec<_>>()
            .into_iter();
        let gone = known.filter(|slot| !slots.contains(slot) && self.is_in_use(*slot));
        let all: Vec<SlotId> = slots.iter().copied().chain(gone).collect();
        match all.is_empty() {
            true => drop(self.rotation.remove(&(pool, instance))),
            false => drop(self.rotation.insert((pool, instance), all)),
        }
    }

    /// From now on the pools have these rules, the n-th those of `PoolId(n)`. Windows that have
    /// begun end when they were to end.
    pub fn set_rules(&mut self, rules: &[Rules]) {
        self.rules = rules.to_vec();
    }

    /// From now on a user may have so much. What it has more, it keeps.
    pub fn set_quotas(&mut self, quotas: Quotas) {
        self.quotas = quotas;
    }

    /// A slot is in the plan, also if it was draining: held from the start, or, if it is dormant,
    /// while its instance is claimed. [`super::Event::Reloaded`] follows.
    pub fn keep(&mut self, slot: SlotId, is_dormant: bool) {
        for member in self.group(self.main(slot)) {
            let known = self.slot_mut(member);
            known.draining = false;
            known.place.dormant = is_dormant;
        }
    }

    /// The plan is another one now: what is free follows the new rules.
    pub(super) fn reloaded(&mut self) {
        self.touched.add_everything();
        for slot in self.slots() {
            if !self.slot(slot).is_settled() {
                continue;
            }
            let queues = self.queues(slot);
            match self.state(slot) {
                _ if !self.wants_held(slot) => self.drop_unless_used(slot, Reason::Drained),
                State::Queueing if !queues => self.vacate(slot, None, Reason::Reloaded),
                State::Parked if queues => self.idle.push(slot),
                _ => {}
            }
        }
    }

    /// Whether the slot is not in the plan any more, and goes when its lease ends.
    pub fn drains(&self, slot: SlotId) -> bool {
        self.is_draining(slot)
    }

    /// Every instance of a pool in which there is a slot to ask for.
    pub fn instances_of(&self, pool: PoolId) -> Vec<u16> {
        let of_pool = self.rotation.keys().filter(|(known, _)| *known == pool);
        of_pool.map(|(_, instance)| *instance).collect()
    }

    /// Whether the pool is in the plan, or has a slot that is still draining.
    pub fn has_pool(&self, pool: PoolId) -> bool {
        let of_pool = self
            .rotation
            .iter()
            .filter(|((known, _), _)| *known == pool);
        let mut slots = of_pool.flat_map(|(_, slots)| slots);
        slots.any(|slot| !self.is_draining(*slot) || self.is_in_use(*slot))
    }

    fn is_in_use(&self, slot: SlotId) -> bool {
        self.state(slot) != State::Unheld(Obstacle::Untried)
    }
}
