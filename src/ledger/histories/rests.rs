//! What a process gives back and asks for again.

use super::super::*;
use super::world::World;

/// One slot of pool 0, whose first has a companion, in instance 1.
fn take(world: &mut World, process: u64) -> (LeaseId, SlotId) {
    let asker = world.asker(process);
    let request = world.acquire(asker, Instance::Number(1), &[(0, 1)], Wait::No, None);
    let lease = world.granted[&request][0];
    (lease, world.ledger.lease(lease).expect("it lasts").slot)
}

fn give_back(world: &mut World, process: u64, lease: LeaseId) {
    world.release(world.asker(process).holder, lease);
}

fn listeners(world: &World, slot: SlotId) -> Vec<u64> {
    world.ports[&slot].listeners.keys().copied().collect()
}

#[test]
fn a_process_that_asks_again_gets_the_same_listener_and_its_companions() {
    let mut world = World::new();
    let (lease, slot) = take(&mut world, 0);
    let before = [slot, SlotId(1)].map(|slot| listeners(&world, slot));
    give_back(&mut world, 0, lease);
    assert_eq!(world.ledger.state(slot), State::Parked);
    assert_eq!(
        world.ports[&slot].steered, None,
        "and nobody gets a connection"
    );
    let (again, same) = take(&mut world, 0);
    assert_eq!(same, slot);
    assert_ne!(again, lease);
    assert_eq!(
        [slot, SlotId(1)].map(|slot| listeners(&world, slot)),
        before
    );
    assert_eq!(world.ports[&slot].steered, Some(before[0][0]));
}

#[test]
fn anybody_else_gets_a_listener_of_its_own() {
    let mut world = World::new();
    let (lease, slot) = take(&mut world, 0);
    let before = listeners(&world, slot);
    give_back(&mut world, 0, lease);
    // Of the same kin: it is another process all the same.
    let (_, same) = take(&mut world, 1);
    assert_eq!(same, slot);
    let after = listeners(&world, slot);
    assert_eq!(after.len(), 1);
    assert_ne!(after, before);
}

#[test]
fn it_ends_after_a_while_and_with_the_process() {
    let mut world = World::new();
    let (lease, slot) = take(&mut world, 0);
    give_back(&mut world, 0, lease);
    assert_eq!(listeners(&world, slot).len(), 1);
    world.pass(super::super::resting::REST);
    assert!(listeners(&world, slot).is_empty());

    let (lease, slot) = take(&mut world, 0);
    give_back(&mut world, 0, lease);
    world.die(0);
    assert!(listeners(&world, slot).is_empty());
}

#[test]
fn what_was_taken_back_does_not_rest() {
    let mut world = World::new();
    let (lease, slot) = take(&mut world, 0);
    world.revoke(lease);
    assert!(listeners(&world, slot).is_empty());
    let (lease, slot) = take(&mut world, 0);
    world.run(Event::Undelivered(vec![lease]));
    assert!(listeners(&world, slot).is_empty());
}

#[test]
fn a_listener_that_is_shut_does_not_rest() {
    let mut world = World::new();
    let (lease, slot) = take(&mut world, 0);
    world.failures.push_back(Obstacle::Conflict);
    world.shut(slot);
    give_back(&mut world, 0, lease);
    assert!(listeners(&world, slot).is_empty());
}
