//! Another configuration for an agent that runs: what it does not change is not touched.

use std::net::{TcpListener, TcpStream};

use nix::sys::signal::Signal;
use portpool::protocol::Slot;

use crate::host::{Agent, Host, NOBODY, on_a_host, said, server_of, wait_until};

const BEFORE: &str = r#"
    [pool.stays]
    ports = "9000-9001"
    [pool.goes]
    ports = "9100-9101"
    [pool.moves]
    ports = 9200
"#;

const AFTER: &str = r#"
    [pool.comes]
    ports = 9300
    [pool.stays]
    ports = "9000-9002"
    backlog = 7
    [pool.moves]
    ports = 9200
    address = "127.0.0.2"
"#;

fn change(host: &Host, configuration: &str) {
    host.file("portpool.toml", configuration);
}

fn reload(agent: &Agent) -> std::process::Output {
    agent.run(&["reload"])
}

fn states(agent: &Agent) -> Vec<(u16, String)> {
    let slots = agent.client().list(&Default::default()).expect("a list");
    let state = |slot: Slot| (slot.port, slot.state);
    slots.into_iter().map(state).collect()
}

fn can_bind(port: u16) -> bool {
    TcpListener::bind(("127.0.0.1", port)).is_ok()
}

#[test]
fn what_is_new_is_held_what_is_gone_is_free_and_what_is_leased_goes_on() {
    on_a_host(|host| {
        let agent = host.agent(BEFORE);
        let stays = agent.serve(&["stays"]);
        let mut goes = agent.serve(&["goes"]);
        let before = agent.slots("stays").remove(0);
        let client = TcpStream::connect("127.0.0.1:9000").expect("it listens");

        change(host, AFTER);
        let output = reload(&agent);
        assert_eq!(output.status.code(), Some(0), "{}", said(&output));
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let expected =
            "3 slots added, 2 removed, 1 to be removed with the end of their lease, 2 unchanged\n";
        assert_eq!(text, expected);
        let expected = [
            (9300, "parked"),
            (9000, "leased"),
            (9001, "parked"),
            (9002, "parked"),
            (9200, "parked"),
            (9100, "draining"),
        ];
        let mut found = states(&agent);
        found.sort();
        let mut expected = expected.map(|(port, state)| (port, state.to_owned()));
        expected.sort();
        assert_eq!(found, expected);

        let after = agent.slots("stays").remove(0);
        assert_eq!(after.generation, before.generation, "untouched");
        assert_eq!(server_of(9000), stays.id());
        drop(client);
        assert_eq!(server_of(9100), goes.id(), "served until its lease ends");
        assert!(can_bind(9101), "free at once");
        let refused = agent.run(&["exec", "goes", "--", "true"]);
        assert_eq!(refused.status.code(), Some(75), "{}", said(&refused));
        assert!(
            said(&refused).contains("being removed"),
            "{}",
            said(&refused)
        );

        goes.signal(Signal::SIGTERM);
        goes.wait();
        wait_until("its port is free", || can_bind(9100));
        let unknown = agent.run(&["exec", "goes", "--", "true"]);
        assert_eq!(unknown.status.code(), Some(64), "{}", said(&unknown));
        let comes = agent.serve(&["comes"]);
        assert_eq!(server_of(9300), comes.id());
    });
}

#[test]
fn a_leased_slot_that_moves_to_another_address_drains_and_is_there_again_afterwards() {
    on_a_host(|host| {
        let agent = host.agent(BEFORE);
        let mut holder = agent.serve(&["moves"]);
        change(host, AFTER);
        assert_eq!(reload(&agent).status.code(), Some(0));
        assert_eq!(server_of(9200), holder.id());
        holder.signal(Signal::SIGTERM);
        holder.wait();
        agent.wait_until("the new one is held", |slots| {
            slots
                .iter()
                .any(|slot| slot.port == 9200 && slot.state == "parked")
        });
        let _next = agent.serve(&["moves"]);
        assert!(TcpStream::connect("127.0.0.2:9200").is_ok());
        assert!(TcpStream::connect("127.0.0.1:9200").is_err());
    });
}

#[test]
fn what_comes_back_before_its_lease_ended_is_as_it_was() {
    on_a_host(|host| {
        let agent = host.agent(BEFORE);
        let holder = agent.serve(&["goes"]);
        change(host, AFTER);
        assert_eq!(reload(&agent).status.code(), Some(0));
        change(host, BEFORE);
        assert_eq!(reload(&agent).status.code(), Some(0));
        let slot = agent.slots("goes").remove(0);
        assert_eq!(slot.state, "leased");
        assert_eq!(slot.holder.map(|it| it.pid), Some(holder.id()));
        let second = agent.serve(&["goes"]);
        assert_eq!(server_of(9101), second.id(), "its other port is held again");
    });
}

#[test]
fn a_wrong_configuration_is_refused_with_what_is_wrong_and_the_one_before_stays() {
    on_a_host(|host| {
        let agent = host.agent(BEFORE);
        let _holder = agent.serve(&["stays"]);
        let before = states(&agent);
        let fixed = BEFORE.replace("ports = 9200", "ports = 9200\nfixed = true");
        for (wrong, complaint) in [
            ("[pool.stays]\nports = 99999\n", "99999"),
            ("nonsense", "the one before stays"),
            (&AFTER.replace("9300", "9000"), "9000"),
        ] {
            change(host, wrong);
            let output = reload(&agent);
            assert_eq!(output.status.code(), Some(78), "{wrong}");
            assert!(said(&output).contains(complaint), "{}", said(&output));
            assert_eq!(states(&agent), before);
        }
        std::fs::remove_file(host.folder().join("portpool.toml")).expect("a file");
        let output = reload(&agent);
        assert_eq!(output.status.code(), Some(78));
        assert!(said(&output).contains("cannot read"), "{}", said(&output));

        change(host, &fixed);
        assert_eq!(reload(&agent).status.code(), Some(0));
        change(host, AFTER);
        let output = reload(&agent);
        assert_eq!(output.status.code(), Some(78));
        assert!(
            said(&output).contains("pool moves may not move"),
            "{}",
            said(&output)
        );
        assert_eq!(states(&agent), before);
    });
}

#[test]
fn a_pool_s_rules_are_the_new_ones_at_once() {
    on_a_host(|host| {
        let agent = host.agent(BEFORE);
        let as_nobody = || {
            let mut command = agent.portpool(&["exec", "stays", "--", "true"]);
            std::os::unix::process::CommandExt::uid(&mut command, NOBODY);
            command.status().expect("it runs").code()
        };
        assert_eq!(as_nobody(), Some(77));
        let open = "[pool.stays]\nports = \"9000-9001\"\nallow = { users = [\"nobody\"] }\nunleased = \"queue\"\n";
        change(host, open);
        assert_eq!(reload(&agent).status.code(), Some(0));
        assert_eq!(as_nobody(), Some(0));
        agent.wait_until("clients may wait", |slots| {
            slots.iter().all(|slot| slot.state == "queueing")
        });
        let waits = TcpStream::connect("127.0.0.1:9000").expect("the queue takes it");
        change(host, BEFORE);
        assert_eq!(reload(&agent).status.code(), Some(0));
        assert_eq!(as_nobody(), Some(77));
        assert!(
            TcpStream::connect("127.0.0.1:9000").is_err(),
            "parked again"
        );
        drop(waits);
    });
}

#[test]
fn sighup_reloads_and_who_is_no_administrator_does_not() {
    on_a_host(|host| {
        let agent = host.agent(BEFORE);
        change(host, AFTER);
        let mut command = agent.portpool(&["reload"]);
        std::os::unix::process::CommandExt::uid(&mut command, NOBODY);
        let output = command.output().expect("it runs");
        assert_eq!(output.status.code(), Some(77), "{}", said(&output));
        assert!(
            said(&output).contains("admin = { users"),
            "{}",
            said(&output)
        );
        assert_eq!(states(&agent).len(), 5);
        agent.process.signal(Signal::SIGHUP);
        agent.wait_until("the new pool is held", |slots| {
            slots
                .iter()
                .any(|slot| slot.port == 9300 && slot.state == "parked")
        });
    });
}
