//! Counters of what was dropped, by reason.

use std::sync::atomic::{AtomicU64, Ordering};

/// Why a packet was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(usize)]
pub enum DropReason {
    /// Not authentic: garbage, damaged, or by someone who does not know our key.
    Unauthenticated,
    /// A session packet for a session that we do not have, or that has expired.
    UnknownSession,
    /// Seen before, or older than the replay window.
    Replay,
    /// Impossible length or fields, authentic or not: what is too short to be checked counts here.
    Malformed,
    /// A kind or version that we do not know.
    UnknownKind,
    /// First byte of another protocol.
    Foreign,
    /// Inner packet that is not a complete IPv6 packet.
    NotIpv6,
    /// Inner source is not the sender's address.
    Source,
    /// Inner destination is not our address.
    Destination,
    /// Not let in by the policy.
    Policy,
    /// From the interface with a source that is not our mesh address.
    SourceNotOurs,
    /// From the interface to an address outside the mesh, or our own.
    NotMesh,
    /// Larger than the path's MTU.
    TooBig,
    /// Marked "congestion experienced" on its way, and its sender would not understand the mark (RFC 6040 §4.2); or a
    /// segment whose sender filled the interface's queue, as a sign to slow down.
    Congestion,
    /// Parts of a superframe, of which no packet could be made.
    Incomplete,
    /// A queue was full.
    QueueFull,
    /// Nobody has the destination address.
    NoRoute,
    /// Handshake that failed, was replayed or refused.
    Handshake,
    /// More than the rate that strangers are given.
    RateLimited,
    /// Relayed under a slot that is not the sender's, or beyond its quota.
    Relay,
    /// The socket or the interface refused it.
    Io,
    /// A packet filter of this machine refused to send it.
    Filtered,
}

impl DropReason {
    /// All reasons, in the order of their counters.
    pub const ALL: [Self; 22] = [
        Self::Unauthenticated,
        Self::UnknownSession,
        Self::Replay,
        Self::Malformed,
        Self::UnknownKind,
        Self::Foreign,
        Self::NotIpv6,
        Self::Source,
        Self::Destination,
        Self::Policy,
        Self::SourceNotOurs,
        Self::NotMesh,
        Self::TooBig,
        Self::Congestion,
        Self::Incomplete,
        Self::QueueFull,
        Self::NoRoute,
        Self::Handshake,
        Self::RateLimited,
        Self::Relay,
        Self::Io,
        Self::Filtered,
    ];

    /// Name in `status` and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unauthenticated => "unauthenticated",
            Self::UnknownSession => "unknown_session",
            Self::Replay => "replay",
            Self::Malformed => "malformed",
            Self::UnknownKind => "unknown_kind",
            Self::Foreign => "foreign",
            Self::NotIpv6 => "not_ipv6",
            Self::Source => "source",
            Self::Destination => "destination",
            Self::Policy => "policy",
            Self::SourceNotOurs => "source_not_ours",
            Self::NotMesh => "not_mesh",
            Self::TooBig => "too_big",
            Self::Congestion => "congestion",
            Self::Incomplete => "incomplete",
            Self::QueueFull => "queue_full",
            Self::NoRoute => "no_route",
            Self::Handshake => "handshake",
            Self::RateLimited => "rate_limited",
            Self::Relay => "relay",
            Self::Io => "io",
            Self::Filtered => "filtered",
        }
    }

    /// For people: what happened, and whether it says anything.
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Unauthenticated => {
                "not encrypted for this node: strangers' garbage, or nodes with another [net] secret"
            }
            Self::UnknownSession => "of a session that has ended; some after a restart are usual",
            Self::Replay => "came twice, or far too late: the network repeats or delays datagrams",
            Self::Malformed => {
                "too short, cut off or with impossible fields: strangers' garbage, or a broken or hostile node"
            }
            Self::UnknownKind => "a kind that this version does not know: that node runs a newer one",
            Self::Foreign => "of another protocol, on this node's port",
            Self::NotIpv6 => "a peer sent what is no complete IPv6 packet",
            Self::Source => "a peer sent under an address that is not its own",
            Self::Destination => "a peer sent to an address that is not this node's",
            Self::Policy => "not let in by the rules: azora firewall trace shows what",
            Self::SourceNotOurs => "a program here sent from an address that is not the mesh's",
            Self::NotMesh => "a program here sent outside of the mesh by this interface: see ip -6 route",
            Self::TooBig => "larger than the way carries; the sender was told to send less",
            Self::Congestion => "dropped as a sign to slow down, as the sender cannot be marked",
            Self::Incomplete => "parts of it were lost on the way",
            Self::QueueFull => "came faster than it could be sent or delivered",
            Self::NoRoute => "nobody was found under the address, or no way there; the sender was told",
            Self::Handshake => "a handshake that failed or came again; some are usual while sessions begin",
            Self::RateLimited => "beyond what a stranger may ask for in a second",
            Self::Relay => "for others, beyond what this node carries for them, or after the way ended",
            Self::Io => "the system refused to send or deliver it: link down, or an address that has gone",
            Self::Filtered => "this machine's packet filter refused to send it: see nft list ruleset",
        }
    }
}

/// One counter per reason.
#[derive(Debug, Default)]
pub struct Drops([AtomicU64; DropReason::ALL.len()]);

impl Drops {
    /// Counts one packet.
    pub fn count(&self, reason: DropReason) {
        self.0[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// How many were dropped for this reason.
    pub fn of(&self, reason: DropReason) -> u64 {
        self.0[reason as usize].load(Ordering::Relaxed)
    }
}
