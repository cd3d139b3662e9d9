//! The client library: against a real agent, against one that dies, and against liars.

use std::io::{ErrorKind, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::sync::Barrier;

use nix::sys::signal::Signal;
use portpool::protocol::{AcquireParameters, Fault, Want};
use portpool::{Client, Error, Lease};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use crate::host::{
    Agent, Host, NOBODY, Process, example_configuration, on_a_host, roles, wait_until,
};

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn is_refused(port: u16) -> bool {
    TcpStream::connect(local(port)).is_err_and(|e| e.kind() == ErrorKind::ConnectionRefused)
}

/// Whether a client of the port is served by this listener.
#[track_caller]
fn assert_serves(listener: &TcpListener, port: u16) {
    let mut client = TcpStream::connect(local(port)).expect("the port is listened on");
    let (mut served, _) = listener.accept().expect("a connection");
    served.write_all(b"hello").expect("a client");
    drop(served);
    let mut answer = String::new();
    client.read_to_string(&mut answer).expect("an answer");
    assert_eq!(answer, "hello");
}

fn agent(host: &Host) -> Agent<'_> {
    host.agent(&example_configuration("qwen-valencia.toml"))
}

#[test]
fn a_lease_has_a_ready_listener_and_its_end_frees_the_port_for_the_next() {
    on_a_host(|host| {
        let agent = agent(host);
        let client = Client::connect_to(&host.socket()).unwrap();
        assert!(is_refused(9000), "parked");
        let lease = client.acquire("api-server").unwrap();
        assert_eq!(
            (lease.pool(), lease.instance(), lease.port()),
            ("api-server", 1, 9000)
        );
        let listener = lease.listener().unwrap();
        assert_eq!(listener.local_addr().unwrap(), local(9000));
        assert_serves(&listener, 9000);
        // A copy is a copy: it goes, and the lease stays.
        drop(listener);
        assert_serves(&lease.listener().unwrap(), 9000);

        let kept = lease.listener().unwrap();
        drop(lease);
        assert!(
            is_refused(9000),
            "also with a copy of the listener still open"
        );
        drop(kept);
        let holder = agent.serve(&["api-server"]);
        let (pid, port) = crate::host::ask_server(local(9000)).unwrap();
        assert_eq!((pid, port), (holder.id(), 9000));
    });
}

#[test]
fn the_parts_of_a_lease_serve_until_the_lease_is_dropped() {
    on_a_host(|host| {
        let agent = agent(host);
        let (listener, lease) = agent.client().acquire("api-server").unwrap().into_parts();
        assert_eq!(
            lease.listener().unwrap_err().kind(),
            ErrorKind::NotConnected
        );
        assert_serves(&listener, lease.port());
        drop(lease);
        assert!(is_refused(9000));
    });
}

#[test]
fn leases_of_one_process_rotate_and_then_the_pool_is_exhausted() {
    on_a_host(|host| {
        let agent = agent(host);
        let client = agent.client();
        let acquire = || client.acquire("api-server");
        let leases: Vec<Lease> = (0..3).map(|_| acquire().unwrap()).collect();
        let ports: Vec<u16> = leases.iter().map(Lease::port).collect();
        assert_eq!(ports, [9000, 9001, 9002]);
        let error = acquire().unwrap_err();
        let Error::Refused(fault) = &error else {
            panic!("{error:?}")
        };
        let Fault::PoolExhausted {
            pool,
            instance,
            slots,
        } = &**fault
        else {
            panic!("{fault:?}")
        };
        assert_eq!(
            (pool.as_str(), *instance, slots.len()),
            ("api-server", 1, 3)
        );
        let text = error.to_string();
        assert!(text.contains("pool api-server is exhausted"), "{text}");
        assert!(
            text.contains(&format!("[{}] root, since ", std::process::id())),
            "{text}"
        );
        drop(leases);
        assert_eq!(acquire().unwrap().port(), 9000);
    });
}

#[test]
fn a_lease_released_twice_is_not_the_callers_the_second_time_nor_is_anybody_elses() {
    on_a_host(|host| {
        let agent = agent(host);
        let client = agent.client();
        let asked = || AcquireParameters {
            pools: vec![Want {
                pool: "api-server".into(),
                count: Some(2),
            }],
            ..AcquireParameters::default()
        };
        let grants = client.acquire_all(asked()).unwrap();
        let ports: Vec<u16> = grants.iter().map(|grant| grant.lease.port).collect();
        assert_eq!(ports, [9000, 9001]);
        let id = grants[0].lease.lease_id;
        client.release(id).unwrap();
        assert!(is_refused(9000) && !is_refused(9001));
        let again = client.release(id).unwrap_err();
        assert_eq!(
            again.to_string(),
            format!("lease {id} is not yours, or has ended already")
        );

        let holder = agent.serve(&["api-server"]);
        let slots = client.list(&Default::default()).unwrap();
        let of_holder = slots.iter().find(|slot| {
            slot.holder
                .as_ref()
                .is_some_and(|process| process.pid == holder.id())
        });
        let foreign = of_holder.unwrap().lease_id.unwrap();
        assert!(matches!(client.release(foreign), Err(Error::Refused(_))));
        assert!(!is_refused(9000));
        // `Lease::release` says that it worked, and its destructor does not do it again.
        let lease = client.acquire("worker");
        assert!(matches!(lease, Err(Error::Refused(_))));
        client.acquire("groq-api").unwrap().release().unwrap();
        assert!(is_refused(6020));
    });
}

#[test]
fn a_pool_of_udp_ports_is_had_by_acquire_all_and_not_as_a_listener() {
    on_a_host(|host| {
        let agent = host.agent("[pool.dns]\nports = 5300\nprotocol = \"udp\"\n");
        let client = agent.client();
        let error = client.acquire("dns").unwrap_err();
        assert_eq!(
            error.to_string(),
            "the pool is of UDP ports: use acquire_all"
        );
        let pools = vec![Want {
            pool: "dns".into(),
            count: None,
        }];
        let mut grants = client
            .acquire_all(AcquireParameters {
                pools,
                ..AcquireParameters::default()
            })
            .expect("what was refused was given back");
        let (_, fd) = grants[0].sockets.remove(0);
        let socket = UdpSocket::from(fd);
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        sender.send_to(b"hello", local(5300)).unwrap();
        let mut buffer = [0; 8];
        assert_eq!(socket.recv(&mut buffer).unwrap(), 5);
    });
}

#[test]
fn where_there_is_no_agent_the_error_names_the_place_and_the_reason() {
    on_a_host(|host| {
        let error = Client::connect_to(&host.socket()).unwrap_err();
        let Error::NoAgent { tried } = &error else {
            panic!("{error:?}")
        };
        assert_eq!(tried[0].0, host.socket());
        assert_eq!(tried[0].1.kind(), ErrorKind::NotFound);
        let text = error.to_string();
        assert!(text.contains("a.sock: No such file"), "{text}");
        assert!(text.contains("portpool agent"), "{text}");
    });
}

#[test]
fn when_the_agent_dies_every_call_fails_and_nothing_panics() {
    on_a_host(|host| {
        let mut agent = agent(host);
        let client = agent.client();
        let lease = client.acquire("api-server").unwrap();
        let listener = lease.listener().unwrap();
        agent.process.signal(Signal::SIGKILL);
        agent.process.wait();
        for _ in 0..2 {
            let is_broken = |error: Error| match error {
                Error::Io(_) => error
                    .to_string()
                    .starts_with("the connection to the agent broke"),
                _ => false,
            };
            assert!(client.acquire("api-server").is_err_and(is_broken));
            assert!(client.status().is_err_and(is_broken));
            assert!(client.list(&Default::default()).is_err_and(is_broken));
            assert!(client.release(1).is_err_and(is_broken));
        }
        // The service does not go down with the agent: its listener is its own.
        assert_serves(&listener, 9000);
        drop(lease);
    });
}

#[test]
fn threads_share_a_client_and_each_gets_its_own_answer() {
    on_a_host(|host| {
        let agent = host.agent("[pool.many]\nports = \"20000-20063\"\n");
        let client = agent.client();
        let start = Barrier::new(8);
        let acquire = || {
            let client = client.clone();
            start.wait();
            let lease = || client.acquire("many").unwrap();
            (0..8).map(|_| lease()).collect::<Vec<Lease>>()
        };
        let leases: Vec<Lease> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(acquire)).collect();
            threads
                .into_iter()
                .flat_map(|thread| thread.join().unwrap())
                .collect()
        });
        let mut ports: Vec<u16> = leases.iter().map(Lease::port).collect();
        ports.sort_unstable();
        assert_eq!(ports, (20_000..=20_063).collect::<Vec<u16>>());
        for lease in &leases {
            let address = lease.listener().unwrap().local_addr().unwrap();
            assert_eq!(address.port(), lease.port());
        }
        drop(leases);
        assert_eq!(client.status().unwrap().leased, 0);
    });
}

#[test]
fn an_agent_of_another_unprivileged_user_is_not_trusted() {
    on_a_host(|host| {
        let folder = host.folder_of("open", NOBODY);
        let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&folder, everybody).unwrap();
        let path = folder.join("fake.sock");
        let fake = host.role(&["pretend", path.to_str().unwrap()], NOBODY);
        fake.wait_for("ready");
        let error = Client::connect_to(&path).unwrap_err();
        assert!(
            matches!(&error, Error::Untrusted { uid, path: at } if *uid == NOBODY && *at == path),
            "{error:?}"
        );
        // Nor by another user, who could connect to it.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        std::fs::set_permissions(&path, open).unwrap();
        let client = host.role(&["take", path.to_str().unwrap()], 61_040);
        let line = client.line();
        assert!(
            line.contains("is run by user 65534") && line.contains("not trusted"),
            "{line}"
        );
        // By its own user it is, and by root's agent everybody is served.
        let client = host.role(&["take", path.to_str().unwrap()], NOBODY);
        assert_eq!(client.line(), "connected");
        let _agent = agent(host);
        let client = host.role(&["take", host.socket().to_str().unwrap()], 61_040);
        assert_eq!(client.line(), "connected");
    });
}

/// An agent that lies: its answer to `Acquire` depends on the pool's name.
struct Liar {
    listener: TcpListener,
    other: TcpListener,
    unbound: socket2::Socket,
    datagrams: UdpSocket,
    local: UnixListener,
    file: std::fs::File,
}

impl Liar {
    fn new(host: &Host) -> Liar {
        let unbound = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
        let unbound = unbound.expect("what a liar needs");
        unbound
            .bind(&local(9003).into())
            .expect("what a liar needs");
        Liar {
            listener: TcpListener::bind(local(9000)).expect("what a liar needs"),
            other: TcpListener::bind("127.0.0.2:9000").expect("what a liar needs"),
            unbound,
            datagrams: UdpSocket::bind(local(9000)).expect("what a liar needs"),
            local: UnixListener::bind(host.folder().join("other.sock")).expect("what a liar needs"),
            file: std::fs::File::open("/dev/null").expect("what a liar needs"),
        }
    }

    /// The sockets as the reply tells of them: `(index, port, address)`; and those that it sends.
    fn lie(&self, pool: &str) -> (Vec<(usize, u16, &'static str)>, Vec<BorrowedFd<'_>>) {
        let listener = self.listener.as_fd();
        let one = |fd| (vec![(0, 9000, "127.0.0.1")], vec![fd]);
        match pool {
            "the-truth" => one(listener),
            "a-datagram-socket" => one(self.datagrams.as_fd()),
            "another-address" => one(self.other.as_fd()),
            "a-local-socket" => one(self.local.as_fd()),
            "a-file" => one(self.file.as_fd()),
            "another-port" => (vec![(0, 9001, "127.0.0.1")], vec![listener]),
            "no-listener" => (vec![(0, 9003, "127.0.0.1")], vec![self.unbound.as_fd()]),
            "one-too-many" => (vec![(0, 9000, "127.0.0.1")], vec![listener; 2]),
            "far-too-many" => (vec![(0, 9000, "127.0.0.1")], vec![listener; 253]),
            "too-few" => (
                vec![(0, 9000, "127.0.0.1"), (1, 9000, "127.0.0.1")],
                vec![listener],
            ),
            "one-twice" => (vec![(0, 9000, "127.0.0.1"); 2], vec![listener]),
            "none-said" => (vec![], vec![listener]),
            "none" => (vec![(0, 9000, "127.0.0.1")], vec![]),
            other => panic!("no such lie: {other}"),
        }
    }

    fn answer(&self, call: &serde_json::Value) -> (String, Vec<BorrowedFd<'_>>) {
        let method = call["method"].as_str().expect("a method");
        if method != "org.portpool.Agent.Acquire" {
            return (r#"{"parameters":{}}"#.into(), vec![]);
        }
        let pool = call["parameters"]["pools"][0]["pool"]
            .as_str()
            .expect("a pool");
        match pool {
            "no-json" => return ("ready!".into(), vec![self.listener.as_fd()]),
            "another-shape" => return (r#"{"parameters":{"leases":7}}"#.into(), vec![]),
            "no-lease" => {
                let fds = vec![self.listener.as_fd()];
                return (r#"{"parameters":{"leases":[]}}"#.into(), fds);
            }
            "a-fault-with-sockets" => {
                let fault = r#"{"error":"org.portpool.Agent.Busy","parameters":{"limit":"lies"}}"#;
                return (fault.into(), vec![self.listener.as_fd(); 3]);
            }
            _ => {}
        }
        let (told, fds) = self.lie(pool);
        let socket = |(index, port, address): &(usize, u16, &str)| {
            serde_json::json!({
                "fileDescriptor": index, "name": pool, "port": port, "address": address,
            })
        };
        let sockets: Vec<serde_json::Value> = told.iter().map(socket).collect();
        let lease = serde_json::json!({
            "leaseId": 1, "pool": pool, "instance": 1, "port": 9000, "protocol": "tcp",
            "generation": 1, "sockets": sockets,
        });
        (
            serde_json::json!({"parameters": {"leases": [lease]}}).to_string(),
            fds,
        )
    }

    /// Answers one client until it goes.
    fn serve(&self, listener: &UnixListener) {
        let (mut client, _) = listener.accept().expect("a client");
        while let Some(call) = read_call(&mut client) {
            let (mut reply, fds) = self.answer(&call);
            reply.push('\0');
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
            let mut rights = SendAncillaryBuffer::new(&mut space);
            assert!(fds.is_empty() || rights.push(SendAncillaryMessage::ScmRights(&fds)));
            let bytes = [IoSlice::new(reply.as_bytes())];
            sendmsg(client.as_fd(), &bytes, &mut rights, SendFlags::NOSIGNAL).expect("a reader");
        }
    }
}

fn read_call(client: &mut UnixStream) -> Option<serde_json::Value> {
    let mut bytes = Vec::new();
    let mut byte = [0];
    while client.read(&mut byte).ok()? == 1 {
        match byte[0] {
            0 => return Some(serde_json::from_slice(&bytes).expect("a call is JSON")),
            other => bytes.push(other),
        }
    }
    None
}

#[test]
fn what_a_lying_agent_sends_is_refused_and_none_of_it_is_kept() {
    on_a_host(|host| {
        let liar = Liar::new(host);
        let listener = UnixListener::bind(host.socket()).unwrap();
        let serving = std::thread::spawn(move || liar.serve(&listener));
        let socket = host.socket();
        let mut client = host.role(&["take", socket.to_str().unwrap()], 0);
        assert_eq!(client.line(), "connected");
        let truth = client.ask("the-truth");
        let (port, fds) = truth.rsplit_once(" fds ").unwrap();
        assert_eq!(port, "port 9000");
        let wrong = "that the agent sent is not what it says: ";
        let protocol = "the agent does not keep to the protocol: ";
        let lies = [
            ("a-datagram-socket", wrong, "is_stream: false"),
            ("another-address", wrong, "127.0.0.2:9000"),
            ("another-port", wrong, "127.0.0.1:9000"),
            ("no-listener", wrong, "is_listening: false"),
            ("a-local-socket", wrong, "no internet socket"),
            ("a-file", wrong, "no internet socket"),
            ("one-too-many", protocol, "more file descriptors"),
            ("far-too-many", protocol, "more file descriptors"),
            ("too-few", protocol, "did not come"),
            ("one-twice", protocol, "did not come"),
            ("none-said", protocol, "more file descriptors"),
            ("none", protocol, "did not come"),
            ("no-json", protocol, "not understood"),
            ("another-shape", protocol, "not understood"),
            ("no-lease", protocol, "more file descriptors"),
            ("a-fault-with-sockets", "the agent is at a limit: lies", ""),
        ];
        for (lie, beginning, detail) in lies {
            let answer = client.ask(lie);
            assert!(
                answer.contains(beginning) && answer.contains(detail),
                "{lie}: {answer}"
            );
            assert!(
                answer.ends_with(&format!(" fds {fds}")),
                "{lie}: {answer}, not {fds}"
            );
        }
        assert_eq!(
            client.ask("the-truth"),
            truth,
            "and the connection is as good as before"
        );
        drop(client);
        serving.join().unwrap();
    });
}

#[test]
fn a_client_without_room_for_the_sockets_gets_an_error_and_the_slots_are_free_again() {
    on_a_host(|host| {
        let agent = host.agent("[pool.many]\nports = \"20000-20199\"\n");
        let before = agent.open_fds();
        // Room for its own needs and a few sockets, not for a hundred.
        let mut command = host.command("prlimit");
        command
            .args(["--nofile=40", env!("CARGO_BIN_EXE_portpool")])
            .args(["exec", "many*100", "--", "true"])
            .env("PORTPOOL_SOCKET", host.socket());
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(69), "{output:?}");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(
            error.contains("file descriptors were lost on the way"),
            "{error}"
        );
        agent.wait_until("all slots are free", |slots| {
            slots.iter().all(|slot| slot.state == "parked")
        });
        wait_until("the agent has no descriptor more than before", || {
            agent.open_fds() == before
        });
    });
}

#[test]
fn a_lease_is_the_process_s_own_and_no_child_has_its_listener() {
    on_a_host(|host| {
        let agent = agent(host);
        let lease = agent.client().acquire("api-server").unwrap();
        let fd = OwnedFd::from(lease.listener().unwrap());
        let flags = nix::fcntl::fcntl(&fd, nix::fcntl::FcntlArg::F_GETFD).unwrap();
        let is_closed = nix::fcntl::FdFlag::FD_CLOEXEC.bits();
        assert_eq!(flags & is_closed, is_closed);
        let mut child = host.command(roles());
        child.arg("show").uid(0);
        let child = Process::start(child);
        let lines = child.wait_for("ready");
        let sockets = |line: &&String| line.starts_with("fd ") && line.contains("socket:");
        assert_eq!(lines.iter().filter(sockets).count(), 0, "{lines:#?}");
    });
}

#[test]
fn after_an_answer_that_is_none_no_later_one_is_taken_for_another_calls() {
    on_a_host(|host| {
        let path = host.folder().join("fake.sock");
        let listener = UnixListener::bind(&path).expect("a socket");
        let liar = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            let mut call = [0; 4096];
            drop(stream.read(&mut call));
            drop(stream.write_all(b"[]\0{\"parameters\":{\"slots\":[]}}\0"));
            drop(stream.read(&mut call));
        });
        let client = Client::connect_to(&path).expect("it listens");
        let wrong = client
            .list(&Default::default())
            .expect_err("that was no answer");
        assert!(matches!(wrong, Error::Protocol(_)), "{wrong}");
        let late = client
            .list(&Default::default())
            .expect_err("that was another's");
        assert!(matches!(late, Error::Io(_)), "{late}");
        liar.join().expect("no panic");
    });
}
