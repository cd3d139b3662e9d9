//! What the package installs: units that start, confine and answer.

use crate::machine::{ADDRESS, on_the_machine, wait_until};

const PLAN: &str = r#"
    [defaults]
    allow = { units = ["portpool@*.service"] }
    [pool.python]
    ports = "9000-9002"
    address = "0.0.0.0"
    [pool.node]
    ports = 9010
    [pool.rust]
    ports = 9020
    [pool.other]
    ports = 9030
"#;

const SERVICES: [(&str, &str, u16); 3] = [
    ("python", "/usr/bin/python3 /opt/http_server.py", 9000),
    ("node", "/usr/bin/node /opt/http.mjs", 9010),
    ("rust", "/opt/http_plain", 9020),
];

#[test]
#[ignore = "needs a machine: scripts/test-systemd"]
fn the_agent_starts_with_its_own_user_at_the_best_level() {
    on_the_machine(PLAN, |machine| {
        let status = machine.ok(&["portpool", "status"]);
        assert!(status.contains("enforced"), "{status}");
        let uid = machine.ok(&["id", "--user", "portpool"]);
        assert!(
            status.contains(&format!("user {},", uid.trim())),
            "{status}"
        );
        let text = machine.property("portpool.service", "StatusText");
        assert_eq!(
            text,
            "6 of 6 slots held, 0 leased, 0 in conflict, 0 unavailable"
        );
    });
}

#[test]
#[ignore = "needs a machine: scripts/test-systemd"]
fn templated_services_of_each_kind_answer() {
    on_the_machine(PLAN, |machine| {
        for (name, command, port) in SERVICES {
            let file = format!("/etc/portpool/services/{name}");
            machine.write(&file, &format!("POOLS={name}\nCOMMAND={command}\n"));
            let unit = format!("portpool@{name}.service");
            machine.ok(&["systemctl", "start", &unit]);
            wait_until("it answers", || machine.get("127.0.0.1", port).is_ok());
            let answer = machine.get("127.0.0.1", port).expect("an answer");
            assert!(
                answer.contains("200 OK") && answer.contains(&port.to_string()),
                "{answer}"
            );
            let slots = machine.slots();
            let slot = slots
                .iter()
                .find(|slot| slot["port"] == port)
                .expect("a slot");
            assert_eq!(slot["holder"]["unit"], unit);
            assert_ne!(
                slot["holder"]["user"], "portpool",
                "not the agent's own user"
            );
        }
    });
}

/// What the package puts there for one systemd, and for another.
const PRESERVE: &str = "/etc/systemd/system/portpool.service.d/10-preserve.conf";
const NO_BIND: &str = "/etc/systemd/system/portpool@.service.d/10-no-bind.conf";

#[test]
#[ignore = "needs a machine: scripts/test-systemd"]
fn the_drop_ins_follow_when_another_systemd_is_installed() {
    on_the_machine(PLAN, |machine| {
        let pid = machine.agent_pid();
        let is_new = machine.has_systemd(254);
        assert_eq!(
            (machine.has(PRESERVE), machine.has(NO_BIND)),
            (is_new, !is_new)
        );
        let install = |path: &str| {
            machine.ok(&[
                "dpkg-trigger",
                "--by-package=systemd",
                "/usr/lib/systemd/systemd",
            ]);
            machine.ok(&["env", path, "dpkg", "--triggers-only", "portpool"]);
        };
        // As if its systemd were of the other release.
        let (version, feature) = [("257", "+"), ("252", "-")][usize::from(is_new)];
        machine.ok(&["mkdir", "--parents", "/opt/other"]);
        let other = format!(
            "#!/bin/sh\n[ \"$1\" != --version ] || {{ echo systemd {version}; exec echo {feature}BPF_FRAMEWORK; }}\n\
            exec /usr/bin/systemctl \"$@\"\n"
        );
        machine.write("/opt/other/systemctl", &other);
        machine.ok(&["chmod", "755", "/opt/other/systemctl"]);
        install("PATH=/opt/other:/usr/sbin:/usr/bin:/sbin:/bin");
        assert_eq!(
            (machine.has(PRESERVE), machine.has(NO_BIND)),
            (!is_new, is_new)
        );
        install("PATH=/usr/sbin:/usr/bin:/sbin:/bin");
        assert_eq!(
            (machine.has(PRESERVE), machine.has(NO_BIND)),
            (is_new, !is_new)
        );
        assert_eq!(machine.agent_pid(), pid, "it was not restarted");
    });
}

#[test]
#[ignore = "needs a machine: scripts/test-systemd"]
fn a_client_of_another_address_reaches_a_port_that_was_handed_over() {
    on_the_machine(PLAN, |machine| {
        machine.write(
            "/etc/portpool/services/python",
            "POOLS=python\nCOMMAND=/usr/bin/python3 /opt/http_server.py\n",
        );
        machine.ok(&["systemctl", "start", "portpool@python.service"]);
        wait_until("it answers there", || machine.get(ADDRESS, 9000).is_ok());
        // IPAddressDeny= and its kin would follow the agent's control group into the service.
        let unit = machine.ok(&["systemctl", "cat", "portpool.service"]);
        let is_setting =
            |line: &&str| line.starts_with("IPAddress") || line.starts_with("IPIngress");
        assert_eq!(unit.lines().find(is_setting), None);
    });
}

#[test]
#[ignore = "needs a machine: scripts/test-systemd"]
fn a_templated_service_can_bind_no_port_itself_and_still_serves() {
    on_the_machine(PLAN, |machine| {
        let program = "import socket, sys, http.server, os\n\
            for port in (9001, 9030, 12345, 0):\n\
            \x20   for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):\n\
            \x20       try:\n\
            \x20           socket.socket(socket.AF_INET, kind).bind(('0.0.0.0', port))\n\
            \x20           print('BOUND', port, int(kind), flush=True)\n\
            \x20       except OSError:\n\
            \x20           print('REFUSED', port, int(kind), flush=True)\n\
            import ctypes\n\
            ring = ctypes.CDLL(None).syscall(425, 1, ctypes.create_string_buffer(256))\n\
            print('io_uring', min(ring, 0), flush=True)\n\
            print('TRIED', flush=True)\n\
            os.execv('/usr/bin/python3', ['python3', '/opt/http_server.py'])\n";
        machine.write("/opt/binds.py", program);
        machine.write(
            "/etc/portpool/services/binds",
            "POOLS=python\nCOMMAND=/usr/bin/python3 /opt/binds.py\n",
        );
        machine.ok(&["systemctl", "start", "portpool@binds.service"]);
        wait_until("it serves", || machine.get("127.0.0.1", 9000).is_ok());
        machine.ok(&["journalctl", "--sync"]);
        let journal = machine.ok(&[
            "journalctl",
            "--unit=portpool@binds.service",
            "--output=cat",
        ]);
        assert!(journal.contains("TRIED"), "{journal}");
        // By the agent, and by systemd: that of Debian 12 has no SocketBindDeny=, and gets a drop-in.
        let is_filtered = machine.has(NO_BIND);
        for port in [9001, 9030] {
            assert!(journal.contains(&format!("REFUSED {port} 1")), "{journal}");
        }
        assert_eq!(journal.matches("REFUSED").count(), 8, "{journal}");
        // By which a filter of system calls could be gone round, but not SocketBindDeny=.
        let has_no_ring = journal.contains("io_uring -1");
        assert!(has_no_ring || !is_filtered, "{journal}");
        println!("a service can bind nothing, by a filter of system calls: {is_filtered}");
    });
}

#[test]
#[ignore = "needs a machine: scripts/test-systemd"]
fn the_units_are_right_and_the_agent_is_well_confined() {
    on_the_machine(PLAN, |machine| {
        let units = [
            "portpool.service",
            "portpool.socket",
            "portpool-inspect.service",
            "portpool-inspect.socket",
            "portpool@x.service",
        ];
        let words = [
            &[
                "systemd-analyze",
                "verify",
                "--man=no",
                "--recursive-errors=yes",
            ],
            &units[..],
        ]
        .concat();
        let output = machine.run(&words);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() && said.is_empty(), "{said}");
        let score = machine.ok(&[
            "systemd-analyze",
            "security",
            "--no-pager",
            "--threshold=18",
            "portpool.service",
        ]);
        let last = score.lines().last().expect("a score");
        println!("{last}");
        let score = machine.ok(&[
            "systemd-analyze",
            "security",
            "--no-pager",
            "--threshold=18",
            "portpool-inspect.service",
        ]);
        println!("{}", score.lines().last().expect("a score"));
    });
}

#[test]
#[ignore = "needs a machine: scripts/test-systemd"]
fn the_examples_of_units_are_right() {
    on_the_machine(PLAN, |machine| {
        machine.ok(&["mkdir", "--parents", "/run/examples"]);
        let folder = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/examples/qwen-valencia/systemd"
        );
        for entry in std::fs::read_dir(folder).expect("a folder").flatten() {
            let name = entry.file_name().into_string().expect("text");
            machine.copy(&entry.path(), &format!("/run/systemd/system/{name}"));
            let output = machine.run(&[
                "systemd-analyze",
                "verify",
                "--man=no",
                "--recursive-errors=yes",
                &name,
            ]);
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success() && said.is_empty(), "{name}: {said}");
        }
    });
}

#[test]
#[ignore = "needs a machine: scripts/test-systemd"]
fn a_reload_with_a_wrong_configuration_fails_visibly_and_changes_nothing() {
    on_the_machine(PLAN, |machine| {
        let before = machine.slots();
        machine.write(
            "/etc/portpool/portpool.toml",
            "[pool.python]\nports = \"many\"\n",
        );
        let output = machine.run(&["systemctl", "reload", "portpool.service"]);
        assert!(!output.status.success());
        machine.ok(&["journalctl", "--sync"]);
        let journal = machine.journal();
        assert!(journal.contains("ports = \"many\""), "{journal}");
        assert_eq!(machine.slots(), before);
        assert_eq!(
            machine.property("portpool.service", "ActiveState"),
            "active"
        );
        machine.write(
            "/etc/portpool/portpool.toml",
            &format!("{PLAN}\n[pool.more]\nports = 9040\n"),
        );
        machine.ok(&["systemctl", "reload", "portpool.service"]);
        assert_eq!(machine.slots().len(), before.len() + 1);
    });
}

#[test]
#[ignore = "needs a machine: scripts/test-systemd"]
fn the_packaged_agent_names_another_users_intruder_and_signals_another_users_holder() {
    on_the_machine(PLAN, |machine| {
        machine.ok(&["systemctl", "stop", "portpool.service"]);
        machine.run(&["systemctl", "clean", "--what=fdstore", "portpool.service"]);
        let _intruder = machine.start(&[
            "setpriv",
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "/usr/bin/python3",
            "-c",
            "import socket, sys; s = socket.create_server(('127.0.0.1', 9030)); sys.stdin.read()",
        ]);
        wait_until("somebody has the port", || {
            machine
                .get("127.0.0.1", 9030)
                .is_err_and(|error| error.kind() != std::io::ErrorKind::ConnectionRefused)
                || machine.ok(&["ss", "-Hltn"]).contains(":9030")
        });
        machine.ok(&["systemctl", "start", "portpool.service"]);
        wait_until("the intruder is named", || {
            let slots = machine.slots();
            let slot = slots
                .iter()
                .find(|slot| slot["port"] == 9030)
                .expect("a slot");
            slot["state"] == "conflict"
                && slot["conflict"]["program"] == "python3"
                && slot["conflict"]["uid"] == 65534
        });

        machine.write(
            "/etc/portpool/services/python",
            "POOLS=python\nCOMMAND=/usr/bin/python3 /opt/http_server.py\n",
        );
        machine.ok(&["systemctl", "start", "portpool@python.service"]);
        wait_until("it serves", || machine.get("127.0.0.1", 9000).is_ok());
        machine.ok(&["portpool", "revoke", "9000"]);
        wait_until("it has heard of it", || {
            machine.property("portpool@python.service", "ActiveState") == "inactive"
        });
        assert_eq!(
            machine.property("portpool@python.service", "Result"),
            "success"
        );
    });
}

#[test]
#[ignore = "needs a machine: scripts/test-systemd"]
fn each_transition_is_one_entry_of_the_journal_with_its_fields() {
    on_the_machine(PLAN, |machine| {
        machine.entries();
        machine.write(
            "/etc/portpool/services/python",
            "POOLS=python\nCOMMAND=/usr/bin/python3 /opt/http_server.py\n",
        );
        machine.ok(&["systemctl", "start", "portpool@python.service"]);
        wait_until("it serves", || machine.get("127.0.0.1", 9000).is_ok());
        let pid = machine.property("portpool@python.service", "MainPID");
        machine.ok(&["systemctl", "stop", "portpool@python.service"]);
        wait_until("it is free", || machine.state(9000) == "parked");
        let entries = machine.entries();
        let of_slots: Vec<_> = entries
            .iter()
            .filter(|entry| entry["TARGET"] == "portpool::slot")
            .collect();
        let [begins, ends] = of_slots[..] else {
            panic!("{of_slots:#?}")
        };
        let fields = [
            "POOL",
            "INSTANCE",
            "PORT",
            "GENERATION",
            "LEASE",
            "HOLDER_PID",
        ];
        for entry in [begins, ends] {
            let values = fields.map(|name| entry[name].as_str().unwrap_or_default());
            assert_eq!(values[..3], ["python", "1", "9000"], "{entry:#}");
            assert_eq!(values[5], pid, "{entry:#}");
            assert!(
                values[3..5].iter().all(|value| !value.is_empty()),
                "{entry:#}"
            );
        }
        let kinds = [begins, ends].map(|entry| {
            ["FROM", "TO", "REASON", "MESSAGE_ID"]
                .map(|name| entry[name].as_str().unwrap_or_default())
        });
        let acquired = [
            "parked",
            "leased",
            "acquired",
            "833f641376db481aa7a8b8680555aecd",
        ];
        let died = [
            "leased",
            "parked",
            "holder-died",
            "ca30d0d15b6248b2aa7dac90b1e01857",
        ];
        assert_eq!(kinds, [acquired, died]);
    });
}
