//! From a request to its grant: choose slots, have their listeners made, give all or nothing.

use super::{
    Effect, HolderId, Lease, LeaseId, Ledger, Moment, Obstacle, PoolId, Reason, Refusal, RequestId,
    SlotId, State, Want,
};

/// A request whose listeners are being made.
#[derive(Debug)]
pub(super) struct Pending {
    holder: HolderId,
    instance: u16,
    /// The slots chosen, in the order asked for; their companions are not listed.
    chosen: Vec<SlotId>,
    /// The slots whose listeners are still being made, companions included.
    awaited: Vec<SlotId>,
}

impl Ledger {
    pub(super) fn acquire(
        &mut self,
        request: RequestId,
        holder: HolderId,
        instance: u16,
        wants: &[Want],
        effects: &mut Vec<Effect>,
    ) {
        let mut pending = Pending {
            holder,
            instance,
            chosen: Vec::new(),
            awaited: Vec::new(),
        };
        for want in wants {
            if !self.rotation.contains_key(&(want.pool, instance)) {
                self.give_up(&pending, effects);
                let refusal = Refusal::UnknownInstance(want.pool, instance);
                effects.push(Effect::Refuse(request, refusal));
                return;
            }
            for _ in 0..want.count {
                let Some(slot) = self.choose(want.pool, instance, request) else {
                    self.give_up(&pending, effects);
                    effects.push(Effect::Refuse(request, self.exhausted(want.pool, instance)));
                    return;
                };
                pending.chosen.push(slot);
            }
        }
        for slot in pending.chosen.clone() {
            self.start_listening(slot, &mut pending, effects);
        }
        self.pending.insert(request, pending);
    }

    pub(super) fn listening(
        &mut self,
        slot: SlotId,
        generation: u64,
        now: Moment,
        effects: &mut Vec<Effect>,
    ) {
        let Some((request, mut pending)) = self.take_request_of(slot, generation) else {
            return;
        };
        pending.awaited.retain(|awaited| *awaited != slot);
        if pending.awaited.is_empty() {
            self.grant(request, &pending, now, effects);
        } else {
            self.pending.insert(request, pending);
        }
    }

    pub(super) fn not_listening(
        &mut self,
        slot: SlotId,
        generation: u64,
        obstacle: Obstacle,
        effects: &mut Vec<Effect>,
    ) {
        let Some((request, mut pending)) = self.take_request_of(slot, generation) else {
            return;
        };
        let main = self.slot(slot).place.companion_of.unwrap_or(slot);
        let pool = self.slot(main).place.pool;
        let position = pending.chosen.iter().position(|chosen| *chosen == main);

        self.drop_group(main, effects);
        pending
            .awaited
            .retain(|awaited| matches!(self.state(*awaited), State::Preparing(_)));
        self.change(
            slot,
            State::Unheld(obstacle),
            None,
            Reason::Obstructed,
            effects,
        );

        match (position, self.choose(pool, pending.instance, request)) {
            (Some(position), Some(next)) => {
                pending.chosen[position] = next;
                self.start_listening(next, &mut pending, effects);
                self.pending.insert(request, pending);
            }
            _ => {
                pending.chosen.retain(|chosen| *chosen != main);
                self.give_up(&pending, effects);
                effects.push(Effect::Refuse(
                    request,
                    self.exhausted(pool, pending.instance),
                ));
            }
        }
    }

    pub(super) fn no_means(&mut self, slot: SlotId, generation: u64, effects: &mut Vec<Effect>) {
        if let Some((request, pending)) = self.take_request_of(slot, generation) {
            self.give_up(&pending, effects);
            effects.push(Effect::Refuse(request, Refusal::NoMeans));
        }
    }

    pub(super) fn abandon_requests_of(&mut self, holder: HolderId, effects: &mut Vec<Effect>) {
        let theirs = |(_, pending): &(&RequestId, &Pending)| pending.holder == holder;
        let requests: Vec<_> = self
            .pending
            .iter()
            .filter(theirs)
            .map(|(id, _)| *id)
            .collect();
        for request in requests {
            if let Some(pending) = self.pending.remove(&request) {
                self.give_up(&pending, effects);
                effects.push(Effect::Refuse(request, Refusal::HolderGone));
            }
        }
    }

    /// The first free slot in the order of ports, now set aside for `request`.
    fn choose(&mut self, pool: PoolId, instance: u16, request: RequestId) -> Option<SlotId> {
        let rotation = self.rotation.get(&(pool, instance))?;
        let is_free = |slot: &SlotId| {
            let group = std::iter::once(slot).chain(self.companions(*slot));
            group
                .into_iter()
                .all(|member| self.state(*member) == State::Parked)
        };
        let slot = rotation.iter().copied().find(is_free)?;
        for member in self.group(slot) {
            self.set(member, State::Preparing(request));
        }
        Some(slot)
    }

    fn start_listening(&mut self, slot: SlotId, pending: &mut Pending, effects: &mut Vec<Effect>) {
        for member in self.group(slot) {
            let generation = self.next_generation(member);
            pending.awaited.push(member);
            effects.push(Effect::Listen(member, generation));
        }
    }

    /// The request that the slot's listener is made for; `None` for a listener given up meanwhile.
    fn take_request_of(&mut self, slot: SlotId, generation: u64) -> Option<(RequestId, Pending)> {
        let State::Preparing(request) = self.state(slot) else {
            return None;
        };
        if self.generation(slot) != generation {
            return None;
        }
        self.pending.remove_entry(&request)
    }

    fn grant(
        &mut self,
        request: RequestId,
        pending: &Pending,
        now: Moment,
        effects: &mut Vec<Effect>,
    ) {
        let holder = pending.holder;
        let mut granted = Vec::with_capacity(pending.chosen.len());
        for slot in &pending.chosen {
            let lease = LeaseId(self.next_lease);
            self.next_lease += 1;
            self.leases.insert(
                lease,
                Lease {
                    holder,
                    slot: *slot,
                    since: now,
                },
            );
            self.holders.entry(holder).or_default().push(lease);
            for member in self.group(*slot) {
                let leased = State::Leased(lease);
                self.change(member, leased, Some(holder), Reason::Acquired, effects);
            }
            granted.push(lease);
        }
        effects.push(Effect::Grant(request, granted));
    }

    /// Parks all that was chosen for a request that gets nothing.
    fn give_up(&mut self, pending: &Pending, effects: &mut Vec<Effect>) {
        for slot in &pending.chosen {
            self.drop_group(*slot, effects);
        }
    }

    /// Parks a chosen slot and its companions, ending the listeners that may have been made.
    fn drop_group(&mut self, slot: SlotId, effects: &mut Vec<Effect>) {
        for member in self.group(slot) {
            if matches!(self.state(member), State::Preparing(_)) {
                self.set(member, State::Parked);
                effects.push(Effect::End(member, self.generation(member)));
            }
        }
    }

    fn exhausted(&self, pool: PoolId, instance: u16) -> Refusal {
        let slots = self
            .rotation
            .get(&(pool, instance))
            .cloned()
            .unwrap_or_default();
        Refusal::Exhausted(pool, instance, slots)
    }
}
