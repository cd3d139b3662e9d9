//! The whole of an application as its example says it: six servers, each a unit with the instance as `%i`.

use std::path::Path;
use std::process::Command;

use crate::machine::{Machine, on_the_machine, wait_until};

/// The servers, and the first port of each.
const SERVERS: [(&str, u16); 6] = [
    ("mcp-universal", 6000),
    ("ollama-mcp", 6010),
    ("groq-api", 6020),
    ("sandra-ia", 6030),
    ("conversational", 7000),
    ("api-server", 9000),
];

/// The example's plan, with the line that each example of a unit asks for.
fn plan(examples: &Path) -> String {
    let plan = std::fs::read_to_string(examples.join("qwen-valencia.toml"));
    let mut plan = plan.expect("the example");
    for (name, _) in SERVERS {
        let table = format!("[pool.{name}]\n");
        let allow = format!("{table}allow = {{ units = [\"{name}@*.service\"] }}\n");
        assert!(plan.contains(&table), "{name}");
        plan = plan.replace(&table, &allow);
    }
    plan
}

/// Puts the servers and their units on the machine, as an administrator does.
fn install(machine: &Machine, examples: &Path) {
    let mut copy = Command::new("cp");
    copy.args(["--recursive", "--no-target-directory"])
        .arg(examples.join("qwen-valencia"))
        .arg(machine.path("/opt/qwen-valencia"));
    assert!(copy.status().expect("cp runs").success());
    for (name, _) in SERVERS {
        let unit = format!("{name}@.service");
        let from = examples.join("qwen-valencia/systemd").join(&unit);
        machine.copy(&from, &format!("/etc/systemd/system/{unit}"));
    }
    // As every Debian has it, but for one that was never installed.
    machine.write("/etc/hosts", "127.0.0.1 localhost\n");
    machine.ok(&["systemctl", "daemon-reload"]);
}

#[test]
#[ignore = "needs a machine: scripts/test-systemd"]
fn each_server_answers_in_two_instances_on_the_port_of_its_pool() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    on_the_machine(&plan(&examples), |machine| {
        install(machine, &examples);
        let instances = [1u16, 2];
        let units: Vec<(String, u16)> = SERVERS
            .iter()
            .flat_map(|(name, port)| {
                instances.map(|n| (format!("{name}@{n}.service"), port + (n - 1) * 100))
            })
            .collect();
        let mut start = vec!["systemctl", "start"];
        start.extend(units.iter().map(|(unit, _)| unit.as_str()));
        machine.ok(&start);
        for (unit, port) in &units {
            wait_until(unit, || machine.get("127.0.0.1", *port).is_ok());
            let answer = machine.get("127.0.0.1", *port).expect("an answer");
            let slots = machine.slots();
            let slot = slots.iter().find(|slot| slot["port"] == *port);
            assert_eq!(slot.expect("a slot")["holder"]["unit"], **unit, "{answer}");
        }
        // One of them speaks of all others: it asks the agent where those of its instance are.
        for n in instances {
            let port = 9000 + (n - 1) * 100;
            let health = machine.get_path("127.0.0.1", port, "/api/health/aggregated");
            let health = health.expect("an answer");
            let all_are_well = format!(r#"{{"status":"ok","instance":{n},"#);
            assert!(health.contains(&all_are_well), "{health}");
            for (_, port) in &SERVERS[..5] {
                let port = format!(r#""port":{},"#, port + (n - 1) * 100);
                assert!(health.contains(&port), "{port}: {health}");
            }
        }
        let mut stop = vec!["systemctl", "stop"];
        stop.extend(&start[2..]);
        machine.ok(&stop);
    });
}
