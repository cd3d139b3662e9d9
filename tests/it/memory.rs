//! Nothing lingers, in the agent's memory neither.

use portpool::protocol::{AcquireParameters, Want};

use crate::host::on_a_host;

/// How much more resident memory at the end than after the first tenth is still called flat.
const SLACK_KIB: u64 = 512;

#[test]
fn memory_is_flat_over_a_hundred_thousand_leases() {
    let leases: usize = std::env::var("PORTPOOL_LEASES").map_or(100_000, |text| {
        text.parse().expect("PORTPOOL_LEASES: a number")
    });
    on_a_host(move |host| {
        let agent = host.agent("[pool.a]\nports = \"9000-9015\"\n");
        let clients: Vec<_> = (0..4).map(|_| agent.client()).collect();
        let mut figures = Vec::new();
        let mark = [leases / 10, leases / 2, leases];
        figures.push((0, agent.resident_kib()));
        for done in 1..=leases {
            let client = &clients[done % clients.len()];
            let asked = AcquireParameters {
                pools: vec![Want {
                    pool: "a".into(),
                    count: None,
                }],
                label: Some(format!("number {done}")),
                ..AcquireParameters::default()
            };
            let grants = client.acquire_all(asked).expect("a slot");
            client.release(grants[0].lease.lease_id).expect("its end");
            if mark.contains(&done) {
                figures.push((done, agent.resident_kib()));
            }
        }
        println!("leases and resident KiB: {figures:?}");
        let (warm, end) = (figures[1].1, figures[3].1);
        assert!(end <= warm + SLACK_KIB, "{figures:?}");
        assert_eq!(agent.client().status().expect("a status").leased, 0);
    });
}
