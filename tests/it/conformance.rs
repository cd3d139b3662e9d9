//! The wire is Varlink: what was not written here speaks it too. `zlink` performs every call,
//! systemd's `varlinkctl` those it can, and a Python program of the standard library serves.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use serde::{Deserialize, Serialize};
use zlink::names::InterfaceName;
use zlink::varlink_service::Proxy;

use crate::host::{Host, Process, on_a_host};

const CONFIGURATION: &str = r#"
[pool.api]
ports = "9000-9002"
extra = { metrics = 2112 }

[pool.many]
ports = "8000-8099"
"#;

#[derive(Debug, Serialize)]
struct Want<'a> {
    pool: &'a str,
    count: Option<u16>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Socket {
    file_descriptor: usize,
    name: String,
    port: u16,
    address: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Lease {
    lease_id: u64,
    pool: String,
    instance: u16,
    port: u16,
    protocol: String,
    generation: u64,
    sockets: Vec<Socket>,
}

#[derive(Debug, Deserialize)]
struct Leases {
    leases: Vec<Lease>,
}

#[derive(Debug, Deserialize)]
struct Slots {
    slots: Vec<serde_json::Value>,
}

#[derive(Debug, Deserialize)]
struct Status {
    version: String,
    leased: u32,
    slots: u32,
}

#[derive(Debug, Deserialize)]
struct Nothing {}

#[derive(Debug, zlink::ReplyError)]
#[zlink(interface = "org.portpool.Agent")]
enum Refused {
    UnknownPool {
        pool: String,
        nearest: Option<String>,
    },
    PoolExhausted {
        pool: String,
        instance: u16,
        slots: Vec<serde_json::Value>,
    },
    UnknownLease {
        #[zlink(rename = "leaseId")]
        lease_id: u64,
    },
}

#[zlink::proxy("org.portpool.Agent")]
trait Agent {
    #[zlink(return_fds)]
    async fn acquire(
        &mut self,
        pools: &[Want<'_>],
    ) -> zlink::Result<(Result<Leases, Refused>, Vec<OwnedFd>)>;

    async fn release(
        &mut self,
        #[zlink(rename = "leaseId")] lease_id: u64,
    ) -> zlink::Result<Result<Nothing, Refused>>;

    #[zlink(more)]
    async fn list(
        &mut self,
    ) -> zlink::Result<impl zlink::futures_util::Stream<Item = zlink::Result<Result<Slots, Refused>>>>;

    async fn status(&mut self) -> zlink::Result<Result<Status, Refused>>;
}

#[test]
fn zlink_performs_every_call_and_understands_every_answer() {
    on_a_host(|host| {
        let _agent = host.agent(CONFIGURATION);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(every_call(host));
    });
}

async fn every_call(host: &Host) {
    use zlink::futures_util::StreamExt;
    let connect = || zlink::tokio::unix::connect(host.socket());
    let mut connection = connect().await.expect("an agent");

    let info = connection.get_info().await.expect("an answer");
    let info = info.expect("its info");
    assert_eq!(info.version, env!("CARGO_PKG_VERSION"));
    let names: Vec<String> = info.interfaces.iter().map(ToString::to_string).collect();
    assert_eq!(names, ["org.varlink.service", "org.portpool.Agent"]);
    for (name, methods, errors) in [("org.varlink.service", 2, 6), ("org.portpool.Agent", 9, 17)] {
        let name = InterfaceName::try_from(name).expect("a name");
        let described = connection.get_interface_description(name).await;
        let described = described.expect("an answer").expect("a description");
        let interface = described.parse().expect("zlink's parser reads it");
        assert_eq!(interface.methods().count(), methods);
        assert_eq!(interface.errors().count(), errors);
    }
    let unknown = InterfaceName::try_from("org.example.Nothing").expect("a name");
    let refused = connection.get_interface_description(unknown).await;
    let Err(zlink::Error::VarlinkService(error)) = refused else {
        panic!("{refused:?}")
    };
    assert!(matches!(
        error.inner(),
        zlink::varlink_service::Error::InterfaceNotFound { .. }
    ));

    let status = connection.status().await.expect("an answer").expect("one");
    assert_eq!((status.leased, status.slots), (0, 104));
    assert_eq!(status.version, env!("CARGO_PKG_VERSION"));

    let wants = [
        Want {
            pool: "api",
            count: None,
        },
        Want {
            pool: "many",
            count: Some(2),
        },
    ];
    let (leases, fds) = connection.acquire(&wants).await.expect("an answer");
    let leases = leases.expect("slots").leases;
    let sockets: Vec<_> = leases.iter().flat_map(|lease| &lease.sockets).collect();
    let seen: Vec<_> = sockets
        .iter()
        .map(|s| (s.file_descriptor, s.name.as_str(), s.port))
        .collect();
    assert_eq!(
        seen,
        [
            (0, "api", 9000),
            (1, "api.metrics", 2112),
            (2, "many", 8000),
            (3, "many", 8001)
        ]
    );
    let first = &leases[0];
    assert_eq!(
        (first.pool.as_str(), first.instance, first.port),
        ("api", 1, 9000)
    );
    assert_eq!((first.protocol.as_str(), first.generation), ("tcp", 1));
    assert_eq!(fds.len(), 4);
    for (socket, fd) in sockets.iter().zip(fds) {
        let listener = std::net::TcpListener::from(fd);
        let port = listener.local_addr().expect("an address").port();
        assert_eq!(port, socket.port, "{}", socket.address);
    }

    let mut listed = 0;
    let mut replies = 0;
    {
        let stream = connection.list().await.expect("answers");
        let mut stream = std::pin::pin!(stream);
        while let Some(reply) = stream.next().await {
            listed += reply.expect("an answer").expect("slots").slots.len();
            replies += 1;
        }
    }
    assert_eq!(listed, 104);
    assert!(replies > 1);

    let id = first.lease_id;
    let released = connection.release(id).await.expect("an answer");
    let Nothing {} = released.expect("it was ours");
    let again = connection.release(id).await.expect("an answer");
    assert!(matches!(again, Err(Refused::UnknownLease { lease_id }) if lease_id == id));

    let mistyped = [Want {
        pool: "apu",
        count: None,
    }];
    let (refused, fds) = connection.acquire(&mistyped).await.expect("an answer");
    assert!(fds.is_empty());
    let Err(Refused::UnknownPool { pool, nearest }) = refused else {
        panic!("{refused:?}")
    };
    assert_eq!((pool.as_str(), nearest.as_deref()), ("apu", Some("api")));

    let all = [Want {
        pool: "api",
        count: Some(4),
    }];
    let (refused, _) = connection.acquire(&all).await.expect("an answer");
    let Err(Refused::PoolExhausted {
        pool,
        instance,
        slots,
    }) = refused
    else {
        panic!("{refused:?}")
    };
    assert_eq!((pool.as_str(), instance, slots.len()), ("api", 1, 3));
}

fn is_installed(program: &str) -> bool {
    let status = Command::new(program).arg("--version").output();
    status.is_ok_and(|output| output.status.success())
}

#[test]
fn varlinkctl_shows_calls_and_runs_a_service() {
    // Not even CI fails without it: Debian 12 and Ubuntu 24.04 have no varlinkctl with --exec.
    if !is_installed("varlinkctl") {
        eprintln!("SKIPPED: no varlinkctl on this machine (systemd 257 has one)");
        return;
    }
    on_a_host(|host| {
        let _agent = host.agent(CONFIGURATION);
        let address = format!("unix:{}", host.socket().display());
        let run = |arguments: &[&str]| {
            let mut command = host.command("varlinkctl");
            let output = command.args(arguments).output().expect("varlinkctl runs");
            assert!(output.status.success(), "{arguments:?}: {output:?}");
            String::from_utf8(output.stdout).expect("text")
        };
        assert!(run(&["info", &address]).contains("org.portpool.Agent"));
        let text = run(&["introspect", &address, "org.portpool.Agent"]);
        assert!(text.contains("method Acquire"), "{text}");
        let status = run(&["call", &address, "org.portpool.Agent.Status", "{}"]);
        assert!(status.contains("\"slots\""), "{status}");
        let list = run(&["call", "--more", &address, "org.portpool.Agent.List", "{}"]);
        assert!(list.contains("8099"), "{list}");
        let parameters = r#"{"pools":[{"pool":"api"}]}"#;
        let method = "org.portpool.Agent.Acquire";
        let shown = "echo $LISTEN_FDS";
        let fds = run(&[
            "call", "--exec", &address, method, parameters, "--", "sh", "-c", shown,
        ]);
        assert_eq!(fds.trim(), "2");
    });
}

fn ask_http(port: u16) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

#[test]
fn a_client_in_python_of_the_standard_library_alone_takes_a_slot_and_serves_over_it() {
    if !is_installed("python3") {
        let must_run = std::env::var_os("CI").is_some();
        assert!(!must_run, "python3 is missing (Debian package python3)");
        eprintln!("SKIPPED: no python3 on this machine");
        return;
    }
    on_a_host(|host| {
        let agent = host.agent(CONFIGURATION);
        let program = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/python/client.py");
        let mut command = host.command("python3");
        command.arg(program).arg(host.socket()).arg("many");
        let mut client = Process::start(command);
        assert_eq!(client.line(), "serving 127.0.0.1:8000");
        let answer = ask_http(8000).expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.ends_with("\r\n\r\nhello from many, port 8000\n"));
        assert_eq!(client.wait(), Some(0));
        agent.wait_until("its lease has ended with it", |slots| {
            slots.iter().all(|slot| slot.lease_id.is_none())
        });

        let mut command = host.command("python3");
        command.arg(program).arg(host.socket()).arg("none");
        let output = command.output().expect("python3 runs");
        assert_eq!(output.status.code(), Some(1));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("org.portpool.Agent.UnknownPool"), "{said}");

        // An agent that nobody should trust: another user's.
        let socket = host.folder().join("other.sock");
        let open = std::fs::Permissions::from_mode(0o777);
        std::fs::set_permissions(host.folder(), open).expect("a folder for all");
        let other = host.role(
            &["pretend", socket.to_str().expect("text")],
            crate::host::NOBODY,
        );
        other.wait_for("ready");
        let mut command = host.command("python3");
        let output = command.arg(program).arg(&socket).arg("many").output();
        let said = output.expect("python3 runs").stderr;
        assert!(String::from_utf8_lossy(&said).contains("not trusted"));
    });
}
