//! What is written of the plan, of a slot and of a claim. Members may be added; none may change its
//! meaning: agents of other versions read it.

use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ledger::Moment;
use crate::plan::{Instance, ListenAddress, Port, Slot};

/// The plan as it was when the agent went over to it.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Description {
    /// The configuration.
    pub(crate) sources: Vec<Text>,
    /// Every slot, in the order of the cells.
    pub(crate) slots: Vec<Planned>,
    /// The highest instance: a cell for each follows those of the slots.
    pub(crate) instances: u16,
}

/// A file of the configuration.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Text {
    pub(crate) path: String,
    pub(crate) text: String,
}

/// A slot of the plan.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Planned {
    pool: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    companion: Option<String>,
    instance: u16,
    position: usize,
    port: u16,
    protocol: String,
    addresses: Vec<Address>,
    backlog: u32,
    /// Held only while its instance is claimed.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) dormant: bool,
}

#[derive(Debug, Serialize, Deserialize)]
struct Address {
    ip: IpAddr,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    v6_only: bool,
}

impl Planned {
    pub(crate) fn new(slot: &Slot, dormant: bool) -> Planned {
        let address = |address: &ListenAddress| Address {
            ip: address.ip,
            v6_only: address.v6_only,
        };
        Planned {
            pool: slot.pool.to_string(),
            companion: slot.companion.as_ref().map(ToString::to_string),
            instance: slot.instance.get(),
            position: slot.position,
            port: slot.port.get(),
            protocol: slot.protocol.to_string(),
            addresses: slot.addresses.iter().map(address).collect(),
            backlog: slot.backlog,
            dormant,
        }
    }

    /// `None` for what is no slot.
    pub(crate) fn slot(&self) -> Option<Slot> {
        let address = |address: &Address| ListenAddress {
            ip: address.ip,
            v6_only: address.v6_only,
        };
        let companion = self.companion.as_ref().map(|name| name.parse());
        Some(Slot {
            pool: self.pool.parse().ok()?,
            companion: companion.transpose().ok()?,
            instance: Instance::new(self.instance)?,
            position: self.position,
            port: Port::new(self.port)?,
            protocol: self.protocol.parse().ok()?,
            addresses: self.addresses.iter().map(address).collect(),
            backlog: self.backlog,
        })
    }
}

/// A slot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct SlotRecord {
    /// The word for its state that `List` has; what is not known counts as `parked`.
    pub(crate) state: String,
    pub(crate) generation: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) steered: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) lease: Option<LeaseRecord>,
    /// A successor that is not ready, and its generation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) standby: Option<(LeaseRecord, u64)>,
    /// While it restarts: until when, in nanoseconds since boot, and for whom.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) until: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) successor: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) former_label: Option<u64>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) draining: bool,
    /// It left the plan, and nothing of it is left.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) gone: bool,
}

impl SlotRecord {
    /// What a cell means that was never written: a slot that nobody ever took.
    pub(crate) fn untouched() -> SlotRecord {
        SlotRecord {
            state: "parked".to_owned(),
            ..SlotRecord::default()
        }
    }
}

/// A lease and its holder.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct LeaseRecord {
    pub(crate) id: u64,
    pub(crate) holder: ProcessRecord,
    pub(crate) kin: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) label: Option<u64>,
    /// Nanoseconds since boot.
    pub(crate) since: u64,
    /// What the holder calls itself, if there is room to say it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) called: Option<String>,
    /// The signal it wants when it loses the slot, or `none`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) on_revoke: Option<String>,
}

/// A process: not only its pid, which another may have by now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct ProcessRecord {
    pub(crate) pid: u32,
    /// What tells it from others of that pid; see `sys/unix/peer.rs`.
    pub(crate) number: u64,
    pub(crate) uid: u32,
}

/// A claim to an instance.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct ClaimRecord {
    pub(crate) holder: ProcessRecord,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) unit: Option<u64>,
}

/// A moment as it is written.
pub(crate) fn nanoseconds(moment: Moment) -> u64 {
    u64::try_from(moment.as_nanos()).unwrap_or(u64::MAX)
}

/// A moment as it was written.
pub(crate) fn moment(nanoseconds: u64) -> Moment {
    Duration::from_nanos(nanoseconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_agent_of_another_version_wrote_is_understood_as_far_as_it_is_known() {
        let newer = r#"{"state":"leased","generation":3,"steered":3,"colour":"red",
            "lease":{"id":7,"holder":{"pid":1,"number":2,"uid":3,"more":[]},"kin":4,"since":5}}"#;
        let record: SlotRecord = serde_json::from_str(newer).unwrap();
        assert_eq!(record.lease.unwrap().id, 7);
        let older: SlotRecord = serde_json::from_str("{}").unwrap();
        assert_eq!(older, SlotRecord::default());
    }

    #[test]
    fn the_largest_record_without_what_the_holders_call_themselves_fits_a_cell() {
        let lease = LeaseRecord {
            id: u64::MAX,
            holder: ProcessRecord {
                pid: u32::MAX,
                number: u64::MAX,
                uid: u32::MAX,
            },
            kin: u64::MAX,
            label: Some(u64::MAX),
            since: u64::MAX,
            called: None,
            on_revoke: None,
        };
        let mut record = SlotRecord {
            state: "restarting".to_owned(),
            generation: u64::MAX,
            steered: Some(u64::MAX),
            lease: Some(lease.clone()),
            standby: Some((lease, u64::MAX)),
            until: None,
            successor: None,
            former_label: None,
            draining: true,
            gone: true,
        };
        let longest = serde_json::to_vec(&record).unwrap().len();
        assert!(longest <= super::super::cells::MAX_TEXT, "{longest}");
        record.lease = None;
        record.standby = None;
        (record.until, record.successor) = (Some(u64::MAX), Some(u64::MAX));
        record.former_label = Some(u64::MAX);
        assert!(serde_json::to_vec(&record).unwrap().len() <= super::super::cells::MAX_TEXT);
    }
}
