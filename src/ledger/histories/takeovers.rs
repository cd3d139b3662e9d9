//! Who takes over from whom, and what is left if that fails.

use super::super::*;
use super::asking::{NOW, ONE, READY};
use super::world::World;

#[test]
fn a_rolling_deploy_replaces_each_old_process_once() {
    let mut world = World::new();
    let old = [0, 0, 0].map(|nth| world.take(nth, 0));
    for (nth, expected) in (0..).zip([0, 2, 3]) {
        let asker = Asker {
            holder: HolderId(1_000 + nth),
            ..world.asker(0)
        };
        let new = world.acquire(asker, ONE, &[(0, 1)], Wait::No, NOW);
        assert_eq!(world.got(new), Some(SlotId(expected)));
    }
    assert!(old.iter().all(|request| world.got(*request).is_none()));
}

#[test]
fn who_waits_to_take_over_does_not_replace_who_came_before_its_turn() {
    let mut world = World::new();
    world.take(2, 2);
    let waiter = world.acquire(world.asker(0), ONE, &[(2, 1)], Wait::Forever, NOW);
    let anyone = Some(Takeover {
        when: When::Now,
        whom: Whom::Anyone,
    });
    let quick = world.take_over(1, 2, anyone);
    assert_eq!(world.got(quick), Some(SlotId(10)));
    assert!(world.waits(waiter));
}

#[test]
fn nobody_takes_over_from_another_kin_unless_that_is_said() {
    let mut world = World::new();
    world.take(0, 2);
    let refused = world.take_over(2, 2, NOW);
    assert!(world.is_exhausted(refused));
    let anyone = Some(Takeover {
        when: When::Now,
        whom: Whom::Anyone,
    });
    let taken = world.take_over(2, 2, anyone);
    assert_eq!(world.got(taken), Some(SlotId(10)));
    assert_eq!(
        world.queue(10),
        [Some(Kin(1))],
        "and nothing that was queued"
    );
}

#[test]
fn who_may_take_over_from_its_user_takes_over_from_no_other_and_only_where_nothing_is_free() {
    let of_user = Some(Takeover {
        when: When::Now,
        whom: Whom::User,
    });
    let mut world = World::new();
    // The first and the fifth process are of one user and of two kins, the third is of another.
    world.take(2, 2);
    let refused = world.take_over(4, 2, of_user);
    assert!(world.is_exhausted(refused));
    world.die(2);
    world.pass(Moment::from_secs(10));
    world.take(0, 2);
    let taken = world.take_over(4, 2, of_user);
    assert_eq!(world.got(taken), Some(SlotId(10)));
    // Three slots: the free one comes first.
    world.take(0, 0);
    let free = world.take_over(4, 0, of_user);
    assert_eq!(world.got(free), Some(SlotId(2)));
}

#[test]
fn until_the_successor_is_ready_the_slot_is_the_old_holders() {
    let mut world = World::new();
    let old = world.take(0, 0);
    let new = world.take_over(1, 0, READY);
    assert_eq!(world.state(0), State::Leased(world.lease(old)));
    assert_eq!(world.steered(0), Some(1));
    assert_eq!(
        world.ledger.generation_of(world.lease(new), SlotId(0)),
        Some(2)
    );
    let second = world.take_over(1, 0, READY);
    assert_eq!(world.refused[&second], Refusal::TakeoverUnderWay(SlotId(0)));
    world.ready(world.lease(new));
    assert_eq!(world.state(0), State::Leased(world.lease(new)));
    assert_eq!(world.steered(0), Some(2));
    let ex_holders: Vec<_> = world.ledger.ex_holders(SlotId(0)).collect();
    assert_eq!(ex_holders, [world.asker(0).holder]);
}

#[test]
fn an_old_holder_that_dies_leaves_the_slot_to_the_successor_that_is_not_ready() {
    let mut world = World::new();
    world.take(0, 0);
    let new = world.take_over(1, 0, READY);
    world.die(0);
    assert_eq!(world.state(0), State::Leased(world.lease(new)));
    assert_eq!(world.steered(0), Some(2));
    assert_eq!(world.queue(0), [Some(Kin(0))]);
}

#[test]
fn a_successor_whose_listener_cannot_be_made_leaves_the_old_holder_alone() {
    let mut world = World::new();
    let old = world.take(0, 0);
    world.failures.push_back(Obstacle::Conflict);
    let new = world.take_over(1, 0, READY);
    let refusal = Refusal::CannotListen(SlotId(0), Obstacle::Conflict);
    assert_eq!(world.refused[&new], refusal);
    assert_eq!(world.state(0), State::Leased(world.lease(old)));
}
