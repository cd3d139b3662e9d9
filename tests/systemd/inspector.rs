//! The inspector may look at all processes and signal any: whom it obeys, and in what.

use crate::machine::{Machine, on_the_machine, wait_until};

const PLAN: &str = r#"
    [pool.python]
    ports = 9000
    allow = { units = ["portpool@*.service"] }
"#;

/// Asks the inspector to signal a process: `ask.py PID SIGNAL`.
const ASK: &str = "import json, os, socket, sys\n\
    inspector = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n\
    inspector.connect('/run/portpool-inspect/socket')\n\
    pidfd = os.pidfd_open(int(sys.argv[1]))\n\
    question = json.dumps({'signal': sys.argv[2]}).encode()\n\
    socket.send_fds(inspector, [question], [pidfd])\n\
    print(inspector.recv(1000).decode())\n";

/// What the inspector answers to a user.
fn ask(machine: &Machine, user: &str, pid: &str, signal: &str) -> Result<String, String> {
    let user = format!("--reuid={user}");
    let words = [
        "setpriv",
        &user,
        "--clear-groups",
        "python3",
        "/opt/ask.py",
        pid,
        signal,
    ];
    let output = machine.run(&words);
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

#[test]
#[ignore = "needs a machine: scripts/test-systemd"]
fn it_signals_for_the_agent_alone_and_only_who_has_a_socket_of_the_agents() {
    on_the_machine(PLAN, |machine| {
        machine.write("/opt/ask.py", ASK);
        machine.write(
            "/etc/portpool/services/python",
            "POOLS=python\nCOMMAND=/usr/bin/python3 /opt/http_server.py\n",
        );
        machine.ok(&["systemctl", "start", "portpool@python.service"]);
        wait_until("it serves", || machine.get("127.0.0.1", 9000).is_ok());
        let holder = machine.property("portpool@python.service", "MainPID");
        let bystander = [
            "systemd-run",
            "--unit=bystander",
            "--property=DynamicUser=yes",
        ];
        machine.ok(&[&bystander[..], &["sleep", "1000"]].concat());
        let bystander = machine.property("bystander.service", "MainPID");

        let refused = ask(machine, "nobody", &holder, "WINCH").expect_err("it is not asked");
        assert!(refused.contains("PermissionError"), "{refused}");
        let agents = |pid: &str, signal: &str| ask(machine, "portpool", pid, signal);
        assert_eq!(agents(&holder, "WINCH").as_deref(), Ok("\"sent\""));
        // EPERM, though the service manager has the agent's sockets in its store.
        for pid in [&bystander, "1"] {
            assert_eq!(
                agents(pid, "TERM").as_deref(),
                Ok(r#"{"failed":1}"#),
                "{pid}"
            );
        }
        assert_eq!(machine.property("bystander.service", "MainPID"), bystander);
        machine.ok(&["systemctl", "stop", "bystander.service"]);
        assert_eq!(agents(&holder, "TERM").as_deref(), Ok("\"sent\""));
        wait_until("it has heard of it", || {
            machine.property("portpool@python.service", "ActiveState") == "inactive"
        });
    });
}
