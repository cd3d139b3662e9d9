//! Waiting for what is taken: in order, for a time, and only as long as somebody waits.

use nix::sys::signal::Signal;

use crate::host::{on_a_host, refuses, said, server_of};
use crate::raw::slots;

const ONE: &str = "[pool.api]\nports = 9000\n";

/// What a raw client sends to wait for a slot of the pool.
fn wait_for(pool: &str, milliseconds: i64) -> String {
    format!(r#"{{"pools":[{{"pool":"{pool}"}}],"wait":{milliseconds}}}"#)
}

#[test]
fn waiters_are_served_in_the_order_in_which_they_came_as_holders_die() {
    on_a_host(|host| {
        let agent = host.agent(ONE);
        let mut holders = vec![agent.serve(&["api"])];
        let program = crate::host::roles();
        let program = program.to_str().expect("text");
        for waiting in 1..=3 {
            holders.push(agent.exec(&["--wait", "api"], &[program, "serve"]));
            agent.wait_for_waiters(waiting);
        }
        // Who does not wait overtakes nobody.
        let impatient = agent.run(&["exec", "api", "--", "true"]);
        assert_eq!(impatient.status.code(), Some(75));
        for turn in 0..3 {
            assert_eq!(server_of(9000), holders[turn].id(), "turn {turn}");
            holders[turn].signal(Signal::SIGKILL);
            holders[turn + 1].wait_for("ready");
        }
        assert_eq!(server_of(9000), holders[3].id());
        agent.wait_for_waiters(0);
    });
}

#[test]
fn a_waiter_that_goes_away_is_forgotten_and_the_next_one_served() {
    on_a_host(|host| {
        let agent = host.agent(ONE);
        let mut holder = agent.serve(&["api"]);
        let program = crate::host::roles();
        let program = program.to_str().expect("text");
        let mut killed = agent.exec(&["--wait", "api"], &[program, "serve"]);
        agent.wait_for_waiters(1);
        let mut closed = agent.raw();
        closed.call("Acquire", &wait_for("api", -1)).unwrap();
        agent.wait_for_waiters(2);
        // Half a close is enough: who waits for a slot keeps its end open.
        let mut half = agent.raw();
        half.call("Acquire", &wait_for("api", -1)).unwrap();
        agent.wait_for_waiters(3);
        let last = agent.exec(&["--wait=1h", "api"], &[program, "serve"]);
        agent.wait_for_waiters(4);

        killed.signal(Signal::SIGKILL);
        assert_eq!(killed.wait(), None);
        agent.wait_for_waiters(3);
        drop(closed);
        agent.wait_for_waiters(2);
        half.shut_writing().unwrap();
        agent.wait_for_waiters(1);
        assert!(half.ends());

        holder.signal(Signal::SIGKILL);
        assert_eq!(holder.wait(), None);
        last.wait_for("ready");
        assert_eq!(server_of(9000), last.id());
    });
}

#[test]
fn a_wait_that_is_over_ends_with_75_and_names_who_has_the_port() {
    on_a_host(|host| {
        let agent = host.agent(ONE);
        let holder = agent.serve(&["api"]);
        let waited = std::time::Instant::now();
        let late = agent.run(&["exec", "--wait=300ms", "api", "--", "true"]);
        assert!(waited.elapsed() >= std::time::Duration::from_millis(300));
        assert_eq!(late.status.code(), Some(75));
        let who = format!("9000 leased to test_roles[{}]", holder.id());
        assert!(said(&late).contains(&who), "{}", said(&late));
        agent.wait_for_waiters(0);
        assert_eq!(server_of(9000), holder.id());
    });
}

#[test]
fn a_waiter_for_two_pools_gets_both_at_once_and_holds_nothing_before() {
    on_a_host(|host| {
        let agent = host.agent("[pool.api]\nports = 9000\n[pool.web]\nports = 8000\n");
        let mut api = agent.serve(&["api"]);
        let mut web = agent.serve(&["web"]);
        let program = crate::host::roles();
        let program = program.to_str().expect("text");
        let both = agent.exec(&["--wait", "api", "web"], &[program, "serve"]);
        agent.wait_for_waiters(1);
        api.signal(Signal::SIGKILL);
        assert_eq!(api.wait(), None);
        agent.wait_until("api is parked", |slots| {
            slots
                .iter()
                .any(|slot| slot.pool == "api" && slot.state == "parked")
        });
        assert!(
            refuses(9000),
            "it is kept for the waiter, who has not got it"
        );
        assert_eq!(server_of(8000), web.id());
        web.signal(Signal::SIGKILL);
        assert_eq!(web.wait(), None);
        both.wait_for("ready");
        assert_eq!((server_of(9000), server_of(8000)), (both.id(), both.id()));
    });
}

#[test]
fn what_a_waiter_sends_meanwhile_is_answered_afterwards_and_bounded() {
    on_a_host(|host| {
        let agent = host.agent(ONE);
        let holder = agent.serve(&["api"]);
        let mut patient = agent.raw();
        patient.call("Acquire", &wait_for("api", -1)).unwrap();
        patient.call("Status", "{}").unwrap();
        let mut chatty = agent.raw();
        chatty.call("Acquire", &wait_for("api", -1)).unwrap();
        agent.wait_for_waiters(2);
        // More than the agent keeps; it may close before all of it is written.
        let line = crate::raw::call("Status", "{}", "");
        for _ in 0..2 * 65536 / line.len() {
            if chatty.send(&line).is_err() {
                break;
            }
        }
        assert_eq!(chatty.error().unwrap(), "org.portpool.Agent.ProtocolError");
        assert!(chatty.ends());
        agent.wait_for_waiters(1);

        drop(holder);
        let granted = patient.reply().unwrap();
        assert_eq!(granted["parameters"]["leases"][0]["port"], 9000);
        assert_eq!(patient.fds.len(), 1);
        let status = patient.reply().unwrap();
        assert_eq!(status["parameters"]["leased"], 1);
    });
}

#[test]
fn a_lease_granted_to_a_waiter_that_has_just_gone_goes_to_the_next() {
    on_a_host(|host| {
        let agent = host.agent(ONE);
        for _ in 0..50 {
            let mut holder = agent.raw();
            holder.call("Acquire", &slots("api", 1)).unwrap();
            let lease = holder.reply().unwrap()["parameters"]["leases"][0]["leaseId"].clone();
            let mut waiter = agent.raw();
            waiter.call("Acquire", &wait_for("api", -1)).unwrap();
            agent.wait_for_waiters(1);
            // At the same moment: either may come first.
            holder
                .call("Release", &format!(r#"{{"leaseId":{lease}}}"#))
                .unwrap();
            drop(waiter);
            assert_eq!(holder.error().unwrap(), "");
            agent.wait_until("it is parked", |slots| slots[0].state == "parked");
        }
        drop(agent.serve(&["api"]));
    });
}

#[test]
fn a_wait_that_no_number_of_milliseconds_means_is_refused() {
    on_a_host(|host| {
        let agent = host.agent(ONE);
        let mut raw = agent.raw();
        raw.call("Acquire", &wait_for("api", -2)).unwrap();
        assert_eq!(raw.error().unwrap(), "org.varlink.service.InvalidParameter");
        let wrong = agent.run(&["exec", "--wait=soon", "api", "--", "true"]);
        assert_eq!(wrong.status.code(), Some(64));
    });
}
