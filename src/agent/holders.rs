//! The processes that have leases, or may take some: each watched by its pidfd.

use std::collections::HashMap;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::rc::Rc;

use tokio::task::AbortHandle;

use crate::config::OnRevoke;
use crate::ledger::HolderId;
use crate::sys::ended::Ended;
use crate::sys::peer::{Identity, Peer};

/// A process that is watched.
#[derive(Debug)]
pub(crate) struct Holder {
    /// Its process id.
    pub(crate) pid: u32,
    /// Its user id when it connected.
    pub(crate) uid: u32,
    /// What it called itself last.
    pub(crate) label: Option<String>,
    /// The signal it wants, instead of the pool's, when it loses what it has.
    pub(crate) on_revoke: Option<OnRevoke>,
    /// Its unit and its name when it first asked for something.
    pub(crate) facts: Option<(Option<String>, String)>,
    identity: Identity,
    /// Its open connections; while there is one it stays known without a lease.
    connections: usize,
    process: Rc<Ended>,
    watch: AbortHandle,
}

impl Holder {
    /// What tells the process from every other.
    pub(crate) fn identity(&self) -> Identity {
        self.identity
    }

    /// The process itself.
    pub(crate) fn pidfd(&self) -> BorrowedFd<'_> {
        self.process.pidfd()
    }
}

/// Every process that is watched.
#[derive(Debug, Default)]
pub(crate) struct Holders {
    known: HashMap<HolderId, Holder>,
    by_identity: HashMap<Identity, HolderId>,
    last: u64,
}

impl Holders {
    /// A process by its id.
    pub(crate) fn get(&self, holder: HolderId) -> Option<&Holder> {
        self.known.get(&holder)
    }

    /// Whether the process lives: asked of the kernel, which knows before its end is seen here.
    pub(crate) fn is_alive(&self, holder: HolderId) -> bool {
        self.known
            .get(&holder)
            .is_some_and(|holder| holder.process.is_not_yet())
    }

    /// Counts a connection of a process, which is known by the same id over all of them.
    /// `watch` begins to wait for the end of a process seen for the first time.
    ///
    /// # Errors
    /// What `watch` says; nothing is counted then.
    pub(crate) fn connected(
        &mut self,
        peer: Peer,
        watch: impl FnOnce(HolderId, OwnedFd) -> io::Result<(Rc<Ended>, AbortHandle)>,
    ) -> io::Result<HolderId> {
        if let Some(id) = self.by_identity.get(&peer.identity) {
            if let Some(holder) = self.known.get_mut(id) {
                holder.connections += 1;
            }
            return Ok(*id);
        }
        self.last += 1;
        let id = HolderId(self.last);
        let (process, watch) = watch(id, peer.pidfd)?;
        let Peer {
            pid, uid, identity, ..
        } = peer;
        self.known.insert(
            id,
            Holder {
                pid,
                uid,
                label: None,
                on_revoke: None,
                facts: None,
                identity,
                connections: 1,
                process,
                watch,
            },
        );
        self.by_identity.insert(identity, id);
        Ok(id)
    }

    /// A process that an earlier agent knew, without any connection.
    ///
    /// # Errors
    /// What `watch` says.
    pub(crate) fn revived(
        &mut self,
        peer: Peer,
        watch: impl FnOnce(HolderId, OwnedFd) -> io::Result<(Rc<Ended>, AbortHandle)>,
    ) -> io::Result<HolderId> {
        let id = self.connected(peer, watch)?;
        self.disconnected(id);
        Ok(id)
    }

    /// An id for a process that is not there any more.
    pub(crate) fn of_the_dead(&mut self) -> HolderId {
        self.last += 1;
        HolderId(self.last)
    }

    /// A process by its id, to change what is known of it.
    pub(crate) fn get_mut(&mut self, holder: HolderId) -> Option<&mut Holder> {
        self.known.get_mut(&holder)
    }

    /// A connection of the process has ended.
    pub(crate) fn disconnected(&mut self, holder: HolderId) {
        if let Some(holder) = self.known.get_mut(&holder) {
            holder.connections -= 1;
        }
    }

    /// Forgets a process that has neither a connection nor, as the caller knows, a lease.
    pub(crate) fn forget_unconnected(&mut self, holder: HolderId) {
        if self
            .known
            .get(&holder)
            .is_some_and(|holder| holder.connections == 0)
        {
            self.forget(holder);
        }
    }

    /// Forgets a process that has ended.
    pub(crate) fn forget(&mut self, holder: HolderId) {
        if let Some(holder) = self.known.remove(&holder) {
            self.by_identity.remove(&holder.identity);
            holder.watch.abort();
        }
    }
}
