//! What a successor finds, and nobody else.

use super::super::*;
use super::asking::ONE;
use super::world::World;

#[test]
fn a_dead_holders_slot_goes_on_queueing_for_its_successor_alone() {
    let mut world = World::new();
    let first = world.take(0, 0);
    let generation = world.steered(0);
    world.die(0);
    assert!(matches!(
        world.state(0),
        State::Restarting {
            successor: Kin(0),
            ..
        }
    ));
    let other = world.take(2, 0);
    assert_eq!(world.got(other), Some(SlotId(2)), "a free one, not that");
    let successor = world.take(1, 0);
    assert_eq!(
        world.got(successor),
        Some(SlotId(0)),
        "its own before a free one"
    );
    assert_eq!(world.steered(0), generation);
    assert_eq!(world.queue(0), [Some(Kin(0))]);
    assert_eq!(world.got(first), None);
}

#[test]
fn a_restarting_slot_goes_to_its_successor_past_everybody_who_waits() {
    let mut world = World::new();
    world.take(0, 2);
    let waiter = world.wait(2, &[(2, 1)]);
    world.die(0);
    assert!(world.waits(waiter));
    let successor = world.take(1, 2);
    assert_eq!(world.got(successor), Some(SlotId(10)));
    assert!(world.waits(waiter));
}

#[test]
fn a_label_decides_between_several_restarting_slots() {
    let mut world = World::new();
    for label in [7, 8] {
        let asker = Asker {
            label: Some(Label(label)),
            ..world.asker(0)
        };
        world.acquire(asker, ONE, &[(0, 1)], Wait::No, None);
    }
    world.die(0);
    let asker = Asker {
        label: Some(Label(8)),
        ..world.asker(1)
    };
    let request = world.acquire(asker, ONE, &[(0, 1)], Wait::No, None);
    assert_eq!(world.got(request), Some(SlotId(2)));
}

#[test]
fn when_the_window_ends_the_queue_is_reset_and_waiters_are_served() {
    let mut world = World::new();
    world.take(0, 2);
    let waiter = world.wait(2, &[(2, 1)]);
    world.die(0);
    let end = world.ledger.next_deadline().unwrap();
    world.pass(end - world.clock);
    assert_eq!(world.got(waiter), Some(SlotId(10)));
    assert_eq!(world.queue(10), [Some(Kin(1))]);
}

#[test]
fn an_orphan_costs_a_restarting_slot_its_generation_but_not_its_queue() {
    let mut world = World::new();
    world.take(0, 2);
    world.die(0);
    world.run(Event::Orphaned(SlotId(10)));
    assert_eq!(world.steered(10), Some(2));
    assert_eq!(world.queue(10), [None, Some(Kin(0))]);
}

#[test]
fn the_first_holder_gets_what_queued_for_nobody() {
    let mut world = World::new();
    assert_eq!(world.state(8), State::Queueing);
    let generation = world.steered(8);
    let request = world.take(0, 1);
    assert_eq!(world.got(request), Some(SlotId(8)));
    assert_eq!(world.steered(8), generation);
    world.release(world.asker(0).holder, world.lease(request));
    assert_eq!(world.state(8), State::Queueing);
    assert_eq!(world.queue(8), [None], "nothing that was the holder's");
}

#[test]
fn a_holder_that_never_got_its_restarting_slot_leaves_the_queue_to_the_next() {
    let mut world = World::new();
    world.take(0, 0);
    world.die(0);
    let request = world.take(1, 0);
    world.run(Event::Undelivered(vec![world.lease(request)]));
    assert!(matches!(world.state(0), State::Restarting { .. }));
    assert_eq!(world.queue(0), [Some(Kin(0))]);
}

#[test]
fn a_window_that_ends_while_the_successor_is_served_ends_for_good_if_that_fails() {
    let mut world = World::new();
    world.take(0, 2);
    world.die(0);
    world.delays = 2;
    let successor = world.acquire(world.asker(1), ONE, &[(2, 1), (0, 1)], Wait::No, None);
    world.pass(Moment::from_secs(4));
    assert!(world.waits(successor));
    assert!(matches!(world.state(10), State::Restarting { .. }));
    world.run(Event::Cancel(successor));
    world.deliver();
    assert_eq!(world.state(10), State::Queueing);
    assert_eq!(world.queue(10), [None]);
}
