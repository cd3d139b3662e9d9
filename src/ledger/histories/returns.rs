//! The agent ends and another goes on: from what was written down, and from what the kernel has.

use super::super::*;
use super::world::{QUOTAS, World};

impl World {
    /// Everything but what was written down is lost: who waits, what is being made, what rests.
    pub(super) fn restart(&mut self) {
        let before = &self.ledger;
        let places: Vec<Place> = before.slots().map(|slot| before.place(slot)).collect();
        let mut ledger = Ledger::new(&places, &before.rules)
            .that_lets_listeners_rest()
            .with_quotas(QUOTAS);
        // As the plan has it.
        ledger.rotation.clone_from(&before.rotation);
        ledger.skip_leases(before.next_lease());
        for claim in before.kept_claims() {
            ledger.restore_claim(claim);
        }
        let mut shut = Vec::new();
        for slot in before.slots() {
            let kept = before.kept(slot);
            let leases = before.leases.iter().filter(|(_, lease)| lease.slot == slot);
            let leases: Vec<_> = leases.map(|(id, lease)| (*id, lease.clone())).collect();
            ledger.restore(slot, &kept, &leases);

            let port = self.ports.get_mut(&slot).expect("a slot");
            let known = ledger.slot(slot);
            let standby = known.standby.map(|standby| standby.generation);
            let used = [known.steered, standby];
            port.listeners
                .retain(|number, _| used.contains(&Some(*number)));
            port.steered = known.steered;
            port.held &= !matches!(known.state, State::Unheld(_));
            // That some were shut is noticed in a moment.
            for (number, listener) in &mut port.listeners {
                if std::mem::take(&mut listener.shut) {
                    shut.push((slot, *number));
                }
            }
            self.seen.insert(slot, known.state);
        }
        self.ledger = ledger;
        self.outstanding.clear();
        self.delayed.clear();
        self.run(Event::Restored);
        for (slot, generation) in shut {
            self.shut_generation(slot, generation);
        }
        for slot in self.ledger.slots() {
            self.try_to_hold(slot);
        }
    }
}

/// Plays a few events, restarts the agent, and says which leases there are then.
fn after_restart(play: impl FnOnce(&mut World)) -> World {
    let mut world = World::new();
    play(&mut world);
    world.restart();
    world
}

#[test]
fn a_lease_outlives_the_agent_and_ends_with_its_holder() {
    let mut world = after_restart(|world| {
        let asker = world.asker(0);
        world.acquire(asker, Instance::Number(1), &[(0, 1)], Wait::No, None);
    });
    assert_eq!(world.ledger.lease_count(), 1);
    world.die(0);
    assert_eq!(world.ledger.lease_count(), 0);
    assert!(matches!(
        world.ledger.state(SlotId(0)),
        State::Restarting { .. }
    ));
    world.restart();
    assert!(matches!(
        world.ledger.state(SlotId(0)),
        State::Restarting { .. }
    ));
    world.pass(Moment::from_secs(6));
    assert_eq!(world.ledger.state(SlotId(0)), State::Parked);
}

#[test]
fn no_lease_and_no_generation_has_the_number_of_an_earlier_one() {
    let mut world = after_restart(|world| {
        let asker = world.asker(0);
        world.acquire(asker, Instance::Number(1), &[(0, 1)], Wait::No, None);
        world.revoke(LeaseId(1));
    });
    let asker = world.asker(1);
    world.acquire(asker, Instance::Number(1), &[(0, 1)], Wait::No, None);
    assert_eq!(world.nth_lease(0), Some(LeaseId(2)));
    assert_eq!(world.ledger.generation(SlotId(0)), 2);
}

#[test]
fn a_successor_that_is_not_ready_can_be_so_after_the_restart() {
    let ready = Takeover {
        when: When::Ready,
        whom: Whom::Kin,
    };
    let mut world = after_restart(|world| {
        let asker = world.asker(0);
        world.acquire(asker, Instance::Number(1), &[(0, 1)], Wait::No, None);
        let asker = world.asker(1);
        world.acquire(asker, Instance::Number(1), &[(0, 1)], Wait::No, Some(ready));
    });
    assert_eq!(world.ledger.state(SlotId(0)), State::Leased(LeaseId(1)));
    world.ready(LeaseId(2));
    assert_eq!(world.ledger.state(SlotId(0)), State::Leased(LeaseId(2)));
}

#[test]
fn a_claim_outlives_the_agent_if_its_process_has_a_slot_there() {
    let mut world = after_restart(|world| {
        let asker = world.asker(0);
        world.acquire(asker, Instance::Auto, &[(0, 1)], Wait::No, None);
    });
    assert_eq!(world.ledger.claimed_by(1), Some(world.asker(0).holder));
    world.die(0);
    assert_eq!(world.ledger.claimed_by(1), None);
}
