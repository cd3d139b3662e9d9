//! `portpool who PORT`: whose a port is, planned or not.

use std::net::{TcpListener, UdpSocket};

use crate::host::{Agent, NOBODY, on_a_host, said};

const PLAN: &str = "[pool.api]\nports = \"9000-9001\"\nextra = { metrics = [9050, 9051] }\n";

fn who(agent: &Agent, port: &str) -> (Option<i32>, String) {
    let output = agent.run(&["who", port]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &said(&output);
    (output.status.code(), text)
}

#[test]
fn a_port_of_the_plan_is_its_pools_and_who_has_it_is_named() {
    on_a_host(|host| {
        let first = TcpListener::bind("127.0.0.1:9001").expect("a free port");
        let agent = host.agent(PLAN);
        let holder = agent.serve(&["api"]);
        let (code, text) = who(&agent, "9000");
        assert_eq!(code, Some(0));
        let expected = format!(
            "9000/tcp: api/1, leased: test_roles[{}] root has it\n",
            holder.id()
        );
        assert!(text.starts_with(&expected), "{text}");
        assert!(text.contains("portpool revoke 9000"), "{text}");
        let (_, text) = who(&agent, "9050");
        assert!(
            text.starts_with("9050/tcp: api.metrics/1, leased"),
            "{text}"
        );

        agent.wait_until("who is in the way is known", |slots| {
            slots.iter().any(|slot| slot.conflict.is_some())
        });
        let (code, text) = who(&agent, "9001");
        assert_eq!(code, Some(0));
        let own = format!("[{}]", std::process::id());
        assert!(text.starts_with("9001/tcp: api/1, conflict"), "{text}");
        assert!(text.contains(&own), "{text}");

        drop(first);
        agent.wait_until("it is held", |slots| {
            slots.iter().all(|slot| slot.conflict.is_none())
        });
        let (code, text) = who(&agent, "9001");
        assert_eq!(code, Some(0));
        assert!(text.contains("parked: held by portpool for api"), "{text}");
        assert!(text.contains("portpool exec api -- CMD"), "{text}");
    });
}

#[test]
fn a_port_of_no_plan_is_whose_the_kernel_says_and_a_free_one_is_nobodys() {
    on_a_host(|host| {
        let agent = host.agent(PLAN);
        let stranger = host.role(&["squat", "127.0.0.1", "9500", "plain"], NOBODY);
        stranger.wait_for("ready");
        let (code, text) = who(&agent, "9500");
        assert_eq!(code, Some(0));
        let named = format!(
            "9500/tcp: not in the plan; test_roles[{}] nobody has it\n",
            stranger.id()
        );
        assert_eq!(text, named);

        let _datagrams = UdpSocket::bind("127.0.0.1:9500").expect("a free port");
        let (_, text) = who(&agent, "9500");
        assert!(text.contains("9500/udp: not in the plan"), "{text}");

        let (code, text) = who(&agent, "9600");
        assert_eq!(code, Some(1));
        assert_eq!(text, "portpool: nobody has port 9600, and no pool\n");
        assert_eq!(who(&agent, "0").0, Some(64));
    });
}

#[test]
fn without_an_agent_and_without_rights_it_says_what_it_cannot_know() {
    on_a_host(|host| {
        let stranger = host.role(&["squat", "127.0.0.1", "9500", "plain"], 0);
        stranger.wait_for("ready");
        let mut command = host.portpool(&["who", "9500", "--json"]);
        std::os::unix::process::CommandExt::uid(&mut command, NOBODY);
        let output = command.output().expect("it runs");
        assert_eq!(output.status.code(), Some(0), "{}", said(&output));
        assert!(
            said(&output).contains("no agent answers"),
            "{}",
            said(&output)
        );
        let known: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(known[0]["port"], 9500);
        assert_eq!(known[0]["protocol"], "tcp");
        assert_eq!(known[0]["processes"], serde_json::json!([]));
        assert_eq!(known[0]["hiddenUsers"], serde_json::json!([0]));
        assert_eq!(known[1]["hiddenUsers"], serde_json::json!([]));
    });
}
