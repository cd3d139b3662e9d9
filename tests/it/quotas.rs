//! How much one user may have of everything.

use crate::host::{NOBODY, Process, on_a_host, roles, said};

const PLAN: &str = "[access]\nleases_per_user = 2\nwaiters_per_user = 1\n\
    [pool.api]\nports = \"9000-9003\"\nallow = { users = [\"nobody\"] }\n\
    [pool.one]\nports = 9100\nallow = { users = [\"nobody\"] }\n";

#[test]
fn a_user_gets_no_more_leases_than_its_quota_and_others_get_theirs() {
    on_a_host(|host| {
        let agent = host.agent(PLAN);
        let as_nobody = |words: &[&str]| {
            let mut command = agent.portpool(&["exec"]);
            command.args(words).arg("--").arg(roles()).arg("serve");
            host.start_as(command, NOBODY)
        };
        let holders: Vec<Process> = [(); 2].map(|()| as_nobody(&["api"])).into();
        for holder in &holders {
            holder.wait_for("ready");
        }
        let third = || {
            let mut command = agent.portpool(&["exec", "api", "--", "true"]);
            std::os::unix::process::CommandExt::uid(&mut command, NOBODY);
            command.output().expect("it runs")
        };
        let refused = third();
        assert_eq!(refused.status.code(), Some(75), "{}", said(&refused));
        let text = said(&refused);
        assert!(text.contains("your user may have 2 leases"), "{text}");
        assert!(text.contains("leases_per_user"), "{text}");
        // Root is asked for no quota.
        let roots: Vec<Process> = [(); 2].map(|()| agent.serve(&["api"])).into();
        drop(roots);
        drop(holders);
        agent.wait_until("all is free", |slots| {
            slots.iter().all(|slot| slot.state == "parked")
        });
        assert_eq!(third().status.code(), Some(0));
    });
}

#[test]
fn a_user_waits_no_more_often_than_its_quota() {
    on_a_host(|host| {
        let agent = host.agent(PLAN);
        let _holder = agent.serve(&["one"]);
        let wait = |duration: &str| {
            let option = format!("--wait{duration}");
            let mut command = agent.portpool(&["exec", &option, "one", "--"]);
            command.arg(roles()).arg("serve");
            host.start_as(command, NOBODY)
        };
        let _first = wait("");
        let client = agent.client();
        crate::host::wait_until("it waits", || {
            client.status().expect("a status").waiting == 1
        });
        let mut second = wait("=20s");
        assert_eq!(second.wait(), Some(75), "at once");
        assert_eq!(client.status().expect("a status").waiting, 1);
    });
}
