//! Sessions between two nodes: the handshake that opens them, the keys and counters that carry packets, and the
//! gates in front of the expensive work.
//!
//! ```text
//! initiator                                            responder
//! Initiator::start ── initiation ───────────────────▶ Gate::admit ─ Incoming::open ─ (node: timestamp, policy)
//!      │                                                   │              │
//!      │◀─ read_cookie ── cookie reply ── loaded, no mac2 ─┘              │ accept
//!      │                                                                  ▼
//!   finish ◀──────────── response ───────────────────────────────────  Session (may not send yet)
//!      ▼                                                                  ▲
//!   Session ──────────── first session packet ───────────────────────────┘ Opened::first: confirmed
//!
//! age 120 s: wants_rekey (initiator)   2^25 packets or 120 s: wants_ratchet   180 s: nothing in or out   540 s: erase
//! ```
//!
//! The handshake is Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s (Noise specification rev. 34) with the timers, cookies and
//! replay window of the WireGuard paper (§5, §6). Transport keys come from the raw split and are ratcheted (`keys.rs`);
//! packets are sealed and opened in place, without allocation, lock or clock (`transport.rs`). Outside sessions travel
//! signed and sealed single packets (`sealed.rs`).
//!
//! Each side may send with several threads, which share no key, counter or window: it says in the handshake how many
//! ([`Config::with_threads`]).
//!
//! Deliberately left out, because the node decides it: which peer may connect, the greatest timestamp seen of each peer
//! (replayed initiations), retries, which of two crossing handshakes wins, and when to call the methods above.
//!
//! Forward secrecy: ephemeral keys are drawn from a generator that forgets what it gave ([`draw_secret`]) and live in
//! the boxed Noise state alone, which is dropped with the split. Keys that we hold are wiped when dropped; `snow`
//! frees its chaining key and psk without wiping them.

pub mod gate;
pub mod loss;
pub mod noise;
pub mod sealed;
pub mod transport;
pub mod window;

mod crypto;
mod keys;
mod threads;

use std::time::Duration;

use rand_core::{Rng as _, SeedableRng};
use zeroize::Zeroizing;

use super::wire::Malformed;
use super::wire::envelope::NetworkSecret;
use super::wire::handshake::{self, CAPABILITY_FRAMES, Suite};

/// The generator that the parent hands down. Same seed, same packets.
pub type Rng = rand_chacha::ChaCha12Rng;

/// Age at which the initiator of a session opens the next one (WireGuard paper §6.1).
pub const REKEY_AFTER: Duration = Duration::from_secs(120);
/// Age from which a session neither sends nor receives (WireGuard paper §6.1).
pub const REJECT_AFTER: Duration = Duration::from_secs(180);
/// Age at which a session's keys are erased, three times [`REJECT_AFTER`] (WireGuard paper §6.3).
pub const ERASE_AFTER: Duration = Duration::from_secs(540);
/// Time after which the sending keys are ratcheted.
pub const RATCHET_AFTER: Duration = Duration::from_secs(120);
/// Packets of one thread in one epoch after which the sending keys are ratcheted; half of [`EPOCH_PACKETS_MAX`]. No
/// thread sends as many within [`EPOCH_OVERLAP`].
pub const RATCHET_AFTER_PACKETS: u64 = 1 << 25;
/// Packets under one key, never exceeded: 2^35 blocks, the bound for AES-GCM (RFC 9001 appendix B.1.1), are so many
/// datagrams of 8 KiB.
pub const EPOCH_PACKETS_MAX: u64 = 1 << 26;
/// How long a sending thread of the peer has to be silent before those behind it say where the peer is: of packets of
/// different threads nobody knows which is newer.
pub const THREAD_SILENT_AFTER: Duration = Duration::from_secs(1);
/// Time for which the older receiving epoch is kept after the newer one was first seen, for reordered packets.
pub const EPOCH_OVERLAP: Duration = Duration::from_secs(10);
/// Packets of one thread after which a session refuses to send: far more than [`REJECT_AFTER`] can carry, far from the counter's
/// 56 bits, and within the 32 bits of laps that the replay window counts.
pub const REJECT_AFTER_PACKETS: u64 = 1 << 44;

/// What a node brings to every handshake.
#[derive(Clone)]
pub struct Config {
    /// Set of suites that we can do, [`Suite::bit`] each.
    pub suites: u8,
    /// The suite that is fastest on this CPU.
    pub preferred: Suite,
    /// What else we can do: [`CAPABILITY_FRAMES`], [`handshake::CAPABILITY_THREADS`] and how many threads send.
    pub capabilities: u16,
    /// Secret of the network; all zero for the open one.
    pub network: NetworkSecret,
}

impl Config {
    /// Offers AES-256-GCM only where the CPU has instructions for it.
    pub const fn new(has_aes: bool, network: NetworkSecret) -> Self {
        let chacha = Suite::ChaCha20Poly1305;
        let aes = Suite::Aes256Gcm;
        let capabilities = handshake::with_threads(CAPABILITY_FRAMES, 1);
        if has_aes {
            Self { suites: aes.bit() | chacha.bit(), preferred: aes, capabilities, network }
        } else {
            Self { suites: chacha.bit(), preferred: chacha, capabilities, network }
        }
    }

    /// The same for a node that sends with so many threads, 1 to [`handshake::THREADS_MAX`].
    pub const fn with_threads(mut self, threads: u8) -> Self {
        self.capabilities = handshake::with_threads(self.capabilities, threads);
        self
    }

    /// The responder's choice: what both prefer, else what both can do and no CPU does badly.
    fn choose(&self, suites: u8, preferred: Suite) -> Option<Suite> {
        let common = |suite: &Suite| self.suites & suites & suite.bit() != 0;
        [preferred, Suite::ChaCha20Poly1305, Suite::Aes256Gcm]
            .into_iter()
            .enumerate()
            .find(|(rank, suite)| common(suite) && (*rank > 0 || *suite == self.preferred))
            .map(|(_, suite)| suite)
    }
}

/// Why a handshake message was not accepted. None of them is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HandshakeError {
    /// The bytes are not such a message.
    #[error("malformed handshake: {0}")]
    Malformed(#[from] Malformed),
    /// Another kind of setup packet.
    #[error("not the handshake message expected here")]
    Kind,
    /// Names another of our handshakes.
    #[error("answers another handshake")]
    Index,
    /// The other side is ourselves.
    #[error("the peer is this node itself")]
    OwnIdentity,
    /// A node ID or X25519 key of small order, or not a key at all.
    #[error("the peer's key is unusable")]
    UnusableKey,
    /// Noise did not authenticate it: wrong static key, wrong network, damaged, or a low-order key.
    #[error("the handshake does not authenticate")]
    Authentication,
    /// The identity signature is not by the node that it claims.
    #[error("the identity signature is wrong")]
    Signature,
    /// No suite in common, or one that was not offered.
    #[error("no common cipher suite")]
    Suite,
    /// This handshake has ended before.
    #[error("this handshake is over")]
    Over,
}

/// 32 secret bytes that nobody can compute again: the generator is reseeded from its own output, so its later state
/// does not reveal them (fast key erasure).
pub fn draw_secret(rng: &mut Rng) -> Zeroizing<[u8; 32]> {
    let mut drawn = Zeroizing::new([0; 64]);
    rng.fill_bytes(drawn.as_mut());
    let mut seed = [0; 32];
    seed.copy_from_slice(&drawn[32..]);
    *rng = Rng::from_seed(seed);
    zeroize::Zeroize::zeroize(&mut seed);
    let mut secret = Zeroizing::new([0; 32]);
    secret.copy_from_slice(&drawn[..32]);
    secret
}

/// `N` random bytes that need not stay secret.
fn draw<const N: usize>(rng: &mut Rng) -> [u8; N] {
    let mut bytes = [0; N];
    rng.fill_bytes(&mut bytes);
    bytes
}

/// A random length in `min..=max`; `min` when the range is empty. The bias is below 2^-20.
fn draw_len(rng: &mut Rng, min: usize, max: usize) -> usize {
    let choices = max.saturating_sub(min) as u64 + 1;
    min + ((u64::from(rng.next_u32()) * choices) >> 32) as usize
}

#[cfg(test)]
mod tests;
