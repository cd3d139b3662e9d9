//! `portpool diff` beside a running agent.

use crate::host::{on_a_host, said};

#[test]
fn a_lease_that_another_configuration_touches_is_named_with_its_holder() {
    on_a_host(|host| {
        let old = "[pool.api]\nports = \"9000-9001\"\n[pool.web]\nports = 8000\n";
        let agent = host.agent(old);
        let holder = agent.serve(&["api"]);
        let _second = agent.serve(&["web"]);
        let old = host.file("old.toml", old);
        let new = host.file(
            "new.toml",
            "[pool.api]\nports = 9001\n[pool.web]\nports = 8000\n",
        );
        let output = agent.run(&["diff", &old.to_string_lossy(), &new.to_string_lossy()]);
        let text = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        let leased = format!(
            "LEASED   api/1 9000: test_roles[{}] root has it",
            holder.id()
        );
        assert!(text.contains(&leased), "{text}");
        assert_eq!(text.matches("LEASED").count(), 1, "{text}");
        // And so it is: what it does not touch goes on, the other drains.
        let reloaded = std::fs::copy(&new, host.folder().join("portpool.toml"));
        reloaded.expect("the agent's file");
        assert_eq!(agent.run(&["reload"]).status.code(), Some(0));
        let holders = agent.slots("api");
        assert!(holders.iter().any(|slot| slot.port == 9000), "{holders:?}");
        assert_eq!(agent.slots("web")[0].state, "leased");
    });
}
