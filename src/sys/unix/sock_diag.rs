//! Who is bound to a port: `NETLINK_SOCK_DIAG`, sock_diag(7).

use std::io::{Error, ErrorKind, Result};
use std::net::IpAddr;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
    NetlinkSerializable,
};
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP, IPPROTO_UDP};
use netlink_packet_sock_diag::inet::{
    ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags,
};
use netlink_packet_sock_diag::{SockDiagDestroy, SockDiagMessage};
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_SOCK_DIAG;

use super::hold::Transport;

/// A socket that is bound to a port, listening or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BoundSocket {
    /// The port.
    pub(crate) port: u16,
    /// Its inode, which tells it from every other socket.
    pub(crate) inode: u64,
    /// The user it belongs to.
    pub(crate) uid: u32,
    /// The address it is bound to.
    pub(crate) address: IpAddr,
}

/// `TCP_BOUND_INACTIVE` of the kernel's `include/net/tcp_states.h`: bound, neither listening nor
/// connected. Kernels before 6.8 do not tell of such sockets.
const BOUND_INACTIVE: u32 = 1 << 13;

/// As a filter: every port.
const ANY_PORT: u16 = 0;

/// How much is read at a time; a reply of the kernel is at most this large.
const REPLY: usize = 32 * 1024;

/// Every socket of both families that is bound to the port and may keep others from it: for TCP
/// those that listen or are bound only, for UDP all of them.
///
/// # Errors
/// What the netlink socket says; `InvalidData` for an answer that is not understood.
pub(crate) fn bound_to(port: u16, transport: Transport) -> Result<Vec<BoundSocket>> {
    let mut found = all_bound_to(port, transport)?;
    found.retain(|socket| socket.port == port);
    Ok(found)
}

/// Those of all ports. The kernel goes through its whole tables for one port as well, so this is
/// the way to ask about several.
///
/// # Errors
/// Those of [`bound_to`].
pub(crate) fn bound(transport: Transport) -> Result<Vec<BoundSocket>> {
    all_bound_to(ANY_PORT, transport)
}

/// Connections of TCP by their ports here, but for those in TIME_WAIT, which nobody has any more.
/// One that was bound without SO_REUSEADDR keeps others from its port as well.
///
/// # Errors
/// Those of [`bound_to`].
pub(crate) fn connections() -> Result<Vec<BoundSocket>> {
    let states = StateFlags::all()
        .difference(StateFlags::TIME_WAIT | StateFlags::LISTEN | StateFlags::CLOSE);
    dump_both(ANY_PORT, IPPROTO_TCP, states)
}

/// A connection of TCP.
#[derive(Debug, Clone)]
pub(crate) struct Connection {
    family: u8,
    /// With its cookie, so that it means no other that is made between the same ends later.
    id: SocketId,
}

/// The connections at a port of this machine that somebody serves or may still accept.
///
/// # Errors
/// Those of [`bound_to`].
pub(crate) fn connections_at(port: u16) -> Result<Vec<Connection>> {
    let states = StateFlags::all()
        .difference(StateFlags::TIME_WAIT | StateFlags::LISTEN | StateFlags::CLOSE);
    let mut found = Vec::new();
    for family in [AF_INET, AF_INET6] {
        let request = request(family, port, IPPROTO_TCP, states.clone());
        dump(&request, |response| {
            let SocketId { source_port, .. } = response.header.socket_id;
            // One that is only half made has no socket yet.
            if source_port == port && response.header.inode != 0 {
                found.push(Connection {
                    family: response.header.family,
                    id: response.header.socket_id.clone(),
                });
            }
        })?;
    }
    Ok(found)
}

/// Ends connections, whoever has them: their peers see a reset, who has them `ECONNABORTED`. Gives
/// how many it ended; those that had ended already are not counted.
///
/// # Errors
/// `PermissionDenied` without `CAP_NET_ADMIN`, EOPNOTSUPP from a kernel without
/// `CONFIG_INET_DIAG_DESTROY`.
pub(crate) fn destroy(connections: &[Connection]) -> Result<u32> {
    let mut socket = socket()?;
    let mut destroyed = 0;
    for Connection { family, id } in connections {
        let request = InetRequest {
            family: *family,
            protocol: IPPROTO_TCP,
            extensions: ExtensionFlags::empty(),
            states: StateFlags::all(),
            socket_id: id.clone(),
        };
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | NLM_F_ACK;
        let destroy = SockDiagDestroy::new(SockDiagMessage::InetRequest(request));
        socket.send(&bytes(header, destroy), 0)?;
        match acknowledged(&mut socket) {
            Ok(()) => destroyed += 1,
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(destroyed)
}

fn acknowledged(socket: &mut Socket) -> Result<()> {
    let mut buffer = Vec::with_capacity(REPLY);
    let length = socket.recv(&mut buffer, 0)?;
    let answer = buffer.get(..length).unwrap_or_default();
    let message = NetlinkMessage::<SockDiagMessage>::deserialize(answer)
        .map_err(|error| Error::new(ErrorKind::InvalidData, error.to_string()))?;
    match message.payload {
        NetlinkPayload::Error(error) if error.code.is_some() => Err(error.to_io()),
        _ => Ok(()),
    }
}

fn all_bound_to(port: u16, transport: Transport) -> Result<Vec<BoundSocket>> {
    match transport {
        Transport::Tcp => {
            let bound = StateFlags::from_bits_retain(BOUND_INACTIVE);
            let states = StateFlags::LISTEN | StateFlags::CLOSE | bound;
            dump_both(port, IPPROTO_TCP, states)
        }
        Transport::Udp => dump_both(port, IPPROTO_UDP, StateFlags::all()),
    }
}

fn dump_both(port: u16, protocol: u8, states: StateFlags) -> Result<Vec<BoundSocket>> {
    let mut found = Vec::new();
    for family in [AF_INET, AF_INET6] {
        let request = request(family, port, protocol, states.clone());
        dump(&request, |response| found.push(BoundSocket::from(response)))?;
    }
    Ok(found)
}

fn socket() -> Result<Socket> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    socket.connect(&netlink_sys::SocketAddr::new(0, 0))?;
    Ok(socket)
}

fn dump(request: &[u8], mut found: impl FnMut(&InetResponse)) -> Result<()> {
    let socket = socket()?;
    socket.send(request, 0)?;

    let mut buffer = Vec::with_capacity(REPLY);
    loop {
        buffer.clear();
        let length = socket.recv(&mut buffer, 0)?;
        let mut rest = buffer.get(..length).unwrap_or_default();
        while !rest.is_empty() {
            let message = NetlinkMessage::<SockDiagMessage>::deserialize(rest)
                .map_err(|error| Error::new(ErrorKind::InvalidData, error.to_string()))?;
            let taken = usize::try_from(message.header.length)
                .unwrap_or(0)
                .next_multiple_of(4);
            match message.payload {
                NetlinkPayload::Done(_) => return Ok(()),
                NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => {
                    found(&response);
                }
                _ => {}
            }
            if taken == 0 {
                return Err(Error::from(ErrorKind::InvalidData));
            }
            rest = rest.get(taken..).unwrap_or_default();
        }
    }
}

impl From<&InetResponse> for BoundSocket {
    fn from(response: &InetResponse) -> BoundSocket {
        let header = &response.header;
        BoundSocket {
            port: header.socket_id.source_port,
            inode: u64::from(header.inode),
            uid: header.uid,
            address: header.socket_id.source_address,
        }
    }
}

fn request(family: u8, port: u16, protocol: u8, states: StateFlags) -> Vec<u8> {
    let mut socket_id = match family == AF_INET {
        true => SocketId::new_v4(),
        false => SocketId::new_v6(),
    };
    // The kernel leaves out sockets of other ports by itself: inet_diag_dump_icsk.
    socket_id.source_port = port;
    let request = InetRequest {
        family,
        protocol,
        extensions: ExtensionFlags::empty(),
        states,
        socket_id,
    };
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    bytes(header, SockDiagMessage::InetRequest(request))
}

fn bytes<T: NetlinkSerializable>(header: NetlinkHeader, message: T) -> Vec<u8> {
    let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_is_found_with_its_inode_address_and_user() {
        use std::os::fd::AsFd;
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let found = bound_to(port, Transport::Tcp).unwrap();
        let inode = rustix::fs::fstat(listener.as_fd()).unwrap().st_ino;
        let uid = rustix::process::geteuid().as_raw();
        let address = IpAddr::from([127, 0, 0, 1]);
        assert_eq!(
            found,
            [BoundSocket {
                port,
                inode,
                uid,
                address
            }]
        );
    }

    #[test]
    fn a_socket_that_is_only_bound_is_found_too() {
        let socket =
            socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::STREAM, None).unwrap();
        socket
            .bind(&std::net::SocketAddr::from(([0; 16], 0)).into())
            .unwrap();
        let port = socket.local_addr().unwrap().as_socket().unwrap().port();
        assert_eq!(bound_to(port, Transport::Tcp).unwrap().len(), 1);
    }

    #[test]
    fn a_connection_is_destroyed_for_both_its_ends() {
        use std::io::Read;
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let mut client = std::net::TcpStream::connect(address).unwrap();
        let (mut served, _) = listener.accept().unwrap();
        let found = connections_at(address.port()).unwrap();
        assert_eq!(
            found.len(),
            1,
            "the serving end, not the client's: {found:?}"
        );
        match destroy(&found) {
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                eprintln!("SKIPPED: destroying connections needs CAP_NET_ADMIN");
                return;
            }
            outcome => assert_eq!(outcome.unwrap(), 1),
        }
        let aborted = served.read(&mut [0]).unwrap_err();
        assert_eq!(aborted.kind(), ErrorKind::ConnectionAborted);
        let reset = client.read(&mut [0]).unwrap_err();
        assert_eq!(reset.kind(), ErrorKind::ConnectionReset);
        assert_eq!(destroy(&found).unwrap(), 0, "it is gone");
    }
}
