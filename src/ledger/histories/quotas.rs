//! How much one user may have.

use super::super::*;
use super::asking::ONE;
use super::world::World;

#[test]
fn a_user_gets_no_more_leases_than_its_quota_and_waits_no_more_often() {
    let quotas = Quotas {
        leases_per_user: 2,
        waiters_per_user: 1,
    };
    let mut world = World::new();
    world.ledger.quotas = quotas;
    let wait = |world: &mut World, nth| {
        world.acquire(world.asker(nth), ONE, &[(0, 1)], Wait::Forever, None)
    };
    // These two are of one user.
    for nth in [2, 3] {
        let request = world.take(nth, 0);
        assert!(world.got(request).is_some());
    }
    let third = wait(&mut world, 2);
    assert_eq!(world.refused[&third], Refusal::TooManyLeases(2));
    // Another user has its own.
    let other = world.take(1, 0);
    assert!(world.got(other).is_some());
    let first = wait(&mut world, 4);
    assert!(world.waits(first));
    let second = wait(&mut world, 5);
    assert_eq!(world.refused[&second], Refusal::TooManyWaiters(1));
    let exempt = wait(&mut world, 0);
    assert!(world.waits(exempt));
    // What is given back can be had again.
    let its = world.asker(2).holder;
    let lease = *world
        .leases
        .iter()
        .find(|(_, holder)| **holder == its)
        .expect("one")
        .0;
    world.release(its, lease);
    let again = wait(&mut world, 2);
    assert!(
        world.waits(again),
        "behind the others, and within its quota"
    );
}
