//! What `portpool plan` writes, read by the programs it is for, with everything in it that they could take
//! for their own: tests/documents/hostile.toml.

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::host::{example_configuration, on_a_host};
use crate::services::{repository, tools};

const HOSTILE: &str = include_str!("../documents/hostile.toml");

fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).expect("a folder");
    folder
}

/// `portpool plan` of a configuration.
#[track_caller]
fn plan(configuration: &str, arguments: &[&str]) -> String {
    verb("plan", configuration, arguments)
}

#[track_caller]
fn verb(verb: &str, configuration: &str, arguments: &[&str]) -> String {
    let name = std::thread::current()
        .name()
        .unwrap_or("test")
        .replace(':', "-");
    let file = folder(&format!("plan-{name}")).join("portpool.toml");
    std::fs::write(&file, configuration).expect("a file");
    let mut command = Command::new(env!("CARGO_BIN_EXE_portpool"));
    let output = command
        .arg(verb)
        .args(arguments)
        .env("PORTPOOL_CONFIG", &file)
        .output();
    let output = output.expect("portpool runs");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// Runs a program to its end with this input; gives what it printed. It must like what it gets.
#[track_caller]
fn accepts(command: &mut Command, input: &str) -> String {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program runs");
    let mut stdin = child.stdin.take().expect("its input");
    stdin.write_all(input.as_bytes()).expect("it reads");
    drop(stdin);
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{output:?}\n{input}");
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Every configuration there is to write documents of.
fn configurations() -> [String; 4] {
    let examples = ["d8.toml", "saas-mt.toml", "qwen-valencia.toml"].map(example_configuration);
    let [d8, saas, qwen] = examples;
    [d8, saas, qwen, HOSTILE.to_owned()]
}

#[test]
fn nft_accepts_the_rules_and_closes_what_is_not_let_in() {
    let Some(tools) = tools(&["nft"]) else { return };
    on_a_host(move |host| {
        for configuration in configurations() {
            let rules = plan(&configuration, &["--format", "nftables"]);
            let check = ["-c", "-f", "-"];
            accepts(host.command(&tools["nft"]).args(check), &rules);
        }
        let rules = plan(HOSTILE, &["--format", "nftables"]);
        for _ in 0..2 {
            accepts(host.command(&tools["nft"]).args(["-f", "-"]), &rules);
        }
        let loaded = accepts(host.command(&tools["nft"]).args(["list", "ruleset"]), "");
        for expected in [
            "ip saddr 192.168.1.0/24 tcp dport { 9000-9002, 9100-9102 } accept",
            "ip6 saddr fd00::/64 tcp dport { 9000-9002, 9100-9102 } accept",
            "ip saddr 10.0.0.0/8 udp dport { 53-54, 60, 1053-1054, 1060 } accept",
            "udp dport { 53-54, 60, 1053-1054, 1060 } drop",
        ] {
            let found = loaded.lines().filter(|line| line.trim() == expected);
            assert_eq!(found.count(), 1, "{expected}: {loaded}");
        }
        assert!(!loaded.contains("9050"), "companions stay closed: {loaded}");
    });
}

#[test]
fn ufw_accepts_each_command() {
    let Some(tools) = tools(&["ufw"]) else { return };
    on_a_host(move |host| {
        for configuration in configurations() {
            let commands = plan(&configuration, &["--format", "ufw"]);
            let dry = format!("ufw() {{ {} --dry-run \"$@\"; }}\n{commands}", tools["ufw"]);
            let mut shell = host.command("sh");
            let said = accepts(shell.args(["-eu"]).current_dir(host.folder()), &dry);
            let rules = commands
                .lines()
                .filter(|line| line.starts_with("ufw "))
                .count();
            let added = said
                .lines()
                .filter(|line| *line == "Rules updated" || *line == "Rules updated (v6)");
            assert!(added.count() >= rules, "{said}");
        }
        let said = plan(HOSTILE, &["--format", "ufw", "web"]);
        assert!(said.contains("port 9100:9102 proto tcp"), "{said}");
        assert!(!host.folder().join("pwned").exists());
    });
}

#[test]
fn firewalld_accepts_each_command() {
    let Some(tools) = tools(&["firewall-offline-cmd"]) else {
        return;
    };
    for configuration in configurations() {
        let folder = folder("firewalld");
        let offline = format!(
            "firewall-cmd() {{ case $1 in --reload) return ;; --permanent) shift ;; esac\n\
             {} --system-config \"$PWD\" \"$@\"; }}\n",
            tools["firewall-offline-cmd"]
        );
        // The shell's own names have no hyphen.
        let commands = plan(&configuration, &["--format", "firewalld"]);
        let script = (offline + &commands).replace("firewall-cmd", "firewall_cmd");
        accepts(Command::new("sh").arg("-eu").current_dir(&folder), &script);
        assert!(!folder.join("pwned").exists());
        let zone = std::fs::read_to_string(folder.join("zones/public.xml")).unwrap_or_default();
        if configuration == HOSTILE {
            for expected in [
                "<port port=\"9100-9102\" protocol=\"tcp\"/>",
                "<source address=\"fd00::/64\"/>",
                "<port port=\"1053-1054\" protocol=\"udp\"/>",
            ] {
                assert!(zone.contains(expected), "{expected}: {zone}");
            }
        }
    }
}

#[test]
fn prometheus_accepts_the_targets() {
    let Some(tools) = tools(&["promtool"]) else {
        return;
    };
    for configuration in configurations() {
        let folder = folder("prometheus");
        let targets = plan(&configuration, &["--format", "prometheus"]);
        std::fs::write(folder.join("targets.json"), &targets).expect("a file");
        let config =
            "scrape_configs:\n- job_name: x\n  file_sd_configs:\n  - files: [targets.json]\n";
        std::fs::write(folder.join("prometheus.yml"), config).expect("a file");
        let mut promtool = Command::new(&tools["promtool"]);
        let check = ["check", "config", "prometheus.yml"];
        accepts(promtool.args(check).current_dir(&folder), "");
    }
    let saas = plan(
        &example_configuration("saas-mt.toml"),
        &["--format", "prometheus"],
    );
    for target in [
        "localhost:2112",
        "localhost:2113",
        "localhost:2114",
        "localhost:2115",
    ] {
        assert!(saas.contains(target), "{saas}");
    }
}

#[test]
fn systemd_accepts_the_socket_units() {
    let Some(tools) = tools(&["systemd-analyze"]) else {
        return;
    };
    for configuration in configurations() {
        let folder = folder("units");
        let path = folder.to_string_lossy().into_owned();
        let written = plan(&configuration, &["--format", "systemd", "--into", &path]);
        let units: Vec<&str> = written.lines().collect();
        for unit in &units {
            let text = std::fs::read_to_string(unit).expect("it is written");
            let service = text.lines().find_map(|line| line.strip_prefix("Service="));
            let service = folder.join(service.expect("each names its service"));
            std::fs::write(service, "[Service]\nExecStart=/bin/true\n").expect("a file");
        }
        if units.is_empty() {
            continue;
        }
        let mut analyze = Command::new(&tools["systemd-analyze"]);
        let said = accepts(analyze.args(["verify", "--man=no"]).args(&units), "");
        // Some findings are only warnings to it.
        assert_eq!(said, "", "{written}");
    }
}

/// What readers of .env files make of one, each as JSON: a program that prints it.
fn env_readers(tools: &HashMap<String, String>) -> Vec<(&'static str, Command)> {
    let mut node = Command::new(&tools["node"]);
    let script = "import fs from 'node:fs'; import { parse } from 'dotenv';\
                  console.log(JSON.stringify(parse(fs.readFileSync(0))))";
    node.args(["--input-type=module", "-e", script]);
    node.current_dir(repository("tests/documents"));
    let mut python = Command::new(&tools["readers"]);
    let script = "import sys, json, dotenv;\
                  print(json.dumps(dotenv.dotenv_values(stream=sys.stdin, interpolate=False)))";
    python.args(["-c", script]);
    let mut shell = Command::new("sh");
    let script = "d=$(mktemp); trap 'rm -f \"$d\"' EXIT; cat >\"$d\"; set -a; . \"$d\"; set +a; \
                  exec 3>&1; python3 -c 'import json, os; print(json.dumps(dict(os.environ)))'";
    shell.args(["-euc", script]);
    vec![("node", node), ("python", python), ("sh", shell)]
}

#[test]
fn dotenv_of_node_and_python_and_a_shell_read_the_same_values() {
    let Some(tools) = tools(&["node", "dotenv", "readers"]) else {
        return;
    };
    let text = plan(HOSTILE, &["--format", "env"]);
    let json = plan(HOSTILE, &["--format", "json"]);
    let json: Value = serde_json::from_str(&json).expect("JSON");
    let expected = json["pools"][0]["env"].as_object().expect("values").clone();
    assert_eq!(expected.len(), 11);
    for (name, mut reader) in env_readers(&tools) {
        let read = accepts(&mut reader, &text);
        let read: Value =
            serde_json::from_str(&read).unwrap_or_else(|error| panic!("{error}: {read}"));
        for (variable, value) in &expected {
            assert_eq!(&read[variable], value, "{variable} by {name}:\n{text}");
        }
    }
}

#[test]
fn compose_publishes_what_the_plan_says() {
    let Some(tools) = tools(&["readers", "docker-compose"]) else {
        return;
    };
    for configuration in configurations() {
        let folder = folder("compose");
        let text = plan(&configuration, &["--format", "compose"]);
        let mut python = Command::new(&tools["readers"]);
        let script = "import sys, json, yaml; print(json.dumps(yaml.safe_load(sys.stdin)))";
        let read = accepts(python.args(["-c", script]), &text);
        let read: Value = serde_json::from_str(&read).expect("JSON");
        let services = read["services"].as_object().expect("services");
        assert!(services.values().all(|it| it["ports"].is_array()), "{read}");
        // It is laid over a file that says what the services are.
        let mut base = String::from("version: \"3\"\nservices:\n");
        for name in services.keys() {
            base += &format!("  {name:?}: {{ image: x }}\n");
        }
        std::fs::write(folder.join("base.yml"), base).expect("a file");
        let text = format!("version: \"3\"\n{text}");
        std::fs::write(folder.join("ports.yml"), text).expect("a file");
        let mut compose = Command::new(&tools["docker-compose"]);
        compose.args(["-f", "base.yml", "-f", "ports.yml", "config"]);
        let said = accepts(compose.current_dir(&folder), "");
        if configuration == HOSTILE {
            assert_eq!(
                read["services"]["yes"]["ports"][0],
                "127.0.0.1:9010-9011:80"
            );
            assert!(said.contains("9010-9011"), "{said}");
        }
    }
}

#[test]
fn a_parser_of_powershell_sees_one_command_a_line() {
    let Some(tools) = tools(&["readers"]) else {
        return;
    };
    let script = "
import sys, tree_sitter, tree_sitter_powershell
parser = tree_sitter.Parser(tree_sitter.Language(tree_sitter_powershell.language()))
tree = parser.parse(sys.stdin.buffer.read())
names = []
def walk(node):
    assert not node.is_error and not node.is_missing, node
    if node.type == 'command_name': names.append(node.text.decode())
    assert node.type not in ('sub_expression', 'variable'), node.text
    for child in node.children: walk(child)
walk(tree.root_node)
print(' '.join(names))";
    // The others have no rules, and the parser does not take nothing for a script.
    for configuration in [example_configuration("d8.toml"), HOSTILE.to_owned()] {
        let text = plan(&configuration, &["--format", "powershell"]);
        let mut python = Command::new(&tools["readers"]);
        let names = accepts(python.args(["-c", script]), &text);
        let expected = vec!["New-NetFirewallRule"; text.lines().count()];
        assert_eq!(
            names.split_whitespace().collect::<Vec<_>>(),
            expected,
            "{text}"
        );
    }
}

#[test]
fn a_reader_of_markdown_sees_tables_and_no_markup_of_strangers() {
    let Some(tools) = tools(&["readers"]) else {
        return;
    };
    let script = "
import sys, markdown_it
text = sys.stdin.read()
for char in text: assert char == '\\n' or char.isprintable(), repr(char)
parser = markdown_it.MarkdownIt('commonmark').enable('table')
html = parser.render(text)
body = html.split('-->', 1)[1]
assert '<b>' not in body and '<em>' not in body and '<strong>' not in body and '<a ' not in body, body
for table in body.split('<table>')[1:]:
    rows = table.split('</table>')[0].split('<tr>')[1:]
    widths = {row.count('<td>') + row.count('<th>') for row in rows}
    assert len(widths) == 1 and '' not in widths, widths
print(len(body.split('<table>')) - 1)";
    for configuration in configurations() {
        let text = plan(&configuration, &["--format", "markdown"]);
        let mut python = Command::new(&tools["readers"]);
        let tables = accepts(python.args(["-c", script]), &text);
        assert_ne!(tables.trim(), "0", "{text}");
    }
}

#[test]
fn the_map_is_xml_and_names_each_pool() {
    let Some(tools) = tools(&["readers"]) else {
        return;
    };
    let script = "
import sys, xml.etree.ElementTree as tree
root = tree.fromstring(sys.stdin.buffer.read())
assert root.tag == '{http://www.w3.org/2000/svg}svg'
print(' '.join(title.text for title in root.iter('{http://www.w3.org/2000/svg}title')))";
    for configuration in configurations() {
        let text = verb("map", &configuration, &["--svg", "--plan-only"]);
        let mut python = Command::new(&tools["readers"]);
        let titles = accepts(python.args(["-c", script]), &text);
        if configuration == example_configuration("d8.toml") {
            assert!(
                titles.contains("7100 ollama/1 (another program's)"),
                "{titles}"
            );
            assert!(
                titles.contains("7500-7549 databases (set aside)"),
                "{titles}"
            );
        }
    }
}

#[test]
fn no_document_has_what_a_terminal_would_obey() {
    for format in [
        "table",
        "markdown",
        "env",
        "compose",
        "ufw",
        "nftables",
        "firewalld",
        "powershell",
        "systemd",
        "prometheus",
        "json",
    ] {
        let text = plan(HOSTILE, &["--format", format]);
        let obeyed = |c: char| (c.is_control() && c != '\n' && c != '\t') || c == '\u{202e}';
        assert!(!text.contains(obeyed), "{format}: {text:?}");
    }
}
