//! A place where sockets outlive this process: the queue of a Unix socket, whose two ends somebody
//! else keeps for us.
//!
//! What was sent with `SCM_RIGHTS` and not read stays open in the queue (unix(7)), however its
//! sender ends. Whoever gets the two ends after us can look at all of it without taking anything
//! out (`MSG_PEEK`), so that ending in the middle of that loses nothing either.
//!
//! A queue gives up nothing but its oldest message. So what is to go is marked as gone here, and the
//! queue is turned over a little with every change: its oldest message is sent again if anything of
//! it is wanted, and only then taken out.
// UNSAFETY: rustix has no name for SO_PEEK_OFF, nor for SO_SNDBUFFORCE.
#![expect(unsafe_code)]

use std::cell::RefCell;
use std::collections::{HashSet, VecDeque};
use std::io::{Error, ErrorKind, Result};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, socketpair};

use super::fd_passing;

/// The most sockets in one message: `SCM_MAX_FD` of the kernel's `include/net/scm.h`.
const MAX_FDS: usize = 253;

/// What says of a message that it is one of ours, and how it is laid out.
const VERSION: u8 = 1;

/// The longest label.
pub(crate) const MAX_LABEL: usize = 32;

/// The longest message: of as many things as there can be sockets in it.
const MAX_BYTES: usize = 1 + MAX_FDS * (2 + MAX_LABEL);

/// Bytes of kernel memory that the queue may use; a message needs about one thousand.
const ROOM: libc::c_int = 256 << 20;

/// So many things more that are gone than half of those that are not may lie in the queue.
const SLACK: usize = 4;

/// How many messages are turned over with one change, at most.
const AT_A_TIME: usize = 3;

/// Sockets that are kept, each few of them under a label.
#[derive(Debug)]
pub(crate) struct Shelf(Rc<RefCell<Queue>>);

#[derive(Debug)]
struct Queue {
    entrance: OwnedFd,
    exit: OwnedFd,
    /// What each message has, the oldest first.
    messages: VecDeque<Vec<u64>>,
    /// What is not gone.
    kept: HashSet<u64>,
    gone: usize,
    last: u64,
    /// Nothing is taken out: somebody else is to find all of it.
    is_left: bool,
}

/// That a thing is on the shelf, until this is dropped.
#[derive(Debug)]
pub(crate) struct Kept {
    queue: Rc<RefCell<Queue>>,
    number: u64,
}

/// A thing that was on a shelf of an earlier process, and still is.
#[derive(Debug)]
pub(crate) struct Found {
    /// What it was put there as.
    pub(crate) label: Vec<u8>,
    /// Its sockets, in their order.
    pub(crate) fds: Vec<OwnedFd>,
    /// It stays there with this.
    pub(crate) kept: Kept,
}

impl Shelf {
    /// An empty one.
    ///
    /// # Errors
    /// What socketpair(2) says.
    pub(crate) fn new() -> Result<Shelf> {
        let (entrance, exit) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )?;
        Ok(Shelf::of(entrance, exit))
    }

    fn of(entrance: OwnedFd, exit: OwnedFd) -> Shelf {
        if set_int(entrance.as_fd(), libc::SO_SNDBUFFORCE, ROOM).is_err() {
            // Without CAP_NET_ADMIN: as much as net.core.wmem_max allows.
            let _as_it_was = set_int(entrance.as_fd(), libc::SO_SNDBUF, ROOM);
        }
        Shelf(Rc::new(RefCell::new(Queue {
            entrance,
            exit,
            messages: VecDeque::new(),
            kept: HashSet::new(),
            gone: 0,
            last: 0,
            is_left: false,
        })))
    }

    /// The shelf of an earlier process, with all that is on it, and left as it is until
    /// [`Shelf::take`]: whoever ends before that has changed nothing.
    ///
    /// # Errors
    /// What setsockopt(2) and recvmsg(2) say, of descriptors that are no such sockets above all.
    /// Nothing was taken out then.
    pub(crate) fn found(entrance: OwnedFd, exit: OwnedFd) -> Result<(Shelf, Vec<Found>)> {
        let shelf = Shelf::of(entrance, exit);
        shelf.leave();
        let messages = shelf.0.borrow().look()?;
        let mut found = Vec::new();
        for (bytes, fds) in messages {
            let mut queue = shelf.0.borrow_mut();
            let mut numbers = Vec::new();
            let mut fds = fds.into_iter();
            for (label, count) in things(&bytes).unwrap_or_default() {
                let number = queue.next();
                numbers.push(number);
                queue.kept.insert(number);
                found.push(Found {
                    label: label.to_vec(),
                    fds: fds.by_ref().take(count).collect(),
                    kept: Kept {
                        queue: Rc::clone(&shelf.0),
                        number,
                    },
                });
            }
            queue.messages.push_back(numbers);
        }
        Ok((shelf, found))
    }

    /// From now on what is dropped is taken out, what was dropped before included.
    pub(crate) fn take(&self) {
        self.0.borrow_mut().is_left = false;
    }

    /// From now on nothing is taken out any more: this process ends, and another is to find all of it.
    pub(crate) fn leave(&self) {
        self.0.borrow_mut().is_left = true;
    }

    /// Puts sockets on the shelf under a label.
    ///
    /// # Errors
    /// `InvalidInput` for too many or too long a label; what sendmsg(2) says, `WouldBlock` where the
    /// queue is full: see [`ROOM`].
    pub(crate) fn put(&self, label: &[u8], fds: &[BorrowedFd]) -> Result<Kept> {
        let mut kept = self.put_all(&[(label, fds)])?;
        kept.pop().ok_or_else(|| ErrorKind::InvalidInput.into())
    }

    /// Puts several things there in as few messages as will do.
    ///
    /// # Errors
    /// Those of [`Shelf::put`]; none of them is there then.
    pub(crate) fn put_all(&self, things: &[(&[u8], &[BorrowedFd])]) -> Result<Vec<Kept>> {
        let mut all = Vec::with_capacity(things.len());
        let mut rest = things;
        while !rest.is_empty() {
            let mut sockets = 0;
            let fits = |(_, fds): &&(&[u8], &[BorrowedFd])| {
                sockets += fds.len();
                sockets <= MAX_FDS
            };
            let count = rest.iter().take(MAX_FDS).take_while(fits).count();
            let (now, later) = rest.split_at(count.max(1));
            let fds: Vec<BorrowedFd> = now
                .iter()
                .flat_map(|(_, fds)| fds.iter().copied())
                .collect();
            let described: Vec<_> = now.iter().map(|(label, fds)| (*label, fds.len())).collect();
            let mut queue = self.0.borrow_mut();
            queue.send(&bytes(&described)?, &fds)?;
            let numbers: Vec<u64> = now.iter().map(|_| queue.next()).collect();
            queue.kept.extend(&numbers);
            queue.messages.push_back(numbers.clone());
            drop(queue);
            all.extend(numbers.into_iter().map(|number| Kept {
                queue: Rc::clone(&self.0),
                number,
            }));
            rest = later;
        }
        Ok(all)
    }

    /// Closes all that is gone now: until then it lies in the queue for a while.
    ///
    /// # Errors
    /// What sendmsg(2) and recvmsg(2) say.
    pub(crate) fn settle(&self) -> Result<()> {
        let mut queue = self.0.borrow_mut();
        if queue.is_left {
            return Ok(());
        }
        let mut left = queue.messages.len();
        while queue.gone > 0 && left > 0 {
            queue.turn_one_over()?;
            left -= 1;
        }
        Ok(())
    }

    /// Copies of the two ends, for who is to keep them: the one to put things in, and the one to
    /// take them out.
    ///
    /// # Errors
    /// What fcntl(2) says.
    pub(crate) fn ends(&self) -> Result<(OwnedFd, OwnedFd)> {
        let queue = self.0.borrow();
        Ok((queue.entrance.try_clone()?, queue.exit.try_clone()?))
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let mut queue = self.queue.borrow_mut();
        if queue.kept.remove(&self.number) {
            queue.gone += 1;
            if !queue.is_left {
                queue.turn_over();
            }
        }
    }
}

impl Queue {
    fn next(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    fn send(&mut self, bytes: &[u8], fds: &[BorrowedFd]) -> Result<()> {
        match fd_passing::send(self.entrance.as_fd(), bytes, fds) {
            // Half of what is in there may be gone.
            Err(error) if error.kind() == ErrorKind::WouldBlock && self.gone > 0 => {
                while self.gone > 0 && self.turn_one_over().is_ok() {}
                fd_passing::send(self.entrance.as_fd(), bytes, fds).map(drop)
            }
            outcome => outcome.map(drop),
        }
    }

    fn turn_over(&mut self) {
        for _ in 0..AT_A_TIME {
            if self.gone <= self.kept.len() / 2 + SLACK {
                return;
            }
            if let Err(error) = self.turn_one_over() {
                // It is tried again with the next change; until then it is only longer than need be.
                tracing::debug!(%error, "cannot shorten the queue of stored sockets");
                return;
            }
        }
    }

    /// Sends the oldest message again, as far as it is wanted, and takes it out.
    fn turn_one_over(&mut self) -> Result<()> {
        let Some(numbers) = self.messages.front() else {
            self.gone = 0;
            return Ok(());
        };
        let wanted: Vec<bool> = numbers
            .iter()
            .map(|known| self.kept.contains(known))
            .collect();
        let gone = wanted.iter().filter(|wanted| !**wanted).count();
        if wanted.contains(&true) {
            let (bytes_of_all, fds) = self.peek()?;
            let all = things(&bytes_of_all).ok_or(ErrorKind::InvalidData)?;
            if all.len() != wanted.len() {
                return Err(ErrorKind::InvalidData.into());
            }
            let mut described = Vec::new();
            let mut sockets = Vec::new();
            let mut fds = fds.iter();
            for ((label, count), wanted) in all.into_iter().zip(&wanted) {
                let its = fds.by_ref().take(count).map(AsFd::as_fd);
                match wanted {
                    true => {
                        described.push((label, count));
                        sockets.extend(its);
                    }
                    false => its.for_each(drop),
                }
            }
            let described = bytes(&described)?;
            match fd_passing::send(self.entrance.as_fd(), &described, &sockets) {
                // Full: only for once, what we end with here is lost to who comes after us.
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.take_out()?;
                    if let Err(error) =
                        fd_passing::send(self.entrance.as_fd(), &described, &sockets)
                    {
                        self.messages.pop_front();
                        return Err(error);
                    }
                }
                outcome => {
                    outcome?;
                    self.take_out()?;
                }
            }
        } else {
            self.take_out()?;
        }
        let numbers = self.messages.pop_front().unwrap_or_default();
        let stay: Vec<u64> = numbers
            .into_iter()
            .filter(|known| self.kept.contains(known))
            .collect();
        if !stay.is_empty() {
            self.messages.push_back(stay);
        }
        self.gone = self.gone.saturating_sub(gone);
        Ok(())
    }

    /// Takes the oldest message out, without room for its descriptors: the kernel closes them.
    fn take_out(&self) -> Result<()> {
        rustix::net::recv(&self.exit, &mut [0u8; 1], RecvFlags::empty())?;
        Ok(())
    }

    fn peek(&self) -> Result<(Vec<u8>, Vec<OwnedFd>)> {
        let mut buffer = vec![0; MAX_BYTES];
        let mut fds = Vec::new();
        let length = fd_passing::peek(self.exit.as_fd(), &mut buffer, &mut fds)?;
        buffer.truncate(length);
        Ok((buffer, fds))
    }

    /// Everything, without taking it out: each look begins where the one before ended, `SO_PEEK_OFF`
    /// of socket(7).
    fn look(&self) -> Result<Vec<(Vec<u8>, Vec<OwnedFd>)>> {
        set_int(self.exit.as_fd(), libc::SO_PEEK_OFF, 0)?;
        let mut messages = Vec::new();
        let outcome = loop {
            match self.peek() {
                Ok((bytes, _)) if bytes.is_empty() => break Ok(()),
                Ok(message) => messages.push(message),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        set_int(self.exit.as_fd(), libc::SO_PEEK_OFF, -1)?;
        outcome.map(|()| messages)
    }
}

/// A message: the version, then of each thing how many sockets it has, how long its label is, and
/// the label.
fn bytes(things: &[(&[u8], usize)]) -> Result<Vec<u8>> {
    let mut bytes = vec![VERSION];
    for (label, count) in things {
        if label.len() > MAX_LABEL || *count > MAX_FDS {
            return Err(ErrorKind::InvalidInput.into());
        }
        bytes.push(u8::try_from(*count).unwrap_or(0));
        bytes.push(u8::try_from(label.len()).unwrap_or(0));
        bytes.extend_from_slice(label);
    }
    Ok(bytes)
}

fn things(bytes: &[u8]) -> Option<Vec<(&[u8], usize)>> {
    let (version, mut rest) = bytes.split_first()?;
    if *version != VERSION {
        return None;
    }
    let mut things = Vec::new();
    while let [count, length, more @ ..] = rest {
        let (label, later) = more.split_at_checked(usize::from(*length))?;
        things.push((label, usize::from(*count)));
        rest = later;
    }
    rest.is_empty().then_some(things)
}

fn set_int(socket: BorrowedFd, option: libc::c_int, value: libc::c_int) -> Result<()> {
    // SAFETY: the kernel reads one int from `value`, which outlives the call.
    let outcome = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
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

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    type Seen = (Vec<u8>, Vec<u64>);

    fn listener() -> (TcpListener, u64) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let inode = rustix::fs::fstat(&listener).unwrap().st_ino;
        (listener, inode)
    }

    /// The next shelf; the labels on it and the inodes of what is under them.
    fn again(shelf: &Shelf) -> (Shelf, Vec<Seen>, Vec<Kept>) {
        let (entrance, exit) = shelf.ends().unwrap();
        let (shelf, found) = Shelf::found(entrance, exit).unwrap();
        let mut kept = Vec::new();
        let inode = |fd: &OwnedFd| rustix::fs::fstat(fd).unwrap().st_ino;
        let mut all = Vec::new();
        for thing in found {
            all.push((thing.label, thing.fds.iter().map(inode).collect()));
            kept.push(thing.kept);
        }
        all.sort();
        (shelf, all, kept)
    }

    #[test]
    fn what_is_on_the_shelf_is_found_by_the_next_and_by_the_one_after() {
        let shelf = Shelf::new().unwrap();
        let (a, a_inode) = listener();
        let (b, b_inode) = listener();
        let _one = shelf.put(b"one", &[a.as_fd()]).unwrap();
        let _two = shelf.put(b"two", &[b.as_fd(), a.as_fd()]).unwrap();
        drop((a, b));
        let wanted = vec![
            (b"one".to_vec(), vec![a_inode]),
            (b"two".to_vec(), vec![b_inode, a_inode]),
        ];
        let (next, found, _kept) = again(&shelf);
        assert_eq!(found, wanted);
        let (_after, found, _kept) = again(&next);
        assert_eq!(found, wanted, "to look takes nothing out");
    }

    #[test]
    fn what_is_gone_is_gone_and_what_is_not_stays_however_much_changes() {
        let shelf = Shelf::new().unwrap();
        let (stays, inode) = listener();
        let many: Vec<_> = (0..600).map(|_| (&b"many"[..], [stays.as_fd()])).collect();
        let many: Vec<_> = many.iter().map(|(label, fds)| (*label, &fds[..])).collect();
        let _many = shelf.put_all(&many).unwrap();
        assert_eq!(shelf.0.borrow().messages.len(), 3, "253 in a message");
        let _one = shelf.put(b"one", &[stays.as_fd()]).unwrap();
        for _ in 0..2000 {
            let (passing, _) = listener();
            drop(shelf.put(b"passing", &[passing.as_fd()]).unwrap());
        }
        let length = shelf.0.borrow().messages.len();
        assert!(length < 320, "{length} messages");
        let (_next, found, _kept) = again(&shelf);
        let of = |label: &[u8]| found.iter().filter(|(known, _)| known == label).count();
        assert_eq!((of(b"one"), of(b"many")), (1, 600));
        assert!(
            found
                .iter()
                .all(|(label, fds)| label != b"one" || *fds == [inode])
        );
    }

    #[test]
    fn whoever_ends_leaves_everything_and_whoever_only_looked_has_changed_nothing() {
        let shelf = Shelf::new().unwrap();
        let (socket, _) = listener();
        let many: Vec<_> = (0..60).map(|_| (&b"x"[..], [socket.as_fd()])).collect();
        let many: Vec<_> = many.iter().map(|(label, fds)| (*label, &fds[..])).collect();
        let kept = shelf.put_all(&many).unwrap();
        let single: Vec<_> = (0..60)
            .map(|_| shelf.put(b"y", &[socket.as_fd()]).unwrap())
            .collect();
        shelf.leave();
        drop((kept, single));
        let (looked, found, kept) = again(&shelf);
        assert_eq!(found.len(), 120);
        drop((looked, kept));
        let (next, found, mut kept) = again(&shelf);
        assert_eq!(found.len(), 120, "it only looked");
        kept.truncate(10);
        next.take();
        next.settle().unwrap();
        assert_eq!(again(&next).1.len(), 10);
    }

    #[test]
    fn what_is_gone_can_be_closed_at_once() {
        let shelf = Shelf::new().unwrap();
        let (stays, _) = listener();
        let (goes, _) = listener();
        let address = goes.local_addr().unwrap();
        let _stays = shelf.put(b"stays", &[stays.as_fd()]).unwrap();
        let two = [(&b"a"[..], &[goes.as_fd()][..]), (b"b", &[stays.as_fd()])];
        let mut kept = shelf.put_all(&two).unwrap();
        drop((goes, kept.remove(0)));
        assert!(TcpListener::bind(address).is_err());
        shelf.settle().unwrap();
        TcpListener::bind(address).unwrap();
        assert_eq!(again(&shelf).1.len(), 2);
    }

    #[test]
    fn a_shelf_that_is_full_says_so_and_keeps_what_it_has() {
        let shelf = Shelf::new().unwrap();
        set_int(shelf.0.borrow().entrance.as_fd(), libc::SO_SNDBUF, 4096).unwrap();
        let (socket, _) = listener();
        let mut kept = Vec::new();
        let error = loop {
            match shelf.put(b"x", &[socket.as_fd()]) {
                Ok(thing) => kept.push(thing),
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
        let count = kept.len();
        kept.pop();
        kept.push(shelf.put(b"x", &[socket.as_fd()]).expect("room was made"));
        assert_eq!(again(&shelf).1.len(), count);
    }

    #[test]
    fn strange_messages_are_not_understood() {
        assert_eq!(things(b""), None);
        assert_eq!(things(&[2, 1, 0]), None, "another version");
        assert_eq!(things(&[VERSION, 1, 9, 0]), None, "shorter than it says");
        assert_eq!(things(&[VERSION, 1]), None);
        assert_eq!(things(&[VERSION, 1, 1, 7]), Some(vec![(&[7u8][..], 1)]));
    }

    #[test]
    fn descriptors_that_are_no_shelf_are_refused() {
        let file = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        assert!(Shelf::found(file(), file()).is_err());
    }
}
