//! What the people of the scenarios want of their plan, by the real binary: their own lines and numbers.
#![cfg(feature = "cli")]
#![expect(
    clippy::expect_used,
    reason = "a test may say what it expects and die of it"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

const D8: &str = "d8.toml";
const SAAS_MT: &str = "saas-mt.toml";

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("examples")
        .join(name)
}

/// An empty folder of the test's own.
fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).expect("a folder can be made");
    folder
}

fn portpool(configuration: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portpool"));
    command
        .args(arguments)
        .env("PORTPOOL_CONFIG", configuration);
    command.output().expect("portpool runs")
}

#[track_caller]
fn printed(configuration: &Path, arguments: &[&str]) -> String {
    let output = portpool(configuration, arguments);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn plan(example_name: &str, arguments: &[&str]) -> String {
    let arguments: Vec<&str> = ["plan"].iter().chain(arguments).copied().collect();
    printed(&example(example_name), &arguments)
}

/// The lines that are no comments.
fn lines(text: &str) -> Vec<&str> {
    let lines = text.lines().map(str::trim);
    lines
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .collect()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn d8_gets_the_five_lines_of_its_env_file() {
    let text = plan(D8, &["--format", "env"]);
    let expected = [
        "FLASK_PORT=7001",
        "ORCHESTRATOR_URL=http://localhost:7001",
        "DEEPSEEK_BASE_URL=http://localhost:7100",
        "OLLAMA_HOST=0.0.0.0:7100",
        "WORKER_STATUS_PORT=7200",
    ];
    assert_eq!(lines(&text), expected);
}

#[test]
fn d8_seen_from_the_raspberry_finds_the_orchestrator_by_its_address() {
    let text = plan(D8, &["--format", "env", "--on", "pi"]);
    let expected = [
        "FLASK_PORT=7001",
        "ORCHESTRATOR_URL=http://192.168.1.100:7001",
        "DEEPSEEK_BASE_URL=http://localhost:7100",
        "OLLAMA_HOST=0.0.0.0:7100",
        "WORKER_STATUS_PORT=7200",
    ];
    assert_eq!(lines(&text), expected);
}

#[test]
fn d8_gets_a_file_a_service_as_well() {
    let folder = folder("d8-env");
    let path = folder.to_string_lossy();
    plan(D8, &["--format", "env", "--into", &path]);
    let read = |name| fs::read_to_string(folder.join(name)).expect("it is written");
    assert_eq!(
        lines(&read("worker-status.env")),
        ["WORKER_STATUS_PORT=7200"]
    );
    assert_eq!(lines(&read("ollama.env")).len(), 2);
    let refused = portpool(&example(D8), &["plan", "--format", "ufw", "--into", &path]);
    assert_eq!(refused.status.code(), Some(64));
}

#[test]
fn d8_gets_its_compose_line_and_its_firewall_rules() {
    let compose = plan(D8, &["--format", "compose"]);
    assert!(compose.contains("- \"7001:7001\"\n"), "{compose}");
    let ufw = plan(D8, &["--format", "ufw", "orchestrator"]);
    let expected = [
        "ufw allow 7001/tcp",
        "ufw allow from 192.168.1.0/24 to any port 7001 proto tcp",
    ];
    assert_eq!(lines(&ufw), expected);
    let powershell = plan(D8, &["--format", "powershell", "orchestrator"]);
    let expected = "New-NetFirewallRule -DisplayName \"D8 Orchestrator\" -Direction Inbound \
                    -LocalPort 7001 -Protocol TCP -Action Allow";
    assert_eq!(lines(&powershell).first(), Some(&expected));
    assert!(
        powershell.contains("-RemoteAddress 192.168.1.0/24"),
        "{powershell}"
    );
    let on_main = plan(D8, &["--format", "ufw", "--on", "main"]);
    assert!(
        on_main.contains("7001") && !on_main.contains("7100"),
        "{on_main}"
    );
}

#[test]
fn d8_sees_what_is_taken_what_is_set_aside_for_what_and_what_is_next() {
    let table = plan(D8, &[]);
    for expected in [
        "the next free one is 7201",
        "orchestrator    7001 main portpool fixed was 5000",
        "ollama          7100 pi   ollama   fixed was 11434",
        "databases     7500-7599 7500",
        "growth        7900-8000 7900",
    ] {
        assert!(table.contains(expected), "{expected}: {table}");
    }
    let json: Value = serde_json::from_str(&plan(D8, &["--format", "json"])).expect("JSON");
    assert_eq!(json["next"], 7201);
    assert_eq!(json["pools"][1]["env"]["OLLAMA_HOST"], "0.0.0.0:7100");
}

#[test]
fn after_7200_comes_7201_and_after_the_backends_8120() {
    let next = |name: &str, arguments: &[&str]| {
        let arguments: Vec<&str> = ["next", "--plan-only"]
            .iter()
            .chain(arguments)
            .copied()
            .collect();
        printed(&example(name), &arguments)
    };
    assert_eq!(next(D8, &[]), "7201\n");
    for name in [
        "worker-status",
        "category:worker-status",
        "pool:worker-status",
    ] {
        assert_eq!(next(D8, &[name]), "7201\n", "{name}");
    }
    for name in ["range:backend", "category:backend"] {
        assert_eq!(next(SAAS_MT, &[name]), "8120\n", "{name}");
    }
    assert_eq!(next(SAAS_MT, &["backend", "--count", "2"]), "8120\n8130\n");
    let three = next(SAAS_MT, &["backend", "--count", "3", "--consecutive"]);
    assert_eq!(three, "8120\n8121\n8122\n");
    let why = "8000 is planned for chat, 8010 is its port, 8020 a gap";
    assert_eq!(next(SAAS_MT, &["backend", "--lowest"]), "8020\n", "{why}");
}

#[test]
fn a_full_range_says_so_with_the_ways_out_and_an_unknown_name_is_a_slip() {
    let full = portpool(
        &example(SAAS_MT),
        &["next", "--plan-only", "backend", "--count", "9"],
    );
    assert_eq!(full.status.code(), Some(75));
    assert!(
        said(&full).contains("range backend has no free port left"),
        "{}",
        said(&full)
    );
    assert!(said(&full).contains("--lowest"), "{}", said(&full));
    let slip = portpool(&example(SAAS_MT), &["next", "bakend"]);
    assert_eq!(slip.status.code(), Some(64));
    assert!(
        said(&slip).contains("did you mean `backend`?"),
        "{}",
        said(&slip)
    );
}

#[test]
fn a_new_service_is_written_into_the_plan_and_nothing_else_of_it_changes() {
    let file = folder("next-write").join("portpool.toml");
    let before = fs::read_to_string(example(SAAS_MT)).expect("the example");
    fs::write(&file, &before).expect("a copy");
    let next = |arguments: &[&str]| {
        let arguments: Vec<&str> = ["next", "--plan-only"]
            .iter()
            .chain(arguments)
            .copied()
            .collect();
        portpool(&file, &arguments)
    };
    assert_eq!(next(&["backend", "--write=payments"]).stdout, b"8120\n");
    let after = fs::read_to_string(&file).expect("the file");
    let added = "\n[pool.payments]\nports = 8120\ncategory = \"backend\"\n";
    assert_eq!(after, before.clone() + added);
    assert!(next(&["payments", "--write"]).status.success());
    let after = fs::read_to_string(&file).expect("the file");
    let added = "\n[pool.payments]\nports = \"8120-8121\"\ncategory = \"backend\"\n";
    assert_eq!(after, before + added);
    for (arguments, code) in [
        (["backend", "--write=payments"], 78),
        (["backend", "--write=No Name"], 64),
        (["backend", "--write"], 64),
    ] {
        let refused = next(&arguments);
        assert_eq!(refused.status.code(), Some(code), "{refused:?}");
    }
    assert_eq!(fs::read_to_string(&file).expect("the file"), after);
}

#[test]
fn a_plan_whose_pools_meet_still_has_a_next_port() {
    let file = folder("next-of-meeting").join("portpool.toml");
    fs::write(&file, "[pool.a]\nports = 9000\n[pool.b]\nports = 9000\n").expect("a file");
    assert_eq!(printed(&file, &["next", "--plan-only", "b"]), "9001\n");
}

#[test]
fn saas_mt_has_its_document_by_category_with_current_against_proposed() {
    let text = plan(SAAS_MT, &["--format", "markdown"]);
    let at = |part: &str| text.find(part).unwrap_or_else(|| panic!("{part}: {text}"));
    let order = [
        at("\n## Frontend\n"),
        at("| 3006/tcp | `backoffice` |"),
        at("\n## Backend\n"),
        at("| 2112/tcp | `iam-service.metrics` |"),
        at("\n## Infrastructure: database\n"),
        at("\n## Current against proposed\n"),
        at("| chat-service | 8010 | 8000 |"),
    ];
    assert!(order.is_sorted(), "{order:?}");
    assert!(text.contains("| disabled | Go compile error |"), "{text}");
    let d8 = plan(D8, &["--format", "markdown"]);
    assert!(
        d8.contains("| 11434 | Ollama | 7100 |"),
        "former ports: {d8}"
    );
}

#[test]
fn a_committed_document_is_stale_when_the_plan_has_changed() {
    let folder = folder("stale");
    let (file, document) = (folder.join("portpool.toml"), folder.join("PORTS.md"));
    fs::write(&file, "[pool.web]\nports = 9000\n").expect("a file");
    let check = |configuration: &Path| {
        let path = document.to_string_lossy();
        portpool(
            configuration,
            &["plan", "--format", "markdown", "--check", &path],
        )
    };
    assert_eq!(check(&file).status.code(), Some(2), "there is none");
    let wrong = folder.join("wrong.toml");
    fs::write(&wrong, "[pool.web]\n").expect("a file");
    assert_eq!(
        check(&wrong).status.code(),
        Some(2),
        "no plan to compare with"
    );
    let text = printed(&file, &["plan", "--format", "markdown"]);
    fs::write(&document, text).expect("a file");
    assert_eq!(check(&file).status.code(), Some(0));
    fs::write(&file, "[pool.web]\nports = 9001\n").expect("a file");
    let stale = check(&file);
    assert_eq!(stale.status.code(), Some(1));
    assert!(
        said(&stale).contains("- | 9000/tcp | `web`")
            && said(&stale).contains("+ | 9001/tcp | `web`"),
        "{}",
        said(&stale)
    );
}

#[test]
fn saas_mt_gets_templates_with_container_names_and_leaves_secrets_to_the_reader() {
    let text = plan(SAAS_MT, &["--format", "env"]);
    let expected = [
        "DATABASE_URL=postgresql://postgres:${POSTGRES_PASSWORD}@tv-postgres:5432/ai_gateway_db",
        "REDIS_URL=redis://tv-redis:6379/0",
    ];
    assert_eq!(lines(&text), expected);
    let compose = plan(SAAS_MT, &["--format", "compose"]);
    assert!(compose.contains("\"127.0.0.1:8050:8000\""), "{compose}");
    assert!(!compose.contains("backup-service"), "disabled: {compose}");
    assert!(
        !compose.contains("backoffice-local"),
        "run by npm: {compose}"
    );
}

#[test]
fn another_configuration_is_told_by_what_it_moves_adds_and_frees() {
    let folder = folder("diff");
    let file = |name: &str, text: &str| {
        let path = folder.join(name);
        fs::write(&path, text).expect("a file");
        path.to_string_lossy().into_owned()
    };
    let old = fs::read_to_string(example(D8)).expect("the example");
    let new = old.replace("ports = 7100", "ports = 7101") + "[pool.db]\nports = 7500\n";
    let (old, new) = (file("old.toml", &old), file("new.toml", &new));
    let wrong = file("wrong.toml", "[pool.a]\n");
    let diff =
        |one: &str, other: &str| portpool(&example(D8), &["diff", "--plan-only", one, other]);
    assert_eq!(diff(&old, &old).status.code(), Some(0));
    assert_eq!(diff(&old, &wrong).status.code(), Some(2));
    let changed = diff(&old, &new);
    assert_eq!(changed.status.code(), Some(1));
    let text = String::from_utf8_lossy(&changed.stdout).into_owned();
    assert!(
        text.contains("moves    ollama 7100 -> 7101  +7101  -7100\n"),
        "{text}"
    );
    assert!(text.contains("REFUSED  ollama is fixed"), "{text}");
    assert!(text.contains("adds     db 7500\n"), "{text}");
    assert_eq!(text.lines().count(), 3, "{text}");
}

#[test]
fn a_first_plan_of_a_compose_file_publishes_what_that_file_does() {
    let folder = folder("init");
    let (compose, plan_file) = (folder.join("compose.yml"), folder.join("portpool.toml"));
    let published = plan(SAAS_MT, &["--format", "compose"]);
    fs::write(&compose, &published).expect("a file");
    let (compose, output) = (compose.to_string_lossy(), plan_file.to_string_lossy());
    let arguments = ["init", "--from-compose", &compose, "--output", &output];
    printed(&plan_file, &arguments);
    let again = printed(&plan_file, &["plan", "--format", "compose"]);
    assert_eq!(again, published);
    let refused = portpool(&plan_file, &arguments);
    assert_eq!(refused.status.code(), Some(1), "it is there already");
    assert!(
        said(&refused).contains("move it away"),
        "{}",
        said(&refused)
    );
    let missing = portpool(&plan_file, &["init", "--from-compose", "no-such.yml"]);
    assert_eq!(missing.status.code(), Some(2));
}

#[test]
fn the_documents_beside_the_examples_are_as_their_plans_say() {
    for name in ["d8", "saas-mt"] {
        let configuration = format!("{name}.toml");
        let document = example(&format!("{name}.ports.md"));
        let check = [
            "--format",
            "markdown",
            "--check",
            &document.to_string_lossy(),
        ];
        plan(&configuration, &check);
        let picture = fs::read_to_string(example(&format!("{name}.ports.svg")));
        let drawn = printed(&example(&configuration), &["map", "--plan-only", "--svg"]);
        let command = format!("portpool map --plan-only --svg > examples/{name}.ports.svg");
        assert!(
            picture.is_ok_and(|picture| picture == drawn),
            "write it again: {command}"
        );
    }
}

#[test]
fn a_mistyped_host_or_pool_is_told_with_the_one_that_was_meant() {
    for (arguments, expected) in [
        (["plan", "--on", "mian"], "did you mean \"main\"?"),
        (["plan", "--on", "elsewhere"], "there are main, pi"),
        (
            ["plan", "--format=env", "olama"],
            "did you mean \"ollama\"?",
        ),
    ] {
        let refused = portpool(&example(D8), &arguments);
        assert_eq!(refused.status.code(), Some(64), "{refused:?}");
        assert!(said(&refused).contains(expected), "{}", said(&refused));
    }
}

#[test]
fn an_address_of_ipv6_has_its_brackets_and_the_agents_own_port_is_in_the_document() {
    let file = folder("outside").join("portpool.toml");
    let text = "[agent]\nmetrics = { listen = \"127.0.0.1:9180\" }\n[host.a]\naddress = \"fd00::1\"\n\
                [host.b]\naddress = \"b.example\"\n[pool.web]\nports = 9000\nhost = \"a\"\n\
                extra = { metrics = 9001 }\nenv = { URL = \"http://{host}:{port}/{web.metrics.port}\" }\n";
    fs::write(&file, text).expect("a file");
    let env = |on| printed(&file, &["plan", "--format", "env", "--on", on]);
    assert_eq!(lines(&env("a")), ["URL=http://localhost:9000/9001"]);
    assert_eq!(lines(&env("b")), ["URL='http://[fd00::1]:9000/9001'"]);
    let targets = printed(&file, &["plan", "--format", "prometheus"]);
    assert!(targets.contains("\"[fd00::1]:9001\""), "{targets}");
    let document = printed(&file, &["plan", "--format", "markdown"]);
    assert!(
        document.contains("| 9180/tcp | metrics of portpool's agent"),
        "{document}"
    );
}
