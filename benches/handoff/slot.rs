//! The system calls that a slot costs whoever passes it on: those of `src/sys/unix/hold.rs` and,
//! where the kernel lets us, `steer.rs`, in the agent's order and nothing else. What they cost is the price of the promises, not of the handoff.

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Socket, Type};

use crate::Outcome;
use crate::floor::timed;
use crate::map::Map;

/// A port that is reserved as the agent reserves it.
#[derive(Debug)]
pub(crate) struct Slot {
    port: u16,
    reservation: Socket,
    /// Where the agent may not steer, neither do we.
    map: Option<Rc<Map>>,
}

impl Slot {
    pub(crate) fn reserve(port: u16, map: Option<Rc<Map>>) -> Outcome<Slot> {
        let reservation = Socket::new(Domain::IPV6, Type::STREAM.cloexec(), None)?;
        reservation.set_only_v6(false)?;
        let any: SocketAddr = format!("[::]:{port}").parse()?;
        reservation.bind(&any.into())?;
        Ok(Slot {
            port,
            reservation,
            map,
        })
    }

    /// From parked to a listener that can be sent.
    pub(crate) fn listen(&self) -> Outcome<Socket> {
        let listener = Socket::new(Domain::IPV4, Type::STREAM.cloexec(), None)?;
        listener.set_reuse_port(true)?;
        listener.set_reuse_address(true)?;
        self.reservation.set_reuse_port(true)?;
        listener.bind(&SocketAddr::from(([127, 0, 0, 1], self.port)).into())?;
        listener.listen(4096)?;
        self.reservation.set_reuse_port(false)?;
        listener.set_reuse_port(false)?;
        let decoy = Socket::new(Domain::IPV4, Type::STREAM.cloexec(), None)?;
        setsockopt(&decoy.as_fd(), sockopt::TcpRepair, &1)?;
        decoy.bind(&SocketAddr::from(([127, 254, 254, 254], self.port)).into())?;
        drop(decoy);
        self.steer(&listener)?;
        listener.set_nonblocking(false)?;
        Ok(listener)
    }

    /// The same while another process has one, which goes on listening.
    pub(crate) fn listen_beside(&self, elder: &Socket) -> Outcome<Socket> {
        elder.set_reuse_address(true)?;
        elder.set_reuse_port(true)?;
        let listener = self.listen()?;
        elder.set_reuse_port(false)?;
        Ok(listener)
    }

    /// Makes a listener the one that gets the port's connections.
    pub(crate) fn steer(&self, listener: &Socket) -> Outcome {
        match &self.map {
            Some(map) => Ok(map.steer(self.port, listener.as_fd())?),
            None => Ok(()),
        }
    }

    /// From now on nobody gets them.
    pub(crate) fn park(&self) -> Outcome {
        match &self.map {
            Some(map) => Ok(map.park(self.port)?),
            None => Ok(()),
        }
    }

    /// Back to parked.
    pub(crate) fn end(&self, listener: Socket) -> Outcome {
        self.park()?;
        listener.shutdown(std::net::Shutdown::Both)?;
        drop(listener);
        Ok(())
    }

    /// What an acquire costs.
    pub(crate) fn time_to_listen(&self) -> Outcome<Duration> {
        let (took, listener) = timed(|| self.listen())?;
        self.end(listener)?;
        Ok(took)
    }

    /// What a release costs.
    pub(crate) fn time_to_end(&self) -> Outcome<Duration> {
        let listener = self.listen()?;
        let (took, ()) = timed(|| self.end(listener))?;
        Ok(took)
    }

    /// What both cost together.
    pub(crate) fn time_of_a_cycle(&self) -> Outcome<Duration> {
        let (took, ()) = timed(|| self.end(self.listen()?))?;
        Ok(took)
    }
}
