//! What people are shown of the DHT.

use super::{Dht, Mode};

/// A bucket as shown to people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BucketStatus {
    /// Distances from us have this many significant bits, 1 to 256.
    pub distance_bits: u16,
    /// Members.
    pub contacts: usize,
    /// Replacements waiting.
    pub replacements: usize,
}

/// Events that are only counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Answers to nothing that we asked, answered before, or from another node than asked.
    pub unsolicited: u64,
    /// Nodes kept out because too many of their network are in.
    pub crowded: u64,
    /// Records that were malformed, badly signed, out of date or of another address than sought.
    pub records_invalid: u64,
    /// Stores refused for want of room.
    pub records_full: u64,
    /// Lookups refused because too many were running.
    pub lookups_refused: u64,
    /// Queries dropped because nobody took them.
    pub transmits_dropped: u64,
}

/// The state of the DHT as shown to people.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    /// Server or client.
    pub mode: Mode,
    /// Members of the table.
    pub contacts: usize,
    /// None of them answers.
    pub alone: bool,
    /// Nodes that answered us once.
    pub known: usize,
    /// Nodes that serve the DHT, ourselves included if we do.
    pub network_size_estimate: u64,
    /// Standard error of that as a part of it; `None` where all were counted, or nothing is known.
    pub network_size_error: Option<f64>,
    /// Farthest first.
    pub buckets: Vec<BucketStatus>,
    /// Records held for others.
    pub records: usize,
    /// What they cost in bytes.
    pub records_bytes: usize,
    /// Lookups on their way, upkeep included.
    pub lookups_running: usize,
    /// Questions on their way.
    pub rpcs_running: usize,
    /// Nodes that took our record when it was last published.
    pub publish_holders: usize,
    /// What was counted.
    pub counters: Counters,
}

impl Dht {
    /// A summary for people.
    pub fn status(&self) -> Status {
        let bucket = |(index, contacts, replacements): (u16, usize, usize)| BucketStatus {
            distance_bits: 256 - index,
            contacts,
            replacements,
        };
        let others = self.size.estimate().unwrap_or(0).max(self.table.len() as u64);
        Status {
            mode: self.mode,
            contacts: self.table.len(),
            alone: self.table.is_alone(),
            known: self.known.len(),
            network_size_estimate: others + u64::from(self.mode == Mode::Server),
            network_size_error: self.size.error(),
            buckets: self.table.buckets().map(bucket).collect(),
            records: self.records.len(),
            records_bytes: self.records.bytes(),
            lookups_running: self.lookups.len(),
            rpcs_running: self.rpcs.len(),
            publish_holders: self.publication.holders(),
            counters: self.counters,
        }
    }
}
