//! Whose turn it is, and when a slot is nobody's.

use super::super::*;
use super::asking::ONE;
use super::world::World;

#[test]
fn who_does_not_wait_does_not_overtake_who_does() {
    let mut world = World::new();
    world.take(0, 1);
    let waiter = world.wait(2, &[(1, 2)]);
    assert!(world.waits(waiter));
    let hasty = world.take(4, 1);
    assert!(world.is_exhausted(hasty), "one is free, and waited for");
}

#[test]
fn a_waiter_for_several_pools_holds_nothing_until_it_has_all() {
    let mut world = World::new();
    let holder = world.take(0, 2);
    let waiter = world.wait(2, &[(1, 2), (2, 1)]);
    assert_eq!(world.state(8), State::Queueing);
    world.release(world.asker(0).holder, world.lease(holder));
    assert_eq!(world.granted[&waiter].len(), 3);
}

#[test]
fn no_more_may_wait_for_a_pool_than_the_limit_says() {
    let mut world = World::new();
    world.ledger.quotas = Quotas::default();
    world.take(0, 2);
    for _ in 0..MAX_WAITERS_PER_POOL {
        let request = world.wait(2, &[(2, 1)]);
        assert!(world.waits(request));
    }
    let request = world.wait(2, &[(2, 1)]);
    assert_eq!(world.refused[&request], Refusal::Busy(PoolId(2)));
}

#[test]
fn a_revoked_lease_ends_at_once_and_its_queue_with_it() {
    let mut world = World::new();
    let holder = world.asker(0).holder;
    let request = world.take(0, 2);
    let waiter = world.wait(2, &[(2, 1)]);
    world.revoke(world.lease(request));
    assert_eq!(world.got(waiter), Some(SlotId(10)));
    assert_eq!(world.queue(10), [Some(Kin(1))]);
    assert_eq!(world.notices, [(holder, SlotId(10), Notice::Revoked)]);
    assert_eq!(
        world.ledger.ex_holders(SlotId(10)).collect::<Vec<_>>(),
        [holder]
    );
    world.die(0);
    assert_eq!(world.ledger.ex_holders(SlotId(10)).count(), 0);
}

#[test]
fn a_listener_that_was_shut_listens_again_but_not_in_a_loop() {
    let mut world = World::new();
    let request = world.take(0, 0);
    for _ in 0..1_000 {
        world.clock -= Moment::from_millis(7);
        world.shut(SlotId(0));
    }
    let heals = |world: &World| {
        let healed = |(_, reason): &&(SlotId, Reason)| *reason == Reason::Healed;
        world.reasons.iter().filter(healed).count()
    };
    assert_eq!(heals(&world), 8);
    world.pass(Moment::from_secs(1));
    assert_eq!(heals(&world), 9);
    assert_eq!(world.got(request), Some(SlotId(0)));
}

#[test]
fn a_draining_slot_is_dropped_when_its_last_lease_ends() {
    let mut world = World::new();
    let request = world.take(0, 2);
    world.run(Event::Drain(SlotId(10)));
    assert_eq!(world.got(request), Some(SlotId(10)));
    let refused = world.take(1, 2);
    assert_eq!(world.refused[&refused], Refusal::Draining(PoolId(2)));
    world.die(0);
    assert_eq!(world.state(10), State::Unheld(Obstacle::Untried));
}

#[test]
fn a_hostage_slot_is_nobodys_until_it_is_freed() {
    let mut world = World::new();
    world.run(Event::Hostage(SlotId(0)));
    let request = world.take(0, 0);
    assert_eq!(world.got(request), Some(SlotId(2)));
    world.run(Event::Freed(SlotId(0)));
    let request = world.take(0, 0);
    assert_eq!(world.got(request), Some(SlotId(0)));
}

#[test]
fn a_waiters_time_is_over_also_while_an_earlier_ones_listeners_are_being_made() {
    let mut world = World::new();
    let holder = world.take(0, 2);
    let earlier = world.wait(2, &[(2, 1), (0, 1)]);
    let until = Wait::Until(world.clock + Moment::from_secs(1));
    let late = world.acquire(world.asker(4), ONE, &[(0, 1)], until, None);
    world.delays = 1;
    world.release(world.asker(0).holder, world.lease(holder));
    world.pass(Moment::from_secs(2));
    assert!(world.is_exhausted(late));
    world.deliver();
    assert!(world.got(earlier).is_some());
}
