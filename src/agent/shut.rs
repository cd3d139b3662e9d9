//! Listeners that somebody shut down are made to listen again.

use super::core::{Agent, Shared};
use crate::ledger::Event;
use crate::sys::shut::Waiter;

/// Tells the ledger of every listener that was shut. Ends only with the agent.
pub(crate) async fn heal(agent: Shared, waiter: Waiter) {
    loop {
        match waiter.next().await {
            Ok(numbers) => {
                for number in numbers {
                    agent.borrow_mut().was_shut(number);
                }
            }
            Err(error) => {
                tracing::error!(%error, "cannot notice listeners that holders shut any more");
                return;
            }
        }
        tokio::task::yield_now().await;
    }
}

impl Agent {
    fn was_shut(&mut self, number: u64) {
        if let Some((slot, generation)) = self.kernel.generation_of(number) {
            self.take_in(Event::Shut(slot, generation));
        }
    }
}
