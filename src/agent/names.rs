//! User names, asked of the machine's user database without making anybody else wait.

use std::collections::HashMap;

use super::core::Shared;
use crate::protocol::{Process, Slot};
use crate::sys::process::user_name;

/// User names asked for before. Kept as long as the agent lives: names change with a restart.
#[derive(Debug, Default)]
pub(crate) struct UserNames {
    known: HashMap<u32, Option<String>>,
}

/// The most names remembered.
const MAX_KNOWN: usize = 4096;

/// Puts the users' names to the processes of these slots.
pub(crate) async fn name_users(agent: &Shared, slots: &mut [Slot]) {
    let processes = slots.iter_mut().flat_map(|slot| {
        let one = slot.holder.iter_mut().chain(&mut slot.conflict);
        one.chain(&mut slot.successor).chain(&mut slot.orphans)
    });
    name(agent, processes.collect()).await;
}

/// Puts the users' names to these processes.
pub(crate) async fn name(agent: &Shared, processes: Vec<&mut Process>) {
    let unknown = {
        let names = &agent.borrow().user_names.known;
        let mut uids: Vec<u32> = processes
            .iter()
            .map(|process| process.uid)
            .filter(|uid| !names.contains_key(uid))
            .collect();
        uids.sort_unstable();
        uids.dedup();
        uids
    };
    if !unknown.is_empty() {
        // The database may be on the network: not on the thread that serves.
        let ask = move || {
            unknown
                .into_iter()
                .map(|uid| (uid, user_name(uid)))
                .collect::<Vec<_>>()
        };
        let answers = tokio::task::spawn_blocking(ask).await.unwrap_or_default();
        let names = &mut agent.borrow_mut().user_names.known;
        if names.len() + answers.len() > MAX_KNOWN {
            names.clear();
        }
        names.extend(answers);
    }
    let names = &agent.borrow().user_names.known;
    for process in processes {
        process.user = names.get(&process.uid).cloned().flatten();
    }
}
