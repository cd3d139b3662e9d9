//! The next holder, of another identity, gets nothing of the one before: no connection that was meant for it,
//! no option it set, no filter it locked.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use nix::sys::signal::Signal;
use portpool::protocol::{AcquireParameters, Want};
use socket2::{SockFilter, SockRef};

use crate::host::{Agent, Host, NOBODY, Process, on_a_host};
use crate::revoked::{holder, revoke};

/// Two pools alike, of which the second is never had before; one that waits for a successor; and UDP.
const PLAN: &str = r#"
    [defaults]
    allow = { users = ["65534"] }
    [pool.had]
    ports = 9000
    [pool.fresh]
    ports = 9001
    [pool.kept]
    ports = 9002
    restart_window = "500ms"
    [pool.datagrams]
    ports = 9003
    protocol = "udp"
    [pool.fresh-datagrams]
    ports = 9004
    protocol = "udp"
"#;

const CLIENTS: usize = 5;

/// More than the former holder's filter lets through.
const MESSAGE: [u8; 200] = [b'm'; 200];

/// How the former holder loses its slot.
#[derive(Debug, Clone, Copy)]
enum End {
    Dies,
    IsRevoked,
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

fn is_parked(agent: &Agent, pool: &str) {
    agent.wait_until("it is parked", |slots| {
        let mut of_pool = slots.iter().filter(|slot| slot.pool == pool);
        of_pool.all(|slot| slot.state == "parked")
    });
}

/// A holder of another user that leaves its clients in the queue and spoils its socket for whoever gets it next.
fn spoils(host: &Host, agent: &Agent, pool: &str, mode: &str) -> Process {
    let options = ["--on-revoke", "none", pool];
    let mut former = holder(host, agent, NOBODY, &options, &["obey", mode]);
    former.wait_for("ready");
    for word in ["filter", "options"] {
        assert_eq!(former.ask(word), word);
    }
    former
}

fn end(agent: &Agent, pool: &str, former: &mut Process, how: End) {
    match how {
        End::Dies => {
            former.signal(Signal::SIGKILL);
            assert_eq!(former.wait(), None);
            // While it waits for a successor of its kin, the slot is nobody else's.
            if pool == "kept" {
                let refused = agent.client().acquire(pool).expect_err("it is kept");
                assert!(matches!(refused, portpool::Error::Refused(_)), "{refused}");
            }
        }
        End::IsRevoked => revoke(agent, pool),
    }
    is_parked(agent, pool);
}

/// What connections inherit from their listener.
fn options(socket: &SockRef, is_stream: bool) -> (usize, Option<Duration>, Option<Duration>) {
    let patience = is_stream.then(|| socket.tcp_user_timeout().expect("an option"));
    let buffer = socket.recv_buffer_size().expect("an option");
    (
        buffer,
        socket.linger().expect("an option"),
        patience.flatten(),
    )
}

/// A filter that keeps everything can be attached: none is locked.
fn takes_a_filter(socket: &SockRef) -> bool {
    const RETURN: u16 = 0x06;
    let keep = SockFilter::new(RETURN, 0, 0, u32::MAX);
    socket.attach_filter(&[keep]).is_ok()
}

fn gets_nothing_by_tcp(host: &Host, agent: &Agent, pool: &str, port: u16, how: End) {
    let mut former = spoils(host, agent, pool, "idle");
    let queued: Vec<TcpStream> = (0..CLIENTS)
        .map(|_| TcpStream::connect(local(port)).expect("the queue takes it"))
        .collect();
    end(agent, pool, &mut former, how);
    let client = agent.client();
    let lease = client.acquire(pool).expect("it is free");
    let listener: TcpListener = lease.listener().expect("a listener");
    listener.set_nonblocking(true).expect("a flag");
    let nobody = listener.accept().expect_err("nobody came");
    assert_eq!(nobody.kind(), ErrorKind::WouldBlock, "{how:?}");
    // At level enforced a holder that was only revoked still has them in its queue, and may drain it.
    let is_enforced = client.status().expect("a status").level == "enforced";
    if !(is_enforced && matches!(how, End::IsRevoked)) {
        for mut stream in queued {
            let patience = Some(Duration::from_secs(10));
            stream.set_read_timeout(patience).expect("a time-out");
            let error = stream.read(&mut [0]).expect_err("it is reset");
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{how:?}");
        }
    }

    let fresh = client.acquire("fresh").expect("it is free");
    let expected = options(&SockRef::from(&fresh.listener().expect("a listener")), true);
    listener.set_nonblocking(false).expect("a flag");
    let mut stream = TcpStream::connect(local(port)).expect("it listens");
    stream.write_all(&MESSAGE).expect("a server");
    let (mut served, _) = listener.accept().expect("its client");
    let patience = Some(Duration::from_secs(10));
    served.set_read_timeout(patience).expect("a time-out");
    let mut message = [0; MESSAGE.len()];
    served
        .read_exact(&mut message)
        .expect("no filter of another's");
    assert_eq!(
        options(&SockRef::from(&listener), true),
        expected,
        "{how:?}"
    );
    assert_eq!(
        options(&SockRef::from(&served), true).1,
        expected.1,
        "{how:?}"
    );
    assert!(takes_a_filter(&SockRef::from(&listener)), "{how:?}");
    assert!(takes_a_filter(&SockRef::from(&served)), "{how:?}");
}

#[test]
fn of_the_holder_before_the_next_one_gets_no_connection_no_option_and_no_filter() {
    on_a_host(|host| {
        for steers in [true, false] {
            let agent = host.agent_that(steers, PLAN);
            for how in [End::Dies, End::IsRevoked] {
                is_parked(&agent, "had");
                gets_nothing_by_tcp(host, &agent, "had", 9000, how);
            }
            // Nobody of the former holder's kin comes in time.
            is_parked(&agent, "kept");
            gets_nothing_by_tcp(host, &agent, "kept", 9002, End::Dies);
        }
    });
}

/// The UDP socket of a pool, leased to this process.
fn datagrams(agent: &Agent, pool: &str) -> (UdpSocket, u64) {
    let wants = vec![Want {
        pool: pool.to_owned(),
        count: None,
    }];
    let asked = AcquireParameters {
        pools: wants,
        ..AcquireParameters::default()
    };
    let grants = agent.client().acquire_all(asked).expect("it is free");
    let grant = grants.into_iter().next().expect("a grant");
    let (_, fd) = grant.sockets.into_iter().next().expect("a socket");
    (fd.into(), grant.lease.lease_id)
}

/// Sends a datagram, and sees that it is the first that the socket gets.
#[track_caller]
fn gets_only_what_is_new(socket: &UdpSocket, port: u16, what: &str) {
    let client = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    client.send_to(&MESSAGE, local(port)).expect("it is sent");
    let patience = Some(Duration::from_secs(10));
    socket.set_read_timeout(patience).expect("a time-out");
    let mut message = [0; 256];
    let (length, sender) = socket.recv_from(&mut message).expect("a datagram");
    let expected = (MESSAGE.len(), client.local_addr().expect("an address"));
    assert_eq!((length, sender), expected, "{what}");
    socket.set_nonblocking(true).expect("a flag");
    let nothing = socket.recv(&mut message).expect_err("nothing else came");
    assert_eq!(nothing.kind(), ErrorKind::WouldBlock, "{what}");
}

#[test]
fn a_udp_slot_hands_no_stale_datagram_no_option_and_no_filter_to_its_next_holder() {
    on_a_host(|host| {
        for steers in [true, false] {
            let agent = host.agent_that(steers, PLAN);
            let stale = UdpSocket::bind("127.0.0.1:0").expect("a socket");
            let send = || {
                for _ in 0..50 {
                    stale.send_to(b"stale", local(9003)).expect("it is sent");
                }
            };
            is_parked(&agent, "datagrams");
            send();
            let (socket, lease) = datagrams(&agent, "datagrams");
            gets_only_what_is_new(&socket, 9003, "the first holder");
            let (fresh, _) = datagrams(&agent, "fresh-datagrams");
            let expected = options(&SockRef::from(&fresh), false);
            drop(socket);
            agent.client().release(lease).expect("it is ours");
            for how in [End::Dies, End::IsRevoked] {
                is_parked(&agent, "datagrams");
                let mut former = spoils(host, &agent, "datagrams", "idle-udp");
                send();
                end(&agent, "datagrams", &mut former, how);
                send();
                // Without steering a copy of a UDP socket that lives keeps the port.
                if !steers && matches!(how, End::IsRevoked) {
                    former.signal(Signal::SIGKILL);
                    former.wait();
                }
                let (socket, lease) = datagrams(&agent, "datagrams");
                let what = format!("steering {steers}, {how:?}");
                gets_only_what_is_new(&socket, 9003, &what);
                assert_eq!(options(&SockRef::from(&socket), false), expected, "{what}");
                assert!(takes_a_filter(&SockRef::from(&socket)), "{what}");
                drop(socket);
                agent.client().release(lease).expect("it is ours");
            }
        }
    });
}
