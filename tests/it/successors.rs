//! From the moment of a takeover on, the successor is answered for, and nobody else, while all who had the slot
//! before live on and keep what they have.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use crate::exchange::{Failure, ask, ask_by_datagram};
use crate::host::{Host, Process, on_a_host};

/// How often a slot is taken over.
const TAKEOVERS: usize = 10;

/// How long it may take to heal a listener.
const HEALED: Duration = Duration::from_secs(3);

/// A pool by itself: its port is 9000.
#[derive(Clone, Copy)]
struct Pool {
    address: &'static str,
    protocol: &'static str,
}

const TCP: [Pool; 3] = pools("tcp");
const UDP: [Pool; 3] = pools("udp");

const fn pools(protocol: &'static str) -> [Pool; 3] {
    [
        Pool {
            address: "127.0.0.1",
            protocol,
        },
        Pool {
            address: "0.0.0.0",
            protocol,
        },
        Pool {
            address: "[::]",
            protocol,
        },
    ]
}

impl Pool {
    fn plan(self) -> String {
        let Pool { address, protocol } = self;
        format!("[pool.api]\nports = 9000\naddress = \"{address}\"\nprotocol = \"{protocol}\"\n")
    }

    /// Where clients reach it.
    fn places(self) -> Vec<SocketAddr> {
        let mut places: Vec<IpAddr> = vec![Ipv4Addr::LOCALHOST.into()];
        if self.address == "[::]" {
            places.push(Ipv6Addr::LOCALHOST.into());
        }
        places
            .into_iter()
            .map(|ip| SocketAddr::new(ip, 9000))
            .collect()
    }

    fn ask(self, place: SocketAddr) -> Result<u32, Failure> {
        match self.protocol {
            "udp" => ask_by_datagram(place),
            _ => ask(place),
        }
    }
}

/// Processes of one kin that take the slot over from each other.
fn tenants(host: &Host) -> [Process; 3] {
    [0, 1, 2].map(|_| {
        let tenant = host.role(&["tenant", host.socket().to_str().expect("text")], 0);
        tenant.wait_for("connected");
        tenant
    })
}

/// Takes the slot over; gives the lease.
#[track_caller]
fn take_over(tenant: &mut Process, pool: Pool) -> String {
    let answer = tenant.ask(
        r#"acquire {"pools":[{"pool":"api"}],"takeover":"now","onRevoke":"none","program":"tenant"}"#,
    );
    let lease = answer
        .strip_prefix("leased ")
        .and_then(|rest| rest.split_once(':'));
    let Pool { address, protocol } = pool;
    lease
        .unwrap_or_else(|| panic!("{protocol} {address}: {answer}"))
        .0
        .to_owned()
}

/// Has a slot pass through many hands.
fn everything_is_the_successors(steers: bool, pool: Pool) {
    on_a_host(move |host| {
        let _agent = host.agent_that(steers, &pool.plan());
        let mut tenants = tenants(host);
        // One gave it back long ago, and its child still has the socket.
        let lease = take_over(&mut tenants[2], pool);
        assert!(tenants[2].ask("fork").starts_with("child "));
        assert_eq!(tenants[2].ask(&format!("release {lease}")), "done");
        for turn in 0..TAKEOVERS {
            take_over(&mut tenants[turn % 3], pool);
            for place in pool.places() {
                for _ in 0..5 {
                    let expected = Ok(tenants[turn % 3].id());
                    let Pool { address, protocol } = pool;
                    let what = format!("{protocol} {address}, takeover {turn}, at {place}");
                    assert_eq!(pool.ask(place), expected, "{what}");
                }
            }
        }
    });
}

#[test]
fn every_connection_after_a_takeover_is_the_successors() {
    for pool in TCP {
        everything_is_the_successors(true, pool);
    }
}

#[test]
fn every_connection_after_a_takeover_is_the_successors_without_steering_too() {
    for pool in TCP {
        everything_is_the_successors(false, pool);
    }
}

#[test]
fn every_datagram_after_a_takeover_is_the_successors() {
    for pool in UDP {
        everything_is_the_successors(true, pool);
    }
}

#[test]
fn every_datagram_after_a_takeover_is_the_successors_without_steering_too() {
    for pool in UDP {
        everything_is_the_successors(false, pool);
    }
}

/// A successor shuts its listener, while the one before it lives and may still drain its queue.
fn is_healed(steers: bool, pool: Pool) {
    on_a_host(move |host| {
        let _agent = host.agent_that(steers, &pool.plan());
        let mut tenants = tenants(host);
        take_over(&mut tenants[0], pool);
        take_over(&mut tenants[1], pool);
        assert_eq!(tenants[1].ask("shutdown"), "shutdown");
        for place in pool.places() {
            let begun = Instant::now();
            loop {
                match pool.ask(place) {
                    Ok(pid) if pid == tenants[1].id() => break,
                    Err(Failure::Refused | Failure::Reset) if begun.elapsed() < HEALED => {}
                    // Without steering, the one that drains is all there is until the agent sees it.
                    Ok(pid) if pid == tenants[0].id() && !steers && begun.elapsed() < HEALED => {}
                    other => panic!("{}, at {place}: {other:?}", pool.address),
                }
            }
        }
    });
}

#[test]
fn a_listener_that_a_successor_shuts_is_healed_and_not_its_predecessors_meanwhile() {
    for pool in TCP {
        is_healed(true, pool);
    }
}

#[test]
fn a_listener_that_a_successor_shuts_is_healed_without_steering_too() {
    for pool in TCP {
        is_healed(false, pool);
    }
}
