//! Steering: which socket gets a port's new connections is one entry of a map.
//!
//! A program of type `BPF_PROG_TYPE_SK_LOOKUP` (Linux 5.9; `CAP_BPF` and `CAP_NET_ADMIN`; the
//! kernel's `Documentation/bpf/prog_sk_lookup.rst`) runs before the kernel looks for a listener.
//! For a port that is ours it takes the socket of the map and nobody else's, whoever is bound or
//! listening beside it; without an entry it refuses. For every other port it does nothing.

mod bpf;
mod ports;
mod program;

use std::fs::File;
use std::io::{ErrorKind, Result};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use self::ports::Ports;
use self::program::{KEY_SIZE, program};
use super::hold::{Endpoint, Transport};

/// The program, attached to this network namespace as long as this value lives.
#[derive(Debug)]
pub(crate) struct Steering {
    /// For so many endpoints.
    room: usize,
    /// The ports that are ours.
    ports: Ports,
    /// Where their connections go: [`Key`] -> socket.
    sockets: OwnedFd,
    link: OwnedFd,
}

/// What there is of it in the kernel, and outlives this process if somebody has it.
#[derive(Debug)]
pub(crate) struct Parts<T> {
    /// It is attached as long as this is there.
    pub(crate) link: T,
    /// The map of [`Steering::own`].
    pub(crate) ports: T,
    /// The map of [`Steering::steer`].
    pub(crate) sockets: T,
}

/// Room for at least so many endpoints: a plan may grow while the agent runs. As long as nobody
/// listens it takes 16 bytes for each, twice (`sock_hash_alloc` of the kernel's net/core/sock_map.c).
const LEAST_ROOM: u32 = 8192;

/// Which connections an entry of the socket map is for: [`port_key`]; `AF_INET` or `AF_INET6`, of
/// the connection and not of the socket; and the address that the client wants, as on the wire,
/// IPv4 in the first four bytes. An address of zeros: whatever address no other entry is for. The
/// program builds the same bytes on its stack.
#[derive(Debug, Clone, Copy)]
struct Key([u8; KEY_SIZE]);

/// A port with its protocol, as the keys begin.
fn port_key(port: u16, transport: Transport) -> u32 {
    let protocol = match transport {
        Transport::Tcp => libc::IPPROTO_TCP,
        Transport::Udp => libc::IPPROTO_UDP,
    };
    (u32::try_from(protocol).unwrap_or(0) << 16) | u32::from(port)
}

impl Key {
    fn new(endpoint: &Endpoint, family: libc::c_int, address: [u8; 16]) -> Key {
        let port = port_key(endpoint.address.port(), endpoint.transport);
        let mut bytes = [0; KEY_SIZE];
        bytes[..4].copy_from_slice(&port.to_ne_bytes());
        bytes[4..8].copy_from_slice(&family.to_ne_bytes());
        bytes[8..].copy_from_slice(&address);
        Key(bytes)
    }

    /// The entries of an endpoint: two where a socket of IPv6 takes connections of IPv4 too.
    fn of(endpoint: &Endpoint) -> Vec<Key> {
        let any = [0; 16];
        match endpoint.address.ip() {
            IpAddr::V4(address) => {
                let mut bytes = any;
                bytes[..4].copy_from_slice(&address.octets());
                vec![Key::new(endpoint, libc::AF_INET, bytes)]
            }
            IpAddr::V6(Ipv6Addr::UNSPECIFIED) if !endpoint.v6_only => {
                vec![
                    Key::new(endpoint, libc::AF_INET6, any),
                    Key::new(endpoint, libc::AF_INET, any),
                ]
            }
            IpAddr::V6(address) => vec![Key::new(endpoint, libc::AF_INET6, address.octets())],
        }
    }
}

impl Steering {
    /// Loads the program and attaches it to this network namespace, with room for so many
    /// endpoints. No port is ours yet.
    ///
    /// # Errors
    /// `PermissionDenied` without the capabilities, else what bpf(2) says. Nothing is attached then.
    pub(crate) fn attach(endpoints: u32) -> Result<Steering> {
        let endpoints = endpoints.saturating_mul(2).max(LEAST_ROOM);
        // Of both families each.
        let room = endpoints.saturating_mul(2);
        let ports = Ports::new()?;
        let sockets = bpf::create_map(bpf::MAP_TYPE_SOCKHASH, KEY_SIZE, size_of::<u64>(), room)?;
        let program = bpf::load(&program(ports.as_raw_fd(), sockets.as_raw_fd()))?;
        let namespace = File::open("/proc/thread-self/ns/net")?;
        let link = bpf::attach(&program, &namespace)?;
        Ok(Steering {
            room: usize::try_from(endpoints).unwrap_or(usize::MAX),
            ports,
            sockets,
            link,
        })
    }

    /// The steering of an earlier agent, which went on without it, by this agent's program from now
    /// on. What was ours is, and goes where it went.
    ///
    /// # Errors
    /// `InvalidData` for anything but such parts; what bpf(2) says. Nothing has changed then.
    pub(crate) fn found(parts: Parts<OwnedFd>) -> Result<Steering> {
        let Parts {
            link,
            ports,
            sockets,
        } = parts;
        let ports = Ports::found(ports)?;
        let info = bpf::map_info(&sockets)?;
        let sizes = [info.key_size, info.value_size].map(usize::try_from);
        if info.kind != bpf::MAP_TYPE_SOCKHASH || sizes != [Ok(KEY_SIZE), Ok(size_of::<u64>())] {
            return Err(ErrorKind::InvalidData.into());
        }
        let program = bpf::load(&program(ports.as_raw_fd(), sockets.as_raw_fd()))?;
        bpf::update_link(&link, &program)?;
        Ok(Steering {
            room: usize::try_from(info.max_entries / 2).unwrap_or(usize::MAX),
            ports,
            sockets,
            link,
        })
    }

    /// Its parts, for who is to keep them.
    pub(crate) fn parts(&self) -> Parts<BorrowedFd<'_>> {
        Parts {
            link: self.link.as_fd(),
            ports: self.ports.map(),
            sockets: self.sockets.as_fd(),
        }
    }

    /// Of the ports that are ours only these remain so.
    ///
    /// # Errors
    /// What bpf(2) says.
    pub(crate) fn retain(&self, ours: impl Iterator<Item = (u16, Transport)>) -> Result<()> {
        self.ports.retain(ours)
    }

    /// How many endpoints can be steered at a time.
    pub(crate) fn room(&self) -> usize {
        self.room
    }

    /// Makes a port ours: what comes to it goes where [`Steering::steer`] says, else nowhere.
    ///
    /// # Errors
    /// What bpf(2) says.
    pub(crate) fn own(&self, port: u16, transport: Transport) -> Result<()> {
        self.ports.set(port, transport, true)
    }

    /// A port is ours no longer: what comes to it is left to who is bound there.
    ///
    /// # Errors
    /// What bpf(2) says; that it was not ours is no error.
    pub(crate) fn disown(&self, port: u16, transport: Transport) -> Result<()> {
        self.ports.set(port, transport, false)
    }

    /// Makes a socket the one that gets what comes to the endpoint from now on. One step: there is
    /// no moment in which nobody gets it.
    ///
    /// The socket may be bound elsewhere. The kernel drops the entry when the socket is closed or
    /// shut.
    ///
    /// # Errors
    /// What bpf(2) says; `AddrNotAvailable` for a socket that does not listen.
    pub(crate) fn steer(&self, endpoint: &Endpoint, socket: BorrowedFd) -> Result<()> {
        let socket = u64::try_from(socket.as_raw_fd()).map_err(|_| ErrorKind::InvalidInput)?;
        for key in Key::of(endpoint) {
            bpf::update(&self.sockets, &key.0, &socket.to_ne_bytes())?;
        }
        Ok(())
    }

    /// From now on what comes to the endpoint is refused.
    ///
    /// # Errors
    /// What bpf(2) says; that there is no entry is no error.
    pub(crate) fn park(&self, endpoint: &Endpoint) -> Result<()> {
        for key in Key::of(endpoint) {
            match bpf::delete(&self.sockets, &key.0) {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                outcome => outcome?,
            }
        }
        Ok(())
    }
}

/// An address that no listener is at, for one that cannot have its endpoint's own because a former
/// holder's copy of a socket is in the way: another for every generation, so that none can be in
/// the way of the next. IPv4: below 127.254/16; IPv6: of the discard prefix, RFC 6666.
///
/// For both families it is one of IPv4 written as IPv6: bound to any other address, a socket of IPv6
/// is for IPv6 only (`__inet6_bind` of the kernel's `net/ipv6/af_inet6.c`), while one that is bound to
/// such a one can be steered to for both.
pub(crate) fn aside(endpoint: &Endpoint, generation: u64) -> IpAddr {
    // 254 values each, never .0 and .255: the host parts that mean something else.
    let [high, low] = [(generation / 254) % 254, generation % 254];
    let part = |number: u64| u8::try_from(number + 1).unwrap_or(1);
    let loopback = Ipv4Addr::new(127, 254, part(high), part(low));
    match endpoint.address.ip() {
        IpAddr::V4(_) => loopback.into(),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) if !endpoint.v6_only => loopback.to_ipv6_mapped().into(),
        IpAddr::V6(_) => {
            let mut address = [0; 16];
            address[0] = 1;
            address[8..].copy_from_slice(&generation.to_be_bytes());
            Ipv6Addr::from(address).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, TcpListener, TcpStream};
    use std::os::fd::AsFd;

    use super::*;

    fn attach() -> Option<Steering> {
        match Steering::attach(1) {
            Ok(steering) => Some(steering),
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                eprintln!("SKIPPED: steering needs CAP_BPF and CAP_NET_ADMIN");
                None
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// The tests of `tests/it` try it on hosts of their own; this one runs where it may.
    #[test]
    fn a_port_of_ours_goes_to_the_socket_of_the_map_or_nowhere() {
        let Some(steering) = attach() else { return };
        let bystander = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = bystander.local_addr().unwrap();
        let elsewhere = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = Endpoint {
            address,
            v6_only: false,
            transport: Transport::Tcp,
        };
        assert!(
            TcpStream::connect(address).is_ok(),
            "a port that is not ours is left alone"
        );
        bystander.accept().unwrap();

        steering.own(address.port(), Transport::Tcp).unwrap();
        let refused = TcpStream::connect(address).unwrap_err();
        assert_eq!(
            refused.kind(),
            ErrorKind::ConnectionRefused,
            "parked, whoever listens there"
        );

        steering.steer(&endpoint, elsewhere.as_fd()).unwrap();
        let client = TcpStream::connect(address).unwrap();
        let (served, peer) = elsewhere.accept().unwrap();
        assert_eq!(peer, client.local_addr().unwrap());
        assert_eq!(
            served.local_addr().unwrap(),
            address,
            "the connection's own address is right"
        );

        steering.park(&endpoint).unwrap();
        steering.park(&endpoint).unwrap();
        assert!(TcpStream::connect(address).is_err());
    }

    #[test]
    fn of_many_ports_those_are_refused_that_are_ours_and_no_others() {
        let Some(steering) = attach() else { return };
        // So many that whatever bits the program looks at, they differ.
        let listeners: Vec<TcpListener> = (0..256)
            .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
            .collect();
        let addresses = listeners.iter().map(|known| known.local_addr().unwrap());
        let addresses: Vec<SocketAddr> = addresses.collect();
        for (number, address) in addresses.iter().enumerate() {
            match number % 2 {
                0 => steering.own(address.port(), Transport::Tcp).unwrap(),
                _ => steering.own(address.port(), Transport::Udp).unwrap(),
            }
        }
        for (number, address) in addresses.iter().enumerate() {
            let is_let_in = TcpStream::connect(address).is_ok();
            assert_eq!(is_let_in, number % 2 != 0, "{address}");
        }
        for address in &addresses {
            steering.disown(address.port(), Transport::Tcp).unwrap();
        }
        assert!(addresses.iter().all(|a| TcpStream::connect(a).is_ok()));
    }

    #[test]
    fn the_steering_of_an_earlier_agent_goes_on_and_is_taken_over() {
        let Some(steering) = attach() else { return };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let elsewhere = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = Endpoint {
            address,
            v6_only: false,
            transport: Transport::Tcp,
        };
        let (one, other) = (address.port(), address.port() ^ 1);
        steering.own(one, Transport::Tcp).unwrap();
        steering.own(other, Transport::Udp).unwrap();
        steering.steer(&endpoint, elsewhere.as_fd()).unwrap();
        let copies = |parts: Parts<BorrowedFd>| {
            let copy = |fd: BorrowedFd| fd.try_clone_to_owned().unwrap();
            Parts {
                link: copy(parts.link),
                ports: copy(parts.ports),
                sockets: copy(parts.sockets),
            }
        };
        let parts = copies(steering.parts());
        let room = steering.room();
        drop(steering);
        TcpStream::connect(address).unwrap();
        elsewhere.accept().unwrap();

        let found = Steering::found(parts).unwrap();
        assert_eq!(found.room(), room);
        TcpStream::connect(address).unwrap();
        elsewhere.accept().unwrap();
        found.retain([(one, Transport::Tcp)].into_iter()).unwrap();
        found.park(&endpoint).unwrap();
        assert!(TcpStream::connect(address).is_err(), "still ours");
        found.retain(std::iter::empty()).unwrap();
        TcpStream::connect(address).unwrap();
        listener.accept().unwrap();

        let mixed = |change: fn(&mut Parts<OwnedFd>)| {
            let mut parts = copies(found.parts());
            change(&mut parts);
            Steering::found(parts)
        };
        assert!(mixed(|parts| std::mem::swap(&mut parts.ports, &mut parts.sockets)).is_err());
        assert!(mixed(|parts| std::mem::swap(&mut parts.ports, &mut parts.link)).is_err());
        assert!(mixed(|parts| std::mem::swap(&mut parts.sockets, &mut parts.link)).is_err());
    }

    #[test]
    fn addresses_aside_differ_from_generation_to_generation() {
        let at = |address: &str, v6_only| Endpoint {
            address: SocketAddr::new(address.parse().unwrap(), 9000),
            v6_only,
            transport: Transport::Tcp,
        };
        let any = at("0.0.0.0", false);
        assert_eq!(aside(&any, 0).to_string(), "127.254.1.1");
        assert_eq!(aside(&any, 253).to_string(), "127.254.1.254");
        assert_eq!(aside(&any, 254).to_string(), "127.254.2.1");
        assert_eq!(aside(&at("::", false), 0).to_string(), "::ffff:127.254.1.1");
        for place in [at("::1", true), at("::", true)] {
            assert_eq!(aside(&place, 1).to_string(), "100::1");
            assert_eq!(aside(&place, 2).to_string(), "100::2");
        }
    }
}
