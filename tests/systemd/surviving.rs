//! The agent restarted, killed, upgraded, under load: no client of a port notices.

use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::machine::{Machine, on_the_machine, wait_until};

const PLAN: &str = r#"
    [defaults]
    allow = { units = ["portpool@*.service"] }
    [pool.api]
    ports = "9000-9002"
    restart_window = "60s"
    [pool.queue]
    ports = 9010
    unleased = "queue"
"#;

fn serve(machine: &Machine) -> String {
    machine.write(
        "/etc/portpool/services/api",
        "POOLS=api\nCOMMAND=/opt/http_plain\n",
    );
    machine.ok(&["systemctl", "start", "portpool@api.service"]);
    wait_until("it serves", || machine.get("127.0.0.1", 9000).is_ok());
    machine.property("portpool@api.service", "MainPID")
}

/// What a machine's port 9000 answers to one client after the other, until told to stop.
struct Load {
    stop: std::sync::Arc<std::sync::atomic::AtomicBool>,
    clients: Vec<std::thread::JoinHandle<(u64, Vec<String>)>>,
}

impl Load {
    fn start(machine: &Machine) -> Load {
        let stop = std::sync::Arc::<std::sync::atomic::AtomicBool>::default();
        let told = std::sync::Arc::clone(&stop);
        let clients = machine.in_its_network(move || {
            let client = |_| {
                let stop = std::sync::Arc::clone(&told);
                std::thread::spawn(move || {
                    let (mut done, mut failed) = (0, Vec::new());
                    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                        match exchange() {
                            Ok(()) => done += 1,
                            Err(error) => failed.push(error.to_string()),
                        }
                    }
                    (done, failed)
                })
            };
            (0..4).map(client).collect()
        });
        Load { stop, clients }
    }

    /// How many exchanges went well, and how those failed that did not.
    fn stop(self) -> (u64, Vec<String>) {
        self.stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let tallies = self
            .clients
            .into_iter()
            .map(|client| client.join().expect("it ends"));
        tallies.fold((0, Vec::new()), |(done, mut all), (more, failed)| {
            all.extend(failed);
            (done + more, all)
        })
    }
}

fn exchange() -> std::io::Result<()> {
    use std::io::{Read, Write};
    let address = SocketAddr::from(([127, 0, 0, 1], 9000));
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(10))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    match answer.contains("200 OK") {
        true => Ok(()),
        false => Err(std::io::Error::other(answer)),
    }
}

/// The inodes of all listening sockets.
fn sockets(machine: &Machine) -> Vec<String> {
    let text = machine.ok(&["ss", "-Hltne"]);
    let mut lines: Vec<String> = text
        .lines()
        .map(|line| {
            let inode = line
                .split_whitespace()
                .find(|word| word.starts_with("ino:"));
            format!(
                "{} {}",
                line.split_whitespace().nth(3).unwrap_or_default(),
                inode.unwrap_or_default()
            )
        })
        .filter(|line| line.contains(":90"))
        .collect();
    lines.sort();
    lines
}

/// Does something to the agent a few times under load on a leased and on a queueing port.
fn under_load(what: &str, times: usize, mut change: impl FnMut(&Machine, usize)) {
    on_the_machine(PLAN, |machine| {
        let service = serve(machine);
        let (before, inodes) = (machine.slots(), sockets(machine));
        let load = Load::start(machine);
        for nth in 0..times {
            change(machine, nth);
            machine
                .in_its_network(|| TcpStream::connect("127.0.0.1:9010"))
                .expect("it queues");
        }
        wait_until("it serves clients", || {
            machine.run(&["portpool", "status"]).status.success()
        });
        let (done, failed) = load.stop();
        println!(
            "{times} times {what}: {} of {} exchanges failed",
            failed.len(),
            done
        );
        assert!(failed.is_empty() && done > 0, "{failed:?}");
        assert_eq!(machine.slots(), before);
        assert_eq!(sockets(machine), inodes, "the same sockets");
        let stored = machine.property("portpool.service", "NFileDescriptorStore");
        assert_eq!(stored, "8", "nothing piles up in the store");
        assert_eq!(machine.property("portpool@api.service", "MainPID"), service);

        // The lease is a real one.
        machine.ok(&["systemctl", "kill", "--signal=KILL", "portpool@api.service"]);
        let killed = Instant::now();
        wait_until("the death is noticed", || {
            machine.state(9000) != "leased" || {
                machine.property("portpool@api.service", "MainPID") != service
            }
        });
        assert!(killed.elapsed() < Duration::from_secs(2));
    });
}

/// Waits until another agent than this one serves.
fn await_another(machine: &Machine, pid: &str) {
    wait_until("another agent serves", || {
        let now = machine.agent_pid();
        now != pid && now != "0" && machine.property("portpool.service", "ActiveState") == "active"
    });
}

#[test]
#[ignore = "needs a machine: scripts/test-systemd"]
fn twenty_kills_refuse_nobody() {
    under_load("killed", 20, |machine, _| {
        let pid = machine.agent_pid();
        machine.ok(&["systemctl", "kill", "--signal=KILL", "portpool.service"]);
        await_another(machine, &pid);
    });
}

#[test]
#[ignore = "needs a machine: scripts/test-systemd"]
fn twenty_restarts_refuse_nobody() {
    under_load("restarted", 20, |machine, _| {
        machine.ok(&["systemctl", "restart", "portpool.service"]);
    });
}

#[test]
#[ignore = "needs a machine: scripts/test-systemd"]
fn upgrades_of_the_package_and_back_refuse_nobody() {
    under_load("another package", 5, |machine, nth| {
        let pid = machine.agent_pid();
        let package = ["/root/portpool-next.deb", "/root/portpool.deb"][nth % 2];
        machine.ok(&["dpkg", "--install", package]);
        await_another(machine, &pid);
    });
}

#[test]
#[ignore = "needs a machine: scripts/test-systemd"]
fn upgrades_in_place_refuse_nobody() {
    under_load("upgraded in place", 5, |machine, _| {
        let pid = machine.agent_pid();
        machine.ok(&["cp", "/usr/bin/portpool", "/usr/bin/portpool.new"]);
        machine.ok(&["mv", "/usr/bin/portpool.new", "/usr/bin/portpool"]);
        let said = machine.ok(&["portpool", "agent", "--upgrade"]);
        assert!(said.contains("4 slots, 1 leased"), "{said}");
        assert_eq!(machine.agent_pid(), pid, "the same process");
    });
}

#[test]
#[ignore = "needs a machine: scripts/test-systemd"]
fn a_service_manager_that_starts_anew_refuses_nobody() {
    under_load("daemon-reexec", 3, |machine, nth| {
        machine.ok(&["systemctl", "daemon-reexec"]);
        if nth == 1 {
            machine.ok(&["systemctl", "restart", "portpool.service"]);
        }
    });
}

#[test]
#[ignore = "needs a machine: scripts/test-systemd"]
fn a_holder_that_dies_while_there_is_no_agent_is_noticed_within_a_second_of_its_return() {
    on_the_machine(PLAN, |machine| {
        let service = serve(machine);
        machine.ok(&["systemctl", "stop", "portpool@api.service"]);
        machine.ok(&["systemctl", "start", "portpool@api.service"]);
        let agent = machine.agent_pid();
        assert_ne!(machine.property("portpool@api.service", "MainPID"), service);
        machine.ok(&["sh", "-c", &format!(
            "kill -KILL {agent}; kill -KILL $(systemctl show --value --property MainPID portpool@api.service)"
        )]);
        await_another(machine, &agent);
        let back = Instant::now();
        wait_until("it is noticed", || {
            machine.state(9000) != "leased"
                || machine.property("portpool@api.service", "NRestarts") != "0"
        });
        assert!(back.elapsed() < Duration::from_secs(1));
    });
}

#[test]
#[ignore = "needs a machine: scripts/test-systemd"]
fn stop_and_start_keep_the_sockets_where_systemd_can() {
    on_the_machine(PLAN, |machine| {
        let service = serve(machine);
        let (before, inodes) = (machine.slots(), sockets(machine));
        machine.ok(&["systemctl", "stop", "portpool.service"]);
        let answer = machine.get("127.0.0.1", 9000);
        assert!(answer.is_ok(), "the service goes on either way");
        machine.ok(&["systemctl", "start", "portpool.service"]);
        if machine.has_systemd(254) {
            assert_eq!(machine.slots(), before);
            assert_eq!(sockets(machine), inodes);
        } else {
            // It had to let go. Whose the port is now is said, and it is held again when that ends.
            wait_until("it is named", || {
                let slots = machine.slots();
                slots[0]["state"] == "conflict"
                    && slots[0]["conflict"]["pid"].as_u64() == service.parse().ok()
            });
            machine.ok(&["systemctl", "stop", "portpool@api.service"]);
            wait_until("it is held again", || machine.state(9000) == "parked");
        }
    });
}

/// So many that the cost of each shows.
const MANY: u16 = 10_000;

#[test]
#[ignore = "needs a machine: scripts/test-systemd"]
fn ten_thousand_slots_are_back_within_a_second() {
    let plan = format!("[pool.many]\nports = \"20000-{}\"\n", 20_000 + MANY - 1);
    on_the_machine(&plan, |machine| {
        let start = |what: &str| {
            let (begun, cpu) = (Instant::now(), machine.cpu_of_pid_1());
            machine.ok(&["systemctl", what, "portpool.service"]);
            (begun.elapsed(), machine.cpu_of_pid_1() - cpu)
        };
        // The least of three: other work on the machine only adds to it.
        let (warm, warm_cpu) = (0..3).map(|_| start("restart")).min().expect("three");
        machine.ok(&["systemctl", "stop", "portpool.service"]);
        machine.run(&["systemctl", "clean", "--what=fdstore", "portpool.service"]);
        let (cold, cold_cpu) = start("start");
        println!(
            "{MANY} slots: restart with everything back {warm:?}, of PID 1 {warm_cpu:?}; cold start {cold:?}, of PID 1 {cold_cpu:?}"
        );
        assert!(warm < Duration::from_secs(1), "{warm:?}");
        assert!(warm_cpu < Duration::from_millis(500), "{warm_cpu:?}");
        let status = machine.ok(&["portpool", "status"]);
        assert!(status.contains("10000: 0 leased, 10000 parked"), "{status}");
    });
}
