//! An agent of one's own, without any right that its user does not have: the life of a lease is the
//! same, as long as nobody means harm.

use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;

use crate::host::{Host, Process, on_a_host, refuses, roles, said, server_of, wait_until};

/// A user of this machine, without a name.
const USER: u32 = 61_040;

const PLAN: &str = r#"
    [defaults]
    restart_window = "10s"
    [pool.one]
    ports = 9000
    [pool.all]
    ports = 9010
    address = "0.0.0.0"
    [pool.both]
    ports = 9020
    address = "[::]"
"#;

const POOLS: [(&str, u16); 3] = [("one", 9000), ("all", 9010), ("both", 9020)];

/// The user's agent, and the folder in which its socket is.
fn agent(host: &Host) -> (Process, PathBuf) {
    let runtime = host.folder_of("runtime", USER);
    let file = host.file("users.toml", PLAN);
    let mut command = host.portpool(&["agent", "--announce", "--config"]);
    command.arg(file).env("XDG_RUNTIME_DIR", &runtime);
    let process = host.start_as(command, USER);
    process.wait_for("ready");
    (process, runtime)
}

/// `portpool exec ARGUMENTS -- test_roles ROLE` of that user, once it is ready.
fn serve(host: &Host, runtime: &Path, arguments: &[&str], role: &str) -> Process {
    let mut command = host.portpool(&["exec"]);
    command.args(arguments).arg("--").arg(roles()).arg(role);
    command.env("XDG_RUNTIME_DIR", runtime);
    let process = host.start_as(command, USER);
    process.wait_for("ready");
    process
}

fn run(host: &Host, runtime: &Path, arguments: &[&str]) -> std::process::Output {
    let mut command = host.portpool(arguments);
    command.env("XDG_RUNTIME_DIR", runtime);
    std::os::unix::process::CommandExt::uid(&mut command, USER);
    command.output().expect("it runs")
}

#[test]
fn a_users_own_agent_hands_over_takes_back_and_keeps_for_the_next_life() {
    on_a_host(|host| {
        let (_agent, runtime) = agent(host);
        for (pool, port) in POOLS {
            let first = serve(host, &runtime, &[pool], "heed");
            let second = serve(host, &runtime, &["--takeover", pool], "serve");
            assert_eq!(server_of(port), second.id(), "{pool}");
            assert_eq!(first.line(), "SIGTERM");
            let mut third = serve(host, &runtime, &["--takeover", pool], "serve");
            for _ in 0..20 {
                assert_eq!(server_of(port), third.id(), "{pool}: and nobody before it");
            }
            third.signal(Signal::SIGKILL);
            third.wait();
            let waits = std::net::TcpStream::connect(("127.0.0.1", port));
            assert!(waits.is_ok(), "{pool}: it waits for the next life");
            let fourth = serve(host, &runtime, &[pool], "serve");
            assert_eq!(server_of(port), fourth.id(), "{pool}");

            let revoked = run(host, &runtime, &["revoke", &port.to_string()]);
            assert_eq!(revoked.status.code(), Some(0), "{}", said(&revoked));
            wait_until("nobody is served", || refuses(port));
            let fifth = serve(host, &runtime, &[pool], "serve");
            assert_eq!(server_of(port), fifth.id(), "{pool}");
        }
    });
}

#[test]
fn a_users_own_agent_heals_a_listener_that_its_holder_shut() {
    on_a_host(|host| {
        let (_agent, runtime) = agent(host);
        for (pool, port) in POOLS {
            let mut holder = serve(host, &runtime, &[pool], "obey");
            let answer = holder.ask("shutdown");
            assert!(["shut", "refused InvalidInput"].contains(&answer.as_str()));
            wait_until("it listens again", || {
                std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
            });
        }
    });
}
