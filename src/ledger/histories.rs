//! Random histories: the ledger against a model kernel, with faults, deaths and stale answers.
//!
//! The model kernel keeps for each slot the generation that listens. After every step the
//! ledger's view must equal the model's, and what the module promises must hold.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proptest::prelude::*;

use super::*;

const HOLDERS: u64 = 4;

#[derive(Debug, Clone)]
enum Step {
    Acquire {
        holder: u64,
        instance: u16,
        wants: Vec<(u32, u16)>,
    },
    Release {
        holder: u64,
        nth: usize,
    },
    ReleaseUnknown {
        holder: u64,
        lease: u64,
    },
    Die {
        holder: u64,
    },
    /// The next so many listeners cannot be made.
    Fail {
        next: usize,
        obstacle: Obstacle,
    },
    Obstruct {
        slot: u32,
        obstacle: Obstacle,
    },
    Hold {
        slot: u32,
    },
    Undelivered {
        nth: usize,
    },
    StaleAnswer {
        slot: u32,
        generation: u64,
        works: bool,
    },
}

fn obstacle() -> impl Strategy<Value = Obstacle> {
    prop_oneof![Just(Obstacle::Conflict), Just(Obstacle::Unavailable)]
}

fn step() -> impl Strategy<Value = Step> {
    let wants = prop::collection::vec((0..3u32, 1..3u16), 1..3);
    prop_oneof![
        6 => (0..HOLDERS, 1..4u16, wants)
            .prop_map(|(holder, instance, wants)| Step::Acquire { holder, instance, wants }),
        3 => (0..HOLDERS, 0..4usize).prop_map(|(holder, nth)| Step::Release { holder, nth }),
        1 => (0..HOLDERS, 0..40u64)
            .prop_map(|(holder, lease)| Step::ReleaseUnknown { holder, lease }),
        2 => (0..HOLDERS).prop_map(|holder| Step::Die { holder }),
        2 => (1..4usize, obstacle()).prop_map(|(next, obstacle)| Step::Fail { next, obstacle }),
        1 => (0..PLACES, obstacle()).prop_map(|(slot, obstacle)| Step::Obstruct { slot, obstacle }),
        3 => (0..PLACES).prop_map(|slot| Step::Hold { slot }),
        1 => (0..4usize).prop_map(|nth| Step::Undelivered { nth }),
        1 => (0..PLACES, 0..9u64, any::<bool>()).prop_map(|(slot, generation, works)| {
            Step::StaleAnswer { slot, generation, works }
        }),
    ]
}

/// Pool 0: three slots, the first with a companion, in two instances. Pool 1: two slots, one
/// instance. Pool 2: one slot with two companions.
fn places() -> Vec<Place> {
    let place = |pool, instance, companion_of: Option<u32>| Place {
        pool: PoolId(pool),
        instance,
        companion_of: companion_of.map(SlotId),
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
    ]
}
const PLACES: u32 = 13;

/// The ledger with a kernel that listens, and fails to when told so.
struct World {
    ledger: Ledger,
    listening: BTreeMap<SlotId, u64>,
    failures: VecDeque<Obstacle>,
    leases: BTreeMap<LeaseId, HolderId>,
    dead: BTreeSet<HolderId>,
    answers: BTreeMap<RequestId, usize>,
    requests: u64,
    clock: Moment,
    /// What an outsider knows from `Changed` alone.
    seen: BTreeMap<SlotId, State>,
}

impl World {
    fn new() -> World {
        let ledger = Ledger::new(&places());
        let seen = ledger
            .slots()
            .map(|slot| (slot, ledger.state(slot)))
            .collect();
        let mut world = World {
            ledger,
            listening: BTreeMap::new(),
            failures: VecDeque::new(),
            leases: BTreeMap::new(),
            dead: BTreeSet::new(),
            answers: BTreeMap::new(),
            requests: 0,
            clock: Moment::ZERO,
            seen,
        };
        for slot in world.ledger.slots() {
            world.run(Event::Held(slot));
        }
        world
    }

    fn run(&mut self, event: Event) {
        self.clock += Moment::from_millis(7);
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            for effect in self.ledger.apply(event, self.clock) {
                events.extend(self.carry_out(effect));
            }
        }
        self.check();
    }

    fn carry_out(&mut self, effect: Effect) -> Option<Event> {
        match effect {
            Effect::Listen(slot, generation) => {
                if let Some(obstacle) = self.failures.pop_front() {
                    return Some(match obstacle {
                        Obstacle::Untried => Event::NoMeans(slot, generation),
                        _ => Event::NotListening(slot, generation, obstacle),
                    });
                }
                let before = self.listening.insert(slot, generation);
                assert_eq!(before, None, "{slot:?} had a listener already");
                return Some(Event::Listening(slot, generation));
            }
            Effect::End(slot, generation) => {
                if self.listening.get(&slot) == Some(&generation) {
                    self.listening.remove(&slot);
                }
            }
            Effect::Grant(request, leases) => {
                *self.answers.entry(request).or_default() += 1;
                for lease in leases {
                    let known = self.ledger.lease(lease).expect("a granted lease exists");
                    assert!(
                        !self.dead.contains(&known.holder),
                        "a dead holder got a lease"
                    );
                    assert_eq!(known.since, self.clock);
                    assert_eq!(
                        self.leases.insert(lease, known.holder),
                        None,
                        "a lease twice"
                    );
                }
            }
            Effect::Refuse(request, _) | Effect::Released(request) => {
                *self.answers.entry(request).or_default() += 1;
            }
            Effect::Changed(change) => {
                assert_eq!(self.seen.insert(change.slot, change.to), Some(change.from));
            }
        }
        None
    }

    fn check(&mut self) {
        self.leases
            .retain(|lease, _| self.ledger.lease(*lease).is_some());
        let mut leased = BTreeSet::new();
        for slot in self.ledger.slots() {
            let state = self.ledger.state(slot);
            assert_eq!(self.seen[&slot], state, "Changed did not tell of {slot:?}");
            match state {
                State::Leased(lease) => {
                    assert_eq!(
                        self.listening.get(&slot),
                        Some(&self.ledger.generation(slot))
                    );
                    let known = self.ledger.lease(lease).expect("its lease exists");
                    assert!(self.ledger.group(known.slot).contains(&slot));
                    leased.insert(lease);
                }
                State::Preparing(_) => panic!("{slot:?} is left preparing"),
                State::Parked | State::Unheld(_) => {
                    assert_eq!(self.listening.get(&slot), None, "{slot:?} listens unleased");
                }
            }
        }
        assert_eq!(
            leased,
            self.leases.keys().copied().collect(),
            "a lease without its slot"
        );
        assert!(
            self.answers.values().all(|count| *count == 1),
            "not one answer a request"
        );
        assert_eq!(
            self.answers.len() as u64,
            self.requests,
            "a request without an answer"
        );
        for holder in &self.dead {
            assert!(
                !self.ledger.holds_anything(*holder),
                "a dead holder has a lease"
            );
        }
    }

    fn request(&mut self) -> RequestId {
        self.requests += 1;
        RequestId(self.requests)
    }

    /// Holders die for good: the next process in their place has another id.
    fn holder(&self, nth: u64) -> HolderId {
        let deaths = self
            .dead
            .iter()
            .filter(|dead| dead.0 % HOLDERS == nth)
            .count() as u64;
        HolderId(nth + HOLDERS * deaths)
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Acquire {
                holder,
                instance,
                wants,
            } => {
                let free_before = self.free();
                let leases_before = self.leases.len();
                let wants: Vec<Want> = wants
                    .into_iter()
                    .map(|(pool, count)| Want {
                        pool: PoolId(pool),
                        count,
                    })
                    .collect();
                let asked: u16 = wants.iter().map(|want| want.count).sum();
                let request = self.request();
                let holder = self.holder(holder);
                let no_faults = self.failures.is_empty();
                self.run(Event::Acquire {
                    request,
                    holder,
                    instance,
                    wants,
                });
                let got = self.leases.len() - leases_before;
                assert!(
                    got == 0 || got == usize::from(asked),
                    "neither all nor nothing"
                );
                if got == 0 && no_faults {
                    assert_eq!(self.free(), free_before, "a refusal took something");
                }
            }
            Step::Release { holder, nth } => {
                let holder = self.holder(holder);
                let theirs = self.leases.iter().filter(|(_, known)| **known == holder);
                if let Some((lease, _)) = theirs.map(|(l, h)| (*l, *h)).nth(nth) {
                    let request = self.request();
                    self.run(Event::Release {
                        request,
                        holder,
                        lease,
                    });
                    assert!(self.ledger.lease(lease).is_none());
                }
            }
            Step::ReleaseUnknown { holder, lease } => {
                let holder = self.holder(holder);
                let lease = LeaseId(lease);
                let foreign = self
                    .leases
                    .get(&lease)
                    .is_some_and(|known| *known != holder);
                let request = self.request();
                self.run(Event::Release {
                    request,
                    holder,
                    lease,
                });
                assert_eq!(
                    self.ledger.lease(lease).is_some(),
                    foreign,
                    "a foreign lease ended"
                );
            }
            Step::Die { holder } => {
                let holder = self.holder(holder);
                self.dead.insert(holder);
                self.run(Event::Died(holder));
            }
            Step::Fail { next, obstacle } => {
                self.failures.extend(std::iter::repeat_n(obstacle, next));
            }
            Step::Obstruct { slot, obstacle } => {
                self.run(Event::Obstructed(SlotId(slot), obstacle));
            }
            Step::Hold { slot } => self.run(Event::Held(SlotId(slot))),
            Step::Undelivered { nth } => {
                if let Some(lease) = self.leases.keys().copied().nth(nth) {
                    self.run(Event::Undelivered(vec![lease]));
                    assert!(self.ledger.lease(lease).is_none());
                }
            }
            Step::StaleAnswer {
                slot,
                generation,
                works,
            } => {
                let slot = SlotId(slot);
                let before = self.ledger.state(slot);
                self.run(match works {
                    true => Event::Listening(slot, generation),
                    false if generation % 2 == 0 => Event::NoMeans(slot, generation),
                    false => Event::NotListening(slot, generation, Obstacle::Conflict),
                });
                assert_eq!(
                    self.ledger.state(slot),
                    before,
                    "a stale answer changed something"
                );
            }
        }
    }

    fn free(&self) -> Vec<SlotId> {
        self.ledger
            .slots()
            .filter(|slot| self.ledger.state(*slot) == State::Parked)
            .collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: std::env::var("PORTPOOL_HISTORIES").ok().and_then(|n| n.parse().ok()).unwrap_or(4_000),
        ..ProptestConfig::default()
    })]

    #[test]
    fn no_history_breaks_what_the_ledger_promises(steps in prop::collection::vec(step(), 1..60)) {
        let mut world = World::new();
        for step in steps {
            world.take(step);
        }
    }
}

#[test]
fn slots_of_a_pool_are_given_in_the_order_of_their_ports() {
    let mut world = World::new();
    for expected in [0, 2, 3] {
        let request = world.request();
        let wants = vec![Want {
            pool: PoolId(0),
            count: 1,
        }];
        world.run(Event::Acquire {
            request,
            holder: HolderId(9),
            instance: 1,
            wants,
        });
        let newest = *world.leases.keys().next_back().unwrap();
        assert_eq!(world.ledger.lease(newest).unwrap().slot, SlotId(expected));
    }
}

#[test]
fn a_slot_whose_listener_cannot_be_made_is_passed_over_for_the_next() {
    let mut world = World::new();
    world.failures.push_back(Obstacle::Conflict);
    let request = world.request();
    let wants = vec![Want {
        pool: PoolId(1),
        count: 1,
    }];
    world.run(Event::Acquire {
        request,
        holder: HolderId(9),
        instance: 1,
        wants,
    });
    assert_eq!(
        world.ledger.state(SlotId(8)),
        State::Unheld(Obstacle::Conflict)
    );
    assert!(matches!(world.ledger.state(SlotId(9)), State::Leased(_)));
}
