//! Each rule of a slot's life in a sentence, tried against the model world.

use super::super::*;
use super::world::World;

const FOREVER: Wait = Wait::Forever;
const NOW: Takeover = Takeover {
    when: When::Now,
    whom: Whom::Kin,
};
const WHEN_READY: Takeover = Takeover {
    when: When::Ready,
    whom: Whom::Kin,
};

/// One slot of a pool in instance 1.
fn take(world: &mut World, process: u64, pool: u32, wait: Wait) -> RequestId {
    let asker = world.asker(process);
    world.acquire(asker, Instance::Number(1), &[(pool, 1)], wait, None)
}

fn take_over(world: &mut World, process: u64, pool: u32, takeover: Takeover) -> RequestId {
    let asker = world.asker(process);
    let instance = Instance::Number(1);
    world.acquire(asker, instance, &[(pool, 1)], Wait::No, Some(takeover))
}

/// The slot that a request got; it got exactly one.
fn slot_of(world: &World, request: RequestId) -> SlotId {
    let leases = &world.granted[&request];
    assert_eq!(leases.len(), 1);
    world.ledger.lease(leases[0]).expect("it lasts").slot
}

fn lease_of(world: &World, request: RequestId) -> LeaseId {
    world.granted[&request][0]
}

#[test]
fn slots_of_a_pool_are_given_in_the_order_of_their_ports() {
    let mut world = World::new();
    for expected in [0, 2, 3] {
        let request = take(&mut world, 0, 0, Wait::No);
        assert_eq!(slot_of(&world, request), SlotId(expected));
    }
    let request = take(&mut world, 0, 0, Wait::No);
    assert!(matches!(world.refused[&request], Refusal::Exhausted(..)));
}

#[test]
fn a_slot_whose_listener_cannot_be_made_is_passed_over_for_the_next() {
    let mut world = World::new();
    world.failures.push_back(Obstacle::Conflict);
    let request = take(&mut world, 0, 0, Wait::No);
    assert_eq!(slot_of(&world, request), SlotId(2));
    let passed_over = [SlotId(0), SlotId(1)].map(|slot| world.ledger.state(slot));
    assert!(passed_over.contains(&State::Unheld(Obstacle::Conflict)));
}

#[test]
fn a_lack_of_descriptors_refuses_and_leaves_the_slot_parked() {
    let mut world = World::new();
    world.failures.push_back(Obstacle::Untried);
    let request = take(&mut world, 0, 0, Wait::No);
    assert_eq!(world.refused[&request], Refusal::NoMeans);
    assert_eq!(world.ledger.state(SlotId(0)), State::Parked);
}

#[test]
fn a_dead_holders_slot_is_kept_for_its_successor_and_for_nobody_else() {
    let mut world = World::new();
    let first = take(&mut world, 0, 0, Wait::No);
    let slot = slot_of(&world, first);
    world.die(0);
    assert!(matches!(world.ledger.state(slot), State::Restarting { .. }));
    let stranger = take(&mut world, 2, 0, Wait::No);
    assert_ne!(slot_of(&world, stranger), slot, "it is another's kin");
    let successor = take(&mut world, 1, 0, Wait::No);
    assert_eq!(slot_of(&world, successor), slot, "it is of the same kin");
    assert!(world.reasons.contains(&(slot, Reason::Resumed)));
}

#[test]
fn when_no_successor_comes_in_time_others_may_have_the_slot() {
    let mut world = World::new();
    let first = take(&mut world, 0, 0, Wait::No);
    let slot = slot_of(&world, first);
    world.die(0);
    let deadline = world.ledger.next_deadline().expect("the window's end");
    let rest = deadline.saturating_sub(world.clock);
    world.pass(rest);
    assert_eq!(world.ledger.state(slot), State::Parked);
    let stranger = take(&mut world, 2, 0, Wait::No);
    assert_eq!(slot_of(&world, stranger), slot);
}

#[test]
fn waiters_are_served_in_the_order_in_which_they_came() {
    let mut world = World::new();
    let first = take(&mut world, 0, 1, Wait::No);
    let second = take(&mut world, 0, 1, Wait::No);
    let waits: Vec<RequestId> = [2, 3]
        .map(|process| take(&mut world, process, 1, FOREVER))
        .into();
    assert!(
        waits
            .iter()
            .all(|request| world.outstanding.contains_key(request))
    );
    for (lease, waiter) in [(first, waits[0]), (second, waits[1])] {
        let (slot, lease) = (slot_of(&world, lease), lease_of(&world, lease));
        let holder = world.asker(0).holder;
        world.release(holder, lease);
        assert_eq!(slot_of(&world, waiter), slot);
    }
}

#[test]
fn nobody_overtakes_a_waiter_of_the_same_pool() {
    let mut world = World::new();
    for _ in 0..2 {
        take(&mut world, 0, 1, Wait::No);
    }
    let asker = world.asker(2);
    let two = world.acquire(asker, Instance::Number(1), &[(1, 2)], FOREVER, None);
    let holder = world.asker(0).holder;
    let lease = world.nth_lease(0).expect("a lease");
    world.release(holder, lease);
    let late = take(&mut world, 3, 1, Wait::No);
    assert!(
        matches!(world.refused[&late], Refusal::Exhausted(..)),
        "one is free, and promised"
    );
    let lease = world.nth_lease(0).expect("a lease");
    world.release(holder, lease);
    assert_eq!(world.granted[&two].len(), 2);
}

#[test]
fn a_waiter_whose_time_is_over_is_refused_and_one_that_goes_is_forgotten() {
    let mut world = World::new();
    for _ in 0..2 {
        take(&mut world, 0, 1, Wait::No);
    }
    let until = world.clock + Moment::from_secs(1);
    let late = take(&mut world, 2, 1, Wait::Until(until));
    let gone = take(&mut world, 3, 1, FOREVER);
    world.pass(Moment::from_secs(2));
    assert!(matches!(world.refused[&late], Refusal::Exhausted(..)));
    world.run(Event::Cancel(gone));
    assert!(!world.outstanding.contains_key(&gone));
}

#[test]
fn a_takeover_moves_the_lease_and_tells_the_old_holder() {
    let mut world = World::new();
    let old = take(&mut world, 0, 0, Wait::No);
    let slot = slot_of(&world, old);
    let new = take_over(&mut world, 1, 0, NOW);
    assert_eq!(slot_of(&world, new), slot);
    assert!(world.ledger.lease(lease_of(&world, old)).is_none());
    let told = (world.asker(0).holder, slot, Notice::TakenOver);
    assert!(world.notices.contains(&told));
}

#[test]
fn a_successor_that_dies_before_it_is_ready_changes_nothing() {
    let mut world = World::new();
    let old = take(&mut world, 0, 0, Wait::No);
    let slot = slot_of(&world, old);
    let before = world.ports[&slot].steered;
    take_over(&mut world, 1, 0, WHEN_READY);
    assert_eq!(world.ports[&slot].steered, before, "not steered to yet");
    world.die(1);
    assert_eq!(world.ports[&slot].steered, before);
    assert_eq!(
        world.ledger.state(slot),
        State::Leased(lease_of(&world, old))
    );
    assert!(world.notices.is_empty(), "the old holder was not disturbed");
}

#[test]
fn a_successor_that_is_ready_gets_what_comes_from_then_on() {
    let mut world = World::new();
    let old = take(&mut world, 0, 0, Wait::No);
    let slot = slot_of(&world, old);
    let before = world.ports[&slot].steered;
    let new = take_over(&mut world, 1, 0, WHEN_READY);
    world.ready(lease_of(&world, new));
    assert!(world.ports[&slot].steered > before);
    assert_eq!(
        world.ledger.state(slot),
        State::Leased(lease_of(&world, new))
    );
}

#[test]
fn a_revoked_lease_ends_at_once_and_its_holder_is_told() {
    let mut world = World::new();
    let request = take(&mut world, 0, 0, Wait::No);
    let (slot, lease) = (slot_of(&world, request), lease_of(&world, request));
    world.revoke(lease);
    assert_eq!(world.ledger.state(slot), State::Parked);
    let told = (world.asker(0).holder, slot, Notice::Revoked);
    assert!(world.notices.contains(&told));
}

#[test]
fn instances_asked_for_without_a_number_are_never_two_the_same_and_come_back() {
    let mut world = World::new();
    let auto = |world: &mut World, process| {
        let asker = world.asker(process);
        let request = world.acquire(asker, Instance::Auto, &[(0, 1)], Wait::No, None);
        let slot = slot_of(world, request);
        world.ledger.place(slot).instance
    };
    assert_eq!(
        [0, 2, 3].map(|process| auto(&mut world, process)),
        [1, 2, 3]
    );
    world.die(2);
    world.pass(Moment::from_secs(60));
    assert_eq!(auto(&mut world, 2), 2, "the lowest that is nobody's");
}

#[test]
fn a_pool_that_queues_listens_before_it_has_a_holder() {
    let mut world = World::new();
    assert_eq!(world.ledger.state(SlotId(8)), State::Queueing);
    let waiting = world.ports[&SlotId(8)].steered;
    let request = take(&mut world, 0, 1, Wait::No);
    assert_eq!(slot_of(&world, request), SlotId(8));
    assert_eq!(
        world.ports[&SlotId(8)].steered,
        waiting,
        "with what waits there"
    );
}

#[test]
fn a_listener_that_its_holder_shuts_listens_again() {
    let mut world = World::new();
    let request = take(&mut world, 0, 0, Wait::No);
    let slot = slot_of(&world, request);
    world.shut(slot);
    assert!(world.reasons.contains(&(slot, Reason::Healed)));
    assert_eq!(
        world.ledger.state(slot),
        State::Leased(lease_of(&world, request))
    );
}
