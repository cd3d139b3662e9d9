//! The model world: what it is made of, and what happens in it.

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
    pub(super) latest: u64,
    pub(super) listeners: BTreeMap<u64, Listener>,
    pub(super) steered: Option<u64>,
}

/// A request without its answer yet.
#[derive(Debug)]
pub(super) struct Outstanding {
    pub(super) order: u64,
    pub(super) asker: Asker,
    pub(super) instance: Option<u16>,
    pub(super) wants: Vec<Want>,
    /// A claim or a takeover aside, what it got would be the first free slots.
    pub(super) wait: Wait,
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
    pub(super) dead: BTreeSet<HolderId>,
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
}
