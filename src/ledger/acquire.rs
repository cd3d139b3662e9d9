//! From a request to its grant: pick slots, have their listeners made, give all or nothing.

use super::{
    Asker, Effect, HolderId, Instance, Lease, LeaseId, Ledger, Moment, Obstacle, PoolId, Reason,
    Refusal, RequestId, SlotId, State, Takeover, UserId, Wait, Want, Whom,
};

/// What a process asks for.
#[derive(Debug)]
pub(super) struct Request {
    /// Its place in the order of arrival.
    pub(super) ticket: u64,
    pub(super) id: RequestId,
    pub(super) asker: Asker,
    pub(super) instance: u16,
    pub(super) wants: Vec<Want>,
    pub(super) wait: Wait,
    pub(super) takeover: Option<Takeover>,
    /// The first lease that did not exist yet when it was asked.
    pub(super) before: LeaseId,
    /// It was found that it has to wait.
    pub(super) waiting: bool,
}

/// A request whose listeners are being made.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) request: Request,
    /// What was picked, in the order asked for; companions are not listed.
    picks: Vec<Pick>,
    /// The slots whose listeners are still being made, companions included.
    awaited: Vec<SlotId>,
}

/// A slot for a request, and how it gets it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pick {
    pub(super) slot: SlotId,
    pub(super) how: How,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    /// Nobody has it.
    Free,
    /// It was kept for this successor.
    Resumed,
    /// From its living holder.
    TakenOver,
}

impl Request {
    pub(super) fn deadline(&self) -> Option<Moment> {
        match self.wait {
            Wait::Until(moment) if self.waiting => Some(moment),
            _ => None,
        }
    }
}

impl Pending {
    pub(super) fn of_user(&self, user: UserId) -> bool {
        self.request.asker.user == user
    }

    /// How many leases it is about to have.
    pub(super) fn count(&self) -> usize {
        self.picks.len()
    }
}

impl Ledger {
    /// Takes the request in; [`Ledger::serve`] decides on it like on all others.
    pub(super) fn acquire(
        &mut self,
        id: RequestId,
        asker: Asker,
        instance: Instance,
        wants: Vec<Want>,
        wait: Wait,
        takeover: Option<Takeover>,
    ) {
        let instance = match self.enter(&asker, instance, &wants) {
            Ok(instance) => instance,
            Err(refusal) => {
                self.effects.push(Effect::Refuse(id, refusal));
                return;
            }
        };
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        let request = Request {
            ticket,
            id,
            asker,
            instance,
            wants,
            wait,
            takeover,
            before: LeaseId(self.next_lease),
            waiting: false,
        };
        self.queue.insert(ticket, request);
    }

    /// The next slot of the pool for this request; `Ok(None)` if there is none. A free one is
    /// not for it while earlier requests wait for the pool.
    ///
    /// # Errors
    /// Why waiting would not help.
    pub(super) fn pick(
        &self,
        request: &Request,
        pool: PoolId,
        picked: &[Pick],
        may_take_free: bool,
    ) -> Result<Option<Pick>, Refusal> {
        let asker = &request.asker;
        let mut slots: Vec<SlotId> = self.slots_of(pool, request.instance).collect();
        slots.retain(|slot| picked.iter().all(|pick| pick.slot != *slot));

        if let Some(slot) = self.kept_for(asker, &slots) {
            let how = How::Resumed;
            return Ok(Some(Pick { slot, how }));
        }
        let taken_over = |slot| {
            let how = How::TakenOver;
            Ok(Some(Pick { slot, how }))
        };
        if request.takeover.is_some()
            && let Some(slot) = self.to_take_over(request, &slots, true)?
        {
            return taken_over(slot);
        }
        let mut free = slots.iter().copied().filter(|slot| self.is_free(*slot));
        if may_take_free && let Some(slot) = free.next() {
            let how = How::Free;
            return Ok(Some(Pick { slot, how }));
        }
        if matches!(request.takeover, Some(takeover) if takeover.whom != Whom::Kin)
            && let Some(slot) = self.to_take_over(request, &slots, false)?
        {
            return taken_over(slot);
        }
        Ok(None)
    }

    fn is_free(&self, slot: SlotId) -> bool {
        let is_free = |member: &super::slots::Slot| {
            matches!(member.state, State::Parked | State::Queueing) && member.is_settled()
        };
        !self.is_draining(slot) && self.whole_group(slot, is_free)
    }

    /// Sets the slots aside and has the listeners made that are missing.
    pub(super) fn begin(&mut self, request: Request, picks: Vec<Pick>) {
        let mut awaited = Vec::new();
        for pick in &picks {
            for member in self.group(pick.slot) {
                self.slot_mut(member).promised = Some(request.id);
                if self.needs_listener(member, pick.how, request.asker.holder) {
                    self.make_generation(member);
                    awaited.push(member);
                }
            }
        }
        let pending = Pending {
            request,
            picks,
            awaited,
        };
        self.grant_when_made(pending);
    }

    /// What is queueing or restarting listens already, and nobody else has that listener.
    fn needs_listener(&self, slot: SlotId, how: How, holder: HolderId) -> bool {
        let is_parked = self.state(slot) == State::Parked && !self.rests_for(slot, holder);
        how == How::TakenOver || is_parked
    }

    pub(super) fn listening(&mut self, slot: SlotId, generation: u64) {
        if self.slot(slot).making != Some(generation) {
            self.healed(slot, generation);
            return;
        }
        self.slot_mut(slot).making = None;
        if let Some(mut pending) = self.take_pending_of(slot) {
            pending.awaited.retain(|awaited| *awaited != slot);
            self.grant_when_made(pending);
        } else if self.state(slot) == State::Parked && !self.queues(slot) {
            // The rules changed meanwhile.
            self.effects.push(Effect::End(slot, generation));
        } else if self.state(slot) == State::Parked {
            self.steer(slot, generation);
            self.change(slot, State::Queueing, None, Reason::Queueing);
        } else {
            self.renewed(slot, generation);
        }
    }

    pub(super) fn not_listening(&mut self, slot: SlotId, generation: u64, obstacle: Obstacle) {
        if self.slot(slot).making != Some(generation) {
            self.not_healed(slot, generation);
            return;
        }
        self.slot_mut(slot).making = None;
        let Some(pending) = self.take_pending_of(slot) else {
            self.not_renewed(slot, obstacle);
            return;
        };
        let main = self.main(slot);
        let is_takeover = |pick: &Pick| pick.slot == main && pick.how == How::TakenOver;
        if pending.picks.iter().any(is_takeover) {
            let request = self.give_up(pending);
            self.refuse(request, Refusal::CannotListen(slot, obstacle));
            return;
        }
        let request = self.give_up(pending);
        if self.wants_held(slot) {
            self.change(slot, State::Unheld(obstacle), None, Reason::Obstructed);
        }
        self.queue.insert(request.ticket, request);
    }

    pub(super) fn no_means(&mut self, slot: SlotId, generation: u64) {
        if self.slot(slot).making != Some(generation) {
            self.not_healed(slot, generation);
            return;
        }
        self.slot_mut(slot).making = None;
        match self.take_pending_of(slot) {
            Some(pending) => {
                let request = self.give_up(pending);
                self.refuse(request, Refusal::NoMeans);
            }
            None => self.not_renewed(slot, Obstacle::Unavailable),
        }
    }

    fn take_pending_of(&mut self, slot: SlotId) -> Option<Pending> {
        self.pending.remove(&self.slot(slot).promised?)
    }

    fn grant_when_made(&mut self, pending: Pending) {
        if pending.awaited.is_empty() {
            self.grant(pending);
        } else {
            self.pending.insert(pending.request.id, pending);
        }
    }

    fn grant(&mut self, Pending { request, picks, .. }: Pending) {
        let Request { id, asker, .. } = request;
        let mut granted = Vec::with_capacity(picks.len());
        for Pick { slot, how } in picks {
            let lease = LeaseId(self.next_lease);
            self.next_lease += 1;
            self.leases.insert(
                lease,
                Lease {
                    holder: asker.holder,
                    kin: asker.kin,
                    user: asker.user,
                    label: asker.label,
                    slot,
                    since: self.now,
                    standby: false,
                    resumed: how != How::Free,
                    is_uncertain: false,
                },
            );
            self.holders.entry(asker.holder).or_default().push(lease);
            *self.leases_of_users.entry(asker.user).or_default() += 1;
            self.forget_ex_holder(asker.holder, slot);
            for member in self.group(slot) {
                self.slot_mut(member).promised = None;
            }
            match (how, request.takeover) {
                (How::TakenOver, Some(takeover)) => self.take_over(slot, lease, takeover.when),
                (How::Resumed, _) => self.lease_out(slot, lease, Reason::Resumed),
                (How::Free | How::TakenOver, _) => self.lease_out(slot, lease, Reason::Acquired),
            }
            granted.push(lease);
        }
        self.effects.push(Effect::Grant(id, granted));
    }

    fn lease_out(&mut self, slot: SlotId, lease: LeaseId, reason: Reason) {
        let holder = self.lease(lease).map(|lease| lease.holder);
        for member in self.group(slot) {
            let generation = self.wake(member);
            if self.slot(member).steered.is_none() {
                self.steer(member, generation.unwrap_or(self.slot(member).generation));
            }
            self.change(member, State::Leased(lease), holder, reason);
        }
    }

    /// Gives back all that was set aside for a request, which has to be decided on anew.
    pub(super) fn give_up(&mut self, Pending { request, picks, .. }: Pending) -> Request {
        for Pick { slot, how } in picks {
            for member in self.group(slot) {
                let known = self.slot_mut(member);
                known.promised = None;
                let generation = known.generation;
                let is_made_for_it = self.needs_listener(member, how, request.asker.holder);
                self.end_rest_if_over(member);
                if is_made_for_it {
                    self.slot_mut(member).making = None;
                    self.effects.push(Effect::End(member, generation));
                }
                match self.state(member) {
                    State::Restarting { until, .. } if until <= self.now => {
                        self.vacate(member, None, Reason::WindowOver);
                    }
                    State::Parked if self.wants_held(member) => self.idle.push(member),
                    State::Queueing if self.wants_held(member) && !self.queues(member) => {
                        self.vacate(member, None, Reason::Reloaded);
                    }
                    State::Parked | State::Queueing if !self.wants_held(member) => {
                        self.drop_unless_used(member, Reason::InstanceOver);
                    }
                    _ => {}
                }
            }
        }
        request
    }

    pub(super) fn refuse(&mut self, request: Request, refusal: Refusal) {
        self.effects.push(Effect::Refuse(request.id, refusal));
        self.unclaim_if_unused(request.instance, request.asker.holder);
    }

    /// Decides anew on requests that would take the slot over: its holder has just lost it.
    pub(super) fn reconsider_takeovers_of(&mut self, slot: SlotId) {
        if let Some(pending) = self.take_pending_of(slot) {
            let request = self.give_up(pending);
            self.queue.insert(request.ticket, request);
        }
    }

    pub(super) fn exhausted(&self, pool: PoolId, instance: u16) -> Refusal {
        Refusal::Exhausted(pool, instance, self.slots_of(pool, instance).collect())
    }
}
