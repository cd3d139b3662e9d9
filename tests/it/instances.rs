//! Whose an instance is: claimed for a life, joined by its own, and nobody else's.

use nix::sys::signal::Signal;

use crate::host::{Agent, NOBODY, Process, on_a_host, roles, said, server_of};

const THREE: &str = "[agent]\ninstances = 3\nstride = 100\n\
    [pool.api]\nports = \"9000-9001\"\nallow = { users = [\"nobody\"] }\n";

#[track_caller]
fn auto(agent: &Agent) -> Process {
    agent.serve(&["--instance", "auto", "api"])
}

#[test]
fn three_applications_at_once_get_instances_1_2_and_3_and_the_second_number_is_used_again() {
    on_a_host(|host| {
        let agent = host.agent(THREE);
        let program = roles();
        let command = [program.to_str().expect("text"), "serve"];
        let exec = |()| agent.exec(&["--instance", "auto", "api"], &command);
        let mut three = [(); 3].map(exec);
        for one in &three {
            one.wait_for("ready");
        }
        let mut servers = [9000, 9100, 9200].map(server_of);
        let mut ids = [0, 1, 2].map(|one| three[one].id());
        servers.sort_unstable();
        ids.sort_unstable();
        assert_eq!(servers, ids, "each has an instance of its own");

        let fourth = agent.run(&["exec", "--instance", "auto", "api", "--", "true"]);
        assert_eq!(fourth.status.code(), Some(75));
        let text = said(&fourth);
        assert!(
            text.contains("every instance, from 1 to 3, is claimed"),
            "{text}"
        );

        let second = server_of(9100);
        let second = three
            .iter_mut()
            .find(|one| one.id() == second)
            .expect("one");
        second.signal(Signal::SIGKILL);
        assert_eq!(second.wait(), None);
        agent.wait_until("its slot is parked", |slots| {
            slots
                .iter()
                .any(|slot| slot.port == 9100 && slot.state == "parked")
        });
        let next = auto(&agent);
        assert_eq!(server_of(9100), next.id());
    });
}

#[test]
fn a_child_joins_the_instance_of_its_parent_and_another_user_does_not() {
    on_a_host(|host| {
        let agent = host.agent(THREE);
        let claimer = auto(&agent);
        assert_eq!(server_of(9000), claimer.id());
        // As a child would: by what PORTPOOL_INSTANCE says.
        let mut joins = agent.portpool(&["exec", "api", "--"]);
        joins
            .arg(roles())
            .arg("serve")
            .env("PORTPOOL_INSTANCE", "1");
        let joins = Process::start(joins);
        joins.wait_for("ready");
        assert_eq!(server_of(9001), joins.id());

        let mut others = agent.portpool(&["exec", "--instance", "1", "api", "--", "true"]);
        std::os::unix::process::CommandExt::uid(&mut others, NOBODY);
        let refused = others.output().expect("it runs");
        assert_eq!(refused.status.code(), Some(77));
        let who = format!("instance 1 is claimed by test_roles[{}] root", claimer.id());
        assert!(said(&refused).contains(&who), "{}", said(&refused));

        // Who says nothing does not join what another has claimed, not even its own user's.
        let unsaid = agent.run(&["exec", "api", "--", "true"]);
        assert_eq!(unsaid.status.code(), Some(77), "{}", said(&unsaid));
    });
}

#[test]
fn an_instance_is_told_to_the_service_and_auto_goes_with_no_number() {
    on_a_host(|host| {
        let agent = host.agent(THREE);
        let _first = auto(&agent);
        let mut command = agent.portpool(&["exec", "--instance=auto", "api", "--", "sh", "-c"]);
        command.arg("echo $PORT $PORTPOOL_INSTANCE $PORTPOOL_LEASE_IDS");
        let output = command.output().expect("it runs");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "9100 2 2\n");

        let mut raw = agent.raw();
        let both = r#"{"pools":[{"pool":"api"}],"instance":2,"auto":true}"#;
        raw.call("Acquire", both).unwrap();
        assert_eq!(raw.error().unwrap(), "org.varlink.service.InvalidParameter");
    });
}

/// Held from the start: one instance; there may be three.
const ONE_OF_THREE: &str = "[agent]\ninstances = 1\nmax_instances = 3\nstride = 100\n\
    [pool.api]\nports = \"9000-9001\"\nextra = { metrics = [9050, 9051] }\n";

#[test]
fn an_instance_beyond_those_of_the_start_is_held_for_as_long_as_it_is_claimed() {
    on_a_host(|host| {
        let agent = host.agent(ONE_OF_THREE);
        let ports = || {
            let slots = agent.client().list(&Default::default()).expect("a list");
            slots.iter().map(|slot| slot.port).collect::<Vec<u16>>()
        };
        let first_instance = [9000, 9050, 9001, 9051];
        assert_eq!(ports(), first_instance);
        let can_bind = |port: u16| std::net::TcpListener::bind(("127.0.0.1", port)).is_ok();
        assert!(can_bind(9101), "nobody has claimed instance 2");
        let unclaimed = agent.run(&["exec", "--instance", "2", "api", "--", "true"]);
        assert_eq!(unclaimed.status.code(), Some(64), "{}", said(&unclaimed));

        let _first = auto(&agent);
        let mut second = auto(&agent);
        assert_eq!(server_of(9100), second.id());
        let both = [first_instance, [9100, 9150, 9101, 9151]].concat();
        assert_eq!(ports(), both, "in the order of instances");
        assert_eq!(agent.client().status().expect("a status").slots, 8);
        assert!(!can_bind(9101), "its other ports are held, too");

        second.signal(Signal::SIGKILL);
        assert_eq!(second.wait(), None);
        agent.wait_until("it is held no longer", |slots| slots.len() == 4);
        assert!(can_bind(9101) && can_bind(9100));
        let third = auto(&agent);
        assert_eq!(server_of(9100), third.id(), "the number is free again");
    });
}

#[test]
fn a_port_of_a_claimed_instance_that_somebody_had_first_is_a_conflict_and_the_rest_is_served() {
    on_a_host(|host| {
        let agent = host.agent(ONE_OF_THREE);
        let intruder = std::net::TcpListener::bind("127.0.0.1:9100").expect("a free port");
        let _first = auto(&agent);
        let second = auto(&agent);
        assert_eq!(
            server_of(9101),
            second.id(),
            "the next port of that instance"
        );
        let state = |port| {
            let slots = agent.client().list(&Default::default()).expect("a list");
            let slot = slots.into_iter().find(|slot| slot.port == port);
            slot.expect("it is listed").state
        };
        assert_eq!(state(9100), "conflict");
        drop(intruder);
        agent.wait_until("it is held", |slots| {
            slots
                .iter()
                .any(|slot| slot.port == 9100 && slot.state == "parked")
        });
    });
}
