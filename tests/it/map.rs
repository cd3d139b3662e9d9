//! `portpool map` beside a running agent.

use std::net::TcpListener;

use crate::host::{on_a_host, said};

#[test]
fn slots_are_drawn_in_the_state_that_the_agent_has_them_in() {
    on_a_host(|host| {
        let _first = TcpListener::bind("127.0.0.1:9002").expect("a free port");
        let plan = "[pool.api]\nports = \"9000-9003\"\n[pool.db]\nports = 9010\nexternal = true\n";
        let agent = host.agent(plan);
        let _holder = agent.serve(&["api"]);
        let draw = |more: &[&str]| {
            let file = host.file("plan.toml", plan);
            let output = agent.run(&[&["map", "--config", &file.to_string_lossy()], more].concat());
            assert!(output.status.success(), "{}", said(&output));
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        let drawn = draw(&[]);
        assert!(drawn.starts_with(" 9000 Lp!p......x..."), "{drawn}");
        assert!(!drawn.contains('\u{1b}'), "no colour in a pipe: {drawn}");
        let planned = draw(&["--plan-only"]);
        assert!(planned.starts_with(" 9000 ####......x..."), "{planned}");
    });
}
