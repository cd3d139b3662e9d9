//! The agent's heart: events into the ledger, its effects into the kernel, answers out.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::rc::Rc;

use tokio::sync::{Notify, oneshot};
use tokio::task::AbortHandle;

use super::about::About;
use super::asking::{Answer, Numbers};
use super::conflicts::Conflicts;
use super::control::Reached;
use super::holders::Holders;
use super::in_flight::InFlight;
use super::inspector;
use super::kernel::{Addresses, Elder, Kernel, Trouble};
use super::names::UserNames;
use super::orphans::Orphans;
use super::reload::Files;
use super::store::Store;
use super::watch::Watchers;
use crate::config::{self, OnRevoke, Pool, Source};
use crate::ledger::{
    Change, Effect, Event, HolderId, Ledger, Moment, Notice, Obstacle, Place, PoolId, Quotas,
    RequestId, Rules, SlotId, State, Unleased,
};
use crate::plan::{Plan, Slot};
use crate::policy::Policy;
use crate::sys::clock::since_boot;
use crate::sys::ended::Ended;
use crate::sys::manager::Manager;
use crate::sys::peer::Peer;
use crate::sys::process;
use crate::sys::steer::Steering;

/// The agent, as the tasks of its one thread share it. Never borrowed across an await.
pub(crate) type Shared = Rc<RefCell<Agent>>;

/// Whether a slot is held only while somebody claims its instance.
pub(crate) type IsDormant = bool;

/// The slots of a plan, in the order in which the ledger has them.
pub(crate) fn slots_of(plan: &Plan) -> Vec<(Slot, IsDormant)> {
    let held = plan.slots.iter().map(|slot| (slot.clone(), false));
    let dormant = plan.dormant.iter().map(|slot| (slot.clone(), true));
    held.chain(dormant).collect()
}

/// What an agent is made of.
#[derive(Debug)]
pub(crate) struct Origin {
    pub(crate) about: About,
    pub(crate) plan: Plan,
    /// In this order the ledger has them; some are held only while somebody claims their instance.
    pub(crate) slots: Vec<(Slot, IsDormant)>,
    pub(crate) policy: Policy,
    pub(crate) quotas: Quotas,
    /// How many descriptors this process may have.
    pub(crate) fd_limit: usize,
    /// That of its numbers.
    pub(crate) secret: [u64; 2],
}

/// All the agent knows and holds.
#[derive(Debug)]
pub(crate) struct Agent {
    pub(crate) about: About,
    /// Its slots are in `slots`.
    pub(crate) plan: Plan,
    /// Every slot there is, also those that are held only when somebody claims their instance. The
    /// n-th is the ledger's `SlotId(n)`.
    pub(crate) slots: Vec<Slot>,
    pub(crate) policy: Policy,
    pub(crate) ledger: Ledger,
    pub(crate) kernel: Kernel,
    pub(crate) holders: Holders,
    pub(crate) conflicts: Conflicts,
    pub(crate) in_flight: InFlight,
    pub(crate) user_names: UserNames,
    /// Clients connected.
    pub(crate) connections: usize,
    /// Clients ever let in.
    pub(crate) visitors: u64,
    pub(super) numbers: Numbers,
    pub(super) waiting: HashMap<RequestId, oneshot::Sender<Answer>>,
    pub(super) requests: u64,
    pub(super) watchers: Watchers,
    /// Wakes who looks after what is due, when something is due earlier than it knew.
    pub(super) due_earlier: Rc<Notify>,
    due: Option<Moment>,
    /// Wakes who tells the service manager how the slots stand.
    pub(super) status_changed: Rc<Notify>,
    /// Wakes who looks for other processes that have a slot's listener.
    pub(super) may_have_orphans: Rc<Notify>,
    pub(super) orphans: Orphans,
    pub(super) pools: HashMap<String, PoolId>,
    /// Where its configuration is.
    pub(super) files: Files,
    /// What its configuration is.
    pub(super) sources: Vec<Source>,
    /// The ledger as it outlives the agent, where anybody would keep it.
    pub(super) store: Option<Store>,
    /// The claims that are written down there.
    pub(super) claims_written: u64,
    /// Who keeps what outlives the agent.
    pub(super) manager: Option<Manager>,
    /// Where the program of this process was begun from.
    pub(super) program: PathBuf,
    /// The control socket.
    pub(super) reached: Option<Reached>,
    /// Another program is looking whether it could take over.
    pub(super) is_upgrading: bool,
    /// What the service manager is yet to forget, if it does not keep yet what it is to.
    pub(super) not_given: Option<Vec<String>>,
}

impl Agent {
    /// An agent that holds nothing yet.
    ///
    /// # Errors
    /// What epoll_create1(2) says.
    pub(crate) fn new(origin: Origin, steering: Option<Steering>) -> io::Result<Agent> {
        let Origin {
            about,
            mut plan,
            slots,
            policy,
            quotas,
            fd_limit,
            secret,
        } = origin;
        (plan.slots, plan.dormant) = (Vec::new(), Vec::new());
        let (slots, dormant): (Vec<Slot>, Vec<IsDormant>) = slots.into_iter().unzip();
        let mut pools = HashMap::new();
        let mut places: Vec<Place> = Vec::with_capacity(slots.len());
        let mut latest_main = SlotId(0);
        for (id, (slot, is_dormant)) in (0..).map(SlotId).zip(slots.iter().zip(dormant)) {
            let next = PoolId(u32::try_from(pools.len()).unwrap_or(u32::MAX));
            let pool = *pools.entry(slot.pool.to_string()).or_insert(next);
            // The plan puts each companion after the slot that it goes with.
            let companion_of = slot.companion.as_ref().map(|_| latest_main);
            if companion_of.is_none() {
                latest_main = id;
            }
            places.push(Place {
                pool,
                instance: slot.instance.get(),
                companion_of,
                dormant: is_dormant,
            });
        }
        let mut rules = vec![Rules::default(); pools.len()];
        for pool in &plan.pools {
            if let Some(PoolId(id)) = pools.get(pool.name.as_str()) {
                rules[*id as usize] = rules_of(pool);
            }
        }
        let mut ledger = Ledger::new(&places, &rules).with_quotas(quotas);
        if steering.is_some() {
            ledger = ledger.that_lets_listeners_rest();
        }
        Ok(Agent {
            kernel: Kernel::new(&slots, steering)?,
            ledger,
            holders: Holders::default(),
            conflicts: Conflicts::default(),
            in_flight: InFlight::new(fd_limit),
            user_names: UserNames::default(),
            connections: 0,
            visitors: 0,
            numbers: Numbers::new(secret),
            waiting: HashMap::new(),
            requests: 0,
            watchers: Watchers::default(),
            due_earlier: Rc::default(),
            due: None,
            status_changed: Rc::default(),
            may_have_orphans: Rc::default(),
            orphans: Orphans::default(),
            about,
            plan,
            slots,
            policy,
            pools,
            files: Files::default(),
            sources: Vec::new(),
            store: None,
            claims_written: 0,
            manager: None,
            program: PathBuf::new(),
            reached: None,
            is_upgrading: false,
            not_given: None,
        })
    }

    /// The pool of that name, if the agent holds it.
    pub(crate) fn pool_id(&self, name: &str) -> Option<PoolId> {
        let pool = self.pools.get(name).copied()?;
        // One that left the plan is known as long as it has a lease.
        self.ledger.has_pool(pool).then_some(pool)
    }

    /// Tries to hold every slot of these that is not held, or not free.
    pub(crate) fn hold(&mut self, slots: impl Iterator<Item = SlotId>) {
        let mut addresses = Addresses::default();
        for slot in slots {
            let is_in_trouble =
                matches!(self.ledger.state(slot), State::Unheld(_) | State::Hostage);
            if is_in_trouble && self.ledger.wants_held(slot) {
                let event = self.try_to_hold(slot, &mut addresses);
                self.take_in(event);
            } else {
                // What was in the way was in the way of a successor only.
                self.conflicts.resolved(slot);
            }
        }
        self.kernel.keep_reservations();
    }

    fn try_to_hold(&mut self, slot: SlotId, addresses: &mut Addresses) -> Event {
        let is_hostage = self.ledger.state(slot) == State::Hostage;
        match self.kernel.hold(slot, addresses) {
            Ok(()) if is_hostage => Event::Freed(slot),
            Ok(()) => Event::Held(slot),
            Err(Trouble { obstacle, error }) => {
                self.conflicts.noticed(slot, obstacle, error);
                // The reservation keeps everybody else out: it is a former holder's.
                match obstacle == Obstacle::Conflict && self.kernel.is_reserved(slot) {
                    true => Event::Hostage(slot),
                    false => Event::Obstructed(slot, obstacle),
                }
            }
        }
    }

    /// Lets the ledger decide what an event means, and does it.
    pub(crate) fn take_in(&mut self, event: Event) {
        let now = since_boot();
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let hostage = self.hostage_by(&event);
            let effects = self.ledger.apply(event, now);
            // First: an agent that ends in between is followed by one that does it.
            self.write_down(&effects);
            for effect in effects {
                events.extend(self.carry_out(effect));
            }
            events.extend(hostage);
        }
        self.kernel.leave_given_up();
        let due = self.ledger.next_deadline();
        if due.is_some_and(|at| self.due.is_none_or(|known| at < known)) {
            self.due_earlier.notify_one();
        }
        self.due = due;
    }

    /// A listener that cannot be made although the port is reserved: nobody but a former holder can
    /// be in the way.
    fn hostage_by(&self, event: &Event) -> Option<Event> {
        match event {
            Event::NotListening(slot, _, Obstacle::Conflict) if self.kernel.is_reserved(*slot) => {
                Some(Event::Hostage(*slot))
            }
            _ => None,
        }
    }

    fn carry_out(&mut self, effect: Effect) -> Option<Event> {
        match effect {
            Effect::Hold(slot) => {
                let event = self.try_to_hold(slot, &mut Addresses::default());
                self.kernel.keep_reservations();
                return Some(event);
            }
            Effect::Drop(slot) => self.kernel.give_up(slot),
            Effect::Listen(slot, generation) => {
                let elder = match self.ledger.continues(slot) {
                    true => Elder::SameIdentity,
                    false => Elder::Stranger,
                };
                let outcome = self.kernel.listen(slot, generation, elder);
                return Some(self.made(slot, generation, outcome));
            }
            Effect::Relisten(slot, generation) => {
                let outcome = self.kernel.relisten(slot, generation);
                return Some(self.made(slot, generation, outcome));
            }
            Effect::Steer(slot, generation) => {
                if let Err(error) = self.kernel.steer(slot, generation) {
                    return Some(self.not_steered(slot, generation, &error));
                }
            }
            Effect::Succeed(slot, old, new, drained_by)
            | Effect::Replace(slot, old, new, drained_by) => {
                if let Err(error) = self.kernel.succeed(slot, old, new, drained_by) {
                    return Some(self.not_steered(slot, new, &error));
                }
                self.may_have_orphans.notify_one();
            }
            Effect::Rest(slot, generation) => self.kernel.rest(slot, generation),
            Effect::End(slot, generation) => {
                self.kernel.end(slot, generation);
                self.may_have_orphans.notify_one();
            }
            Effect::Grant(request, leases) => self.answer(request, Answer::Granted(leases)),
            Effect::Refuse(request, refusal) => self.answer(request, Answer::Refused(refusal)),
            Effect::Done(request) => self.answer(request, Answer::Done),
            Effect::Notify(holder, slot, notice) => self.notify(holder, slot, notice),
            Effect::Changed(change) => self.changed(change),
        }
        None
    }

    /// What came of making a listener, or of making it listen again.
    fn made(&mut self, slot: SlotId, generation: u64, outcome: Result<(), Trouble>) -> Event {
        match outcome {
            Ok(()) => Event::Listening(slot, generation),
            Err(trouble) if trouble.is_want_of_means() => Event::NoMeans(slot, generation),
            Err(Trouble { obstacle, error }) => {
                self.conflicts.noticed(slot, obstacle, error);
                Event::NotListening(slot, generation, obstacle)
            }
        }
    }

    /// The map did not take a listener: mostly, because its holder had shut it at that moment.
    fn not_steered(&self, slot: SlotId, generation: u64, error: &io::Error) -> Event {
        let name = self.slots[slot.0 as usize].name();
        tracing::warn!(slot = name, %error, "cannot steer to a listener; it is made to listen again");
        Event::Shut(slot, generation)
    }

    /// Tells a process that a slot is not its own any more. Most servers never notice a listener
    /// that gets nothing, and some spin on it.
    fn notify(&self, holder: HolderId, slot: SlotId, notice: Notice) {
        let Some(known) = self.holders.get(holder) else {
            return;
        };
        let planned = &self.slots[slot.0 as usize];
        let of_pool = self.plan.pool(planned.pool.as_str());
        // What it asked for itself it gets as long as it could send it itself: not once it has become
        // another user's program.
        let own = known
            .on_revoke
            .filter(|_| process::is_all_of_user(known.pid, known.uid));
        let on_revoke = own.or(of_pool.map(|pool| pool.on_revoke));
        let Some(OnRevoke::Signal(signal)) = on_revoke else {
            return;
        };
        let (pid, name) = (known.pid, planned.name());
        let outcome = process::signal(known.pidfd(), signal.name());
        if outcome
            .as_ref()
            .is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
            && inspector::could_signal()
        {
            has_inspector_signal(known.pidfd(), signal, pid, name);
            return;
        }
        match outcome {
            Ok(()) => tracing::debug!(pid, slot = name, ?notice, %signal, "told by a signal"),
            Err(error) => {
                tracing::warn!(pid, slot = name, ?notice, %error, "cannot signal a former holder");
            }
        }
    }

    fn changed(&mut self, change: Change) {
        self.tell(change);
        if self.manager.is_some() {
            self.status_changed.notify_one();
        }
        let Change {
            slot, to, holder, ..
        } = change;
        let is_in_trouble = match to {
            State::Unheld(obstacle) => obstacle != Obstacle::Untried,
            State::Hostage => true,
            _ => false,
        };
        if !is_in_trouble {
            self.conflicts.resolved(slot);
        }
        if let Some(holder) = holder
            && !self.ledger.must_watch(holder)
        {
            self.holders.forget_unconnected(holder);
        }
    }

    /// A process has ended.
    pub(super) fn died(&mut self, holder: HolderId) {
        let slots = self.ledger.formerly_held_by(holder);
        self.take_in(Event::Died(holder));
        self.holders.forget(holder);
        for slot in slots {
            let companions = self.ledger.companions(slot).to_vec();
            for member in std::iter::once(slot).chain(companions) {
                self.kernel.shut_what_it_drained(member, holder);
            }
        }
        self.may_have_orphans.notify_one();
    }

    /// A connection of the holder has ended.
    pub(crate) fn disconnected(&mut self, holder: HolderId) {
        self.holders.disconnected(holder);
        if !self.ledger.must_watch(holder) {
            self.holders.forget_unconnected(holder);
        }
    }
}

/// Has the inspector signal what the agent may not; elsewhere, because it takes a while.
fn has_inspector_signal(pidfd: BorrowedFd, signal: config::Signal, pid: u32, slot: String) {
    let pidfd = match pidfd.try_clone_to_owned() {
        Ok(pidfd) => pidfd,
        Err(error) => {
            tracing::warn!(pid, slot, %error, "cannot signal a former holder");
            return;
        }
    };
    tokio::task::spawn_blocking(move || {
        if let Err(error) = inspector::signal(pidfd.as_fd(), signal.name()) {
            tracing::warn!(pid, slot, %error, "cannot signal a former holder");
        }
    });
}

/// What a pool's configuration says about the life of its slots.
pub(super) fn rules_of(pool: &Pool) -> Rules {
    Rules {
        restart_window: pool.restart_window,
        unleased: match pool.unleased {
            config::Unleased::Refuse => Unleased::Refuse,
            config::Unleased::Queue => Unleased::Queue,
        },
    }
}

/// Makes a process known, for as long as it is connected or has a lease, and waits for its end.
///
/// # Errors
/// What epoll_ctl(2) says.
pub(crate) fn know(agent: &Shared, peer: Peer) -> io::Result<HolderId> {
    agent.borrow_mut().holders.connected(peer, watch(agent))
}

/// Makes a process known that an earlier agent knew.
///
/// # Errors
/// What epoll_ctl(2) says.
pub(super) fn know_again(agent: &Shared, peer: Peer) -> io::Result<HolderId> {
    agent.borrow_mut().holders.revived(peer, watch(agent))
}

fn watch(agent: &Shared) -> impl FnOnce(HolderId, OwnedFd) -> io::Result<(Rc<Ended>, AbortHandle)> {
    |holder: HolderId, pidfd: OwnedFd| {
        let process = Rc::new(Ended::watch(pidfd)?);
        let (agent, watched) = (Rc::clone(agent), Rc::clone(&process));
        let task = tokio::task::spawn_local(async move {
            if let Err(error) = watched.wait().await {
                tracing::error!(%error, "cannot watch a holder any more; its leases end");
            }
            agent.borrow_mut().died(holder);
        });
        Ok((process, task.abort_handle()))
    }
}
