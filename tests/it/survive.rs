//! What outlives the agent where a service manager keeps it: everything.

use std::collections::BTreeMap;
use std::io::Read;
use std::net::{SocketAddr, TcpStream, UdpSocket};

use nix::sys::signal::Signal;
use portpool::protocol::Slot;

use crate::exchange::Clients;
use crate::host::{Host, Process, on_a_host, roles, server_of, wait_until};

const PLAN: &str = r#"
    [agent]
    instances = 2
    stride = 100
    [pool.api]
    ports = "9000-9002"
    extra = { metrics = "9500-9502" }
    restart_window = "60s"
    [pool.queue]
    ports = 9010
    unleased = "queue"
    [pool.any]
    ports = 9020
    address = ["0.0.0.0", "::"]
    [pool.datagrams]
    ports = 9030
    protocol = "udp"
"#;

/// An agent with a service manager of its own.
pub(crate) struct Managed<'a> {
    host: &'a Host,
    manager: Process,
    pub(crate) pid: u32,
}

impl<'a> Managed<'a> {
    pub(crate) fn start(host: &'a Host, configuration: &str) -> Managed<'a> {
        Managed::start_that(host, configuration, &[])
    }

    pub(crate) fn start_that(host: &'a Host, configuration: &str, more: &[&str]) -> Managed<'a> {
        let file = host.file("portpool.toml", configuration);
        let folder = host.folder().to_str().expect("text");
        let file = file.to_str().expect("text");
        let agent = [env!("CARGO_BIN_EXE_portpool"), "agent", "--config", file];
        let words = [&["manager", folder], &agent[..], more].concat();
        let mut manager = host.role(&words, 0);
        let pid = started(&manager.ask("start"));
        Managed { host, manager, pid }
    }

    pub(crate) fn tell(&mut self, line: &str) -> String {
        self.manager.ask(line)
    }

    /// Ends the agent as nobody can prevent, and starts another.
    fn kill(&mut self) {
        assert_eq!(self.tell("kill"), "ended");
        self.start_again();
    }

    pub(crate) fn start_again(&mut self) {
        self.pid = started(&self.manager.ask("start"));
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.pid).expect("a pid"));
        nix::sys::signal::kill(pid, signal).expect("it lives");
    }

    /// Waits until no slot waits for the next life of a service.
    pub(crate) fn settle(&self) {
        wait_until("nothing restarts", || {
            !self.slots().iter().any(|slot| slot.state == "restarting")
        });
    }

    pub(crate) fn slots(&self) -> Vec<Slot> {
        let client = portpool::Client::connect_to(&self.host.socket()).expect("an agent");
        client.list(&Default::default()).expect("a list")
    }

    /// All that is to be the same afterwards: everything but what is counted at the moment.
    fn standing(&self) -> BTreeMap<(String, u16, u16), Slot> {
        let mut slots = BTreeMap::new();
        for mut slot in self.slots() {
            slot.queue = None;
            slots.insert((slot.pool.clone(), slot.instance, slot.port), slot);
        }
        slots
    }

    fn exec(&self, arguments: &[&str], role: &[&str]) -> Process {
        let mut command = self.host.portpool(&["exec"]);
        command.env("PORTPOOL_SOCKET", self.host.socket());
        command.args(arguments).arg("--").arg(roles()).args(role);
        let process = Process::start(command);
        process.wait_for("ready");
        process
    }
}

fn started(answer: &str) -> u32 {
    let pid = answer.strip_prefix("ready ").expect("it becomes ready");
    pid.parse().expect("a pid")
}

/// The inodes of a host's TCP and UDP sockets by their port: bound and listening ones.
fn listeners() -> Vec<String> {
    let output = std::process::Command::new("ss")
        .args(["-Hltuen"])
        .output()
        .expect("ss");
    let text = String::from_utf8(output.stdout).expect("text");
    let mut lines: Vec<String> = text
        .lines()
        .map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let inode = words.iter().find(|word| word.starts_with("ino:"));
            format!("{} {}", words[4], inode.expect("an inode"))
        })
        .collect();
    lines.sort();
    lines
}

fn everything_is_as_it_was(host: &Host, more: &[&str]) {
    let mut agent = Managed::start_that(host, PLAN, more);
    let api = agent.exec(&["api", "--label", "the first"], &["serve"]);
    let other = agent.exec(&["api", "--instance", "2"], &["serve"]);
    let any = agent.exec(&["any"], &["serve"]);
    let datagrams = agent.exec(&["datagrams"], &["show"]);
    let mut dead = agent.exec(&["api"], &["serve"]);
    dead.signal(Signal::SIGKILL);
    assert_eq!(dead.wait(), None);
    wait_until("its slot restarts", || {
        agent
            .slots()
            .iter()
            .any(|slot| slot.port == 9001 && slot.state == "restarting")
    });
    let mut waiting =
        [9001, 9010].map(|port| TcpStream::connect(("127.0.0.1", port)).expect("it queues"));
    let (before, sockets) = (agent.standing(), listeners());
    let pid = agent.pid;
    agent.kill();
    assert_ne!(agent.pid, pid);
    assert_eq!(agent.standing(), before);
    assert_eq!(listeners(), sockets, "the same sockets");
    assert_eq!(server_of(9000), api.id());
    assert_eq!(server_of(9100), other.id());
    assert_eq!(server_of(9020), any.id());
    let v6 = crate::host::ask_server(SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, 9020)));
    assert_eq!(v6.expect("an answer"), (any.id(), 9020));
    assert!(crate::host::refuses(9002), "parked");

    // Who was queued for is served by who comes; nobody else could bind meanwhile.
    for port in [9000u16, 9001, 9002, 9010, 9020, 9101, 9500, 9600] {
        assert!(
            std::net::TcpListener::bind(("127.0.0.1", port)).is_err(),
            "{port}"
        );
    }
    assert!(UdpSocket::bind("127.0.0.1:9030").is_err());
    let next = agent.exec(&["api"], &["serve"]);
    let queue = agent.exec(&["queue"], &["serve"]);
    for (stream, server) in waiting.iter_mut().zip([&next, &queue]) {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        let pid = answer.split(' ').next().expect("a word");
        assert_eq!(pid, server.id().to_string());
    }

    // The leases are real: they end with their holders.
    drop(datagrams);
    drop(any);
    wait_until("their slots are free", || {
        let slots = agent.slots();
        let free = |slot: &&Slot| [9020, 9030].contains(&slot.port) && slot.state == "parked";
        slots.iter().filter(free).count() == 2
    });
}

#[test]
fn after_sigkill_the_next_agent_has_the_same_sockets_leases_and_queues() {
    on_a_host(|host| everything_is_as_it_was(host, &[]));
}

#[test]
fn after_sigkill_it_has_them_without_steering_too() {
    on_a_host(|host| everything_is_as_it_was(host, &["--no-steering"]));
}

fn kills_under_load(host: &Host, more: &[&str]) {
    let mut agent = Managed::start_that(host, PLAN, more);
    let api = agent.exec(&["api"], &["exchange", "leave"]);
    let before = agent.standing();
    let address = SocketAddr::from(([127, 0, 0, 1], 9000));
    let clients = Clients::start(8, address);
    let queued: Vec<_> = (0..30)
        .map(|kill| {
            match kill % 3 {
                0 => agent.kill(),
                1 => assert_eq!(agent.tell("upgrade"), format!("ready {}", agent.pid)),
                _ => {
                    assert_eq!(agent.tell("stop"), "ended");
                    agent.start_again();
                }
            }
            TcpStream::connect("127.0.0.1:9010").expect("it queues")
        })
        .collect();
    let tally = clients.stop();
    assert_eq!(tally.failed(), 0, "{tally}");
    assert_eq!(tally.pids, [api.id()].into());
    println!("30 kills, upgrades and restarts of the agent: {tally}");
    assert_eq!(agent.standing(), before);
    let queue = agent.slots().into_iter().find(|slot| slot.port == 9010);
    let queue = queue.and_then(|slot| slot.queue).expect("a queue");
    assert_eq!(usize::try_from(queue.length), Ok(queued.len()));
}

#[test]
fn thirty_kills_upgrades_and_restarts_of_the_agent_under_load_refuse_nobody() {
    on_a_host(|host| kills_under_load(host, &[]));
}

#[test]
fn thirty_kills_upgrades_and_restarts_refuse_nobody_without_steering_either() {
    on_a_host(|host| kills_under_load(host, &["--no-steering"]));
}

#[test]
fn what_happened_while_there_was_no_agent_is_noticed_when_there_is_one_again() {
    on_a_host(|host| {
        let mut agent = Managed::start(host, PLAN);
        let mut dies = agent.exec(&["api"], &["serve"]);
        let mut goes = agent.exec(&["any"], &["serve"]);
        let stays = agent.exec(&["api"], &["serve"]);
        assert_eq!(agent.tell("kill"), "ended");
        for process in [&mut dies, &mut goes] {
            process.signal(Signal::SIGKILL);
            assert_eq!(process.wait(), None);
        }
        let waits = TcpStream::connect("127.0.0.1:9000").expect("it queues for the successor");
        agent.start_again();
        let state = |port| {
            let slots = agent.slots();
            slots
                .into_iter()
                .find(|slot| slot.port == port)
                .expect("a slot")
                .state
        };
        assert_eq!(
            [9000, 9001, 9020].map(state),
            ["restarting", "leased", "parked"]
        );
        assert_eq!(server_of(9001), stays.id());
        let next = agent.exec(&["api"], &["serve"]);
        let mut answer = String::new();
        (&waits).read_to_string(&mut answer).expect("an answer");
        assert_eq!(answer, format!("{} 9000\n", next.id()));
    });
}

#[test]
fn the_configuration_may_change_go_or_be_wrong_while_there_is_no_agent() {
    on_a_host(|host| {
        let mut agent = Managed::start(host, PLAN);
        let api = agent.exec(&["api"], &["serve"]);
        let any = agent.exec(&["any"], &["serve"]);
        let before = agent.standing();
        for wrong in [None, Some("[pool.api]\nports = \"nonsense\"\n")] {
            assert_eq!(agent.tell("kill"), "ended");
            match wrong {
                Some(text) => drop(host.file("portpool.toml", text)),
                None => std::fs::remove_file(host.folder().join("portpool.toml")).expect("a file"),
            }
            agent.start_again();
            assert_eq!(agent.standing(), before, "it goes on with what it had");
        }
        assert_eq!(agent.tell("kill"), "ended");
        host.file(
            "portpool.toml",
            "[pool.any]\nports = \"9020-9021\"\naddress = [\"0.0.0.0\", \"::\"]\n",
        );
        agent.start_again();
        let mut states: Vec<_> = agent
            .slots()
            .into_iter()
            .map(|slot| (slot.port, slot.state))
            .collect();
        states.sort();
        let expected = [
            (9000, "draining"),
            (9020, "leased"),
            (9021, "parked"),
            (9500, "draining"),
        ];
        assert_eq!(
            states,
            expected.map(|(port, state)| (port, state.to_owned()))
        );
        assert_eq!([server_of(9000), server_of(9020)], [api.id(), any.id()]);
        assert!(
            std::net::TcpListener::bind("127.0.0.1:9010").is_ok(),
            "given up"
        );

        agent.kill();
        drop(api);
        wait_until("what drained is gone", || agent.slots().len() == 2);
        assert!(std::net::TcpListener::bind("127.0.0.1:9000").is_ok());
        agent.kill();
        assert_eq!(agent.slots().len(), 2);
        assert_eq!(server_of(9020), any.id());
    });
}

/// Starts it again with something wrong in the store: no service is any worse for it.
fn survives(host: &Host, damage: &[&str]) {
    let mut agent = Managed::start(host, PLAN);
    let api = agent.exec(&["api"], &["serve"]);
    let two = agent.exec(&["any"], &["serve"]);
    assert_eq!(agent.tell("kill"), "ended");
    let names = agent.tell("stored");
    let ledger = names.split(' ').find(|name| name.contains("ledger"));
    let ledger = ledger.expect("a ledger").to_owned();
    for line in damage {
        agent.tell(&line.replace("LEDGER", &ledger));
    }
    agent.start_again();
    let leased: Vec<_> = agent
        .slots()
        .into_iter()
        .filter_map(|slot| Some((slot.port, slot.holder?.pid)))
        .collect();
    let expected = [(9000, api.id()), (9500, api.id()), (9020, two.id())];
    assert_eq!(leased, expected, "{damage:?}");
    assert_eq!([server_of(9000), server_of(9020)], [api.id(), two.id()]);
    let states: Vec<_> = agent.slots().into_iter().map(|slot| slot.state).collect();
    assert!(
        !states
            .iter()
            .any(|state| ["conflict", "unavailable"].contains(&state.as_str()))
    );
    // All of it is in order again.
    agent.kill();
    assert_eq!([server_of(9000), server_of(9020)], [api.id(), two.id()]);
    drop(api);
    wait_until("the lease ends with its holder", || {
        agent
            .slots()
            .iter()
            .any(|slot| slot.port == 9000 && slot.state == "restarting")
    });
    let _next = agent.exec(&["api"], &["serve"]);
}

#[test]
fn strange_things_in_the_store_are_closed_and_said() {
    on_a_host(|host| {
        let names = [
            "portpool-nonsense",
            "stored",
            "portpool-ledger-x",
            "portpool-ledger-99999999999999999",
        ];
        let junk = names.map(|name| format!("junk {name}"));
        survives(host, &junk.each_ref().map(String::as_str));
    });
}

#[test]
fn a_second_thing_of_a_name_is_no_trouble() {
    on_a_host(|host| {
        survives(
            host,
            &["junk portpool-steering-link", "junk portpool-listeners-in"],
        );
    });
}

#[test]
fn a_ledger_that_is_damaged_costs_no_service_its_port() {
    on_a_host(|host| survives(host, &["scribble LEDGER 0"]));
}

#[test]
fn a_record_that_is_damaged_costs_no_service_its_port() {
    // The first cells, wherever they begin: after the plan and the journal.
    on_a_host(|host| {
        let lines: Vec<String> = (260..290)
            .map(|cell| format!("scribble LEDGER {}", cell * 640 + 40))
            .collect();
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        survives(host, &lines);
    });
}

#[test]
fn a_ledger_at_which_one_agent_after_the_other_has_ended_is_not_tried_again() {
    // Where it is counted how many have tried: src/agent/store/cells.rs.
    on_a_host(|host| survives(host, &["scribble LEDGER 72"]));
}

#[test]
fn a_ledger_that_is_gone_costs_no_service_its_port() {
    on_a_host(|host| survives(host, &["forget LEDGER"]));
}

#[test]
fn steering_that_is_gone_is_made_anew() {
    on_a_host(|host| {
        survives(host, &["forget portpool-steering-ports"]);
    });
}

#[test]
fn steering_of_another_kind_is_made_anew() {
    on_a_host(|host| {
        survives(
            host,
            &[
                "forget portpool-steering-link",
                "junk portpool-steering-link",
            ],
        );
    });
}

#[test]
fn who_waits_for_a_slot_goes_on_waiting_at_the_next_agent() {
    on_a_host(|host| {
        let mut agent = Managed::start(host, PLAN);
        let holder = agent.exec(&["any"], &["serve"]);
        let mut command = host.portpool(&["exec", "--wait", "any", "--"]);
        command.env("PORTPOOL_SOCKET", host.socket());
        command.arg(roles()).arg("serve");
        let waits = Process::start(command);
        let waiting = || {
            let client = portpool::Client::connect_to(&host.socket()).expect("an agent");
            client.status().expect("a status").waiting
        };
        wait_until("it waits", || waiting() == 1);
        agent.kill();
        wait_until("it waits again", || waiting() == 1);
        assert_eq!(agent.tell("upgrade"), format!("ready {}", agent.pid));
        wait_until("and again", || waiting() == 1);
        drop(holder);
        waits.wait_for("ready");
        assert_eq!(server_of(9020), waits.id());
    });
}

#[test]
fn a_client_of_the_library_goes_on_with_the_next_agent() {
    on_a_host(|host| {
        let mut agent = Managed::start(host, PLAN);
        let client = portpool::Client::connect_to(&host.socket()).expect("an agent");
        let first = client.acquire("api").expect("a lease");
        agent.kill();
        let second = client.acquire("api").expect("a lease of the next agent");
        assert_eq!([first.port(), second.port()], [9000, 9001]);
        agent.kill();
        drop(first);
        let states = || {
            agent
                .slots()
                .into_iter()
                .map(|slot| (slot.port, slot.state))
        };
        assert!(
            states().any(|known| known == (9000, "parked".to_owned())),
            "given back"
        );
        assert!(states().any(|known| known == (9001, "leased".to_owned())));
    });
}

#[test]
fn a_service_manager_that_takes_nothing_in_keeps_nobody_from_being_served() {
    on_a_host(|host| {
        let path = host.folder().join("deaf");
        let _deaf = std::os::unix::net::UnixDatagram::bind(&path).expect("a socket");
        let filler = std::os::unix::net::UnixDatagram::unbound().expect("a socket");
        filler.connect(&path).expect("it is there");
        filler.set_nonblocking(true).expect("a flag");
        while filler.send(b"FILLED=1").is_ok() {}
        let file = host.file("portpool.toml", PLAN);
        let mut command = host.agent_command(&file);
        command
            .env("NOTIFY_SOCKET", &path)
            .env("WATCHDOG_USEC", "30000");
        let agent = Process::start(command);
        agent.wait_for("ready");
        let client = portpool::Client::connect_to(&host.socket()).expect("an agent");
        let begun = std::time::Instant::now();
        for _ in 0..100 {
            drop(client.acquire("api").expect("a lease"));
        }
        let took = begun.elapsed();
        assert!(
            took < std::time::Duration::from_secs(2),
            "{took:?} for 100 leases"
        );
    });
}

const MANY: &str = r#"
    [pool.leased]
    ports = "21000-21029"
    [pool.queues]
    ports = "22000-22029"
    unleased = "queue"
    [pool.parked]
    ports = "23000-23029"
"#;

/// How many of a host's ports somebody can bind now.
fn can_bind() -> usize {
    let ports = (21_000..21_030).chain(22_000..22_030).chain(23_000..23_030);
    let bound: Vec<_> = ports
        .filter_map(|port| std::net::TcpListener::bind(("127.0.0.9", port)).ok())
        .collect();
    bound.len()
}

/// With many slots of every kind, and clients that wait: what some end of the agent leaves.
fn leaves_everything(host: &Host, more: &[&str], end: impl Fn(&mut Managed)) {
    let mut agent = Managed::start_that(host, MANY, more);
    let _holder = agent.exec(&["leased*30"], &["serve"]);
    let waiting: Vec<_> = (22_000..22_030)
        .map(|port| TcpStream::connect(("127.0.0.1", port)).expect("it queues"))
        .collect();
    let (before, sockets) = (agent.standing(), listeners());
    for _ in 0..3 {
        end(&mut agent);
        assert_eq!(can_bind(), 0, "ports are free while there is no agent");
        agent.start_again();
        assert_eq!(agent.standing(), before);
        assert_eq!(listeners(), sockets);
    }
    for stream in &waiting {
        stream.set_nonblocking(true).expect("a flag");
        let error = (&*stream).read(&mut [0]).expect_err("it waits");
        assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
    }
}

#[test]
fn an_agent_that_is_told_to_end_leaves_everything_to_the_next() {
    on_a_host(|host| {
        leaves_everything(host, &[], |agent| assert_eq!(agent.tell("stop"), "ended"));
    });
}

#[test]
fn an_agent_that_is_told_to_end_leaves_everything_without_steering_too() {
    on_a_host(|host| {
        leaves_everything(host, &["--no-steering"], |agent| {
            assert_eq!(agent.tell("stop"), "ended");
        });
    });
}

#[test]
fn an_agent_that_cannot_start_leaves_everything_to_the_next() {
    on_a_host(|host| {
        let mut agent = Managed::start(host, MANY);
        let holder = agent.exec(&["leased*30"], &["serve"]);
        assert_eq!(agent.tell("kill"), "ended");
        // Without a ledger it needs its configuration, and that is wrong.
        let names = agent.tell("stored");
        let ledger = names.split(' ').find(|name| name.contains("ledger"));
        agent.tell(&format!("forget {}", ledger.expect("a ledger")));
        host.file("portpool.toml", "[pool.leased]\nports = \"many\"\n");
        for _ in 0..7 {
            assert_eq!(agent.tell("attempt"), "ended exit status: 78");
            assert_eq!(
                can_bind(),
                0,
                "ports are free because an agent did not start"
            );
        }
        host.file("portpool.toml", MANY);
        agent.start_again();
        let slots = agent.slots();
        let leased = slots.iter().filter(|slot| {
            slot.holder
                .as_ref()
                .is_some_and(|process| process.pid == holder.id())
        });
        assert_eq!(leased.count(), 30);
        assert!(slots.iter().all(|slot| slot.state != "conflict"));
    });
}

#[test]
fn a_service_manager_that_was_busy_is_given_everything_again() {
    on_a_host(|host| {
        let mut agent = Managed::start(host, PLAN);
        let api = agent.exec(&["api"], &["serve"]);
        assert_eq!(agent.tell("deaf"), "deaf");
        host.file(
            "portpool.toml",
            &format!("{PLAN}[pool.more]\nports = 9050\n"),
        );
        agent.signal(Signal::SIGHUP);
        wait_until("it has gone over", || {
            agent.slots().iter().any(|slot| slot.port == 9050)
        });
        let before = agent.standing();
        let names = agent.tell("stored");
        assert_eq!(agent.tell("hears"), "hears");
        wait_until("it keeps the new ledger, and no other", || {
            let now = agent.tell("stored");
            now != names && now.matches("ledger").count() == 1
        });
        agent.kill();
        assert_eq!(agent.standing(), before);
        assert_eq!(server_of(9000), api.id());
    });
}
