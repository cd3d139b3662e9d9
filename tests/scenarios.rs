//! Three real systems, as they ship in examples/, and the whole schema: every port of their tables is in the plan.
#![cfg(feature = "agent")]
#![expect(
    clippy::expect_used,
    reason = "a test may say what it expects and die of it"
)]

use std::path::{Path, PathBuf};

use portpool::config::{
    Checked, FirewallSource, Machine, OnRevoke, Probe, ServedBy, Source, State, Template, Unleased,
    load_files, parse,
};
use portpool::plan::{Instance, Plan, Protocol};

/// Checks an example as it would be on the machine of that hostname.
fn example(name: &str, hostname: &str) -> Checked {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("examples")
        .join(name);
    let sources = load_files(&[path]).expect("the example can be read");
    accepted(&sources, hostname)
}

fn accepted(sources: &[Source], hostname: &str) -> Checked {
    let machine = Machine {
        hostname: hostname.to_owned(),
        ..Machine::default()
    };
    let told = |findings: Vec<portpool::config::Diagnostic>| {
        findings
            .iter()
            .map(|finding| finding.render(sources, false))
            .collect::<Vec<_>>()
            .join("\n\n")
    };
    parse(sources, &machine)
        .map_err(told)
        .expect("it is accepted")
}

fn instance(number: u16) -> Instance {
    Instance::new(number).expect("instances count from 1")
}

/// Names and ports of the slots held for an instance, in order.
fn held(plan: &Plan, number: u16) -> Vec<(String, u16)> {
    let slots = plan
        .slots
        .iter()
        .filter(|slot| slot.instance == instance(number));
    slots.map(|slot| (slot.name(), slot.port.get())).collect()
}

#[test]
fn qwen_valencia_holds_its_table_of_both_instances() {
    let checked = example("qwen-valencia.toml", "");
    let table: [(&str, &[u16]); 6] = [
        ("mcp-universal", &[6000, 6001, 6002]),
        ("ollama-mcp", &[6010, 6011, 6012]),
        ("groq-api", &[6020, 6021, 6022]),
        ("sandra-ia", &[6030, 6031, 6032, 6033]),
        ("conversational", &[7000, 7001, 7002, 7003, 7004]),
        ("api-server", &[9000, 9001, 9002]),
    ];
    let first: Vec<_> = table
        .iter()
        .flat_map(|(pool, ports)| ports.iter().map(|port| ((*pool).to_owned(), *port)))
        .collect();
    let second: Vec<_> = first
        .iter()
        .map(|(pool, port)| (pool.clone(), port + 100))
        .collect();
    assert_eq!(held(&checked.plan, 1), first);
    assert_eq!(held(&checked.plan, 2), second);
    assert_eq!(checked.plan.slots.len(), 42);
    assert!(checked.warnings.is_empty());
}

#[test]
fn qwen_valencia_has_ports_for_ten_instances_and_no_more() {
    let plan = example("qwen-valencia.toml", "").plan;
    let tenth = plan.instance_slots(None, instance(10));
    assert_eq!(tenth.len(), 21);
    assert_eq!(tenth.last().map(|slot| slot.port.get()), Some(9902));
    assert!(plan.instance_slots(None, instance(11)).is_empty());
    let port = |number| {
        plan.port_of("api-server", instance(number), 2)
            .map(|port| port.get())
    };
    assert_eq!((port(1), port(3), port(11)), (Some(9002), Some(9202), None));
}

#[test]
fn d8_is_held_where_each_pool_lives() {
    let main = example("d8.toml", "main");
    assert_eq!(held(&main.plan, 1), [("orchestrator".to_owned(), 7001)]);
    assert!(main.warnings.is_empty());
    let pi = example("d8.toml", "pi");
    assert_eq!(held(&pi.plan, 1), [("worker-status".to_owned(), 7200)]);
    let ollama = pi
        .plan
        .port_of("ollama", Instance::FIRST, 0)
        .map(|port| port.get());
    assert_eq!(
        ollama,
        Some(7100),
        "declared, though Ollama binds it itself"
    );
}

#[test]
fn d8_says_what_is_set_aside_for_what() {
    let config = example("d8.toml", "main").config;
    let set_aside: Vec<_> = config
        .ranges
        .iter()
        .map(|range| range.ports.to_string())
        .collect();
    let table = [
        "7201-7210",
        "7300-7399",
        "7400-7499",
        "7500-7599",
        "7600-7699",
        "7700-7799",
        "7800-7899",
        "7900-8000",
    ];
    assert_eq!(set_aside, table);
    assert_eq!(config.space.map(|space| space.len()), Some(1000));
    assert!(config.pools.iter().all(|pool| pool.fixed));
}

#[test]
fn d8_templates_give_the_lines_of_its_env_file() {
    let config = example("d8.toml", "main").config;
    let fill = |pool: &portpool::config::Pool, template: &Template| {
        use portpool::config::Reference;
        template.render(|reference| match reference {
            Reference::Port => Ok(pool.ports.to_string()),
            Reference::Host => Ok("localhost".to_owned()),
            Reference::Address => pool.addresses.first().map(ToString::to_string).ok_or(()),
            Reference::PortOf(_) | Reference::InnerOf(_) => Err(()),
        })
    };
    let lines: Vec<_> = config
        .pools
        .iter()
        .flat_map(|pool| {
            pool.env
                .iter()
                .map(move |(name, template)| (name, fill(pool, template)))
        })
        .map(|(name, value)| format!("{name}={}", value.expect("every place can be filled in")))
        .collect();
    assert_eq!(
        lines,
        [
            "FLASK_PORT=7001",
            "ORCHESTRATOR_URL=http://localhost:7001",
            "DEEPSEEK_BASE_URL=http://localhost:7100",
            "OLLAMA_HOST=0.0.0.0:7100",
            "WORKER_STATUS_PORT=7200",
        ]
    );
}

#[test]
fn saas_mt_declares_its_table_and_holds_nothing() {
    let checked = example("saas-mt.toml", "");
    let table = [
        ("backoffice", 3006),
        ("backoffice-local", 3000),
        ("marketplace-admin", 3007),
        ("marketplace-admin-local", 3004),
        ("marketplace-frontend", 3008),
        ("marketplace-frontend-local", 3005),
        ("iam-service", 8080),
        ("chat-service", 8010),
        ("ai-gateway", 8050),
        ("pim-service", 8090),
        ("stock-service", 8100),
        ("backup-service", 8110),
        ("kong", 8001),
        ("postgres", 5432),
        ("mongodb", 27017),
        ("redis", 6379),
        ("prometheus", 9090),
        ("grafana", 3002),
        ("loki", 3100),
        ("postgres-exporter", 9187),
        ("cadvisor", 8082),
        ("mcp-postgres", 3001),
    ];
    let declared: Vec<_> = checked
        .config
        .pools
        .iter()
        .filter_map(|pool| Some((pool.name.as_str(), pool.ports.first()?.get())))
        .collect();
    assert_eq!(declared, table);
    let companions: Vec<_> = checked
        .config
        .pools
        .iter()
        .flat_map(|pool| {
            pool.companions
                .iter()
                .map(move |companion| (pool, companion))
        })
        .map(|(pool, companion)| format!("{}.{} {}", pool.name, companion.name, companion.ports))
        .collect();
    let metrics = [
        "iam-service.metrics 2112",
        "ai-gateway.metrics 2115",
        "pim-service.metrics 2113",
        "stock-service.metrics 2114",
        "kong.admin 8444",
    ];
    assert_eq!(companions, metrics);
    assert!(checked.plan.slots.is_empty(), "Docker binds them");
    assert!(checked.warnings.is_empty());
}

/// Every key there is, but for what contradicts another in one file.
const WHOLE_SCHEMA: &str = include_str!("config/whole_schema.toml");

#[test]
fn every_key_of_the_schema_is_read() {
    let sources = [Source {
        path: PathBuf::from("whole_schema.toml"),
        text: WHOLE_SCHEMA.to_owned(),
    }];
    let checked = accepted(&sources, "elsewhere");
    let config = checked.config;
    assert_eq!(
        config.agent.metrics.map(|metrics| metrics.port()),
        Some(9180)
    );
    assert_eq!(config.access.admin.groups, ["portpool-admin"]);
    let pool = checked.plan.pool("api-server").expect("it is declared");
    assert_eq!(pool.ports.to_string(), "9000-9002");
    assert_eq!(pool.protocol, Protocol::Tcp);
    assert_eq!(
        (
            pool.backlog,
            pool.stride,
            pool.instances,
            pool.max_instances
        ),
        (512, 100, 1, 1)
    );
    assert_eq!(pool.unleased, Unleased::Queue);
    assert_eq!(pool.restart_window.as_secs(), 90);
    assert!(matches!(pool.on_revoke, OnRevoke::Signal(signal) if signal.name() == "INT"));
    let allow = pool.allow.as_ref().expect("it says who");
    assert_eq!(
        (allow.users.len(), allow.groups.len(), allow.units.len()),
        (1, 1, 1)
    );
    assert_eq!(pool.state, State::OnDemand);
    assert!(pool.fixed && pool.external);
    assert_eq!(pool.served_by, Some(ServedBy::Program("ollama".to_owned())));
    assert_eq!(pool.firewall.first(), Some(&FirewallSource::Any));
    let health = pool.health.as_ref().expect("it says how");
    assert_eq!(
        health.probe,
        Probe::Http {
            path: "/api/health".to_owned(),
            expect: 204
        }
    );
    assert_eq!(pool.env.len(), 2);
    assert_eq!(
        pool.addresses.first().map(ToString::to_string).as_deref(),
        Some("0.0.0.0")
    );
    let inner = config
        .pools
        .iter()
        .find_map(|pool| pool.container.as_ref())
        .expect("one has a container");
    assert_eq!(inner.port.map(|port| port.get()), Some(8000));
}

#[test]
fn a_companion_follows_the_slot_it_goes_with_and_moves_with_it() {
    let text = "[agent]\ninstances = 2\n[pool.web]\nports = [9000, 9001, 9002]\nextra = { metrics = \"2112-2113\", admin = 7000 }\n";
    let sources = [Source {
        path: PathBuf::from("portpool.toml"),
        text: text.to_owned(),
    }];
    let plan = accepted(&sources, "").plan;
    let names = |number| {
        held(&plan, number)
            .into_iter()
            .map(|(name, port)| format!("{name} {port}"))
            .collect::<Vec<_>>()
    };
    assert_eq!(
        names(1),
        [
            "web 9000",
            "web.metrics 2112",
            "web.admin 7000",
            "web 9001",
            "web.metrics 2113",
            "web 9002"
        ]
        .map(str::to_owned)
    );
    assert_eq!(names(2).first().map(String::as_str), Some("web 9100"));
    assert_eq!(
        names(2).get(1).map(String::as_str),
        Some("web.metrics 2212")
    );
}

#[test]
fn an_address_for_every_host_serves_ipv4_unless_one_stands_beside_it() {
    let flags = |address: &str| {
        let text = format!("[pool.web]\nports = 9000\naddress = {address}\n");
        let plan = accepted(
            &[Source {
                path: PathBuf::from("portpool.toml"),
                text,
            }],
            "",
        )
        .plan;
        let slot = plan.slots.first().expect("one slot").clone();
        slot.addresses
            .iter()
            .map(|address| (address.to_string(), address.v6_only))
            .collect::<Vec<_>>()
    };
    assert_eq!(flags("\"[::]\""), [("[::]".to_owned(), false)]);
    assert_eq!(flags("\"::1\""), [("[::1]".to_owned(), true)]);
    assert_eq!(
        flags("[\"::\", \"0.0.0.0\"]"),
        [("[::]".to_owned(), true), ("0.0.0.0".to_owned(), false)]
    );
}

#[test]
fn tcp_and_udp_and_two_hosts_and_two_ways_to_run_one_service_may_share_a_port() {
    let text = r#"
[host.a]
address = "10.0.0.1"
[host.b]
address = "10.0.0.2"
[pool.dns-tcp]
ports = 53
[pool.dns-udp]
ports = 53
protocol = "udp"
[pool.web-a]
ports = 80
host = "a"
[pool.web-b]
ports = 80
host = "b"
[pool.shop]
ports = 3000
external = true
[pool.shop-local]
ports = 3000
alternative_to = "shop"
[pool.shop-old]
ports = 3000
alternative_to = "shop"
state = "disabled"
"#;
    let sources = [Source {
        path: PathBuf::from("portpool.toml"),
        text: text.to_owned(),
    }];
    let plan = accepted(&sources, "a").plan;
    let names: Vec<_> = plan.slots.iter().map(|slot| slot.name()).collect();
    assert_eq!(names, ["dns-tcp", "dns-udp", "web-a", "shop-local"]);
}

#[test]
fn a_mistyped_pool_has_a_nearest_one_and_a_strange_word_has_none() {
    let plan = example("qwen-valencia.toml", "").plan;
    assert_eq!(
        plan.nearest_pool("api-sever").map(|name| name.as_str()),
        Some("api-server")
    );
    assert_eq!(plan.nearest_pool("zebra"), None);
}
