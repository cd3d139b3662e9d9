//! The agent's heart: events into the ledger, its effects into the kernel, answers out.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use tokio::sync::oneshot;

use super::about::About;
use super::conflicts::Conflicts;
use super::holders::Holders;
use super::in_flight::InFlight;
use super::kernel::{Addresses, Kernel, Trouble};
use super::names::UserNames;
use crate::ledger::{
    Asker, Change, Effect, Event, HolderId, Instance, Kin, LeaseId, Ledger, Obstacle, Place,
    PoolId, Refusal, RequestId, SlotId, State, UserId, Wait, Want,
};
use crate::plan::Plan;
use crate::policy::Policy;
use crate::sys::clock::since_boot;
use crate::sys::ended::Ended;
use crate::sys::peer::Peer;
use crate::sys::steer::Steering;

/// The agent, as the tasks of its one thread share it. Never borrowed across an await.
pub(crate) type Shared = Rc<RefCell<Agent>>;

/// What became of a request.
#[derive(Debug)]
pub(crate) enum Answer {
    /// It has these leases, in the order asked for.
    Granted(Vec<LeaseId>),
    /// The lease was given back.
    Released,
    /// It has nothing.
    Refused(Refusal),
}

/// All the agent knows and holds.
#[derive(Debug)]
pub(crate) struct Agent {
    pub(crate) about: About,
    pub(crate) plan: Plan,
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
    pools: HashMap<String, PoolId>,
    waiting: HashMap<RequestId, oneshot::Sender<Answer>>,
    requests: u64,
}

impl Agent {
    /// An agent that holds nothing yet, of a process that may have so many descriptors.
    pub(crate) fn new(
        about: About,
        plan: Plan,
        policy: Policy,
        steering: Option<Steering>,
        fd_limit: usize,
    ) -> Agent {
        let mut pools = HashMap::new();
        let mut places: Vec<Place> = Vec::with_capacity(plan.slots.len());
        let mut latest_main = SlotId(0);
        for (id, slot) in (0..).map(SlotId).zip(&plan.slots) {
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
                dormant: false,
            });
        }
        Agent {
            kernel: Kernel::new(&plan.slots, steering),
            ledger: Ledger::new(&places, &[]),
            holders: Holders::default(),
            conflicts: Conflicts::default(),
            in_flight: InFlight::new(fd_limit),
            user_names: UserNames::default(),
            connections: 0,
            visitors: 0,
            waiting: HashMap::new(),
            requests: 0,
            about,
            plan,
            policy,
            pools,
        }
    }

    /// The pool of that name, if the agent holds it.
    pub(crate) fn pool_id(&self, name: &str) -> Option<PoolId> {
        self.pools.get(name).copied()
    }

    /// Tries to hold every slot of these that is not held.
    pub(crate) fn hold(&mut self, slots: impl Iterator<Item = SlotId>) {
        let mut addresses = Addresses::default();
        for slot in slots {
            if !matches!(self.ledger.state(slot), State::Unheld(_)) {
                continue;
            }
            let event = self.try_to_hold(slot, &mut addresses);
            self.take_in(event);
        }
    }

    fn try_to_hold(&mut self, slot: SlotId, addresses: &mut Addresses) -> Event {
        match self.kernel.hold(slot, addresses) {
            Ok(()) => Event::Held(slot),
            Err(Trouble { obstacle, error }) => {
                self.conflicts.noticed(slot, obstacle, error);
                Event::Obstructed(slot, obstacle)
            }
        }
    }

    /// Asks for slots in the name of a process; the answer may take a while.
    pub(crate) fn acquire(
        &mut self,
        holder: HolderId,
        instance: u16,
        wants: Vec<Want>,
    ) -> oneshot::Receiver<Answer> {
        let (request, answer) = self.new_request();
        let uid = self.holders.get(holder).map_or(0, |holder| holder.uid);
        let asker = Asker {
            holder,
            // Nothing outlives a process yet: each is its own kin.
            kin: Kin(holder.0),
            user: UserId(uid),
            unit: None,
            label: None,
        };
        self.take_in(Event::Acquire {
            request,
            asker,
            instance: Instance::Number(instance),
            wants,
            wait: Wait::No,
            takeover: None,
        });
        answer
    }

    /// Gives a lease back in the name of a process.
    pub(crate) fn release(
        &mut self,
        holder: HolderId,
        lease: LeaseId,
    ) -> oneshot::Receiver<Answer> {
        let (request, answer) = self.new_request();
        self.take_in(Event::Release {
            request,
            holder,
            lease,
        });
        answer
    }

    fn new_request(&mut self) -> (RequestId, oneshot::Receiver<Answer>) {
        self.requests += 1;
        let request = RequestId(self.requests);
        let (sender, answer) = oneshot::channel();
        self.waiting.insert(request, sender);
        (request, answer)
    }

    /// Lets the ledger decide what an event means, and does it.
    pub(crate) fn take_in(&mut self, event: Event) {
        let now = since_boot();
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            for effect in self.ledger.apply(event, now) {
                events.extend(self.carry_out(effect));
            }
        }
    }

    fn carry_out(&mut self, effect: Effect) -> Option<Event> {
        match effect {
            Effect::Listen(slot, generation) => {
                return Some(match self.kernel.listen(slot, generation) {
                    Ok(()) => Event::Listening(slot, generation),
                    Err(trouble) if trouble.is_want_of_means() => Event::NoMeans(slot, generation),
                    Err(Trouble { obstacle, error }) => {
                        self.conflicts.noticed(slot, obstacle, error);
                        Event::NotListening(slot, generation, obstacle)
                    }
                });
            }
            Effect::End(slot, generation) => self.kernel.end(slot, generation),
            Effect::Hold(slot) => return Some(self.try_to_hold(slot, &mut Addresses::default())),
            // A new listener gets its connections without further ado at this level.
            Effect::Steer(..) => {}
            // Of what the agent does not ask for yet: takeovers, claims, healing, revocation.
            Effect::Succeed(..) | Effect::Replace(..) | Effect::Drop(_) | Effect::Notify(..) => {}
            Effect::Relisten(slot, generation) => {
                return Some(Event::NotListening(slot, generation, Obstacle::Unavailable));
            }
            Effect::Grant(request, leases) => self.answer(request, Answer::Granted(leases)),
            Effect::Refuse(request, refusal) => self.answer(request, Answer::Refused(refusal)),
            Effect::Done(request) => self.answer(request, Answer::Released),
            Effect::Changed(change) => self.changed(change),
        }
        None
    }

    fn answer(&mut self, request: RequestId, answer: Answer) {
        if let Some(waiting) = self.waiting.remove(&request) {
            // A connection that is gone by now has given up its leases in its own way.
            drop(waiting.send(answer));
        }
    }

    fn changed(&mut self, change: Change) {
        let Change {
            slot,
            to,
            reason,
            holder,
            ..
        } = change;
        let name = self.plan.slots[slot.0 as usize].name();
        let instance = self.plan.slots[slot.0 as usize].instance.get();
        let port = self.plan.slots[slot.0 as usize].port.get();
        let pid = holder
            .and_then(|holder| self.holders.get(holder))
            .map(|holder| holder.pid);
        match to {
            State::Unheld(obstacle) => {
                let error = self.conflicts.error(slot).unwrap_or_default();
                let obstacle = match obstacle {
                    Obstacle::Conflict => "conflict: somebody else has the port",
                    Obstacle::Unavailable | Obstacle::Untried => "unavailable",
                };
                tracing::warn!(
                    pool = name,
                    instance,
                    port,
                    error,
                    "{obstacle}; trying again until it is free"
                );
            }
            State::Parked if self.conflicts.resolved(slot) => {
                tracing::info!(pool = name, instance, port, "held now");
            }
            State::Parked => {
                tracing::debug!(pool = name, instance, port, pid, ?reason, "parked");
            }
            State::Queueing | State::Restarting { .. } | State::Hostage => {
                tracing::debug!(pool = name, instance, port, pid, ?reason, "{to:?}");
            }
            State::Leased(LeaseId(lease)) => {
                tracing::debug!(pool = name, instance, port, pid, lease, "leased");
            }
        }
        if let (Some(holder), State::Parked) = (holder, to)
            && !self.ledger.must_watch(holder)
        {
            self.holders.forget_unconnected(holder);
        }
    }

    /// A connection of the holder has ended.
    pub(crate) fn disconnected(&mut self, holder: HolderId) {
        self.holders.disconnected(holder);
        if !self.ledger.must_watch(holder) {
            self.holders.forget_unconnected(holder);
        }
    }
}

/// Makes a process known, for as long as it is connected or has a lease, and waits for its end.
///
/// # Errors
/// What epoll_ctl(2) says.
pub(crate) fn know(agent: &Shared, peer: Peer) -> io::Result<HolderId> {
    let watch = |holder: HolderId, pidfd: OwnedFd| {
        let process = Rc::new(Ended::watch(pidfd)?);
        let (agent, watched) = (Rc::clone(agent), Rc::clone(&process));
        let task = tokio::task::spawn_local(async move {
            if let Err(error) = watched.wait().await {
                tracing::error!(%error, "cannot watch a holder any more; its leases end");
            }
            let mut agent = agent.borrow_mut();
            agent.take_in(Event::Died(holder));
            agent.holders.forget(holder);
        });
        Ok((process, task.abort_handle()))
    };
    agent.borrow_mut().holders.connected(peer, watch)
}
