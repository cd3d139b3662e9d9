//! Changes of holder while clients come and go: nobody is turned away.

use std::net::{Ipv4Addr, SocketAddr};

use nix::sys::signal::Signal;

use crate::exchange::{Clients, Tally, ask};
use crate::host::{Agent, Host, Process, on_a_host, roles, wait_until};

const CLIENTS: usize = 8;

const ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9000);

/// How often a slot is taken over by the wire.
const CHANGES: usize = 3000;

/// How often a service is started anew by `portpool exec`.
const RESTARTS: usize = 100;

const PLAN: &str = r#"
    [pool.api]
    ports = 9000
    restart_window = "10s"
"#;

/// Says whether the kernel may move connections between listeners by itself: nothing here is to need it.
fn forbid_migration(host: &Host) {
    host.sysctl("net/ipv4/tcp_migrate_req", "0");
}

/// Waits until every client has begun another exchange, so that a change is one under load.
fn let_clients_go_on(clients: &Clients) {
    let enough = clients.done() + 2 * CLIENTS as u64;
    wait_until("the clients go on", || clients.done() >= enough);
}

/// Processes of one kin that take the slot over from each other, in turn, that many times.
fn change_hands(host: &Host, agent: &Agent, times: usize) -> Tally {
    let socket = host.socket();
    let socket = socket.to_str().expect("text");
    let mut tenants: Vec<Process> = (0..4).map(|_| host.role(&["tenant", socket], 0)).collect();
    for tenant in &tenants {
        tenant.wait_for("connected");
    }
    let take = r#"acquire {"pools":[{"pool":"api"}],"takeover":"now","onRevoke":"none","program":"tenant"}"#;
    assert!(tenants[3].ask(take).starts_with("leased "));
    let is_enforced = agent.client().status().expect("a status").level == "enforced";
    let clients = Clients::start(CLIENTS, ADDRESS);
    for change in 0..times {
        let tenant = &mut tenants[change % 4];
        // What it had three changes ago is another's now.
        assert_eq!(tenant.ask("leave"), "leaving");
        let answer = tenant.ask(take);
        assert!(answer.starts_with("leased "), "change {change}: {answer}");
        if is_enforced {
            assert_eq!(ask(ADDRESS), Ok(tenant.id()), "change {change}");
        }
    }
    let tally = clients.stop();
    let pids = tenants.iter().map(Process::id).collect();
    assert!(
        tally.pids.is_subset(&pids),
        "{:?} are not all of {pids:?}",
        tally.pids
    );
    tally
}

#[test]
fn three_thousand_takeovers_under_load_fail_no_exchange() {
    on_a_host(|host| {
        forbid_migration(host);
        let agent = host.agent(PLAN);
        let tally = change_hands(host, &agent, CHANGES);
        println!("level enforced, {CHANGES} takeovers: {tally}");
        assert_eq!(tally.failed(), 0, "{tally}");
    });
}

#[test]
fn what_takeovers_under_load_cost_without_steering_is_printed() {
    on_a_host(|host| {
        forbid_migration(host);
        let agent = host.agent_that(false, PLAN);
        let tally = change_hands(host, &agent, CHANGES);
        println!("level held, {CHANGES} takeovers, no migration: {tally}");
        assert_eq!(tally.wrong + tally.timed_out, 0, "{tally}");
    });
}

#[test]
fn a_service_restarted_a_hundred_times_under_load_refuses_nobody() {
    on_a_host(|host| {
        forbid_migration(host);
        restarts(&host.agent(PLAN), "level enforced");
    });
}

#[test]
fn a_service_restarted_under_load_refuses_nobody_without_steering_either() {
    on_a_host(|host| restarts(&host.agent_that(false, PLAN), "level held"));
}

fn restarts(agent: &Agent, level: &str) {
    let start = || agent.role(&["api"], &["exchange", "leave"]);
    let mut service = start();
    let mut pids = vec![service.id()];
    let clients = Clients::start(CLIENTS, ADDRESS);
    for restart in 0..RESTARTS {
        let_clients_go_on(&clients);
        if restart % 2 == 0 {
            service.signal(Signal::SIGKILL);
            assert_eq!(service.wait(), None);
        } else {
            service.signal(Signal::SIGTERM);
            assert_eq!(service.wait(), Some(0));
        }
        service = start();
        pids.push(service.id());
        let holder = agent.slots("api").remove(0).holder;
        assert_eq!(holder.map(|it| it.pid), Some(service.id()));
    }
    let tally = clients.stop();
    println!("{level}, {RESTARTS} restarts: {tally}");
    assert_eq!(tally.refused + tally.timed_out + tally.wrong, 0, "{tally}");
    // It serves one client after the other, so a kill costs at most the one it had in hand.
    let kills = RESTARTS.div_ceil(2) as u64;
    assert!(tally.reset <= kills, "queued clients were lost: {tally}");
    assert!(tally.pids.iter().all(|pid| pids.contains(pid)));
}

/// `portpool exec --takeover=ready`, which tells that it is ready by descriptor 9.
fn successor(agent: &Agent) -> Process {
    let options = ["--takeover=ready", "--ready-fd", "9", "api"];
    agent.role(&options, &["exchange", "drain", "9"])
}

#[test]
fn a_hundred_successors_that_take_over_when_ready_fail_no_exchange() {
    on_a_host(|host| {
        forbid_migration(host);
        let agent = host.agent(PLAN);
        let mut service = agent.role(&["api"], &["exchange", "drain"]);
        let mut pids = vec![service.id()];
        let clients = Clients::start(CLIENTS, ADDRESS);
        for _ in 0..RESTARTS {
            let_clients_go_on(&clients);
            let mut old = std::mem::replace(&mut service, successor(&agent));
            pids.push(service.id());
            // It is told by SIGTERM, serves who is in its queue, and leaves.
            assert_eq!(old.wait(), Some(0));
            assert_eq!(ask(ADDRESS), Ok(service.id()));
        }
        let tally = clients.stop();
        println!("level enforced, {RESTARTS} takeovers by exec: {tally}");
        assert_eq!(tally.failed(), 0, "{tally}");
        assert!(tally.pids.iter().all(|pid| pids.contains(pid)));
    });
}

#[test]
fn a_successor_that_crashes_before_it_is_ready_costs_no_exchange() {
    on_a_host(|host| {
        forbid_migration(host);
        for steers in [true, false] {
            let agent = host.agent_that(steers, PLAN);
            agent.wait_until("it is parked", |slots| slots[0].state == "parked");
            let service = agent.role(&["api"], &["exchange", "drain"]);
            let clients = Clients::start(CLIENTS, ADDRESS);
            let options = ["--takeover=ready", "--ready-fd", "9", "api"];
            let program = roles();
            let program = program.to_str().expect("text");
            for crash in ["exits", "aborts", "says-nothing"] {
                for _ in 0..RESTARTS / 20 {
                    let_clients_go_on(&clients);
                    let mut successor = agent.exec(&options, &[program, "crash", crash]);
                    successor.wait();
                    agent.wait_until("the takeover is given up", |slots| {
                        let holder = slots[0].holder.as_ref().map(|holder| holder.pid);
                        holder == Some(service.id()) && slots[0].successor.is_none()
                    });
                }
            }
            let tally = clients.stop();
            println!("crashing successors, steering {steers}: {tally}");
            assert_eq!(tally.failed(), 0, "{tally}");
            assert_eq!(tally.pids.into_iter().collect::<Vec<_>>(), [service.id()]);
        }
    });
}
