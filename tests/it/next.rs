//! `portpool next` beside what the machine has bound.

use std::net::{TcpListener, UdpSocket};

use crate::host::{Host, example_configuration, on_a_host, said};

fn next(host: &Host, arguments: &[&str]) -> (String, String) {
    let file = host.file("plan.toml", &example_configuration("d8.toml"));
    let mut command = host.portpool(&["next", "--config"]);
    let output = command.arg(file).args(arguments).output();
    let output = output.expect("portpool runs");
    let ports = String::from_utf8_lossy(&output.stdout).into_owned();
    (ports, said(&output))
}

#[test]
fn a_port_that_somebody_has_is_passed_over_and_they_are_named() {
    on_a_host(|host| {
        host.sysctl("net/ipv4/ip_local_port_range", "32768 60999");
        assert_eq!(next(host, &[]).0, "7201\n");
        let listener = TcpListener::bind("127.0.0.1:7201").expect("a free port");
        let _datagrams = UdpSocket::bind("127.0.0.1:7202").expect("a free port");
        let (ports, said) = next(host, &[]);
        assert_eq!(ports, "7202\n", "what UDP has is free for TCP");
        let own = format!("[{}]", std::process::id());
        assert!(
            said.contains("7201 is passed over: ") && said.contains(&own),
            "{said}"
        );
        assert_eq!(next(host, &["--udp", "--count", "2"]).0, "7201\n7203\n");
        assert_eq!(next(host, &["--plan-only"]).0, "7201\n");
        drop(listener);
        assert_eq!(next(host, &[]).0, "7201\n");
    });
}

#[test]
fn a_port_that_the_kernel_gives_to_connections_is_passed_over_unless_it_is_reserved() {
    on_a_host(|host| {
        host.sysctl("net/ipv4/ip_local_port_range", "7000 7205");
        let (ports, said) = next(host, &[]);
        assert_eq!(ports, "7206\n");
        assert!(said.contains("ip_local_port_range 7000-7205"), "{said}");
        host.sysctl("net/ipv4/ip_local_reserved_ports", "7203-7204");
        assert_eq!(next(host, &[]).0, "7203\n");
    });
}
