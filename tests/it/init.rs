//! `portpool init --from-machine` on a host with services.

use std::net::{TcpListener, UdpSocket};

use crate::host::{NOBODY, on_a_host, said};

#[test]
fn a_first_plan_of_a_machine_has_what_listens_there_and_who_does() {
    on_a_host(|host| {
        host.sysctl("net/ipv4/ip_local_port_range", "32768 60999");
        let squatter = host.role(&["squat", "127.0.0.1", "9500", "plain"], NOBODY);
        squatter.wait_for("ready");
        let _own = TcpListener::bind("[::]:9501").expect("a free port");
        let _named = UdpSocket::bind("0.0.0.0:5353").expect("a free port");
        let _client = UdpSocket::bind("127.0.0.1:40000").expect("a port such as a client has");
        let output = host.portpool(&["init", "--from-machine"]).output();
        let output = output.expect("portpool runs");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{}", said(&output));
        // The test's own program has its name cut off by the kernel.
        let squat = "ports = 9500\nserved_by = { program = \"test_roles\" }\n";
        assert!(text.contains(squat), "{text}");
        assert!(
            text.contains("ports = 9501\naddress = \"[::]\"\n"),
            "{text}"
        );
        assert!(
            text.contains("ports = 5353\nprotocol = \"udp\"\naddress = \"0.0.0.0\"\n"),
            "{text}"
        );
        assert!(!text.contains("40000"), "{text}");
        let plan = host.file("first.toml", &text);
        let check = host.portpool(&["check"]).arg(plan).output();
        assert!(check.expect("portpool runs").status.success());
    });
}
