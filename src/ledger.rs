//! Who has which slot: a pure state machine.
//!
//! An [`Event`] and the time go in, [`Effect`]s come out. The ledger opens no socket, knows no
//! process and reads no clock, so a hundred thousand random histories of it can be run in a
//! second. The agent carries the effects out and reports what came of them as further events:
//!
//! ```text
//! Acquire -> Listen(slot, generation) -> Listening    -> Grant
//!                                     -> NotListening -> the next free slot, or Refuse
//! ```
//!
//! Names stay outside: a pool is a [`PoolId`], a process a [`HolderId`].

mod acquire;
#[cfg(test)]
mod histories;

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use acquire::Pending;

/// A moment: time since the machine's boot, `CLOCK_BOOTTIME` of clock_gettime(2).
pub type Moment = Duration;

/// A slot, by its place in the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotId(pub u32);

/// A pool, by its place in the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PoolId(pub u32);

/// A process that the agent knows by its pidfd. Never used twice, unlike a pid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HolderId(pub u64);

/// The exclusive right to one slot and its companions. Never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub u64);

/// One call that waits for its answer. Never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// Where a slot belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Its pool.
    pub pool: PoolId,
    /// The instance of the pool, from 1.
    pub instance: u16,
    /// The slot it goes with: a companion is taken and given back with it, never alone.
    pub companion_of: Option<SlotId>,
}

/// Why a slot is not held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Obstacle {
    /// Nobody tried to hold it yet.
    Untried,
    /// Somebody else had the port first.
    Conflict,
    /// The machine cannot give it: mostly, its address does not exist (yet).
    Unavailable,
}

/// What a slot is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Not held; it is tried again and again.
    Unheld(Obstacle),
    /// Held, not listening.
    Parked,
    /// A listener is being made for this request.
    Preparing(RequestId),
    /// Handed to a holder.
    Leased(LeaseId),
}

/// What a lease is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// Who has it.
    pub holder: HolderId,
    /// The slot; its companions go with it.
    pub slot: SlotId,
    /// Since when.
    pub since: Moment,
}

/// So many slots of one pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Want {
    /// The pool.
    pub pool: PoolId,
    /// How many of its slots, at least 1.
    pub count: u16,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The slot is held now.
    Held(SlotId),
    /// The slot could not be held, or is not held any more.
    Obstructed(SlotId, Obstacle),
    /// A process asks for slots: all of them, or none.
    Acquire {
        /// Names the answer.
        request: RequestId,
        /// Who asks.
        holder: HolderId,
        /// Of which instance.
        instance: u16,
        /// For what; slots of the same pool are given in the order of their ports.
        wants: Vec<Want>,
    },
    /// [`Effect::Listen`] was carried out.
    Listening(SlotId, u64),
    /// [`Effect::Listen`] failed.
    NotListening(SlotId, u64, Obstacle),
    /// [`Effect::Listen`] failed for want of descriptors or memory: nothing is wrong with the slot.
    NoMeans(SlotId, u64),
    /// A process gives a lease back.
    Release {
        /// Names the answer.
        request: RequestId,
        /// Who speaks.
        holder: HolderId,
        /// Which.
        lease: LeaseId,
    },
    /// What [`Effect::Grant`] gave never reached its holder.
    Undelivered(Vec<LeaseId>),
    /// The process is gone.
    Died(HolderId),
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Make this generation of the slot's listener; answer `Listening` or `NotListening`.
    Listen(SlotId, u64),
    /// End this generation: no copy of it may get another connection.
    End(SlotId, u64),
    /// The request has what it asked for, in the order in which it asked.
    Grant(RequestId, Vec<LeaseId>),
    /// The request gets nothing.
    Refuse(RequestId, Refusal),
    /// The lease was given back as the request asked.
    Released(RequestId),
    /// A slot changed; for the log and for those who watch.
    Changed(Change),
}

/// Why a request gets nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// Fewer free slots than asked for; the pool's slots in that instance.
    Exhausted(PoolId, u16, Vec<SlotId>),
    /// The plan has no such instance of the pool.
    UnknownInstance(PoolId, u16),
    /// The lease does not exist, or is somebody else's.
    UnknownLease(LeaseId),
    /// The asking process died before the answer.
    HolderGone,
    /// There are no descriptors, or there is no memory, for another listener.
    NoMeans,
}

/// A slot's way from one state to another, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// Which slot.
    pub slot: SlotId,
    /// What it was.
    pub from: State,
    /// What it is now.
    pub to: State,
    /// The holder concerned, where there is one.
    pub holder: Option<HolderId>,
    /// Why.
    pub reason: Reason,
}

/// Why a slot changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The agent holds it now.
    Held,
    /// Something is in the way.
    Obstructed,
    /// A process asked for it.
    Acquired,
    /// Its holder gave it back.
    Released,
    /// Its holder is gone.
    HolderDied,
    /// The handoff did not reach its holder.
    Undelivered,
}

/// The state machine; see the module's text.
#[derive(Debug)]
pub struct Ledger {
    slots: Vec<Slot>,
    /// The slots that can be asked for, in the order of their ports.
    rotation: HashMap<(PoolId, u16), Vec<SlotId>>,
    leases: HashMap<LeaseId, Lease>,
    holders: BTreeMap<HolderId, Vec<LeaseId>>,
    pending: BTreeMap<RequestId, Pending>,
    next_lease: u64,
}

#[derive(Debug)]
struct Slot {
    place: Place,
    state: State,
    generation: u64,
    companions: Vec<SlotId>,
}

impl Ledger {
    /// A ledger of slots that nobody tried to hold yet. The n-th place is `SlotId(n)`; a
    /// companion must come after the slot it goes with.
    pub fn new(places: &[Place]) -> Ledger {
        let mut ledger = Ledger {
            slots: Vec::with_capacity(places.len()),
            rotation: HashMap::new(),
            leases: HashMap::new(),
            holders: BTreeMap::new(),
            pending: BTreeMap::new(),
            next_lease: 1,
        };
        for (id, place) in (0..).map(SlotId).zip(places) {
            ledger.slots.push(Slot {
                place: *place,
                state: State::Unheld(Obstacle::Untried),
                generation: 0,
                companions: Vec::new(),
            });
            match place.companion_of {
                Some(main) => ledger.slots[main.0 as usize].companions.push(id),
                None => ledger
                    .rotation
                    .entry((place.pool, place.instance))
                    .or_default()
                    .push(id),
            }
        }
        ledger
    }

    /// Takes in what happened at `now` and says what is to be done, in this order.
    ///
    /// An event that does not fit (a listener that was given up meanwhile, a lease that ended
    /// already) changes nothing.
    pub fn apply(&mut self, event: Event, now: Moment) -> Vec<Effect> {
        let mut effects = Vec::new();
        match event {
            Event::Held(slot) => self.held(slot, &mut effects),
            Event::Obstructed(slot, obstacle) => self.obstructed(slot, obstacle, &mut effects),
            Event::Acquire {
                request,
                holder,
                instance,
                wants,
            } => {
                self.acquire(request, holder, instance, &wants, &mut effects);
            }
            Event::Listening(slot, generation) => {
                self.listening(slot, generation, now, &mut effects);
            }
            Event::NotListening(slot, generation, obstacle) => {
                self.not_listening(slot, generation, obstacle, &mut effects);
            }
            Event::NoMeans(slot, generation) => self.no_means(slot, generation, &mut effects),
            Event::Release {
                request,
                holder,
                lease,
            } => {
                self.release(request, holder, lease, &mut effects);
            }
            Event::Undelivered(leases) => {
                for lease in leases {
                    self.end(lease, Reason::Undelivered, &mut effects);
                }
            }
            Event::Died(holder) => self.died(holder, &mut effects),
        }
        effects
    }

    /// How many slots there are.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether the plan has no slot at all.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Every slot.
    pub fn slots(&self) -> impl Iterator<Item = SlotId> + use<> {
        let count = u32::try_from(self.slots.len()).unwrap_or(u32::MAX);
        (0..count).map(SlotId)
    }

    /// What a slot is.
    pub fn state(&self, slot: SlotId) -> State {
        self.slot(slot).state
    }

    /// The number of the slot's latest socket; 0 before the first.
    pub fn generation(&self, slot: SlotId) -> u64 {
        self.slot(slot).generation
    }

    /// Where the slot belongs.
    pub fn place(&self, slot: SlotId) -> Place {
        self.slot(slot).place
    }

    /// The slots of a pool in an instance that can be asked for, in the order of their ports.
    pub fn slots_of(&self, pool: PoolId, instance: u16) -> impl Iterator<Item = SlotId> + '_ {
        self.rotation
            .get(&(pool, instance))
            .into_iter()
            .flatten()
            .copied()
    }

    /// The slots that go with this one.
    pub fn companions(&self, slot: SlotId) -> &[SlotId] {
        &self.slot(slot).companions
    }

    /// A lease, while it lasts.
    pub fn lease(&self, lease: LeaseId) -> Option<&Lease> {
        self.leases.get(&lease)
    }

    /// Whether the process has a lease.
    pub fn holds_anything(&self, holder: HolderId) -> bool {
        self.holders.contains_key(&holder)
    }

    /// How many leases there are.
    pub fn lease_count(&self) -> usize {
        self.leases.len()
    }

    fn slot(&self, slot: SlotId) -> &Slot {
        &self.slots[slot.0 as usize]
    }

    /// The slot with its companions.
    fn group(&self, slot: SlotId) -> Vec<SlotId> {
        std::iter::once(slot)
            .chain(self.slot(slot).companions.iter().copied())
            .collect()
    }

    fn next_generation(&mut self, slot: SlotId) -> u64 {
        let slot = &mut self.slots[slot.0 as usize];
        slot.generation += 1;
        slot.generation
    }

    fn set(&mut self, slot: SlotId, state: State) {
        self.slots[slot.0 as usize].state = state;
    }

    fn change(
        &mut self,
        slot: SlotId,
        to: State,
        holder: Option<HolderId>,
        reason: Reason,
        effects: &mut Vec<Effect>,
    ) {
        // Preparing is nobody's business: seen from outside the slot is parked until it is leased.
        let from = match self.state(slot) {
            State::Preparing(_) => State::Parked,
            state => state,
        };
        self.set(slot, to);
        if from != to {
            effects.push(Effect::Changed(Change {
                slot,
                from,
                to,
                holder,
                reason,
            }));
        }
    }

    fn held(&mut self, slot: SlotId, effects: &mut Vec<Effect>) {
        if matches!(self.state(slot), State::Unheld(_)) {
            self.change(slot, State::Parked, None, Reason::Held, effects);
        }
    }

    fn obstructed(&mut self, slot: SlotId, obstacle: Obstacle, effects: &mut Vec<Effect>) {
        if matches!(self.state(slot), State::Unheld(_) | State::Parked) {
            self.change(
                slot,
                State::Unheld(obstacle),
                None,
                Reason::Obstructed,
                effects,
            );
        }
    }

    fn release(
        &mut self,
        request: RequestId,
        holder: HolderId,
        lease: LeaseId,
        effects: &mut Vec<Effect>,
    ) {
        if self
            .leases
            .get(&lease)
            .is_none_or(|known| known.holder != holder)
        {
            effects.push(Effect::Refuse(request, Refusal::UnknownLease(lease)));
            return;
        }
        self.end(lease, Reason::Released, effects);
        effects.push(Effect::Released(request));
    }

    fn died(&mut self, holder: HolderId, effects: &mut Vec<Effect>) {
        self.abandon_requests_of(holder, effects);
        for lease in self.holders.remove(&holder).unwrap_or_default() {
            self.end(lease, Reason::HolderDied, effects);
        }
    }

    /// Ends a lease: the slot's generation first, so that nobody sees it parked and served.
    fn end(&mut self, lease: LeaseId, reason: Reason, effects: &mut Vec<Effect>) {
        let Some(Lease { holder, slot, .. }) = self.leases.remove(&lease) else {
            return;
        };
        if let Some(leases) = self.holders.get_mut(&holder) {
            leases.retain(|other| *other != lease);
            if leases.is_empty() {
                self.holders.remove(&holder);
            }
        }
        for slot in self.group(slot) {
            effects.push(Effect::End(slot, self.generation(slot)));
            self.change(slot, State::Parked, Some(holder), reason, effects);
        }
    }
}
