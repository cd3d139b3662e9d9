//! What is due at a time: restart windows that end, waiters whose time is over, listeners that may
//! be healed again.

use std::rc::Rc;
use std::time::Duration;

use super::core::Shared;
use crate::ledger::Event;
use crate::sys::clock::since_boot;

/// Timers go off a little early: looking again at once would be in a loop.
const AT_LEAST: Duration = Duration::from_millis(1);

/// Tells the ledger when something is due. Never returns.
pub(crate) async fn keep(agent: Shared) {
    let earlier = Rc::clone(&agent.borrow().due_earlier);
    loop {
        let Some(due) = agent.borrow().ledger.next_deadline() else {
            earlier.notified().await;
            continue;
        };
        let left = due.saturating_sub(since_boot());
        if left.is_zero() {
            agent.borrow_mut().take_in(Event::TimePassed);
            // Whatever is still due after that can wait so long.
            tokio::time::sleep(AT_LEAST).await;
            continue;
        }
        tokio::select! {
            () = tokio::time::sleep(left.max(AT_LEAST)) => {}
            () = earlier.notified() => {}
        }
    }
}
