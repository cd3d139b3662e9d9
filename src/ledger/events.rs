//! What the ledger is told, and what it says: the words between it and the agent.

use super::{
    HolderId, Kin, Label, LeaseId, Moment, Obstacle, PoolId, RequestId, SlotId, State, UnitId,
    UserId,
};

/// So many slots of one pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Want {
    /// The pool.
    pub pool: PoolId,
    /// How many of its slots, at least 1.
    pub count: u16,
}

/// A process that asks, as the kernel knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asker {
    /// The process.
    pub holder: HolderId,
    /// What makes its successor.
    pub kin: Kin,
    /// Its user.
    pub user: UserId,
    /// Its unit, under the system manager.
    pub unit: Option<UnitId>,
    /// What it calls itself.
    pub label: Option<Label>,
    /// No quota is for it.
    pub is_exempt: bool,
}

/// Which instance a process asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Instance {
    /// It did not say: the one it has claimed, else 1 unless another has claimed that.
    Unsaid,
    /// This one.
    Number(u16),
    /// The lowest that is nobody's, which is then its own for life.
    Auto,
}

/// How long a request waits for what is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Not at all.
    No,
    /// Until then.
    Until(Moment),
    /// For ever.
    Forever,
}

/// That a process takes a slot over from its living holder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Takeover {
    /// From which moment new connections are its own.
    pub when: When,
    /// From whom.
    pub whom: Whom,
}

/// When a takeover happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// With the grant.
    Now,
    /// With [`Event::Ready`]; until then nothing has changed.
    Ready,
}

/// From whom a slot may be taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whom {
    /// A holder of the same kin.
    Kin,
    /// A holder of the same user, if there is none of the same kin and no slot is free.
    User,
    /// Any holder, if there is none of the same kin and no slot is free.
    Anyone,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The slot is held now.
    Held(SlotId),
    /// The slot could not be held, or is not held any more.
    Obstructed(SlotId, Obstacle),
    /// An ex-holder's copy keeps a slot that is held from listening again.
    Hostage(SlotId),
    /// That is over.
    Freed(SlotId),
    /// Somebody has a copy of the listener of a slot that is queueing or restarting.
    Orphaned(SlotId),
    /// The slot is not in the plan any more: no new lease; it is closed when the last one ends.
    Drain(SlotId),
    /// A process asks for slots: all of them, or none.
    Acquire {
        /// Names the answer.
        request: RequestId,
        /// Who asks.
        asker: Asker,
        /// Of which instance.
        instance: Instance,
        /// For what; slots of the same pool are given in the order of their ports.
        wants: Vec<Want>,
        /// How long it waits.
        wait: Wait,
        /// Whether it replaces a living holder.
        takeover: Option<Takeover>,
    },
    /// Nobody is there any more to take the request's answer.
    Cancel(RequestId),
    /// [`Effect::Listen`] or [`Effect::Relisten`] was carried out.
    Listening(SlotId, u64),
    /// [`Effect::Listen`] or [`Effect::Relisten`] failed.
    NotListening(SlotId, u64, Obstacle),
    /// The same for want of descriptors or memory: nothing is wrong with the slot.
    NoMeans(SlotId, u64),
    /// Somebody has shut this generation's listener down.
    Shut(SlotId, u64),
    /// A successor can serve: the slot it takes over is its own now.
    Ready {
        /// Names the answer.
        request: RequestId,
        /// Who speaks.
        holder: HolderId,
        /// The lease it was granted.
        lease: LeaseId,
    },
    /// A process gives a lease back.
    Release {
        /// Names the answer.
        request: RequestId,
        /// Who speaks.
        holder: HolderId,
        /// Which.
        lease: LeaseId,
    },
    /// A lease is taken back, whatever its holder says. Who may do that is decided elsewhere.
    Revoke {
        /// Names the answer.
        request: RequestId,
        /// Which.
        lease: LeaseId,
    },
    /// What [`Effect::Grant`] gave never reached its holder.
    Undelivered(Vec<LeaseId>),
    /// The process is gone.
    Died(HolderId),
    /// The plan is another one: see [`super::Ledger::add`] and what is beside it.
    Reloaded,
    /// What an earlier agent knew is there again: see [`super::Ledger::restore`].
    Restored,
    /// It is [`super::Ledger::next_deadline`], or later.
    TimePassed,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Hold the slot; answer `Held` or `Obstructed`.
    Hold(SlotId),
    /// Hold the slot no longer. None of its generations is left.
    Drop(SlotId),
    /// Make this generation of the slot's listener, which gets no connection yet; answer
    /// `Listening` or `NotListening`.
    Listen(SlotId, u64),
    /// Make this generation's own listener, which was shut, listen again; answer as above.
    Relisten(SlotId, u64),
    /// New connections go to this generation. None was steered to before.
    Steer(SlotId, u64),
    /// New connections go to the second generation, no longer to the first, and both are of one
    /// identity. What waits in the first one's queue stays there for the process that is named to
    /// drain it; where none is, it moves.
    Succeed(SlotId, u64, u64, Option<HolderId>),
    /// The same between two identities: where nobody drains what waits in the first one's queue, it
    /// is reset. It never moves.
    Replace(SlotId, u64, u64, Option<HolderId>),
    /// No new connection goes to this generation, which goes on listening: who gave it back may have
    /// it again. `Steer` or `End` follows.
    Rest(SlotId, u64),
    /// End this generation, steered to or not, finished or still being made: no copy of it may
    /// get another connection, and what waits in its queue is reset.
    End(SlotId, u64),
    /// The request has what it asked for, in the order in which it asked.
    Grant(RequestId, Vec<LeaseId>),
    /// The request gets nothing.
    Refuse(RequestId, Refusal),
    /// The release, revocation or readiness that the request told of has its effect.
    Done(RequestId),
    /// Tell a living process that a slot is not its own any more: it may never notice.
    Notify(HolderId, SlotId, Notice),
    /// A slot changed; for the log and for those who watch.
    Changed(Change),
}

impl Effect {
    /// The slot of which something is to be done, or was.
    pub fn slot(&self) -> Option<SlotId> {
        match self {
            Effect::Hold(slot)
            | Effect::Drop(slot)
            | Effect::Listen(slot, _)
            | Effect::Relisten(slot, _)
            | Effect::Steer(slot, _)
            | Effect::Succeed(slot, ..)
            | Effect::Replace(slot, ..)
            | Effect::Rest(slot, _)
            | Effect::End(slot, _)
            | Effect::Notify(_, slot, _) => Some(*slot),
            Effect::Changed(change) => Some(change.slot),
            Effect::Grant(..) | Effect::Refuse(..) | Effect::Done(_) => None,
        }
    }
}

/// What a process lost a slot by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// The lease was taken back.
    Revoked,
    /// A successor has it; what is queued is still the old holder's to drain.
    TakenOver,
}

/// Why a request gets nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// Fewer free slots than asked for, or earlier waiters want them; the pool's slots in that
    /// instance.
    Exhausted(PoolId, u16, Vec<SlotId>),
    /// The plan has no such instance of the pool, or nobody has claimed it.
    UnknownInstance(PoolId, u16),
    /// Another process, which cannot be joined, has claimed the instance.
    Claimed(u16, HolderId),
    /// Every instance up to the last is claimed or in use.
    NoInstance,
    /// Too many wait for the pool already.
    Busy(PoolId),
    /// The user would have more leases than it may, or wait for more: so many.
    TooManyLeases(usize),
    /// The same of its processes that wait.
    TooManyWaiters(usize),
    /// The pool is being removed.
    Draining(PoolId),
    /// Another successor is taking the slot over.
    TakeoverUnderWay(SlotId),
    /// The successor's listener cannot be made; the slot's holder has it as before.
    CannotListen(SlotId, Obstacle),
    /// The lease does not exist, or is somebody else's.
    UnknownLease(LeaseId),
    /// The asking process died before the answer.
    HolderGone,
    /// There are no descriptors, or there is no memory, for another listener.
    NoMeans,
    /// Nobody waits for the answer any more.
    Cancelled,
}

/// A slot's way from one state to another, and why. The states may be the same: a listener was
/// healed, a takeover begun or given up.
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
    /// An ex-holder's copy blocks it.
    Hostage,
    /// It does not any more.
    Freed,
    /// Clients may wait there for the first holder.
    Queueing,
    /// A process asked for it.
    Acquired,
    /// The successor of its former holder asked for it.
    Resumed,
    /// Its holder gave it back.
    Released,
    /// It was taken back.
    Revoked,
    /// Its holder is gone.
    HolderDied,
    /// The handoff did not reach its holder.
    Undelivered,
    /// No successor came in time.
    WindowOver,
    /// Somebody else has its listener; it has a new one.
    Orphaned,
    /// A successor prepares to take it over.
    TakeoverBegun,
    /// The successor is gone; the holder has the slot as before.
    TakeoverFailed,
    /// A successor has it.
    TakenOver,
    /// Its listener was shut, and listens again.
    Healed,
    /// The process that claimed its instance is gone.
    InstanceOver,
    /// It is not in the plan any more.
    Drained,
    /// The plan says otherwise now.
    Reloaded,
}

impl Reason {
    /// Its word, as those who watch and the log have it.
    pub fn word(self) -> &'static str {
        match self {
            Reason::Held => "held",
            Reason::Obstructed => "obstructed",
            Reason::Hostage => "hostage",
            Reason::Freed => "freed",
            Reason::Queueing => "queueing",
            Reason::Acquired => "acquired",
            Reason::Resumed => "resumed",
            Reason::Released => "released",
            Reason::Revoked => "revoked",
            Reason::HolderDied => "holder-died",
            Reason::Undelivered => "undelivered",
            Reason::WindowOver => "window-over",
            Reason::Orphaned => "orphaned",
            Reason::TakeoverBegun => "takeover-begun",
            Reason::TakeoverFailed => "takeover-failed",
            Reason::TakenOver => "taken-over",
            Reason::Healed => "healed",
            Reason::InstanceOver => "instance-over",
            Reason::Drained => "drained",
            Reason::Reloaded => "reloaded",
        }
    }
}
