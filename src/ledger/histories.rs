//! Random histories: the ledger against a model kernel and model processes, with faults, deaths,
//! slow and stale answers.
//!
//! [`world`] has the model, [`machine`] its kernel, and [`promises`] what must hold after every step.
//! The other files say each rule of the life of a slot in a sentence. `PORTPOOL_HISTORIES` sets how many histories are run.

mod asking;
mod claims;
mod machine;
mod promises;
mod quotas;
mod restarts;
mod rests;
mod returns;
mod rules;
mod takeovers;
mod turns;
mod world;

use proptest::prelude::*;

use super::*;
use world::{PLACES, World};

const PROCESSES: u64 = 6;

#[derive(Debug, Clone)]
enum Step {
    Acquire {
        process: u64,
        instance: Instance,
        wants: Vec<(u32, u16)>,
        wait: Option<Option<u64>>,
        takeover: Option<Takeover>,
        label: Option<u64>,
    },
    Cancel(usize),
    Release(usize),
    ReleaseAnothers {
        process: u64,
        nth: usize,
    },
    Revoke(usize),
    Ready(usize),
    Die(u64),
    Undelivered(usize),
    Pass(u64),
    /// The next so many listeners, or holds, cannot be made.
    Fail(usize, Obstacle),
    /// The next so many listeners are made later.
    Delay(usize),
    Deliver,
    Obstruct(u32, Obstacle),
    Hold(u32),
    Hostage(u32),
    Freed(u32),
    Orphaned(u32),
    Shut(u32, usize),
    Drain(u32),
    /// The plan changes: this slot stays or comes back, one more comes, the rules are others.
    Reload {
        keep: u32,
        adds: bool,
        rules: usize,
    },
    StaleAnswer {
        slot: u32,
        generation: u64,
        works: bool,
    },
    /// The agent ends, at this very moment, and another goes on.
    Restart,
}

fn obstacle() -> impl Strategy<Value = Obstacle> {
    prop_oneof![Just(Obstacle::Conflict), Just(Obstacle::Unavailable)]
}

/// What a listener cannot be made for: an obstacle, or (`Untried`) a lack of descriptors.
fn fault() -> impl Strategy<Value = Obstacle> {
    prop_oneof![2 => obstacle(), 1 => Just(Obstacle::Untried)]
}

fn whom() -> impl Strategy<Value = Whom> {
    prop_oneof![2 => Just(Whom::Kin), 1 => Just(Whom::User), 1 => Just(Whom::Anyone)]
}

fn acquire() -> impl Strategy<Value = Step> {
    let instance = prop_oneof![
        3 => Just(Instance::Number(1)),
        2 => (1..5u16).prop_map(Instance::Number),
        2 => Just(Instance::Unsaid),
        3 => Just(Instance::Auto),
    ];
    let wait = prop_oneof![
        4 => Just(None),
        2 => (0..6_000u64).prop_map(|wait| Some(Some(wait))),
        3 => Just(Some(None)),
    ];
    let takeover = prop_oneof![
        4 => Just(None),
        3 => (any::<bool>(), whom()).prop_map(|(now, whom)| Some(Takeover {
            when: if now { When::Now } else { When::Ready },
            whom,
        })),
    ];
    let wants = prop::collection::vec((0..3u32, 1..3u16), 1..3);
    let label = prop::option::of(0..2u64);
    (0..PROCESSES, instance, wants, wait, takeover, label).prop_map(
        |(process, instance, wants, wait, takeover, label)| Step::Acquire {
            process,
            instance,
            wants,
            wait,
            takeover,
            label,
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        26 => acquire(),
        2 => (0..4usize).prop_map(Step::Cancel),
        4 => (0..6usize).prop_map(Step::Release),
        1 => (0..PROCESSES, 0..6usize)
            .prop_map(|(process, nth)| Step::ReleaseAnothers { process, nth }),
        2 => (0..6usize).prop_map(Step::Revoke),
        3 => (0..6usize).prop_map(Step::Ready),
        4 => (0..PROCESSES).prop_map(Step::Die),
        1 => (0..6usize).prop_map(Step::Undelivered),
        4 => (0..4_000u64).prop_map(Step::Pass),
        2 => (1..4usize, fault()).prop_map(|(next, fault)| Step::Fail(next, fault)),
        2 => (1..4usize).prop_map(Step::Delay),
        2 => Just(Step::Deliver),
        1 => (0..PLACES, obstacle()).prop_map(|(slot, obstacle)| Step::Obstruct(slot, obstacle)),
        3 => (0..PLACES).prop_map(Step::Hold),
        1 => (0..PLACES).prop_map(Step::Hostage),
        1 => (0..PLACES).prop_map(Step::Freed),
        2 => (0..PLACES).prop_map(Step::Orphaned),
        2 => (0..PLACES, 1..12usize).prop_map(|(slot, times)| Step::Shut(slot, times)),
        1 => (0..PLACES * 4).prop_map(Step::Drain),
        1 => (0..PLACES, any::<bool>(), 0..3usize)
            .prop_map(|(keep, adds, rules)| Step::Reload { keep, adds, rules }),
        1 => (0..PLACES, 0..9u64, any::<bool>()).prop_map(|(slot, generation, works)| {
            Step::StaleAnswer { slot, generation, works }
        }),
        2 => Just(Step::Restart),
    ]
}

fn take(world: &mut World, step: Step) {
    match step {
        Step::Acquire {
            process,
            instance,
            wants,
            wait,
            takeover,
            label,
        } => {
            let wait = match wait {
                None => Wait::No,
                Some(None) => Wait::Forever,
                Some(Some(millis)) => Wait::Until(world.clock + Moment::from_millis(millis)),
            };
            let asker = Asker {
                label: label.map(Label),
                ..world.asker(process)
            };
            world.acquire(asker, instance, &wants, wait, takeover);
        }
        Step::Cancel(nth) => {
            if let Some(request) = world.outstanding.keys().copied().nth(nth) {
                world.run(Event::Cancel(request));
                assert!(!world.outstanding.contains_key(&request));
            }
        }
        Step::Release(nth) => {
            if let Some(lease) = world.nth_lease(nth) {
                let holder = world.leases[&lease];
                world.release(holder, lease);
                assert!(world.ledger.lease(lease).is_none());
            }
        }
        Step::ReleaseAnothers { process, nth } => {
            let holder = world.asker(process).holder;
            if let Some(lease) = world.nth_lease(nth)
                && world.leases[&lease] != holder
            {
                world.release(holder, lease);
                assert!(world.ledger.lease(lease).is_some(), "a foreign lease ended");
            }
        }
        Step::Revoke(nth) => {
            if let Some(lease) = world.nth_lease(nth) {
                world.revoke(lease);
                assert!(world.ledger.lease(lease).is_none());
            }
        }
        Step::Ready(nth) => {
            if let Some(lease) = world.nth_lease(nth) {
                world.ready(lease);
                let lease = world.ledger.lease(lease);
                // Gone already, if somebody had waited to take it over.
                assert!(lease.is_none_or(|lease| !lease.standby));
            }
        }
        Step::Die(process) => world.die(process),
        Step::Undelivered(nth) => {
            if let Some(lease) = world.nth_lease(nth) {
                world.run(Event::Undelivered(vec![lease]));
                assert!(world.ledger.lease(lease).is_none());
            }
        }
        Step::Pass(millis) => world.pass(Moment::from_millis(millis)),
        Step::Fail(next, obstacle) => {
            world.failures.extend(std::iter::repeat_n(obstacle, next));
        }
        Step::Delay(next) => world.delays += next,
        Step::Deliver => world.deliver(),
        Step::Obstruct(slot, obstacle) => world.run(Event::Obstructed(SlotId(slot), obstacle)),
        Step::Hold(slot) => world.try_to_hold(SlotId(slot)),
        // Only what is held can be blocked for its holder.
        Step::Hostage(slot) if !world.ports[&SlotId(slot)].held => {}
        Step::Hostage(slot) => world.run(Event::Hostage(SlotId(slot))),
        Step::Freed(slot) => world.run(Event::Freed(SlotId(slot))),
        Step::Orphaned(slot) => world.run(Event::Orphaned(SlotId(slot))),
        Step::Shut(slot, times) => {
            for _ in 0..times {
                world.shut(SlotId(slot));
            }
        }
        // Rare: a plan is soon empty otherwise.
        Step::Drain(slot) => {
            if slot < PLACES {
                world.run(Event::Drain(SlotId(slot)));
            }
        }
        Step::Reload { keep, adds, rules } => world.reload(SlotId(keep), adds, rules),
        Step::StaleAnswer {
            slot,
            generation,
            works,
        } => world.answer_stale(SlotId(slot), generation, works),
        Step::Restart => world.restart(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: std::env::var("PORTPOOL_HISTORIES").ok().and_then(|n| n.parse().ok()).unwrap_or(2_000),
        ..ProptestConfig::default()
    })]

    #[test]
    fn no_history_breaks_what_the_ledger_promises(steps in prop::collection::vec(step(), 1..60)) {
        let mut world = World::new();
        for step in steps {
            take(&mut world, step);
        }
        world.deliver();
        world.everybody_dies();
    }
}
