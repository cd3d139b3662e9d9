//! What a client can send: any bytes, in parts whose lengths they choose as well.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portpool::protocol::{
    AcquireParameters, Call, Inbox, ListParameters, MAX_MESSAGE, ReadyParameters,
    ReleaseParameters, RevokeParameters, WatchParameters,
};

fuzz_target!(|data: &[u8]| {
    let Some((length, bytes)) = data.split_first() else {
        return;
    };
    let mut inbox = Inbox::default();
    for part in bytes.chunks(usize::from(*length).max(1)) {
        inbox.push(part);
        loop {
            match inbox.next_message() {
                Ok(Some(message)) => {
                    assert!(message.len() < MAX_MESSAGE);
                    look_at(message);
                }
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
});

fn look_at(message: &[u8]) {
    let Ok(call) = serde_json::from_slice::<Call>(message) else {
        return;
    };
    let parameters = call.parameters.map_or("{}", |raw| raw.get());
    drop(serde_json::from_str::<AcquireParameters>(parameters));
    drop(serde_json::from_str::<ListParameters>(parameters));
    drop(serde_json::from_str::<ReadyParameters>(parameters));
    drop(serde_json::from_str::<ReleaseParameters>(parameters));
    drop(serde_json::from_str::<RevokeParameters>(parameters));
    drop(serde_json::from_str::<WatchParameters>(parameters));
}
