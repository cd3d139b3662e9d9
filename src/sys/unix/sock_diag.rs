//! Who is bound to a port: `NETLINK_SOCK_DIAG`, sock_diag(7).

use std::io::{Error, ErrorKind, Result};
use std::net::IpAddr;

use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP, IPPROTO_UDP};
use netlink_packet_sock_diag::inet::{
    ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags,
};
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
        dump(&request(family, port, protocol, states.clone()), &mut found)?;
    }
    Ok(found)
}

fn dump(request: &[u8], found: &mut Vec<BoundSocket>) -> Result<()> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    socket.connect(&netlink_sys::SocketAddr::new(0, 0))?;
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
                    found.push(BoundSocket::from(&*response));
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
    let mut message = NetlinkMessage::new(
        header,
        NetlinkPayload::from(SockDiagMessage::InetRequest(request)),
    );
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
}
