//! What a service finds when `portpool exec` has become it.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::host::{
    Agent, OTHER_ADDRESS, Process, ask_server, example_configuration, on_a_host, roles, said,
};

/// Where nothing is, on any machine: an address for documentation, RFC 5737.
const NO_ADDRESS: &str = "192.0.2.1";

/// What the role `show` found.
struct Shown {
    variables: BTreeMap<String, String>,
    /// Numbers from 3 on, and what they are.
    fds: Vec<(u32, String)>,
    arguments: Vec<String>,
    pid: u32,
}

impl Shown {
    #[track_caller]
    fn of(process: &Process) -> Shown {
        let mut shown = Shown {
            variables: BTreeMap::new(),
            fds: Vec::new(),
            arguments: Vec::new(),
            pid: 0,
        };
        for line in process.wait_for("ready") {
            if let Some(pid) = line.strip_prefix("ready ") {
                shown.pid = pid.parse().expect("a pid");
            } else if let Some(argument) = line.strip_prefix("argument ") {
                shown.arguments.push(argument.to_owned());
            } else if let Some(fd) = line.strip_prefix("fd ") {
                let (number, target) = fd.split_once(' ').expect("a number and a target");
                shown
                    .fds
                    .push((number.parse().expect("a number"), target.to_owned()));
            } else {
                let (name, value) = line.split_once('=').expect("a variable");
                shown.variables.insert(name.to_owned(), value.to_owned());
            }
        }
        shown.fds.retain(|(number, _)| *number > 2);
        shown
    }

    /// The descriptors' numbers; fails for one that is no socket.
    #[track_caller]
    fn sockets(&self) -> Vec<u32> {
        for (number, target) in &self.fds {
            assert!(target.starts_with("socket:["), "fd {number} is {target}");
        }
        self.fds.iter().map(|(number, _)| *number).collect()
    }

    fn variable(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str)
    }
}

/// `portpool exec POOLS -- test_roles show ARGUMENTS`.
fn show(agent: &Agent, pools: &[&str], arguments: &[&str]) -> (Process, Shown) {
    let program = roles();
    let command = [&[program.to_str().expect("text"), "show"], arguments].concat();
    let process = agent.exec(pools, &command);
    let shown = Shown::of(&process);
    (process, shown)
}

#[track_caller]
fn assert_serves(process: &Process, addresses: &[(&str, u16)]) {
    for (address, port) in addresses {
        let ip: IpAddr = address.parse().expect("an address");
        let answer = ask_server(SocketAddr::new(ip, *port));
        let answer = answer.unwrap_or_else(|error| panic!("{address} {port}: {error}"));
        assert_eq!(answer, (process.id(), *port), "{address}");
    }
}

#[test]
fn a_service_finds_its_sockets_and_is_told_everything_of_them() {
    on_a_host(|host| {
        let agent = host.agent(&example_configuration("qwen-valencia.toml"));
        let (process, shown) = show(
            &agent,
            &["--instance", "2", "api-server*2", "mcp-universal"],
            &[],
        );
        assert_eq!(shown.sockets(), [3, 4, 5]);
        let pid = shown.pid.to_string();
        let identity = rustix::process::pidfd_open(
            rustix::process::Pid::from_raw(i32::try_from(shown.pid).unwrap()).unwrap(),
            rustix::process::PidfdFlags::empty(),
        );
        let identity = rustix::fs::fstat(identity.unwrap()).unwrap().st_ino;
        let identity = identity.to_string();
        for (name, value) in [
            ("LISTEN_FDS", "3"),
            ("LISTEN_FDNAMES", "api-server:api-server:mcp-universal"),
            ("LISTEN_PID", pid.as_str()),
            ("LISTEN_PIDFDID", identity.as_str()),
            ("PORT", "9100"),
            ("PORTPOOL_INSTANCE", "2"),
            ("PORTPOOL_API_SERVER_PORT", "9100"),
            ("PORTPOOL_API_SERVER_PORTS", "9100,9101"),
            ("PORTPOOL_MCP_UNIVERSAL_PORT", "6100"),
            ("PORTPOOL_MCP_UNIVERSAL_PORTS", "6100"),
        ] {
            assert_eq!(shown.variable(name), Some(value), "{name}");
        }
        drop(process);
    });
}

#[test]
fn the_sockets_come_in_the_order_of_the_arguments_and_then_of_the_ports() {
    on_a_host(|host| {
        let agent = host.agent(&example_configuration("qwen-valencia.toml"));
        let program = roles();
        let command = [program.to_str().unwrap(), "show"];
        let process = agent.exec(&["sandra-ia", "api-server*3", "groq-api"], &command);
        let shown = Shown::of(&process);
        assert_eq!(
            local_ports(process.id(), &shown),
            [6030, 9000, 9001, 9002, 6020]
        );
        assert_eq!(shown.variable("PORT"), Some("6030"));
    });
}

/// The ports of a process's sockets, asked of the sockets.
fn local_ports(pid: u32, shown: &Shown) -> Vec<u16> {
    let address = |fd| copy_of(pid, fd).local_addr().expect("an address");
    let numbers = shown.sockets().into_iter();
    let ports = numbers.map(|fd| address(fd).as_socket().expect("an address").port());
    ports.collect()
}

/// A copy of another process's socket: pidfd_getfd(2).
fn copy_of(pid: u32, fd: u32) -> socket2::Socket {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).expect("as it should be"))
        .expect("as it should be");
    let process = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())
        .expect("as it should be");
    let flags = rustix::process::PidfdGetfdFlags::empty();
    let fd = i32::try_from(fd).expect("as it should be");
    rustix::process::pidfd_getfd(process, fd, flags)
        .expect("a copy")
        .into()
}

#[test]
fn exec_is_the_service_and_no_process_beside_it() {
    on_a_host(|host| {
        let agent = host.agent(&example_configuration("qwen-valencia.toml"));
        let (process, shown) = show(&agent, &["api-server"], &[]);
        assert_eq!(process.id(), shown.pid);
        let slot = &agent.slots("api-server")[0];
        let holder = slot.holder.as_ref().expect("a holder");
        assert_eq!(holder.pid, process.id());
        assert_eq!(holder.program.as_deref(), Some("test_roles"));
        let children = format!("/proc/{0}/task/{0}/children", process.id());
        assert_eq!(std::fs::read_to_string(children).unwrap(), "");
    });
}

#[test]
fn nothing_that_a_parent_leaked_reaches_the_service() {
    on_a_host(|host| {
        let agent = host.agent(&example_configuration("qwen-valencia.toml"));
        for pools in [
            &["api-server"][..],
            &["mcp-universal*3", "conversational*5"],
        ] {
            let exec = agent.portpool(&["exec"]);
            let mut leaking = host.command(roles());
            leaking.env("PORTPOOL_SOCKET", host.socket());
            leaking.arg("leak").arg(exec.get_program()).arg("exec");
            leaking.args(pools).arg("--").arg(roles()).arg("show");
            let process = Process::start(leaking);
            let shown = Shown::of(&process);
            let count = shown.variable("LISTEN_FDS").unwrap().parse().unwrap();
            let expected: Vec<u32> = (3..).take(count).collect();
            assert_eq!(shown.sockets(), expected);
        }
    });
}

#[test]
fn placeholders_in_the_command_are_the_ports() {
    on_a_host(|host| {
        let agent = host.agent(&example_configuration("qwen-valencia.toml"));
        let (_one, shown) = show(&agent, &["api-server"], &["--port={port}", "{port}{port}"]);
        assert_eq!(shown.arguments, ["--port=9000", "90009000"]);
        let (_two, shown) = show(
            &agent,
            &["api-server", "sandra-ia"],
            &["{sandra-ia.port}:{api-server.port}", "{other}", "${PORT}"],
        );
        assert_eq!(shown.arguments, ["6030:9001", "{other}", "${PORT}"]);
    });
}

#[test]
fn a_bare_port_of_two_pools_is_refused_before_anything_is_taken() {
    on_a_host(|host| {
        let agent = host.agent(&example_configuration("qwen-valencia.toml"));
        for pools in [
            &["api-server", "sandra-ia"][..],
            &["api-server", "--optional", "sandra-ia"],
        ] {
            let refused = agent.run(&[&["exec"], pools, &["--", "echo", "{port}"]].concat());
            assert_eq!(refused.status.code(), Some(64), "{}", said(&refused));
            assert!(
                said(&refused).contains("{api-server.port}"),
                "{}",
                said(&refused)
            );
        }
        assert_eq!(agent.slots("api-server")[0].generation, 0);
    });
}

#[test]
fn the_exit_code_is_the_commands_own_or_that_of_a_shell() {
    on_a_host(|host| {
        let agent = host.agent(&example_configuration("qwen-valencia.toml"));
        let no_program = host.file("no_program", "this is no program");
        std::fs::set_permissions(&no_program, PermissionsExt::from_mode(0o644)).unwrap();
        let no_program = no_program.to_str().unwrap();
        let folder = host.folder().to_str().unwrap();
        for (command, code) in [
            (&["sh", "-c", "exit 7"][..], Some(7)),
            (&["true"], Some(0)),
            (&["no-such-program-anywhere"], Some(127)),
            (&["/no/such/program"], Some(127)),
            (&[no_program], Some(126)),
            (&[folder], Some(126)),
            (&["sh", "-c", "kill -9 $$"], None),
        ] {
            let output = agent.run(&[&["exec", "api-server", "--"], command].concat());
            assert_eq!(output.status.code(), code, "{command:?} {}", said(&output));
            if matches!(code, Some(126 | 127)) {
                let text = said(&output);
                assert!(text.contains("cannot run"), "{text}");
                assert!(text.contains(command[0]), "{text}");
            }
        }
        agent.wait_until("all slots are parked again", |slots| {
            slots.iter().all(|slot| slot.state == "parked")
        });
    });
}

#[test]
fn without_the_pid_a_service_below_a_forking_watcher_takes_its_sockets() {
    on_a_host(|host| {
        let agent = host.agent(&example_configuration("qwen-valencia.toml"));
        let program = roles();
        let script = format!("'{}' serve & wait", program.display());
        let watcher = agent.exec(&["--no-pid", "api-server"], &["sh", "-c", &script]);
        watcher.wait_for("ready");
        let address = SocketAddr::from(([127, 0, 0, 1], 9000));
        let (server, port) = ask_server(address).unwrap();
        assert_eq!(port, 9000);
        assert_ne!(server, watcher.id());
        let holder = agent.slots("api-server")[0].holder.clone();
        assert_eq!(holder.unwrap().pid, watcher.id());
        // The watched service is what goes away; the watcher then too.
        kill(
            Pid::from_raw(i32::try_from(server).unwrap()),
            Signal::SIGKILL,
        )
        .unwrap();

        let (_shown, shown) = show(&agent, &["--no-pid", "api-server"], &[]);
        assert_eq!(shown.variable("LISTEN_PID"), None);
        assert_eq!(shown.variable("LISTEN_PIDFDID"), None);
        assert_eq!(shown.variable("LISTEN_FDS"), Some("1"));
    });
}

#[test]
fn no_variable_of_an_outer_activation_comes_through() {
    on_a_host(|host| {
        let agent = host.agent(&example_configuration("qwen-valencia.toml"));
        let mut command = agent.portpool(&["exec", "--no-pid", "api-server", "--"]);
        command.arg(roles()).arg("show");
        for (name, value) in [
            ("LISTEN_FDS", "7"),
            ("LISTEN_PID", "1"),
            ("LISTEN_PIDFDID", "1"),
            ("LISTEN_FDNAMES", "a:b:c:d:e:f:g"),
        ] {
            command.env(name, value);
        }
        let process = Process::start(command);
        let shown = Shown::of(&process);
        assert_eq!(shown.variable("LISTEN_FDS"), Some("1"));
        assert_eq!(shown.variable("LISTEN_FDNAMES"), Some("api-server"));
        assert_eq!(shown.variable("LISTEN_PID"), None);
        assert_eq!(shown.variable("LISTEN_PIDFDID"), None);
    });
}

#[test]
fn an_optional_pool_is_gone_without_with_a_warning() {
    on_a_host(|host| {
        let agent = host.agent(&example_configuration("qwen-valencia.toml"));
        let optional = ["--optional", "sandra-ia", "api-server"];
        let (_first, shown) = show(&agent, &optional, &[]);
        assert_eq!(
            shown.variable("LISTEN_FDNAMES"),
            Some("api-server:sandra-ia")
        );
        let _rest = agent.serve(&["sandra-ia*3"]);
        let (_second, shown) = show(&agent, &optional, &[]);
        assert_eq!(shown.variable("LISTEN_FDNAMES"), Some("api-server"));
        assert_eq!(shown.variable("PORTPOOL_SANDRA_IA_PORT"), None);
        assert_eq!(shown.sockets(), [3]);

        let without = agent.run(&[
            "exec",
            "--optional",
            "sandra-ia",
            "--optional",
            "no-such-pool",
            "api-server",
            "--",
            "true",
        ]);
        let text = said(&without);
        assert_eq!(without.status.code(), Some(0), "{text}");
        assert!(text.contains("going on without sandra-ia"), "{text}");
        assert!(text.contains("going on without no-such-pool"), "{text}");

        // What is not optional is missed all the same.
        let _last = agent.serve(&["api-server"]);
        let refused = agent.run(&["exec", "--optional", "groq-api", "api-server", "--", "true"]);
        assert_eq!(refused.status.code(), Some(75), "{}", said(&refused));
        assert_eq!(agent.slots("groq-api")[0].generation, 0);
    });
}

#[test]
fn a_companion_is_handed_and_taken_back_with_its_service() {
    on_a_host(|host| {
        let configuration = "[pool.api-server]\nports = [9000, 9001]\nextra = { metrics = 2112, admin = 2200 }\n\
             [pool.other]\nports = 9500\n";
        let agent = host.agent(configuration);
        let (process, shown) = show(&agent, &["api-server", "other"], &[]);
        let names = shown.variable("LISTEN_FDNAMES").unwrap();
        let names: Vec<&str> = names.split(':').collect();
        let ports = local_ports(process.id(), &shown);
        let handed: BTreeMap<&str, u16> = names.into_iter().zip(ports).collect();
        let expected = [
            ("api-server", 9000),
            ("api-server.metrics", 2112),
            ("api-server.admin", 2200),
            ("other", 9500),
        ];
        assert_eq!(handed, BTreeMap::from(expected));
        assert_eq!(
            shown.variable("PORTPOOL_API_SERVER_METRICS_PORT"),
            Some("2112")
        );
        assert_eq!(shown.variable("PORT"), Some("9000"));
        drop(process);
        agent.wait_until("all slots are parked again", |slots| {
            slots.iter().all(|slot| slot.state == "parked")
        });
        let served = agent.serve(&["api-server"]);
        let local = "127.0.0.1";
        assert_serves(&served, &[(local, 9000), (local, 2112), (local, 2200)]);
    });
}

#[test]
fn a_pool_of_several_addresses_is_served_on_each() {
    on_a_host(|host| {
        let configuration =
            format!("[pool.api]\nports = 9000\naddress = [\"127.0.0.1\", \"{OTHER_ADDRESS}\"]\n");
        let agent = host.agent(&configuration);
        let (first, shown) = show(&agent, &["api"], &[]);
        assert_eq!(shown.variable("LISTEN_FDNAMES"), Some("api:api"));
        assert_eq!(shown.variable("PORTPOOL_API_PORTS"), Some("9000"));
        assert_eq!(shown.sockets(), [3, 4]);
        drop(first);
        agent.wait_until("it is parked again", |slots| slots[0].state == "parked");
        let served = agent.serve(&["api"]);
        assert_serves(&served, &[("127.0.0.1", 9000), (OTHER_ADDRESS, 9000)]);
        let elsewhere = ask_server(SocketAddr::from(([127, 0, 0, 2], 9000)));
        assert_eq!(elsewhere.unwrap_err().kind(), ErrorKind::ConnectionRefused);
    });
}

#[test]
fn wildcard_addresses_are_reached_by_the_families_they_say() {
    on_a_host(|host| {
        let both = [
            ("127.0.0.1", 9000),
            ("127.0.0.9", 9000),
            (OTHER_ADDRESS, 9000),
            ("::1", 9000),
        ];
        let (ipv4, ipv6) = both.split_at(3);
        for (address, reached, sockets) in [
            ("\"0.0.0.0\"", ipv4, 1),
            ("\"[::]\"", &both[..], 1),
            ("[\"0.0.0.0\", \"[::]\"]", &both[..], 2),
            ("\"[::1]\"", ipv6, 1),
        ] {
            let configuration = format!("[pool.api]\nports = 9000\naddress = {address}\n");
            // Each with steering and without, for a first and for a later holder.
            let mut agent = host.agent_that(true, &configuration);
            for round in 0..4 {
                if round == 2 {
                    drop(agent);
                    agent = host.agent_that(false, &configuration);
                }
                agent.wait_until("it is parked", |slots| slots[0].state == "parked");
                let served = agent.serve(&["api"]);
                assert_serves(&served, reached);
                let holder = agent.slots("api")[0].addresses.len();
                assert_eq!(holder, sockets, "{address}");
                for (unreached, port) in both.iter().filter(|it| !reached.contains(it)) {
                    let ip: IpAddr = unreached.parse().unwrap();
                    let outcome = ask_server(SocketAddr::new(ip, *port));
                    assert!(outcome.is_err(), "{address} is reached at {unreached}");
                }
            }
        }
    });
}

/// Sends a datagram to each of these addresses in turn, 200 in all, each from a port of its own,
/// and counts the answers of the server.
fn datagrams_answered(addresses: &[&str], port: u16, server: &Process) -> usize {
    let mut clients = Vec::new();
    for number in 0..200 {
        let to: IpAddr = addresses[number % addresses.len()]
            .parse()
            .expect("as it should be");
        let from = match to {
            IpAddr::V4(_) => "0.0.0.0:0",
            IpAddr::V6(_) => "[::]:0",
        };
        let client = UdpSocket::bind(from).expect("as it should be");
        client.send_to(b"?", (to, port)).expect("as it should be");
        clients.push(client);
    }
    let expected = format!("{} {port}\n", server.id());
    let is_answered = |client: &&UdpSocket| {
        // Long only where the answer is missing.
        client
            .set_read_timeout(Some(Duration::from_secs(3)))
            .expect("as it should be");
        let mut buffer = [0; 64];
        let length = client.recv(&mut buffer).unwrap_or(0);
        buffer[..length] == *expected.as_bytes()
    };
    clients.iter().take_while(is_answered).count()
}

#[test]
fn a_udp_pools_holder_gets_every_datagram_and_the_reservation_none() {
    every_datagram_arrives(true);
}

#[test]
fn a_udp_pools_holder_gets_every_datagram_without_steering_too() {
    every_datagram_arrives(false);
}

fn every_datagram_arrives(steers: bool) {
    on_a_host(move |host| {
        let ipv4 = ["127.0.0.1", "127.0.0.9", OTHER_ADDRESS];
        let both = ["127.0.0.1", "::1", OTHER_ADDRESS];
        for (address, sent_to) in [
            ("\"127.0.0.1\"", &ipv4[..1]),
            ("\"[::1]\"", &["::1"]),
            ("\"0.0.0.0\"", &ipv4),
            ("\"[::]\"", &both),
            ("[\"0.0.0.0\", \"[::]\"]", &both),
            (
                &format!("[\"127.0.0.1\", \"{OTHER_ADDRESS}\"]"),
                &[ipv4[0], ipv4[2]],
            ),
        ] {
            let configuration =
                format!("[pool.voice]\nports = 9000\nprotocol = \"udp\"\naddress = {address}\n");
            let agent = host.agent_that(steers, &configuration);
            for holder in ["first", "second", "third"] {
                agent.wait_until("it is parked", |slots| slots[0].state == "parked");
                let served = agent.role(&["voice"], &["obey", "udp"]);
                let answered = datagrams_answered(sent_to, 9000, &served);
                assert_eq!(answered, 200, "{address}, {holder} holder");
            }
        }
    });
}

#[test]
fn what_one_holder_sets_on_the_socket_is_gone_for_the_next() {
    on_a_host(|host| {
        let agent = host.agent(&example_configuration("qwen-valencia.toml"));
        let is_nonblocking = |process: &Process| {
            let text = std::fs::read_to_string(format!("/proc/{}/fdinfo/3", process.id()));
            let text = text.unwrap();
            let flags = text.lines().find_map(|line| line.strip_prefix("flags:"));
            let flags = u32::from_str_radix(flags.unwrap().trim(), 8).unwrap();
            flags & 0o4000 != 0
        };
        let mut first = agent.role(&["api-server"], &["obey"]);
        assert!(!is_nonblocking(&first));
        assert_eq!(first.ask("nonblocking"), "nonblocking");
        assert!(is_nonblocking(&first));
        first.end_input();
        assert_eq!(first.wait(), Some(0));
        agent.wait_until("it is parked", |slots| {
            slots.iter().all(|slot| slot.state == "parked")
        });
        let (second, shown) = show(&agent, &["api-server"], &[]);
        assert_eq!(shown.variable("PORT"), Some("9000"));
        assert!(!is_nonblocking(&second));
    });
}

#[test]
fn a_pool_on_an_address_that_does_not_exist_keeps_nobody_from_the_others() {
    on_a_host(|host| {
        let agent = host.agent(&format!(
            "[pool.away]\nports = 9000\naddress = \"{NO_ADDRESS}\"\n\
             [pool.here]\nports = 9001\n"
        ));
        let here = agent.serve(&["here", "--optional", "away"]);
        assert_serves(&here, &[("127.0.0.1", 9001)]);
        let refused = agent.run(&["exec", "away", "--", "true"]);
        let text = said(&refused);
        assert_eq!(refused.status.code(), Some(75), "{text}");
        assert!(
            text.contains("9000 unavailable: its address does not exist"),
            "{text}"
        );
        let list = agent.run(&["list"]);
        let list = String::from_utf8_lossy(&list.stdout).into_owned();
        assert!(
            list.contains("UNAVAILABLE  away/1 9000: 192.0.2.1"),
            "{list}"
        );
    });
}

#[test]
fn a_service_and_an_agent_in_different_pid_namespaces_work_together() {
    on_a_host(|host| {
        let apart = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"];
        let plan = "[pool.api]\nports = \"9000-9001\"\n";
        let agent = host.agent(plan);
        let mut inside = host.command(apart[0]);
        inside
            .args(&apart[1..])
            .arg(env!("CARGO_BIN_EXE_portpool"))
            .arg("--socket")
            .arg(host.socket())
            .args(["exec", "api", "--"])
            .arg(crate::host::roles())
            .arg("serve");
        let service = Process::start(inside);
        service.wait_for("ready");
        ask_server(([127, 0, 0, 1], 9000).into()).expect("an answer");
        drop((service, agent));

        let inside = host.agent_under(&apart, plan);
        assert_eq!(inside.client().status().expect("a status").slots, 2);
        let _service = inside.serve(&["api"]);
        ask_server(([127, 0, 0, 1], 9000).into()).expect("an answer");
    });
}
