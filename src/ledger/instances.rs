//! Whose an instance is: claimed by one process for life, joined by its like.

use std::collections::BTreeSet;

use super::{
    Asker, Effect, HolderId, Instance, Ledger, Obstacle, Reason, Refusal, SlotId, State, UnitId,
    UserId, Want,
};

/// A process's claim to an instance.
#[derive(Debug)]
pub(super) struct Claim {
    pub(super) holder: HolderId,
    pub(super) user: UserId,
    pub(super) unit: Option<UnitId>,
}

impl Claim {
    fn admits(&self, asker: &Asker) -> bool {
        self.holder == asker.holder
            || self.user == asker.user && (self.unit.is_none() || self.unit == asker.unit)
    }
}

impl Ledger {
    /// The instance a request is about; one that is automatic is claimed with it.
    pub(super) fn enter(
        &mut self,
        asker: &Asker,
        instance: Instance,
        wants: &[Want],
    ) -> Result<u16, Refusal> {
        let number = match instance {
            Instance::Number(number) => number,
            Instance::Auto => match self.claim_of(asker.holder) {
                Some(number) => number,
                None => self.claim(asker, wants)?,
            },
            Instance::Unsaid => match (self.claim_of(asker.holder), self.claims.get(&1)) {
                (Some(own), _) => own,
                // Also one that admits the asker: to join another's instance is to be said.
                (None, Some(claim)) => return Err(Refusal::Claimed(1, claim.holder)),
                (None, None) => 1,
            },
        };
        self.may_enter(asker, number, wants)?;
        Ok(number)
    }

    /// Whether the asker may take slots of these pools in the instance.
    pub(super) fn may_enter(
        &self,
        asker: &Asker,
        instance: u16,
        wants: &[Want],
    ) -> Result<(), Refusal> {
        let claim = self.claims.get(&instance);
        for want in wants {
            let mut slots = self.slots_of(want.pool, instance);
            let is_held = |slot: SlotId| claim.is_some() || !self.place(slot).dormant;
            if !slots.next().is_some_and(is_held) {
                return Err(Refusal::UnknownInstance(want.pool, instance));
            }
        }
        match claim {
            Some(claim) if !claim.admits(asker) => Err(Refusal::Claimed(instance, claim.holder)),
            _ => Ok(()),
        }
    }

    /// Claims the instance where a slot was kept for the asker, or the lowest that is nobody's.
    fn claim(&mut self, asker: &Asker, wants: &[Want]) -> Result<u16, Refusal> {
        let in_use = self.in_use_but_for(asker);
        let has_all = |instance: &u16| {
            wants
                .iter()
                .all(|want| self.rotation.contains_key(&(want.pool, *instance)))
        };
        let instances = self.slots.iter().map(|slot| slot.place.instance);
        let instances: BTreeSet<u16> = instances
            .filter(|instance| !self.claims.contains_key(instance) && !in_use.contains(instance))
            .filter(has_all)
            .collect();
        let is_kept = |instance: &&u16| {
            wants.iter().any(|want| {
                let slots: Vec<_> = self.slots_of(want.pool, **instance).collect();
                self.kept_for(asker, &slots).is_some()
            })
        };
        let kept = instances.iter().find(is_kept);
        let number = *kept.or(instances.first()).ok_or(Refusal::NoInstance)?;

        self.claim_changes += 1;
        self.touched.add_everything();
        self.claims.insert(
            number,
            Claim {
                holder: asker.holder,
                user: asker.user,
                unit: asker.unit,
            },
        );
        for slot in self.dormant_slots(number) {
            let is_unheld = matches!(self.state(slot), State::Unheld(_));
            if is_unheld && self.wants_held(slot) && !self.slot(slot).holding {
                self.slot_mut(slot).holding = true;
                self.effects.push(Effect::Hold(slot));
            }
        }
        Ok(number)
    }

    /// The instances in which another has, or waits for, or will have again, a slot.
    fn in_use_but_for(&self, asker: &Asker) -> BTreeSet<u16> {
        let is_anothers = |state| match state {
            State::Leased(lease) => !self.is_lease_of(lease, asker.holder),
            State::Restarting { successor, .. } => successor != asker.kin,
            _ => false,
        };
        let slots = self.slots.iter().filter(|slot| is_anothers(slot.state));
        let requests = self
            .requests()
            .filter(|request| request.asker.holder != asker.holder);
        slots
            .map(|slot| slot.place.instance)
            .chain(requests.map(|request| request.instance))
            .collect()
    }

    fn claim_of(&self, holder: HolderId) -> Option<u16> {
        let mut claims = self.claims.iter();
        claims
            .find(|(_, claim)| claim.holder == holder)
            .map(|(number, _)| *number)
    }

    /// Ends a claim that brought its process nothing.
    pub(super) fn unclaim_if_unused(&mut self, instance: u16, holder: HolderId) {
        if self.claimed_by(instance) != Some(holder) {
            return;
        }
        let leases = self.holders.get(&holder).into_iter().flatten();
        let mut slots = leases.filter_map(|lease| Some(self.lease(*lease)?.slot));
        let has_slot = slots.any(|slot| self.place(slot).instance == instance);
        let asks = self
            .requests()
            .any(|request| request.asker.holder == holder && request.instance == instance);
        if !has_slot && !asks {
            self.unclaim(instance);
        }
    }

    pub(super) fn unclaim_all_of(&mut self, holder: HolderId) {
        if let Some(instance) = self.claim_of(holder) {
            self.unclaim(instance);
        }
    }

    fn unclaim(&mut self, instance: u16) {
        self.claim_changes += 1;
        self.touched.add_everything();
        self.claims.remove(&instance);
        for slot in self.dormant_slots(instance) {
            if self.state(slot) != State::Unheld(Obstacle::Untried) {
                self.drop_unless_used(slot, Reason::InstanceOver);
            }
        }
    }

    fn dormant_slots(&self, instance: u16) -> Vec<SlotId> {
        let is_dormant = |slot: &SlotId| {
            let place = self.place(*slot);
            place.dormant && place.instance == instance
        };
        self.slots().filter(is_dormant).collect()
    }
}
