//! The order in which requests get their turn.
//!
//! Every request goes through the queue, also one that does not wait: so none overtakes. A
//! waiter holds nothing. It is granted once all it wants can be had and no earlier one wants any
//! of those pools. What is kept for a successor, or taken over, is taken from no waiter.

use std::collections::BTreeSet;

use super::acquire::{How, Pending, Pick, Request};
use super::{HolderId, Ledger, PoolId, Refusal, RequestId, SlotId, Wait};

/// How many requests may wait for one pool.
pub const MAX_WAITERS_PER_POOL: usize = 64;

enum Decision {
    /// These are its slots.
    Take(Vec<Pick>),
    /// It has to wait for others.
    Wait,
    /// It cannot be decided before the kernel has answered.
    Later,
    /// It gets nothing.
    Refuse(Refusal),
}

/// The pools that earlier requests want, by instance.
#[derive(Default)]
struct Earlier {
    waiting: Vec<(PoolId, u16)>,
    /// Of those that are not decided, with the order of arrival.
    undecided: Vec<(u64, PoolId, u16)>,
}

/// The pools, by instance, of which anything has changed that a waiter may have waited for.
#[derive(Debug, Default)]
pub(super) struct Touched {
    places: BTreeSet<(PoolId, u16)>,
    /// All of them.
    everything: bool,
}

impl Touched {
    pub(super) fn add(&mut self, pool: PoolId, instance: u16) {
        self.places.insert((pool, instance));
    }

    pub(super) fn add_everything(&mut self) {
        self.everything = true;
    }

    /// What the request wants, or holds up others for.
    fn add_wanted(&mut self, request: &Request) {
        for want in &request.wants {
            self.add(want.pool, request.instance);
        }
    }

    fn concerns(&self, request: &Request) -> bool {
        let mut wants = request.wants.iter();
        self.everything || wants.any(|want| self.places.contains(&(want.pool, request.instance)))
    }
}

impl Ledger {
    /// Gives every request its turn until nothing changes any more.
    pub(super) fn serve(&mut self) {
        while self.serve_once() {}
    }

    fn serve_once(&mut self) -> bool {
        if self.queue.is_empty() {
            return false;
        }
        let mut earlier = Earlier::default();
        for pending in self.pending.values() {
            earlier.undecided(&pending.request);
        }
        let touched = std::mem::take(&mut self.touched);
        let mut served = false;
        for ticket in self.queue.keys().copied().collect::<Vec<_>>() {
            let Some(mut request) = self.queue.remove(&ticket) else {
                continue;
            };
            let is_due = request.deadline().is_some_and(|at| at <= self.now);
            // Of what a waiter wants nothing has changed: it goes on waiting.
            let decision = match request.waiting && !is_due && !touched.concerns(&request) {
                true => Decision::Wait,
                false => self.decide(&request, &earlier),
            };
            if let Decision::Take(_) | Decision::Refuse(_) = decision {
                self.touched.add_wanted(&request);
            }
            match decision {
                Decision::Take(picks) => {
                    served = true;
                    earlier.undecided(&request);
                    self.begin(request, picks);
                }
                Decision::Refuse(refusal) => {
                    served = true;
                    self.refuse(request, refusal);
                }
                Decision::Later => {
                    earlier.undecided(&request);
                    self.queue.insert(ticket, request);
                }
                Decision::Wait => {
                    request.waiting = true;
                    let wanted = request.wants.iter().map(|want| want.pool);
                    earlier
                        .waiting
                        .extend(wanted.map(|pool| (pool, request.instance)));
                    self.queue.insert(ticket, request);
                }
            }
        }
        served
    }

    fn decide(&self, request: &Request, earlier: &Earlier) -> Decision {
        let instance = request.instance;
        if let Err(refusal) = self.may_enter(&request.asker, instance, &request.wants) {
            return Decision::Refuse(refusal);
        }
        let wanted = request.wants.iter().map(|want| usize::from(want.count));
        if let Err(refusal) = self.may_have_more(request, wanted.sum()) {
            return Decision::Refuse(refusal);
        }
        let is_being_held = |slot: SlotId| !self.whole_group(slot, |member| !member.holding);
        let mut picks = Vec::new();
        let mut undecided = None;
        for want in &request.wants {
            if self
                .slots_of(want.pool, instance)
                .all(|slot| self.is_draining(slot))
            {
                return Decision::Refuse(Refusal::Draining(want.pool));
            }
            if self.slots_of(want.pool, instance).any(is_being_held) {
                return self.later(request, want.pool);
            }
            let is_wanted = earlier.waiting.contains(&(want.pool, instance));
            for _ in 0..want.count {
                let pick = match self.pick(request, want.pool, &picks, !is_wanted) {
                    Ok(Some(pick)) => pick,
                    Ok(None) => return self.lacks(request, want.pool),
                    Err(refusal) => return Decision::Refuse(refusal),
                };
                let is_free = pick.how == How::Free;
                if is_free && earlier.is_undecided(request.ticket, want.pool, instance) {
                    undecided = Some(want.pool);
                }
                picks.push(pick);
            }
        }
        match undecided {
            Some(pool) => self.later(request, pool),
            None => Decision::Take(picks),
        }
    }

    /// A waiter's time may be over before the kernel has answered; one that does not wait at all
    /// waits for that.
    fn later(&self, request: &Request, pool: PoolId) -> Decision {
        match request.deadline() {
            Some(deadline) if deadline <= self.now => {
                Decision::Refuse(self.exhausted(pool, request.instance))
            }
            _ => Decision::Later,
        }
    }

    /// What becomes of a request that cannot have what it wants of this pool now.
    fn lacks(&self, request: &Request, pool: PoolId) -> Decision {
        let is_over = match request.wait {
            Wait::No => true,
            Wait::Until(deadline) => deadline <= self.now,
            Wait::Forever => false,
        };
        if is_over {
            return Decision::Refuse(self.exhausted(pool, request.instance));
        }
        if !request.waiting {
            let is_full = |pool: &PoolId| self.waiting_for(*pool) >= MAX_WAITERS_PER_POOL;
            let mut wanted = request.wants.iter().map(|want| want.pool);
            if let Some(pool) = wanted.find(is_full) {
                return Decision::Refuse(Refusal::Busy(pool));
            }
            if let Err(refusal) = self.may_wait(request) {
                return Decision::Refuse(refusal);
            }
        }
        Decision::Wait
    }

    fn may_have_more(&self, request: &Request, wanted: usize) -> Result<(), Refusal> {
        let user = request.asker.user;
        let has = self.leases_of_users.get(&user).copied().unwrap_or(0);
        let pending = self.pending.values().filter(|it| it.of_user(user));
        let has = has + pending.map(Pending::count).sum::<usize>();
        let most = self.quotas.leases_per_user;
        match request.asker.is_exempt || has.saturating_add(wanted) <= most {
            true => Ok(()),
            false => Err(Refusal::TooManyLeases(most)),
        }
    }

    fn may_wait(&self, request: &Request) -> Result<(), Refusal> {
        let user = request.asker.user;
        let is_its = |other: &&Request| other.waiting && other.asker.user == user;
        let most = self.quotas.waiters_per_user;
        match request.asker.is_exempt || self.queue.values().filter(is_its).count() < most {
            true => Ok(()),
            false => Err(Refusal::TooManyWaiters(most)),
        }
    }

    pub(super) fn cancel(&mut self, request: RequestId) {
        self.drop_requests(|known| known.id == request, &Refusal::Cancelled);
    }

    pub(super) fn forget_requests_of(&mut self, holder: HolderId) {
        self.drop_requests(
            |request| request.asker.holder == holder,
            &Refusal::HolderGone,
        );
    }

    fn drop_requests(&mut self, condition: impl Fn(&Request) -> bool, refusal: &Refusal) {
        let queued = self.queue.values().filter(|request| condition(request));
        for ticket in queued.map(|request| request.ticket).collect::<Vec<_>>() {
            if let Some(request) = self.queue.remove(&ticket) {
                self.touched.add_wanted(&request);
                self.refuse(request, refusal.clone());
            }
        }
        let pending = self.pending.values().map(|pending| &pending.request);
        let pending = pending.filter(|request| condition(request));
        for id in pending.map(|request| request.id).collect::<Vec<_>>() {
            if let Some(pending) = self.pending.remove(&id) {
                let request = self.give_up(pending);
                self.refuse(request, refusal.clone());
            }
        }
    }

    /// All requests that are not answered.
    pub(super) fn requests(&self) -> impl Iterator<Item = &Request> {
        let pending = self.pending.values().map(|pending| &pending.request);
        self.queue.values().chain(pending)
    }

    pub(super) fn has_request(&self, holder: HolderId) -> bool {
        self.requests()
            .any(|request| request.asker.holder == holder)
    }
}

impl Earlier {
    fn undecided(&mut self, request: &Request) {
        let wanted = request.wants.iter().map(|want| want.pool);
        self.undecided
            .extend(wanted.map(|pool| (request.ticket, pool, request.instance)));
    }

    fn is_undecided(&self, ticket: u64, pool: PoolId, instance: u16) -> bool {
        self.undecided
            .iter()
            .any(|(other, wanted, of)| *other < ticket && (*wanted, *of) == (pool, instance))
    }
}
