//! Rotation: in order, inside the pool, all or none, and an error that names everybody.

use nix::sys::signal::Signal;
use rustix::process::{PidfdFlags, PidfdGetfdFlags};
use socket2::{Domain, SockRef};

use crate::host::{
    Agent, NOBODY, example_configuration, on_a_host, refuses, roles, said, server_of,
};

/// The ports, and what they speak, of every internet socket that a process has: asked of the
/// sockets themselves, because no table in /proc tells of those that are bound only.
fn ports_of_sockets_in(pid: u32) -> Vec<(u16, socket2::Type)> {
    let pid = i32::try_from(pid).expect("a pid");
    let process = rustix::process::Pid::from_raw(pid).expect("a pid");
    let process = rustix::process::pidfd_open(process, PidfdFlags::empty()).expect("it lives");
    let mut ports = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).expect("it lives") {
        let name = entry.expect("an entry").file_name();
        let number = name.to_str().and_then(|name| name.parse().ok());
        let number = number.expect("a number");
        let flags = PidfdGetfdFlags::empty();
        // A connection of a moment ago may be closed by now.
        let Ok(copy) = rustix::process::pidfd_getfd(&process, number, flags) else {
            continue;
        };
        let socket = SockRef::from(&copy);
        if matches!(socket.domain(), Ok(Domain::IPV4 | Domain::IPV6)) {
            let address = socket.local_addr().expect("an address");
            let port = address.as_socket().expect("an address").port();
            ports.push((port, socket.r#type().expect("a type")));
        }
    }
    ports
}

fn states(agent: &Agent, pool: &str) -> Vec<String> {
    let slots = agent.slots(pool);
    slots
        .iter()
        .map(|slot| format!("{} {} {}", slot.port, slot.state, slot.generation))
        .collect()
}

#[test]
fn three_holders_get_the_ports_in_order_and_the_fourth_is_told_who_has_them() {
    on_a_host(|host| {
        let agent = host.agent(&example_configuration("qwen-valencia.toml"));
        let holders = [(); 3].map(|()| agent.serve(&["api-server"]));
        for (holder, port) in holders.iter().zip(9000..) {
            assert_eq!(server_of(port), holder.id(), "{port}");
        }
        let fourth = agent.run(&["exec", "api-server", "--", "true"]);
        let text = said(&fourth);
        assert_eq!(fourth.status.code(), Some(75), "{text}");
        assert!(text.contains("pool api-server is exhausted"), "{text}");
        for (holder, port) in holders.iter().zip(9000..) {
            let beginning = format!(
                "{port} leased to test_roles[{}] root, since 20",
                holder.id()
            );
            assert!(text.contains(&beginning), "{beginning} is missing: {text}");
        }
    });
}

#[test]
fn an_exhausted_pool_names_the_users_and_the_labels_of_its_holders() {
    on_a_host(|host| {
        let agent = host.agent("[pool.api]\nports = 9000\nallow = { users = [\"nobody\"] }\n");
        let mut theirs = agent.portpool(&["exec", "--label", "blue", "api", "--"]);
        theirs.arg(roles()).arg("serve");
        let theirs = host.start_as(theirs, NOBODY);
        theirs.wait_for("ready");
        let refused = agent.run(&["exec", "api", "--", "true"]);
        let text = said(&refused);
        assert_eq!(refused.status.code(), Some(75), "{text}");
        let who = format!(
            "9000 leased to test_roles[{}] nobody \"blue\", since 20",
            theirs.id()
        );
        assert!(text.contains(&who), "{text}");
    });
}

#[test]
fn every_instance_has_its_own_ports() {
    on_a_host(|host| {
        let configuration = "[agent]\ninstances = 3\nstride = 100\n\
            [pool.api-server]\nports = \"9000-9002\"\n";
        let agent = host.agent(configuration);
        let holders: Vec<_> = ["1", "2", "3"]
            .map(|instance| agent.serve(&["--instance", instance, "api-server"]))
            .into();
        for (holder, port) in holders.iter().zip([9000, 9100, 9200]) {
            assert_eq!(server_of(port), holder.id(), "{port}");
        }
        let fourth = agent.run(&["exec", "--instance", "4", "api-server", "--", "true"]);
        assert_eq!(fourth.status.code(), Some(64), "{}", said(&fourth));
        assert!(
            said(&fourth).contains("api-server has no instance 4: the agent holds 3"),
            "{}",
            said(&fourth)
        );
    });
}

#[test]
fn the_environment_chooses_the_instance_where_no_option_does() {
    on_a_host(|host| {
        let agent = host.agent(&example_configuration("qwen-valencia.toml"));
        let mut command = agent.portpool(&["exec", "api-server", "--", "sh", "-c"]);
        command
            .arg("echo $PORT $PORTPOOL_INSTANCE")
            .env("PORTPOOL_INSTANCE", "2");
        let output = command.output().expect("it runs");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "9100 2\n");
    });
}

#[test]
fn the_port_of_a_killed_holder_is_the_next_ones() {
    on_a_host(|host| {
        let agent = host.agent(&example_configuration("qwen-valencia.toml"));
        let mut holders: Vec<_> = (0..3).map(|_| agent.serve(&["api-server"])).collect();
        holders[1].signal(Signal::SIGKILL);
        assert_eq!(holders[1].wait(), None);
        agent.wait_until("9001 is parked", |slots| {
            slots
                .iter()
                .any(|slot| slot.port == 9001 && slot.state == "parked")
        });
        assert!(refuses(9001));
        let next = agent.serve(&["api-server"]);
        assert_eq!(server_of(9001), next.id());
        assert_eq!(server_of(9000), holders[0].id());
        assert_eq!(server_of(9002), holders[2].id());
    });
}

#[test]
fn several_pools_are_given_together() {
    on_a_host(|host| {
        let agent = host.agent(&example_configuration("qwen-valencia.toml"));
        let pools = ["api-server", "mcp-universal", "ollama-mcp"];
        let together = agent.serve(&pools);
        for port in [9000, 6000, 6010] {
            assert_eq!(server_of(port), together.id(), "{port}");
        }
        let five = agent.serve(&["conversational*5"]);
        for port in 7000..=7004 {
            assert_eq!(server_of(port), five.id(), "{port}");
        }
    });
}

#[test]
fn when_one_of_several_pools_is_exhausted_nothing_of_the_others_is_taken() {
    on_a_host(|host| {
        let agent = host.agent(&example_configuration("qwen-valencia.toml"));
        let mut holders = vec![agent.serve(&["ollama-mcp*3"])];
        let before = (
            states(&agent, "api-server"),
            states(&agent, "mcp-universal"),
        );
        for pools in [
            ["ollama-mcp", "api-server", "mcp-universal"],
            ["api-server", "ollama-mcp", "mcp-universal"],
            ["api-server", "mcp-universal", "ollama-mcp"],
        ] {
            let refused = agent.run(&[&["exec"], &pools[..], &["--", "true"]].concat());
            let text = said(&refused);
            assert_eq!(refused.status.code(), Some(75), "{pools:?} {text}");
            assert!(text.contains("pool ollama-mcp is exhausted"), "{text}");
            let after = (
                states(&agent, "api-server"),
                states(&agent, "mcp-universal"),
            );
            assert_eq!(before, after, "{pools:?}");
            assert!(refuses(9000) && refuses(6000));
        }
        // More of one pool than it has, and more than it has left.
        for pool in ["conversational*6", "conversational*5"] {
            let refused = agent.run(&["exec", "api-server", pool, "--", "true"]);
            assert_eq!(refused.status.code(), Some(75), "{pool}");
            assert_eq!(before.0, states(&agent, "api-server"), "{pool}");
            if holders.len() == 1 {
                holders.push(agent.serve(&["conversational"]));
            }
        }
    });
}

#[test]
fn the_agent_has_no_socket_outside_its_pools_whatever_happens_to_them() {
    on_a_host(|host| {
        let configuration = example_configuration("qwen-valencia.toml")
            + "\n[pool.voice]\nports = \"5000-5001\"\nprotocol = \"udp\"\naddress = [\"0.0.0.0\", \"[::]\"]\n";
        let agent = host.agent(&configuration);
        let slots = agent.client().list(&Default::default()).expect("a list");
        let mut pools: Vec<(u16, &str)> = slots
            .iter()
            .map(|slot| (slot.port, slot.protocol.as_str()))
            .collect();
        pools.sort_unstable();
        assert_eq!(pools.len(), 46);
        let seen = |when: &str| {
            let mut seen: Vec<(u16, &str)> = ports_of_sockets_in(agent.process.id())
                .into_iter()
                .map(|(port, kind)| {
                    (
                        port,
                        if kind == socket2::Type::STREAM {
                            "tcp"
                        } else {
                            "udp"
                        },
                    )
                })
                .collect();
            seen.sort_unstable();
            seen.dedup();
            assert_eq!(seen, pools, "{when}");
        };
        seen("at the start");
        let holders: Vec<_> = ["api-server*3", "conversational*5", "sandra-ia"]
            .map(|pool| agent.serve(&[pool]))
            .into();
        let voice = agent.role(&["voice*2"], &["obey", "udp"]);
        seen("while some are leased");
        for _ in 0..10 {
            let refused = agent.run(&["exec", "api-server", "--", "true"]);
            assert_eq!(refused.status.code(), Some(75));
        }
        seen("after refusals");
        drop((holders, voice));
        agent.wait_until("all slots are parked again", |slots| {
            slots.iter().all(|slot| slot.state == "parked")
        });
        seen("after the holders' end");
    });
}
