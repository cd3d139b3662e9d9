//! Who has which slot: a pure state machine.
//!
//! An [`Event`] and the time go in, [`Effect`]s come out. The ledger opens no socket, knows no
//! process and reads no clock, so a hundred thousand random histories of it can be run in a
//! minute. The agent carries the effects out and reports what came of them as further events:
//!
//! ```text
//! Acquire -> Listen(slot, generation) -> Listening    -> Steer, Grant
//!                                     -> NotListening -> the next free slot, or Refuse
//! Died    -> its listener goes on for the successor, or End; then whoever waits is served
//! ```
//!
//! A generation is one listener of a slot. At most one of them is steered to: it gets the new
//! connections. A second one lives beside it only while a takeover waits for the successor.
//!
//! Names stay outside: a pool is a [`PoolId`], a process a [`HolderId`], what makes two lives of
//! a service one is its [`Kin`].

mod acquire;
mod ending;
mod events;
mod healing;
#[cfg(test)]
mod histories;
mod instances;
mod kept;
mod reload;
mod restart;
mod resting;
mod slots;
mod takeover;
mod views;
mod waiters;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

pub use events::{
    Asker, Change, Effect, Event, Instance, Notice, Reason, Refusal, Takeover, Wait, Want, When,
    Whom,
};
pub use kept::{KeptClaim, KeptSlot};
pub use waiters::MAX_WAITERS_PER_POOL;

use acquire::{Pending, Request};
use instances::Claim;
use slots::Slot;
use waiters::Touched;

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

/// What two lives of one service have in common: user and unit, or user and program where there
/// is no unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kin(pub u64);

/// What a process calls itself. It only breaks ties: anybody may say anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Label(pub u64);

/// A user, by uid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UserId(pub u32);

/// A unit of the system manager.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnitId(pub u64);

/// Where a slot belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Its pool.
    pub pool: PoolId,
    /// The instance of the pool, from 1.
    pub instance: u16,
    /// The slot it goes with: a companion is taken and given back with it, never alone.
    pub companion_of: Option<SlotId>,
    /// Of an instance beyond those held from the start: held only while somebody claims it.
    pub dormant: bool,
}

/// What a pool's configuration says about the life of its slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rules {
    /// How long a dead holder's slot is kept for its successor; zero: not at all.
    pub restart_window: Duration,
    /// What an unleased slot does with clients.
    pub unleased: Unleased,
}

/// How much one user may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quotas {
    /// Leases of all its processes.
    pub leases_per_user: usize,
    /// Requests of all its processes that wait.
    pub waiters_per_user: usize,
}

impl Default for Quotas {
    /// No bound.
    fn default() -> Quotas {
        Quotas {
            leases_per_user: usize::MAX,
            waiters_per_user: usize::MAX,
        }
    }
}

/// What an unleased slot does with clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Unleased {
    /// It is parked: they are refused at once.
    #[default]
    Refuse,
    /// It listens: they wait for the first holder.
    Queue,
}

/// Why a slot is not held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Obstacle {
    /// Nobody tried to hold it yet, or it is not to be held.
    Untried,
    /// Somebody else had the port first.
    Conflict,
    /// The machine cannot give it: mostly, its address does not exist (yet).
    Unavailable,
}

/// What a slot is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Not held; unless [`Obstacle::Untried`], it is tried again and again.
    Unheld(Obstacle),
    /// Held, not listening.
    Parked,
    /// Listening for its first holder; nobody but the agent has the listener.
    Queueing,
    /// Handed to a holder.
    Leased(LeaseId),
    /// Its holder died a moment ago. It goes on listening, for the successor alone.
    Restarting {
        /// When the queue is reset and others may have the slot.
        until: Moment,
        /// Who may take it until then.
        successor: Kin,
    },
    /// Held, but an ex-holder's copy blocks a new listener.
    Hostage,
}

/// What a lease is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// Who has it.
    pub holder: HolderId,
    /// What makes its holder's successor.
    pub kin: Kin,
    /// Its holder's user.
    pub user: UserId,
    /// What its holder calls itself.
    pub label: Option<Label>,
    /// The slot; its companions go with it.
    pub slot: SlotId,
    /// Since when.
    pub since: Moment,
    /// A takeover that is not ready: its listener is made but not steered to, and the slot is
    /// another's until [`Event::Ready`].
    pub standby: bool,
    /// It goes on with what another life had: what is queued is not to be lost.
    pub resumed: bool,
    /// It was granted by an agent before this one, which may have ended before its holder got it.
    pub is_uncertain: bool,
}

/// The state machine; see the module's text.
#[derive(Debug)]
pub struct Ledger {
    slots: Vec<Slot>,
    /// By [`PoolId`]; a pool beyond its end has the default rules.
    rules: Vec<Rules>,
    /// The slots that can be asked for, in the order of their ports.
    rotation: HashMap<(PoolId, u16), Vec<SlotId>>,
    leases: HashMap<LeaseId, Lease>,
    holders: BTreeMap<HolderId, Vec<LeaseId>>,
    leases_of_users: HashMap<UserId, usize>,
    quotas: Quotas,
    /// Living processes that lost a lease, and may have copies of its listeners.
    ex_holders: BTreeMap<HolderId, BTreeSet<SlotId>>,
    claims: BTreeMap<u16, Claim>,
    claim_changes: u64,
    /// What is not decided, by order of arrival.
    queue: BTreeMap<u64, Request>,
    /// What is decided: the listeners are being made.
    pending: BTreeMap<RequestId, Pending>,
    /// When restart windows end.
    windows: BTreeSet<(Moment, SlotId)>,
    /// When listeners that were shut too often are made to listen again.
    heals: BTreeSet<(Moment, SlotId)>,
    /// When listeners that rest are ended.
    rests: BTreeSet<(Moment, SlotId)>,
    lets_rest: bool,
    /// Slots that became free and may have to queue.
    idle: Vec<SlotId>,
    touched: Touched,
    next_lease: u64,
    next_ticket: u64,
    now: Moment,
    /// What this event has brought about so far.
    effects: Vec<Effect>,
}

impl Ledger {
    /// A ledger of slots that nobody tried to hold yet. The n-th place is `SlotId(n)`; a
    /// companion must come after the slot it goes with. The n-th rules are those of `PoolId(n)`,
    /// and the default ones those of any other pool.
    pub fn new(places: &[Place], rules: &[Rules]) -> Ledger {
        let mut ledger = Ledger {
            slots: Vec::with_capacity(places.len()),
            rules: rules.to_vec(),
            rotation: HashMap::new(),
            leases: HashMap::new(),
            holders: BTreeMap::new(),
            leases_of_users: HashMap::new(),
            quotas: Quotas::default(),
            ex_holders: BTreeMap::new(),
            claims: BTreeMap::new(),
            claim_changes: 0,
            queue: BTreeMap::new(),
            pending: BTreeMap::new(),
            windows: BTreeSet::new(),
            heals: BTreeSet::new(),
            rests: BTreeSet::new(),
            lets_rest: false,
            idle: Vec::new(),
            touched: Touched::default(),
            next_lease: 1,
            next_ticket: 1,
            now: Moment::ZERO,
            effects: Vec::new(),
        };
        for (id, place) in (0..).map(SlotId).zip(places) {
            ledger.slots.push(Slot::new(*place));
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

    /// The same ledger, with a bound to what one user may have.
    pub fn with_quotas(mut self, quotas: Quotas) -> Ledger {
        self.quotas = quotas;
        self
    }

    /// Takes in what happened at `now` and says what is to be done, in this order.
    ///
    /// An event that does not fit (a listener that was given up meanwhile, a lease that ended
    /// already) changes nothing.
    pub fn apply(&mut self, event: Event, now: Moment) -> Vec<Effect> {
        self.now = now;
        self.end_windows();
        self.heal_what_is_due();
        self.end_rests_that_are_over();
        match event {
            Event::Held(slot) => self.held(slot),
            Event::Obstructed(slot, obstacle) => self.obstructed(slot, obstacle),
            Event::Hostage(slot) => self.hostage(slot),
            Event::Freed(slot) => self.freed(slot),
            Event::Orphaned(slot) => self.orphaned(slot),
            Event::Drain(slot) => self.drain(slot),
            Event::Acquire {
                request,
                asker,
                instance,
                wants,
                wait,
                takeover,
            } => self.acquire(request, asker, instance, wants, wait, takeover),
            Event::Cancel(request) => self.cancel(request),
            Event::Listening(slot, generation) => self.listening(slot, generation),
            Event::NotListening(slot, generation, obstacle) => {
                self.not_listening(slot, generation, obstacle);
            }
            Event::NoMeans(slot, generation) => self.no_means(slot, generation),
            Event::Shut(slot, generation) => self.shut(slot, generation),
            Event::Ready {
                request,
                holder,
                lease,
            } => self.ready(request, holder, lease),
            Event::Release {
                request,
                holder,
                lease,
            } => self.release(request, holder, lease),
            Event::Revoke { request, lease } => self.revoke(request, lease),
            Event::Undelivered(leases) => {
                for lease in leases {
                    self.end(lease, Reason::Undelivered);
                }
            }
            Event::Died(holder) => self.died(holder),
            Event::Reloaded => self.reloaded(),
            Event::Restored => self.restored(),
            Event::TimePassed => {}
        }
        self.serve();
        while !self.idle.is_empty() {
            self.queue_on_idle_slots();
            // A slot whose listener is being made is not free: that may decide on a request.
            self.serve();
        }
        std::mem::take(&mut self.effects)
    }

    /// When [`Event::TimePassed`] is due, unless something else happens before.
    pub fn next_deadline(&self) -> Option<Moment> {
        let window = self.windows.first().map(|(at, _)| *at);
        let heal = self.heals.first().map(|(at, _)| *at);
        let waits = self.queue.values().filter_map(Request::deadline);
        let rest = self.rests.first().map(|(at, _)| *at);
        waits.chain(window).chain(heal).chain(rest).min()
    }
}
