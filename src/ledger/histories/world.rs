//! A model kernel, model processes, and what must hold between them and the ledger.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::super::*;
use super::PROCESSES;

/// Pool 0 has a restart window, pool 1 queues, pool 2 both.
pub(super) const RULES: [Rules; 3] = [
    Rules {
        restart_window: Moment::from_secs(5),
        unleased: Unleased::Refuse,
    },
    Rules {
        restart_window: Moment::ZERO,
        unleased: Unleased::Queue,
    },
    Rules {
        restart_window: Moment::from_secs(3),
        unleased: Unleased::Queue,
    },
];

/// The user of the third kin, and of no other, has fewer processes than that needs.
pub(super) const QUOTAS: Quotas = Quotas {
    leases_per_user: 6,
    waiters_per_user: 4,
};

/// Pool 0: three slots, the first with a companion, in two instances, and one slot in two
/// instances more that wait to be claimed. Pool 1: two slots, the same instances, of which only
/// the first is held from the start. Pool 2: one slot with two companions, once.
fn places() -> Vec<Place> {
    let place = |pool, instance, companion_of: Option<u32>| Place {
        pool: PoolId(pool),
        instance,
        companion_of: companion_of.map(SlotId),
        dormant: instance > 2 || pool == 1 && instance > 1,
    };
    vec![
        place(0, 1, None),
        place(0, 1, Some(0)),
        place(0, 1, None),
        place(0, 1, None),
        place(0, 2, None),
        place(0, 2, Some(4)),
        place(0, 2, None),
        place(0, 2, None),
        place(1, 1, None),
        place(1, 1, None),
        place(2, 1, None),
        place(2, 1, Some(10)),
        place(2, 1, Some(10)),
        place(0, 3, None),
        place(0, 3, Some(13)),
        place(0, 4, None),
        place(1, 2, None),
        place(1, 3, None),
        place(1, 3, None),
    ]
}
pub(super) const PLACES: u32 = 19;

/// A listener in the model kernel.
#[derive(Debug, Default)]
pub(super) struct Listener {
    pub(super) shut: bool,
    /// For whose service the clients came that wait in its queue; `None`: for nobody's yet.
    pub(super) queued_for: BTreeSet<Option<Kin>>,
}

/// What the model kernel has for one slot.
#[derive(Debug, Default)]
pub(super) struct Port {
    pub(super) held: bool,
    latest: u64,
    pub(super) listeners: BTreeMap<u64, Listener>,
    pub(super) steered: Option<u64>,
}

/// A request without its answer yet.
#[derive(Debug)]
pub(super) struct Outstanding {
    order: u64,
    asker: Asker,
    instance: Option<u16>,
    wants: Vec<Want>,
    /// A claim or a takeover aside, what it got would be the first free slots.
    wait: Wait,
}

/// The ledger with a kernel, and processes.
pub(super) struct World {
    pub(super) ledger: Ledger,
    pub(super) ports: BTreeMap<SlotId, Port>,
    pub(super) failures: VecDeque<Obstacle>,
    pub(super) delays: usize,
    pub(super) delayed: VecDeque<(SlotId, u64)>,
    pub(super) leases: BTreeMap<LeaseId, HolderId>,
    pub(super) outstanding: BTreeMap<RequestId, Outstanding>,
    pub(super) refused: BTreeMap<RequestId, Refusal>,
    pub(super) granted: BTreeMap<RequestId, Vec<LeaseId>>,
    pub(super) notices: Vec<(HolderId, SlotId, Notice)>,
    pub(super) reasons: Vec<(SlotId, Reason)>,
    dead: BTreeSet<HolderId>,
    requests: u64,
    pub(super) clock: Moment,
    /// What an outsider knows from `Changed` alone.
    pub(super) seen: BTreeMap<SlotId, State>,
}

impl World {
    pub(super) fn new() -> World {
        let ledger = Ledger::new(&places(), &RULES)
            .that_lets_listeners_rest()
            .with_quotas(QUOTAS);
        let slots = || ledger.slots();
        let mut world = World {
            ports: slots().map(|slot| (slot, Port::default())).collect(),
            seen: slots().map(|slot| (slot, ledger.state(slot))).collect(),
            failures: VecDeque::new(),
            delays: 0,
            delayed: VecDeque::new(),
            leases: BTreeMap::new(),
            outstanding: BTreeMap::new(),
            refused: BTreeMap::new(),
            granted: BTreeMap::new(),
            notices: Vec::new(),
            reasons: Vec::new(),
            dead: BTreeSet::new(),
            requests: 0,
            clock: Moment::ZERO,
            ledger,
        };
        for slot in world.ledger.slots() {
            world.try_to_hold(slot);
        }
        world
    }

    // What happens.

    pub(super) fn run(&mut self, event: Event) {
        self.clock += Moment::from_millis(7);
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            for effect in self.ledger.apply(event, self.clock) {
                events.extend(self.carry_out(effect));
            }
        }
        self.clients_come();
        self.check();
    }

    /// The n-th process; the next one in a dead one's place has another id. Two processes are of
    /// one kin, the first and the third kin are of one user.
    pub(super) fn asker(&self, nth: u64) -> Asker {
        let is_former = |dead: &&HolderId| dead.0 % PROCESSES == nth;
        let deaths = self.dead.iter().filter(is_former).count() as u64;
        let kin = nth / 2;
        Asker {
            holder: HolderId(nth + PROCESSES * deaths),
            kin: Kin(kin),
            user: UserId(u32::from(kin == 1)),
            unit: (kin > 0).then_some(UnitId(kin)),
            label: None,
            is_exempt: nth == 0,
        }
    }

    pub(super) fn acquire(
        &mut self,
        asker: Asker,
        instance: Instance,
        wants: &[(u32, u16)],
        wait: Wait,
        takeover: Option<Takeover>,
    ) -> RequestId {
        let request = self.new_request(asker, wait);
        let wants: Vec<Want> = wants
            .iter()
            .map(|(pool, count)| Want {
                pool: PoolId(*pool),
                count: *count,
            })
            .collect();
        if let Some(outstanding) = self.outstanding.get_mut(&request) {
            outstanding.wants.clone_from(&wants);
        }
        self.run(Event::Acquire {
            request,
            asker,
            instance,
            wants,
            wait,
            takeover,
        });
        let known = self
            .ledger
            .requests()
            .find(|known| known.id == request)
            .map(|known| known.instance);
        if let Some(outstanding) = self.outstanding.get_mut(&request) {
            outstanding.instance = known;
        }
        request
    }

    pub(super) fn release(&mut self, holder: HolderId, lease: LeaseId) {
        let request = self.new_request(self.asker(holder.0 % PROCESSES), Wait::No);
        self.run(Event::Release {
            request,
            holder,
            lease,
        });
        assert!(!self.outstanding.contains_key(&request));
    }

    pub(super) fn revoke(&mut self, lease: LeaseId) {
        let request = self.new_request(self.asker(0), Wait::No);
        self.run(Event::Revoke { request, lease });
        assert!(!self.outstanding.contains_key(&request));
    }

    pub(super) fn ready(&mut self, lease: LeaseId) {
        let holder = self.leases[&lease];
        let request = self.new_request(self.asker(holder.0 % PROCESSES), Wait::No);
        self.run(Event::Ready {
            request,
            holder,
            lease,
        });
        assert!(!self.outstanding.contains_key(&request));
    }

    fn new_request(&mut self, asker: Asker, wait: Wait) -> RequestId {
        self.requests += 1;
        let request = RequestId(self.requests);
        self.outstanding.insert(
            request,
            Outstanding {
                order: self.requests,
                asker,
                instance: None,
                wants: Vec::new(),
                wait,
            },
        );
        request
    }

    pub(super) fn die(&mut self, nth: u64) {
        let holder = self.asker(nth).holder;
        self.dead.insert(holder);
        self.run(Event::Died(holder));
    }

    pub(super) fn everybody_dies(&mut self) {
        for nth in 0..PROCESSES {
            self.die(nth);
        }
        self.deliver();
        assert_eq!(self.ledger.lease_count(), 0);
        assert!(self.outstanding.is_empty(), "a request without an answer");
    }

    pub(super) fn pass(&mut self, time: Moment) {
        self.clock += time;
        self.run(Event::TimePassed);
    }

    /// A plan in which this slot stays, or is again, and the pools have each other's rules; perhaps
    /// with another slot of pool 0 with a companion, before all others.
    pub(super) fn reload(&mut self, keep: SlotId, adds: bool, rules: usize) {
        let dormant = self.ledger.place(keep).dormant;
        self.ledger.keep(keep, dormant);
        let mut rotated = RULES;
        rotated.rotate_left(rules);
        self.ledger.set_rules(&rotated);
        if adds {
            let main = SlotId(u32::try_from(self.ledger.len()).expect("few"));
            for companion_of in [None, Some(main)] {
                self.ledger.add(Place {
                    pool: PoolId(0),
                    instance: 1,
                    companion_of,
                    dormant: false,
                });
            }
            let mut order = vec![main];
            order.extend(self.ledger.slots_of(PoolId(0), 1));
            self.ledger.order(PoolId(0), 1, order);
            for slot in [main, SlotId(main.0 + 1)] {
                self.ports.insert(slot, Port::default());
                self.seen.insert(slot, self.ledger.state(slot));
            }
        }
        self.run(Event::Reloaded);
        for slot in self.ledger.slots() {
            self.try_to_hold(slot);
        }
    }

    pub(super) fn try_to_hold(&mut self, slot: SlotId) {
        if self.ledger.wants_held(slot) && matches!(self.ledger.state(slot), State::Unheld(_)) {
            let answer = self.hold(slot);
            self.run(answer);
        }
    }

    pub(super) fn shut(&mut self, slot: SlotId) {
        if let Some(generation) = self.ports[&slot].steered {
            self.shut_generation(slot, generation);
        }
    }

    pub(super) fn shut_generation(&mut self, slot: SlotId, generation: u64) {
        let port = self.ports.get_mut(&slot).expect("a slot");
        if let Some(listener) = port.listeners.get_mut(&generation) {
            listener.shut = true;
            self.run(Event::Shut(slot, generation));
        }
    }

    pub(super) fn answer_stale(&mut self, slot: SlotId, generation: u64, works: bool) {
        if self.ledger.slot(slot).making == Some(generation) {
            return;
        }
        let before = self.ledger.state(slot);
        self.clock += Moment::ZERO;
        let event = match works {
            true => Event::Listening(slot, generation),
            false if generation.is_multiple_of(2) => Event::NoMeans(slot, generation),
            false => Event::NotListening(slot, generation, Obstacle::Conflict),
        };
        let effects = self.ledger.apply(event, self.clock);
        assert_eq!(effects, [], "a stale answer changed something");
        assert_eq!(self.ledger.state(slot), before);
    }

    /// What was slow happens now.
    pub(super) fn deliver(&mut self) {
        self.delays = 0;
        while let Some((slot, generation)) = self.delayed.pop_front() {
            // A generation that was ended while it was being made is not made any more.
            let answer = match self.ledger.slot(slot).making == Some(generation) {
                true => self.make(slot, generation),
                false => Event::Listening(slot, generation),
            };
            self.run(answer);
        }
    }

    pub(super) fn nth_lease(&self, nth: usize) -> Option<LeaseId> {
        self.leases.keys().copied().nth(nth)
    }

    // What the kernel does.

    fn hold(&mut self, slot: SlotId) -> Event {
        match self.failures.pop_front() {
            // Holding knows no lack of descriptors of its own.
            Some(Obstacle::Untried) => Event::Obstructed(slot, Obstacle::Unavailable),
            Some(obstacle) => Event::Obstructed(slot, obstacle),
            None => {
                self.port(slot).held = true;
                Event::Held(slot)
            }
        }
    }

    fn make(&mut self, slot: SlotId, generation: u64) -> Event {
        match self.failures.pop_front() {
            // This fault stands for a lack of descriptors.
            Some(Obstacle::Untried) => return Event::NoMeans(slot, generation),
            Some(obstacle) => return Event::NotListening(slot, generation, obstacle),
            None => {}
        }
        let port = self.port(slot);
        assert!(port.held, "{slot:?} listens unheld");
        port.listeners.insert(generation, Listener::default());
        assert!(port.listeners.len() <= 2, "{slot:?}: three generations");
        Event::Listening(slot, generation)
    }

    fn carry_out(&mut self, effect: Effect) -> Option<Event> {
        match effect {
            Effect::Hold(slot) => return Some(self.hold(slot)),
            Effect::Drop(slot) => {
                let port = self.port(slot);
                assert!(port.listeners.is_empty(), "{slot:?} dropped, and listens");
                port.held = false;
            }
            Effect::Listen(slot, generation) => {
                let port = self.port(slot);
                assert!(generation > port.latest, "a generation twice");
                port.latest = generation;
                if self.delays > 0 {
                    self.delays -= 1;
                    self.delayed.push_back((slot, generation));
                    return None;
                }
                return Some(self.make(slot, generation));
            }
            Effect::Relisten(slot, generation) => {
                match self.failures.pop_front() {
                    Some(Obstacle::Untried) => return Some(Event::NoMeans(slot, generation)),
                    Some(obstacle) => {
                        return Some(Event::NotListening(slot, generation, obstacle));
                    }
                    None => {}
                }
                let listener = self.port(slot).listeners.get_mut(&generation);
                listener.expect("there is one to heal").shut = false;
                return Some(Event::Listening(slot, generation));
            }
            Effect::Steer(slot, generation) => {
                let port = self.port(slot);
                assert!(port.listeners.contains_key(&generation));
                let before = port.steered.replace(generation);
                assert_eq!(before, None, "{slot:?} was steered elsewhere");
            }
            Effect::Succeed(slot, old, new, drained_by)
            | Effect::Replace(slot, old, new, drained_by) => {
                assert!(drained_by.is_none_or(|holder| !self.dead.contains(&holder)));
                let port = self.port(slot);
                assert_eq!(port.steered, Some(old));
                let former = port.listeners.remove(&old).expect("what is succeeded");
                port.steered = Some(new);
                let successor = port.listeners.get_mut(&new).expect("a successor");
                if matches!(effect, Effect::Succeed(..)) && drained_by.is_none() {
                    successor.queued_for.extend(former.queued_for);
                }
            }
            Effect::Rest(slot, generation) => {
                let port = self.port(slot);
                assert_eq!(port.steered.take(), Some(generation));
            }
            Effect::End(slot, generation) => {
                let port = self.port(slot);
                port.listeners.remove(&generation);
                if port.steered == Some(generation) {
                    port.steered = None;
                }
            }
            Effect::Grant(request, leases) => self.granted(request, leases),
            Effect::Refuse(request, refusal) => {
                self.answered(request);
                self.refused.insert(request, refusal);
            }
            Effect::Done(request) => drop(self.answered(request)),
            Effect::Notify(holder, slot, notice) => {
                assert!(!self.dead.contains(&holder), "a dead process was told");
                self.notices.push((holder, slot, notice));
            }
            Effect::Changed(change) => {
                let before = self.seen.insert(change.slot, change.to);
                assert_eq!(before, Some(change.from));
                self.reasons.push((change.slot, change.reason));
            }
        }
        None
    }

    fn port(&mut self, slot: SlotId) -> &mut Port {
        self.ports.get_mut(&slot).expect("a slot")
    }

    fn answered(&mut self, request: RequestId) -> Outstanding {
        let known = self.outstanding.remove(&request);
        known.expect("one answer a request")
    }

    fn granted(&mut self, request: RequestId, leases: Vec<LeaseId>) {
        let asked = self.answered(request);
        let slots: Vec<(PoolId, u16)> = leases
            .iter()
            .map(|lease| {
                let place = self.ledger.place(self.ledger.leases[lease].slot);
                assert_eq!(place.companion_of, None);
                (place.pool, place.instance)
            })
            .collect();
        let instance = slots[0].1;
        let wanted = asked
            .wants
            .iter()
            .flat_map(|want| std::iter::repeat_n((want.pool, instance), usize::from(want.count)));
        assert_eq!(slots, wanted.collect::<Vec<_>>(), "not what was asked for");
        if let Some(claim) = self.ledger.claims.get(&instance) {
            let admitted = self.ledger.may_enter(&asked.asker, instance, &asked.wants);
            assert!(admitted.is_ok(), "{:?} got into {claim:?}", asked.asker);
        }
        for lease in &leases {
            let known = &self.ledger.leases[lease];
            assert_eq!(known.holder, asked.asker.holder);
            assert!(!self.dead.contains(&known.holder), "to a dead holder");
            assert_eq!(known.since, self.clock);
            let pool = self.ledger.place(known.slot).pool;
            let is_rival = |other: &&Outstanding| {
                let wants_it = other.wants.iter().any(|want| want.pool == pool);
                other.order < asked.order && other.instance == Some(instance) && wants_it
            };
            let rival = self.outstanding.values().find(is_rival);
            assert!(
                known.resumed || rival.is_none(),
                "{rival:?} was overtaken by {asked:?}"
            );
            assert_eq!(self.leases.insert(*lease, known.holder), None, "twice");
        }
        self.granted.insert(request, leases);
    }

    /// Clients connect wherever new connections go.
    fn clients_come(&mut self) {
        for (slot, port) in &mut self.ports {
            let whose = match self.ledger.state(*slot) {
                State::Leased(lease) => Some(self.ledger.leases[&lease].kin),
                State::Restarting { successor, .. } => Some(successor),
                _ => None,
            };
            if let Some(listener) = port.steered.and_then(|to| port.listeners.get_mut(&to))
                && !listener.shut
            {
                listener.queued_for.insert(whose);
            }
        }
    }

    // What must hold.

    fn check(&mut self) {
        self.leases
            .retain(|lease, _| self.ledger.leases.contains_key(lease));
        assert_eq!(self.leases.len(), self.ledger.lease_count());
        for slot in self.ledger.slots() {
            self.check_slot(slot);
        }
        for (id, lease) in &self.ledger.leases {
            for member in self.ledger.group(lease.slot) {
                let is_its = match lease.standby {
                    true => self.ledger.successor(member) == Some(*id),
                    false => self.ledger.state(member) == State::Leased(*id),
                };
                assert!(is_its, "{id:?} without its slot");
                assert!(self.ledger.generation_of(*id, member).is_some());
            }
        }
        let exempt = self.asker(0).holder.0 % PROCESSES;
        let mut leases_of: BTreeMap<UserId, (usize, bool)> = BTreeMap::new();
        for lease in self.ledger.leases.values() {
            let (count, has_exempt) = leases_of.entry(lease.user).or_default();
            *count += 1;
            *has_exempt |= lease.holder.0 % PROCESSES == exempt;
        }
        assert_eq!(leases_of.len(), self.ledger.leases_of_users.len());
        for (user, (count, has_exempt)) in leases_of {
            assert_eq!(self.ledger.leases_of_users[&user], count);
            assert!(
                has_exempt || count <= QUOTAS.leases_per_user,
                "{user:?} has {count}"
            );
        }
        for holder in &self.dead {
            assert!(!self.ledger.must_watch(*holder), "a dead one has something");
        }
        let claimers: BTreeSet<_> = self.ledger.claims.values().map(|c| c.holder).collect();
        assert_eq!(
            claimers.len(),
            self.ledger.claims.len(),
            "two claims of one"
        );
        assert!(self.ledger.next_deadline().is_none_or(|at| at > self.clock));
        if self.ledger.pending.is_empty() && self.delayed.is_empty() {
            self.check_waiters();
        }
    }

    fn check_slot(&self, slot: SlotId) {
        let state = self.ledger.state(slot);
        let known = self.ledger.slot(slot);
        let port = &self.ports[&slot];
        assert_eq!(self.seen[&slot], state, "Changed did not tell of {slot:?}");
        assert_eq!(known.steered, port.steered, "{slot:?} is steered elsewhere");
        if self.delayed.is_empty() {
            assert!(known.is_settled() && !known.holding, "{slot:?} hangs");
        }

        let listens = matches!(
            state,
            State::Leased(_) | State::Queueing | State::Restarting { .. }
        );
        assert_eq!(port.steered.is_some(), listens, "{slot:?} is {state:?}");
        assert!(listens || !known.shuts.is_open(), "{slot:?} is healed");
        if let State::Restarting { until, .. } = state {
            let is_over = until <= self.clock;
            assert!(!is_over || known.promised.is_some(), "{slot:?} is kept");
        }
        let standby = known.standby.map(|standby| standby.generation);
        let mut expected: BTreeSet<u64> = port.steered.into_iter().chain(standby).collect();
        if let Some(rest) = known.rest {
            assert_eq!(state, State::Parked, "{slot:?} rests");
            assert!(!self.dead.contains(&rest.holder), "kept for a dead one");
            expected.insert(rest.generation);
        }
        if !known.is_settled() {
            // Made for a request whose other listeners are not.
            let latest = Some(known.generation).filter(|it| port.listeners.contains_key(it));
            expected.extend(latest);
        }
        let there: BTreeSet<u64> = port.listeners.keys().copied().collect();
        assert_eq!(there, expected, "{slot:?} is {state:?}");
        for listener in port.listeners.values() {
            assert!(!listener.shut || known.shuts.is_open(), "{slot:?} is shut");
        }

        let whose = match state {
            State::Leased(lease) => Some(self.ledger.leases[&lease].kin),
            State::Restarting { successor, .. } => Some(successor),
            _ => None,
        };
        let queued = port
            .steered
            .map(|steered| &port.listeners[&steered].queued_for);
        for client in queued.into_iter().flatten() {
            assert!(
                client.is_none() || *client == whose,
                "{client:?} to {whose:?}"
            );
        }
        if state == State::Unheld(Obstacle::Untried) {
            assert!(!port.held, "{slot:?} is held for nobody");
        }
        if !self.ledger.wants_held(slot) && known.is_settled() {
            let may_be = matches!(
                state,
                State::Leased(_) | State::Restarting { .. } | State::Unheld(Obstacle::Untried)
            );
            assert!(may_be, "{slot:?} is {state:?} for nobody");
        }
        let queues = self.ledger.rules(known.place.pool).unleased == Unleased::Queue;
        if self.delayed.is_empty() && queues {
            assert_ne!(state, State::Parked, "{slot:?} does not queue");
        }
        if self.delayed.is_empty() && !queues {
            assert_ne!(state, State::Queueing, "{slot:?} queues");
        }
    }

    fn check_waiters(&self) {
        assert_eq!(self.outstanding.len(), self.ledger.queue.len());
        let mut earlier = BTreeSet::new();
        for request in self.ledger.queue.values() {
            assert_ne!(request.wait, Wait::No, "left waiting");
            assert_eq!(self.outstanding[&request.id].wait, request.wait);
            let pools: BTreeSet<_> = request
                .wants
                .iter()
                .map(|want| (want.pool, request.instance))
                .collect();
            let has_enough = |(pool, instance): &(PoolId, u16)| {
                let of_pool = request.wants.iter().filter(|want| want.pool == *pool);
                let wanted: u16 = of_pool.map(|want| want.count).sum();
                let is_free = |slot: &SlotId| {
                    self.ledger.group(*slot).iter().all(|member| {
                        matches!(self.ledger.state(*member), State::Parked | State::Queueing)
                    })
                };
                let slots = self.ledger.slots_of(*pool, *instance);
                slots.filter(is_free).count() >= usize::from(wanted)
            };
            assert!(
                !pools.is_disjoint(&earlier) || !pools.iter().all(has_enough),
                "{request:?} could be granted"
            );
            earlier.extend(pools);
        }
    }
}
