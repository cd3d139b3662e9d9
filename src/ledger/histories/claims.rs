//! Whose an instance is.

use super::super::*;
use super::world::World;

#[test]
fn an_automatic_successor_finds_the_instance_of_its_former_life() {
    let mut world = World::new();
    let first = world.auto(0);
    world.auto(2);
    world.release(world.asker(0).holder, world.lease(first));
    world.die(0);
    world.die(2);
    let request = world.auto(3);
    assert_eq!(world.got(request), Some(SlotId(4)), "not the lower one");
}

#[test]
fn an_instance_that_is_kept_for_a_successor_is_not_claimed_by_another() {
    let mut world = World::new();
    world.auto(0);
    world.die(0);
    let request = world.auto(2);
    assert_eq!(world.got(request), Some(SlotId(4)));
}

#[test]
fn a_claim_outside_of_units_admits_its_user_in_any_unit_and_no_other_user() {
    let mut world = World::new();
    world.auto(0);
    let same_user = world.take(4, 0);
    assert!(world.got(same_user).is_some());
    let another = world.take(2, 0);
    assert!(matches!(world.refused[&another], Refusal::Claimed(1, _)));
}

#[test]
fn an_instance_in_which_somebody_is_already_is_not_claimed() {
    let mut world = World::new();
    world.take(0, 0);
    let request = world.auto(2);
    assert_eq!(world.got(request), Some(SlotId(4)));
}

#[test]
fn an_instance_beyond_those_held_is_held_while_it_is_claimed() {
    let mut world = World::new();
    let three = Instance::Number(3);
    let early = world.acquire(world.asker(1), three, &[(0, 1)], Wait::No, None);
    assert_eq!(
        world.refused[&early],
        Refusal::UnknownInstance(PoolId(0), 3)
    );
    for nth in [2, 3, 0] {
        world.auto(nth);
    }
    assert!(matches!(world.state(13), State::Leased(_)));
    assert_eq!(world.state(17), State::Queueing);
    let joining = world.acquire(world.asker(1), three, &[(1, 1)], Wait::No, None);
    assert_eq!(world.got(joining), Some(SlotId(17)));
    world.die(0);
    assert!(matches!(world.state(13), State::Restarting { .. }));
    assert!(matches!(world.state(17), State::Leased(_)), "the child's");
    assert_eq!(world.state(18), State::Unheld(Obstacle::Untried));
    world.die(1);
    world.pass(Moment::from_secs(6));
    assert_eq!(world.state(13), State::Unheld(Obstacle::Untried));
    assert_eq!(world.state(17), State::Unheld(Obstacle::Untried));
}

#[test]
fn a_claimed_instance_is_joined_by_its_user_and_unit_alone() {
    let mut world = World::new();
    let claimer = world.asker(4).holder;
    world.auto(4);
    for (nth, is_admitted) in [(5, true), (0, false), (2, false)] {
        let request = world.take(nth, 0);
        assert_eq!(world.got(request).is_some(), is_admitted, "{nth}");
        if !is_admitted {
            assert_eq!(world.refused[&request], Refusal::Claimed(1, claimer));
        }
    }
    let unsaid = Instance::Unsaid;
    let stray = world.acquire(world.asker(5), unsaid, &[(0, 1)], Wait::No, None);
    assert_eq!(world.refused[&stray], Refusal::Claimed(1, claimer));
}

#[test]
fn a_claim_that_brings_nothing_is_not_kept() {
    let mut world = World::new();
    let wants = [(0, 1), (2, 2)];
    let request = world.acquire(world.asker(0), Instance::Auto, &wants, Wait::No, None);
    assert!(world.is_exhausted(request));
    assert_eq!(world.ledger.claimed_by(1), None);
}

#[test]
fn a_claim_is_taken_back_with_the_last_slot_that_its_process_has_there() {
    let mut world = World::new();
    let asker = world.asker(0);
    world.acquire(asker, Instance::Auto, &[(0, 2)], Wait::No, None);
    assert_eq!(world.ledger.claimed_by(1), Some(asker.holder));
    world.revoke(LeaseId(1));
    assert_eq!(
        world.ledger.claimed_by(1),
        Some(asker.holder),
        "it has another"
    );
    world.revoke(LeaseId(2));
    assert_eq!(world.ledger.claimed_by(1), None);
}
