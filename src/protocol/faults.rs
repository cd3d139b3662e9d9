//! Every error that the agent answers with; [`super::text`] has the words for them.

use serde::{Deserialize, Serialize};

use super::{Process, Slot};

/// Every error the agent answers with, as the interface definitions declare them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "error", content = "parameters")]
pub enum Fault {
    /// No pool of that name.
    #[serde(rename = "org.portpool.Agent.UnknownPool")]
    UnknownPool {
        /// The name asked for.
        pool: String,
        /// The closest name there is.
        nearest: Option<String>,
    },
    /// That pool has no such instance.
    #[serde(rename = "org.portpool.Agent.UnknownInstance")]
    UnknownInstance {
        /// The pool.
        pool: String,
        /// The instance asked for.
        instance: u16,
        /// How many it has.
        instances: u16,
    },
    /// Every slot of the pool in that instance is taken.
    #[serde(rename = "org.portpool.Agent.PoolExhausted")]
    PoolExhausted {
        /// The pool.
        pool: String,
        /// The instance.
        instance: u16,
        /// Its slots and who has them.
        slots: Vec<Slot>,
    },
    /// The policy says no.
    #[serde(rename = "org.portpool.Agent.PermissionDenied")]
    PermissionDenied {
        /// The pool.
        pool: String,
        /// Who asked.
        uid: u32,
        /// The rule that decided.
        rule: String,
        /// The configuration line that would allow it.
        fix: String,
    },
    /// The instance is another process's, and cannot be joined.
    #[serde(rename = "org.portpool.Agent.Claimed")]
    Claimed {
        /// The instance asked for.
        instance: u16,
        /// Who has claimed it.
        holder: Option<Box<Process>>,
    },
    /// No instance is left to be claimed.
    #[serde(rename = "org.portpool.Agent.NoInstance")]
    NoInstance {
        /// How many there are.
        instances: u16,
    },
    /// The slot to take over has a successor already, which is not ready.
    #[serde(rename = "org.portpool.Agent.TakeoverUnderWay")]
    TakeoverUnderWay {
        /// The pool.
        pool: String,
        /// The instance.
        instance: u16,
        /// The slot's port.
        port: u16,
    },
    /// The successor's listener cannot be made.
    #[serde(rename = "org.portpool.Agent.CannotListen")]
    CannotListen {
        /// The pool.
        pool: String,
        /// The instance.
        instance: u16,
        /// The slot's port.
        port: u16,
        /// What the kernel says.
        reason: String,
    },
    /// The lease is revoked, but connections of its holder could not be ended.
    #[serde(rename = "org.portpool.Agent.ConnectionsRemain")]
    ConnectionsRemain {
        /// The lease.
        #[serde(rename = "leaseId")]
        lease_id: u64,
        /// Why.
        reason: String,
    },
    /// The configuration is wrong, or cannot be gone over to: the one before stays.
    #[serde(rename = "org.portpool.Agent.ReloadRefused")]
    ReloadRefused {
        /// What is wrong, for people: several lines.
        reason: String,
    },
    /// The program that is installed now cannot take over: the agent goes on as it was.
    #[serde(rename = "org.portpool.Agent.UpgradeRefused")]
    UpgradeRefused {
        /// Why, for people: perhaps several lines.
        reason: String,
    },
    /// The pool is being removed.
    #[serde(rename = "org.portpool.Agent.Draining")]
    Draining {
        /// The pool.
        pool: String,
    },
    /// A watch did not keep up, and has ended.
    #[serde(rename = "org.portpool.Agent.Lagged")]
    Lagged {
        /// How many changes it missed.
        missed: u64,
    },
    /// More sockets than one message can carry.
    #[serde(rename = "org.portpool.Agent.TooManySockets")]
    TooManySockets {
        /// How many it would be.
        sockets: usize,
        /// How many it can be.
        limit: usize,
    },
    /// No such lease of the caller's.
    #[serde(rename = "org.portpool.Agent.UnknownLease")]
    UnknownLease {
        /// The lease named.
        #[serde(rename = "leaseId")]
        lease_id: u64,
    },
    /// A limit is reached.
    #[serde(rename = "org.portpool.Agent.Busy")]
    Busy {
        /// Which.
        limit: String,
    },
    /// The message broke the protocol.
    #[serde(rename = "org.portpool.Agent.ProtocolError")]
    ProtocolError {
        /// How.
        reason: String,
    },
    /// No such interface.
    #[serde(rename = "org.varlink.service.InterfaceNotFound")]
    InterfaceNotFound {
        /// The interface named.
        interface: String,
    },
    /// No such method.
    #[serde(rename = "org.varlink.service.MethodNotFound")]
    MethodNotFound {
        /// The method named.
        method: String,
    },
    /// A parameter is missing or wrong.
    #[serde(rename = "org.varlink.service.InvalidParameter")]
    InvalidParameter {
        /// Which, and why.
        parameter: String,
    },
    /// The call needs `more`.
    #[serde(rename = "org.varlink.service.ExpectedMore")]
    ExpectedMore {},
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{INTERFACE, ListReply, Reply, SERVICE_INTERFACE};

    #[test]
    fn a_fault_is_an_error_reply_on_the_wire() {
        let fault = Fault::UnknownLease { lease_id: 7 };
        let text = serde_json::to_string(&fault).unwrap();
        assert_eq!(
            text,
            r#"{"error":"org.portpool.Agent.UnknownLease","parameters":{"leaseId":7}}"#
        );
        assert_eq!(serde_json::from_str::<Fault>(&text).unwrap(), fault);
        assert!(serde_json::from_str::<Reply<ListReply>>(&text).is_err());
    }

    #[test]
    fn every_error_the_code_knows_is_declared_in_an_interface() {
        let source = include_str!("faults.rs");
        let mut seen = 0;
        for line in source
            .lines()
            .filter_map(|line| line.trim().strip_prefix("#[serde(rename = \"org."))
        {
            let full = line.trim_end_matches("\")]");
            let (interface, name) = full.rsplit_once('.').unwrap();
            let text = if interface == "portpool.Agent" {
                INTERFACE
            } else {
                SERVICE_INTERFACE
            };
            assert!(
                text.contains(&format!("error {name} (")),
                "{full} is not declared"
            );
            seen += 1;
        }
        assert_eq!(seen, 21);
    }
}
