//! Sockets that hold a port, and listeners beside them.
//!
//! A *reservation* is bound to `[::]:port` with neither SO_REUSEADDR nor SO_REUSEPORT and never
//! listens: it keeps everybody else from binding that port on any address of either family,
//! whatever becomes of the listener. A *listener* on the address that a service is reached at
//! joins it by SO_REUSEPORT, which both have for the moment of bind and listen only. The kernel
//! lets in by SO_REUSEPORT only sockets of the same user (`inet_bind_conflict` of
//! `net/ipv4/inet_connection_sock.c`).
// UNSAFETY: socket2 has no name for TCP_REPAIR, TCP_INFO and SO_LOCK_FILTER.
#![expect(unsafe_code)]

use std::io::{Error, ErrorKind, Result};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use super::fence;
use socket2::{Domain, SockFilter, SockRef, Socket, Type};

/// What a port speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Transport {
    /// Stream sockets, which listen.
    Tcp,
    /// Datagram sockets.
    Udp,
}

/// Where a listener is to listen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Endpoint {
    /// The address and the port.
    pub(crate) address: SocketAddr,
    /// For IPv6: not for IPv4 as well.
    pub(crate) v6_only: bool,
    /// What it speaks.
    pub(crate) transport: Transport,
}

impl Endpoint {
    /// Whether it takes connections.
    pub(crate) fn is_tcp(&self) -> bool {
        self.transport == Transport::Tcp
    }
}

/// Reserves a port on every address of both families; where IPv6 is off, of IPv4.
///
/// # Errors
/// `AddrInUse` when anybody has the port on any address, listening or not; `PermissionDenied`
/// below `ip_unprivileged_port_start` without `CAP_NET_BIND_SERVICE`; else what socket(2) and
/// bind(2) say. Nothing is held then.
pub(crate) fn reserve(port: u16, transport: Transport) -> Result<OwnedFd> {
    match reserve_in(Domain::IPV6, port, transport) {
        Err(error) if is_no_ipv6(&error) => reserve_in(Domain::IPV4, port, transport),
        outcome => outcome,
    }
}

/// Reserves a port beside listeners that our user has made before, and of which we have copies.
///
/// # Errors
/// Those of [`reserve`].
pub(crate) fn reserve_beside(
    port: u16,
    transport: Transport,
    copies: &[BorrowedFd],
) -> Result<OwnedFd> {
    let share = |is_shared| {
        let mut sockets = copies.iter().map(SockRef::from);
        sockets.try_for_each(|socket| socket.set_reuse_port(is_shared))
    };
    let outcome = share(true).and_then(|()| {
        let outcome = bind_beside(Domain::IPV6, port, transport);
        match outcome {
            Err(error) if is_no_ipv6(&error) => bind_beside(Domain::IPV4, port, transport),
            outcome => outcome,
        }
    });
    share(false)?;
    outcome
}

fn bind_beside(domain: Domain, port: u16, transport: Transport) -> Result<OwnedFd> {
    let any: IpAddr = match domain == Domain::IPV6 {
        true => Ipv6Addr::UNSPECIFIED.into(),
        false => Ipv4Addr::UNSPECIFIED.into(),
    };
    let endpoint = Endpoint {
        address: SocketAddr::new(any, port),
        v6_only: false,
        transport,
    };
    let socket = new_socket(&endpoint)?;
    if transport == Transport::Udp {
        // Before it is bound: what it took from others would be lost.
        drop_everything(&socket)?;
    }
    socket.set_reuse_port(true)?;
    if transport == Transport::Tcp {
        // Its holder's connections do not share the port by the other option.
        socket.set_reuse_address(true)?;
    }
    socket.bind(&endpoint.address.into())?;
    if transport == Transport::Tcp {
        forget_reuse_port(&endpoint)?;
        socket.set_reuse_address(false)?;
    }
    socket.set_reuse_port(false)?;
    Ok(socket.into())
}

fn is_no_ipv6(error: &Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)
    )
}

fn reserve_in(domain: Domain, port: u16, transport: Transport) -> Result<OwnedFd> {
    let any: IpAddr = match domain == Domain::IPV6 {
        true => Ipv6Addr::UNSPECIFIED.into(),
        false => Ipv4Addr::UNSPECIFIED.into(),
    };
    let endpoint = Endpoint {
        address: SocketAddr::new(any, port),
        v6_only: false,
        transport,
    };
    let socket = new_socket(&endpoint)?;
    let address = endpoint.address.into();
    match socket.bind(&address) {
        // Connections of a former holder, or what is left of them in TIME_WAIT, are no holders.
        Err(error) if error.kind() == ErrorKind::AddrInUse && transport == Transport::Tcp => {
            socket.set_reuse_address(true)?;
            socket.bind(&address)?;
            socket.set_reuse_address(false)?;
            // With SO_REUSEADDR the kernel lets us in beside anybody who has set it too and does
            // not listen. From here on nobody else gets in, so whoever did is there to be seen.
            refuse_company(&socket, port, transport)?;
        }
        outcome => outcome?,
    }
    if transport == Transport::Udp {
        // It is never read: without this its queue would fill with strangers' datagrams.
        drop_everything(&socket)?;
    }
    Ok(socket.into())
}

fn refuse_company(socket: &Socket, port: u16, transport: Transport) -> Result<()> {
    let own = rustix::fs::fstat(socket)?.st_ino;
    let bound = super::sock_diag::bound_to(port, transport)?;
    match bound.iter().all(|other| other.inode == own) {
        true => Ok(()),
        false => Err(Error::from_raw_os_error(libc::EADDRINUSE)),
    }
}

/// Our copies of a slot's earlier listeners at an endpoint, which others may still have, too.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Company<'a> {
    /// They make room for another listener; one that listens goes on.
    pub(crate) copies: &'a [BorrowedFd<'a>],
    /// Without steering: the one that gets the connections, and goes on getting all of them until
    /// [`super::fence::favour`] says otherwise.
    pub(crate) elder: Option<BorrowedFd<'a>>,
}

/// How often a listener is tried to be made beside copies of others': a copy's owner can take back
/// at once what was set on it for us. One that does so in a loop is outrun in a few tries, mostly.
const TRIES_BESIDE_COPIES: usize = 64;

/// Makes a listener (for UDP: a bound socket) at an endpoint whose port is reserved by
/// `reservation`. The socket blocks and is close-on-exec.
///
/// # Errors
/// `AddrInUse` when a socket of an ex-holder is in the way, `AddrNotAvailable` when the address
/// does not exist on this machine, else what bind(2) and listen(2) say. The reservation stays as
/// it was.
pub(crate) fn listen(
    reservation: BorrowedFd,
    company: Company,
    endpoint: &Endpoint,
    backlog: i32,
) -> Result<OwnedFd> {
    if let Some(elder) = company.elder {
        favour_elder(elder)?;
    }
    let try_it = || {
        join(reservation, company, endpoint, endpoint.address, |socket| {
            start(socket, endpoint, backlog)?;
            match company.elder {
                // Again: whoever has the elder may have locked its filter.
                Some(_) => fence::favour(socket.as_fd(), fence::Member::Elder),
                None => Ok(()),
            }
        })
    };
    let socket = with_patience(company, try_it)?;
    if endpoint.transport == Transport::Udp
        && endpoint.address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED)
    {
        come_first(&socket, endpoint)?;
    }
    Ok(socket)
}

/// Keeps all connections where they are before there is a second listener, if the socket lets us.
fn favour_elder(elder: BorrowedFd) -> Result<()> {
    match fence::favour(elder, fence::Member::Elder) {
        // SO_LOCK_FILTER: the new one will say so, a moment late.
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Ok(()),
        outcome => outcome,
    }
}

fn with_patience<T>(company: Company, mut try_it: impl FnMut() -> Result<T>) -> Result<T> {
    let mut outcome = try_it();
    if company.copies.is_empty() {
        return outcome;
    }
    for _ in 1..TRIES_BESIDE_COPIES {
        match &outcome {
            Err(error) if error.kind() == ErrorKind::AddrInUse => outcome = try_it(),
            _ => break,
        }
    }
    outcome
}

fn start(socket: &Socket, endpoint: &Endpoint, backlog: i32) -> Result<()> {
    match endpoint.transport {
        Transport::Tcp => socket.listen(backlog),
        Transport::Udp => Ok(()),
    }
}

/// Makes a listener that was shut listen again, at the place it is bound to. `copies` are all of
/// ours at that endpoint, that listener's own among them: they let it in, and share with it no longer
/// afterwards.
///
/// # Errors
/// `AddrInUse` when something is in the way, else what listen(2) says.
pub(crate) fn relisten(
    reservation: BorrowedFd,
    listener: BorrowedFd,
    copies: &[BorrowedFd],
    endpoint: &Endpoint,
    backlog: i32,
) -> Result<()> {
    let company = Company {
        copies,
        elder: None,
    };
    // Shut a second time, a socket remembers it, and so would each of its connections (`inet_shutdown`
    // of the kernel's net/ipv4/af_inet.c). What is disconnected forgets that, and stays bound.
    rustix::net::connect_unspec(listener)?;
    with_patience(company, || {
        let _room = make_room(reservation, company, endpoint.transport)?;
        SockRef::from(&listener).listen(backlog)?;
        forget_reuse_port(endpoint)
    })
}

/// Puts a UDP socket on [::] before the reservation.
///
/// Of equally good sockets the kernel gives a datagram to the first it finds (`udp6_lib_lookup2` of
/// its `net/ipv6/udp.c`), and an IPv6 socket that was bound with SO_REUSEPORT it finds last: the
/// reservation would eat everything. Connecting gives the socket another address, disconnecting the
/// wildcard again, and with that the first place (`udp_lib_rehash` of `net/ipv4/udp.c`). No datagram
/// is sent.
fn come_first(socket: &OwnedFd, endpoint: &Endpoint) -> Result<()> {
    let port = endpoint.address.port();
    let connect = |to: Ipv6Addr| rustix::net::connect(socket, &SocketAddr::from((to, port)));
    match connect(Ipv6Addr::LOCALHOST) {
        // Where IPv6 is off there is no ::1, but a socket of both families has IPv4.
        Err(_) if !endpoint.v6_only => connect(Ipv4Addr::LOCALHOST.to_ipv6_mapped())?,
        outcome => outcome?,
    }
    Ok(rustix::net::connect_unspec(socket)?)
}

/// Makes a listener as [`listen`] does, but bound to another address, which the machine need not
/// have: IP_FREEBIND of ip(7). Only steering brings it the endpoint's connections.
///
/// Where that address's port is taken, too, by a copy on all addresses, it is another port of it.
///
/// # Errors
/// Those of [`listen`].
pub(crate) fn listen_aside(
    reservation: BorrowedFd,
    endpoint: &Endpoint,
    aside: IpAddr,
    backlog: i32,
) -> Result<OwnedFd> {
    let start = |socket: &Socket| start(socket, endpoint, backlog);
    let address = SocketAddr::new(aside, endpoint.address.port());
    match join(reservation, Company::default(), endpoint, address, start) {
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            let socket = new_socket(endpoint)?;
            bind_anywhere(&socket, SocketAddr::new(aside, ANY_PORT))?;
            start(&socket)?;
            Ok(socket.into())
        }
        outcome => outcome,
    }
}

/// As a port to bind to: one that the kernel chooses.
const ANY_PORT: u16 = 0;

/// Whether [`listen`] would get as far as listening.
///
/// # Errors
/// Those of [`listen`].
pub(crate) fn can_listen(
    reservation: BorrowedFd,
    company: Company,
    endpoint: &Endpoint,
) -> Result<()> {
    let try_it = || join(reservation, company, endpoint, endpoint.address, |_| Ok(()));
    with_patience(company, try_it).map(drop)
}

/// Binds a socket beside the reservation and goes on with it while all have SO_REUSEPORT.
fn join(
    reservation: BorrowedFd,
    company: Company,
    endpoint: &Endpoint,
    address: SocketAddr,
    go_on: impl FnOnce(&Socket) -> Result<()>,
) -> Result<OwnedFd> {
    let socket = new_socket(endpoint)?;
    socket.set_reuse_port(true)?;
    if endpoint.transport == Transport::Tcp {
        // Kept for good: its connections inherit it, and one in TIME_WAIT without it would keep a
        // later listener away.
        socket.set_reuse_address(true)?;
    }
    let room = make_room(reservation, company, endpoint.transport)?;
    match address == endpoint.address {
        true => socket.bind(&address.into())?,
        false => bind_anywhere(&socket, address)?,
    }
    go_on(&socket)?;
    if endpoint.transport == Transport::Tcp {
        forget_reuse_port(endpoint)?;
    }
    drop(room);
    if company.elder.is_none() {
        socket.set_reuse_port(false)?;
    }
    Ok(socket.into())
}

fn bind_anywhere(socket: &Socket, address: SocketAddr) -> Result<()> {
    match address {
        SocketAddr::V4(_) => socket.set_freebind_v4(true)?,
        SocketAddr::V6(_) => socket.set_freebind_v6(true)?,
    }
    socket.bind(&address.into())
}

/// Sockets that let another one of ours in beside them by SO_REUSEPORT, as long as this lives.
struct Room<'a> {
    reservation: BorrowedFd<'a>,
    copies: &'a [BorrowedFd<'a>],
}

fn make_room<'a>(
    reservation: BorrowedFd<'a>,
    company: Company<'a>,
    transport: Transport,
) -> Result<Room<'a>> {
    let room = Room {
        reservation,
        copies: company.copies,
    };
    for copy in company.copies.iter().chain(&company.elder) {
        let socket = SockRef::from(copy);
        if transport == Transport::Tcp {
            socket.set_reuse_address(true)?;
        }
        socket.set_reuse_port(true)?;
    }
    SockRef::from(&reservation).set_reuse_port(true)?;
    Ok(room)
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        for socket in [self.reservation].iter().chain(self.copies) {
            if let Err(error) = SockRef::from(socket).set_reuse_port(false) {
                // The kernel has no reason to: sk_setsockopt of its net/core/sock.c.
                tracing::error!(%error, "cannot close a port to its own user's sockets again");
            }
        }
    }
}

/// Makes the kernel forget that SO_REUSEPORT was welcome on this port, while it still is.
///
/// It remembers that of the last socket that bound (`fastreuseport` of `inet_csk_get_port`) and
/// would let in further sockets of our user by it, though no socket has the flag any more. A
/// socket that binds by force (TCP_REPAIR, `CAP_NET_ADMIN`) clears the memory; without the
/// capability it is made to remember an address that nobody wants.
fn forget_reuse_port(endpoint: &Endpoint) -> Result<()> {
    let port = endpoint.address.port();
    let nowhere = SocketAddr::from((Ipv4Addr::new(127, 254, 254, 254), port));
    let decoy = Socket::new(Domain::IPV4, Type::STREAM.cloexec(), None)?;
    match set_int(decoy.as_fd(), libc::IPPROTO_TCP, libc::TCP_REPAIR, 1) {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => decoy.set_reuse_port(true)?,
        Err(error) => return Err(error),
    }
    decoy.bind(&nowhere.into())
}

/// Ends a listener for everybody who has a copy of it: what waits in its queue is reset, and no
/// copy accepts again. It stays bound until its last copy is closed.
///
/// For UDP, which cannot be shut, no copy gets another datagram, nor keeps one from a socket beside
/// it.
pub(crate) fn end(listener: BorrowedFd, endpoint: &Endpoint) {
    let socket = SockRef::from(&listener);
    // None can fail in a way that leaves something to do: a listener that its holder has shut is
    // ENOTCONN, a filter that its holder has locked is EPERM.
    match endpoint.transport {
        Transport::Tcp => drop(socket.shutdown(std::net::Shutdown::Both)),
        Transport::Udp => {
            drop(drop_everything(&socket));
            let _not_even_that = hide(listener, endpoint);
        }
    }
}

/// Makes datagrams find other sockets at the endpoint than this one: connected to its own address,
/// it is for no other sender's, udp(7).
///
/// # Errors
/// What connect(2) says.
pub(crate) fn hide(socket: BorrowedFd, endpoint: &Endpoint) -> Result<()> {
    let itself = SocketAddr::new(local_address(endpoint.address.ip()), DISCARD);
    Ok(rustix::net::connect(socket, &itself)?)
}

/// The socket is for everybody's datagrams again, and the first to be found; see [`hide`].
///
/// # Errors
/// What connect(2) says.
pub(crate) fn show(socket: BorrowedFd) -> Result<()> {
    Ok(rustix::net::connect_unspec(socket)?)
}

/// The port of the discard service, RFC 863: nobody sends from it.
const DISCARD: u16 = 9;

fn local_address(bound: IpAddr) -> IpAddr {
    match bound {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
        address => address,
    }
}

/// Whether the machine has the address: bind(2) to any port of it works.
///
/// # Errors
/// What socket(2) and bind(2) say beside `AddrNotAvailable`.
pub(crate) fn address_exists(address: IpAddr) -> Result<bool> {
    let probe = Socket::new(
        Domain::for_address(SocketAddr::new(address, 0)),
        Type::DGRAM.cloexec(),
        None,
    )?;
    match probe.bind(&SocketAddr::new(address, 0).into()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::AddrNotAvailable => Ok(false),
        Err(error) => Err(error),
    }
}

/// How many connections wait in a listener's queue, and how many may: `TCP_INFO` of tcp(7), which
/// has them for a listening socket (`tcp_get_info` of the kernel's `net/ipv4/tcp.c`). `None` for a
/// socket that does not listen.
pub(crate) fn accept_queue(listener: BorrowedFd) -> Option<(u32, u32)> {
    const TCP_LISTEN: u8 = 10;
    let mut info = std::mem::MaybeUninit::<libc::tcp_info>::zeroed();
    let mut length = libc::socklen_t::try_from(size_of::<libc::tcp_info>()).ok()?;
    // SAFETY: the kernel writes at most `length` bytes to `info`, which has that many, and the
    // length to `length`; both outlive the call.
    let outcome = unsafe {
        libc::getsockopt(
            listener.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if outcome != 0 {
        return None;
    }
    // SAFETY: tcp_info is integers only; all of it was zeroed, then partly overwritten.
    let info = unsafe { info.assume_init() };
    (info.tcpi_state == TCP_LISTEN).then_some((info.tcpi_unacked, info.tcpi_sacked))
}

/// Makes accept(2) and its kin block again: a former user of the socket may have set O_NONBLOCK,
/// which lives on the shared socket.
///
/// # Errors
/// What fcntl(2) says.
pub(crate) fn set_blocking(listener: BorrowedFd) -> Result<()> {
    SockRef::from(&listener).set_nonblocking(false)
}

fn new_socket(endpoint: &Endpoint) -> Result<Socket> {
    let kind = match endpoint.transport {
        Transport::Tcp => Type::STREAM,
        Transport::Udp => Type::DGRAM,
    };
    let domain = Domain::for_address(endpoint.address);
    let socket = Socket::new(domain, kind.cloexec(), None)?;
    if domain == Domain::IPV6 {
        // The machine's default, net.ipv6.bindv6only, decides nothing here.
        socket.set_only_v6(endpoint.v6_only)?;
    }
    Ok(socket)
}

/// `BPF_RET | BPF_K` of the kernel's `include/uapi/linux/bpf_common.h`: return a constant.
const RETURN_CONSTANT: u16 = 0x06;

/// A filter that keeps 0 bytes of every packet, and so drops it; locked, so that no copy of the
/// socket can take it away: socket(7), SO_ATTACH_FILTER and SO_LOCK_FILTER.
fn drop_everything(socket: &Socket) -> Result<()> {
    socket.attach_filter(&[SockFilter::new(RETURN_CONSTANT, 0, 0, 0)])?;
    set_int(socket.as_fd(), libc::SOL_SOCKET, libc::SO_LOCK_FILTER, 1)
}

pub(super) fn set_int(
    socket: BorrowedFd,
    level: i32,
    option: i32,
    value: libc::c_int,
) -> Result<()> {
    // SAFETY: the kernel reads one int from `value`, which outlives the call.
    let outcome = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            libc::socklen_t::try_from(size_of::<libc::c_int>()).unwrap_or(0),
        )
    };
    match outcome {
        0 => Ok(()),
        _ => Err(Error::last_os_error()),
    }
}
