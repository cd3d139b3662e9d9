//! Clients in containers, and an agent whose user they do not know: what they have of the machine is the
//! control socket, in a folder.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;

use command_fds::{CommandFdExt, FdMapping};

use crate::host::{Host, NOBODY, Process, ask_server, on_a_host, roles};

const PLAN: &str = r#"
    [pool.web]
    ports = "9000-9002"
    allow = { users = ["nobody"] }
"#;

/// A user whom /etc/passwd does not know.
const NAMELESS: u32 = 61_070;

/// Namespaces of users, processes and the network, as a container without root has them.
const ROOTLESS: [&str; 8] = [
    "unshare",
    "--user",
    "--map-root-user",
    "--net",
    "--pid",
    "--fork",
    "--kill-child",
    "--mount-proc",
];

/// A command in a rootless container that a user runs.
fn rootless(host: &Host, user: u32, words: &[&str]) -> Process {
    let mut command = host.command(ROOTLESS[0]);
    command.args(&ROOTLESS[1..]).args(words);
    host.start_as(command, user)
}

fn open_to_all(folder: &Path) {
    let mode = std::fs::Permissions::from_mode(0o777);
    std::fs::set_permissions(folder, mode).expect("a folder for all");
}

fn text(path: &Path) -> &str {
    path.to_str().expect("text")
}

#[test]
fn a_service_in_a_rootless_container_serves_the_machines_port() {
    on_a_host(|host| {
        let agent = host.agent(PLAN);
        let roles = roles();
        let socket = host.socket();
        let exec = [
            env!("CARGO_BIN_EXE_portpool"),
            "--socket",
            text(&socket),
            "exec",
            "web",
            "--",
            text(&roles),
            "serve",
        ];
        let service = rootless(host, NOBODY, &exec);
        service.wait_for("ready");
        let (pid, port) = ask_server(([127, 0, 0, 1], 9000).into()).expect("an answer");
        assert_eq!((pid, port), (1, 9000), "the container's first process");
        let slots = agent.slots("web");
        let holder = slots[0].holder.as_ref().expect("a holder");
        assert_eq!(holder.uid, NOBODY, "the user on the machine");
        // It ends with the container.
        drop(service);
        agent.wait_until("the lease is over", |slots| slots[0].state == "parked");
    });
}

#[test]
fn in_a_container_no_agent_is_trusted_whose_socket_anybody_can_have_put_there() {
    on_a_host(|host| {
        open_to_all(host.folder());
        let path = host.folder().join("fake.sock");
        let fake = host.role(&["pretend", text(&path)], NOBODY);
        fake.wait_for("ready");
        open_to_all(&path);
        let client = rootless(host, 61_071, &[text(&roles()), "take", text(&path)]);
        let line = client.line();
        assert!(line.contains("not trusted"), "{line}");
    });
}

#[test]
fn an_agent_of_a_user_that_an_image_does_not_know_is_trusted_where_only_root_puts_sockets() {
    on_a_host(|host| {
        // As a service manager does it: root makes the socket, the agent gets it.
        let passed = UnixListener::bind(host.socket()).expect("a socket");
        open_to_all(&host.socket());
        let user = [
            "setpriv",
            &format!("--reuid={NAMELESS}"),
            &format!("--regid={NAMELESS}"),
            "--clear-groups",
            "--inh-caps=-all,+net_admin,+bpf",
            "--ambient-caps=-all,+net_admin,+bpf",
            "--bounding-set=-all,+net_admin,+bpf",
        ]
        .map(str::to_owned);
        let file = host.file("portpool.toml", PLAN);
        let mut command = host.command("sh");
        command
            .args(["-c", r#"LISTEN_PID=$$ exec "$@""#, "sh"])
            .args(user)
            .arg(env!("CARGO_BIN_EXE_portpool"))
            .args(["agent", "--announce", "--config", text(&file)])
            .env("LISTEN_FDS", "1");
        let mapping = FdMapping {
            parent_fd: passed.into(),
            child_fd: 3,
        };
        command.fd_mappings(vec![mapping]).expect("one descriptor");
        let agent = Process::start(command);
        agent.wait_for("ready");

        let socket = host.socket();
        let take = |uid| host.role(&["take", text(&socket)], uid).line();
        assert_eq!(take(NOBODY), "connected");
        assert_eq!(take(0), "connected");
        let mut status = host.portpool(&["--socket", text(&socket), "status"]);
        let status = status.output().expect("portpool runs");
        let status = String::from_utf8_lossy(&status.stdout).into_owned();
        assert!(status.contains(&format!("user {NAMELESS},")), "{status}");
        assert!(status.contains("enforced"), "two capabilities do: {status}");

        open_to_all(host.folder());
        let line = take(NOBODY);
        assert!(
            line.contains(&format!("is run by user {NAMELESS}")) && line.contains("not trusted"),
            "{line}"
        );
    });
}
