//! Another program in the place of the agent's, while everything goes on.

use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;

use crate::exchange::Clients;
use crate::host::{Host, NOBODY, Process, on_a_host, roles, said, server_of, wait_until};

const PLAN: &str = r#"
    [pool.api]
    ports = "9000-9001"
    restart_window = "60s"
    [pool.queue]
    ports = 9010
    unleased = "queue"
    [pool.any]
    ports = 9020
    address = "[::]"
"#;

/// An agent whose program can be replaced.
struct Installed<'a> {
    host: &'a Host,
    program: PathBuf,
    process: Process,
}

impl<'a> Installed<'a> {
    fn start(host: &'a Host, more: &[&str]) -> Installed<'a> {
        let program = host.folder().join("portpool");
        install(&program, "");
        let file = host.file("portpool.toml", PLAN);
        let mut command = host.command(&program);
        command.args(["agent", "--announce", "--config"]).arg(file);
        command.arg("--socket").arg(host.socket()).args(more);
        let process = Process::start(command);
        process.wait_for("ready");
        Installed {
            host,
            program,
            process,
        }
    }

    fn portpool(&self, arguments: &[&str]) -> std::process::Command {
        let mut command = self.host.portpool(arguments);
        command.env("PORTPOOL_SOCKET", self.host.socket());
        command
    }

    fn upgrade(&self) -> std::process::Output {
        let outcome = self.portpool(&["agent", "--upgrade"]).output();
        outcome.expect("portpool runs")
    }

    fn exec(&self, arguments: &[&str], role: &[&str]) -> Process {
        let mut command = self.portpool(&["exec"]);
        command.args(arguments).arg("--").arg(roles()).args(role);
        let process = Process::start(command);
        process.wait_for("ready");
        process
    }

    fn standing(&self) -> Vec<portpool::protocol::Slot> {
        let client = portpool::Client::connect_to(&self.host.socket()).expect("an agent");
        let mut slots = client.list(&Default::default()).expect("a list");
        slots.iter_mut().for_each(|slot| slot.queue = None);
        slots
    }

    /// Another program takes the place of the agent's file, as a package manager does that.
    fn replace(&self, script: &str) {
        let other = self.host.file("another", script);
        std::fs::set_permissions(&other, PermissionsExt::from_mode(0o755)).expect("a mode");
        std::fs::rename(&other, &self.program).expect("another program");
    }
}

/// Installs the program anew; with another end it is another build of it.
fn install(program: &Path, end: &str) {
    let mut bytes = std::fs::read(env!("CARGO_BIN_EXE_portpool")).expect("the program");
    bytes.extend(end.as_bytes());
    let new = program.with_extension("new");
    std::fs::write(&new, bytes).expect("a file");
    std::fs::set_permissions(&new, PermissionsExt::from_mode(0o755)).expect("a mode");
    std::fs::rename(&new, program).expect("a program");
}

fn goes_over_and_back(host: &Host, more: &[&str]) {
    let agent = Installed::start(host, more);
    let api = agent.exec(&["api"], &["exchange", "leave"]);
    let any = agent.exec(&["any"], &["serve"]);
    let before = agent.standing();
    let waiting = TcpStream::connect("127.0.0.1:9010").expect("it queues");
    let clients = Clients::start(8, SocketAddr::from(([127, 0, 0, 1], 9000)));
    for nth in 0..10 {
        install(&agent.program, ["", "another build"][nth % 2]);
        let output = agent.upgrade();
        assert_eq!(output.status.code(), Some(0), "{}", said(&output));
        agent.process.wait_for("ready");
        let program = std::fs::read_link(format!("/proc/{}/exe", agent.process.id()));
        assert_eq!(program.expect("it lives"), agent.program, "the new file");
        assert_eq!(agent.standing(), before);
    }
    let tally = clients.stop();
    assert_eq!(tally.failed(), 0, "{tally}");
    println!("10 upgrades: {tally}");
    assert_eq!(server_of(9020), any.id());
    let queue = agent.exec(&["queue"], &["serve"]);
    let mut answer = String::new();
    std::io::Read::read_to_string(&mut &waiting, &mut answer).expect("an answer");
    assert_eq!(answer, format!("{} 9010\n", queue.id()));
    drop(api);
    wait_until("the death of a holder is noticed as ever", || {
        agent.standing()[0].state == "restarting"
    });
    agent.process.signal(Signal::SIGTERM);
    wait_until("it leaves nothing", || !host.socket().exists());
    assert!(std::net::TcpListener::bind("127.0.0.1:9001").is_ok());
}

#[test]
fn an_agent_goes_over_to_another_build_and_back_under_load_and_refuses_nobody() {
    on_a_host(|host| goes_over_and_back(host, &[]));
}

#[test]
fn an_agent_goes_over_to_another_build_without_steering_too() {
    on_a_host(|host| goes_over_and_back(host, &["--no-steering"]));
}

#[test]
fn a_signal_has_it_go_over_too() {
    on_a_host(|host| {
        let agent = Installed::start(host, &[]);
        let api = agent.exec(&["api"], &["serve"]);
        let before = agent.standing();
        install(&agent.program, "another build");
        agent.process.signal(Signal::SIGUSR2);
        agent.process.wait_for("ready");
        assert_eq!(agent.standing(), before);
        assert_eq!(server_of(9000), api.id());
    });
}

#[test]
fn with_a_program_that_cannot_take_over_the_agent_goes_on() {
    on_a_host(|host| {
        let agent = Installed::start(host, &[]);
        let api = agent.exec(&["api"], &["serve"]);
        let before = agent.standing();
        let broken = "#!/bin/sh\necho it is not for this machine >&2\nexit 3\n";
        // It says that it can, and then there is nothing to begin.
        let gone = format!("#!/bin/sh\nrm {}\n", agent.program.display());
        for (script, why) in [
            (broken, "it is not for this machine"),
            ("#!/bin/sh\nkill -9 $$\n", "signal: 9"),
            ("no program at all", "cannot begin the program"),
            (&gone, "cannot begin the program"),
        ] {
            agent.replace(script);
            let output = agent.upgrade();
            assert_eq!(output.status.code(), Some(69), "{}", said(&output));
            assert!(said(&output).contains(why), "{}", said(&output));
            assert!(
                said(&output).contains("goes on as it was"),
                "{}",
                said(&output)
            );
            let mut standing = agent.standing();
            assert_eq!(standing[1].state, "parked");
            standing[1] = before[1].clone();
            assert_eq!(standing, before);
            assert_eq!(server_of(9000), api.id());
            let next = agent.exec(&["api"], &["serve"]);
            drop(next);
            wait_until("its slot restarts", || {
                agent.standing()[1].state == "restarting"
            });
            // And so does the next, in its place.
            let next = agent.exec(&["api"], &["serve"]);
            let mut release = agent.portpool(&["revoke", "9001"]);
            assert!(release.status().expect("it runs").success());
            drop(next);
            wait_until("it is free", || agent.standing()[1].state == "parked");
        }
    });
}

#[test]
fn only_administrators_have_the_agent_go_over() {
    on_a_host(|host| {
        let agent = Installed::start(host, &[]);
        let mut command = agent.portpool(&["agent", "--upgrade"]);
        std::os::unix::process::CommandExt::uid(&mut command, NOBODY);
        let output = command.output().expect("it runs");
        assert_eq!(output.status.code(), Some(77), "{}", said(&output));
        assert!(
            said(&output).contains("upgrade the agent"),
            "{}",
            said(&output)
        );
    });
}

/// A program that takes its time to look whether it could take over, and then is the real one.
fn slow(agent: &Installed, seconds: u32) {
    let real = agent.host.folder().join("real");
    install(&real, "");
    let real = real.display();
    agent.replace(&format!(
        "#!/bin/sh\ncase \"$*\" in *--check-handover*) touch {}/looking; sleep {seconds};; esac\nexec {real} \"$@\"\n",
        agent.host.folder().display()
    ));
}

#[test]
fn a_reload_while_the_other_program_looks_costs_nothing() {
    on_a_host(|host| {
        let agent = Installed::start(host, &[]);
        let api = agent.exec(&["api"], &["serve"]);
        let dead = agent.exec(&["api"], &["serve"]);
        drop(dead);
        wait_until("its slot restarts", || {
            agent.standing()[1].state == "restarting"
        });
        slow(&agent, 1);
        let mut upgrade = agent
            .portpool(&["agent", "--upgrade"])
            .spawn()
            .expect("it runs");
        wait_until("the other looks", || host.folder().join("looking").exists());
        host.file(
            "portpool.toml",
            &format!("{PLAN}[pool.more]\nports = 9050\n"),
        );
        let mut reload = agent.portpool(&["reload"]);
        assert!(reload.status().expect("it runs").success());
        // Another upgrade meanwhile is refused, and hinders none.
        let output = agent.upgrade();
        assert!(
            said(&output).contains("another upgrade is under way"),
            "{}",
            said(&output)
        );
        let before = agent.standing();
        assert!(upgrade.wait().expect("it ends").success());
        assert_eq!(agent.standing(), before);
        assert_eq!(server_of(9000), api.id());
    });
}
