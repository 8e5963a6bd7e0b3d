//! Sealing single packets outside any session, and refusing their replays.
//!
//! ```text
//! key        BLAKE3(X25519(ephemeral, recipient's Ed25519 key in Montgomery form) ‖ ephemeral ‖ sender ‖ recipient)
//! ciphertext ChaCha20-Poly1305(key, header with hop limit 0)
//! signature  Ed25519(sender, "auramesh v1 sealed" ‖ header with hop limit 0 ‖ ciphertext ‖ tag)
//! ```
//!
//! The hop limit is the one field that a forwarder changes, so it counts as 0 where the header is authenticated. The
//! cheap checks come first: shape, recipient, time, then signature, then Diffie-Hellman.

use std::collections::BTreeSet;
use std::time::Duration;

use zeroize::Zeroizing;

use super::keys::{open_once, seal_once};
use super::{Rng, draw, draw_secret};
use crate::proto::identity::{self, Identity, NodeId};
use crate::proto::timer::{Instant, WallTime};
use crate::proto::wire::envelope::{
    BODY_AT, Envelope, Kind, MAC_LEN, MAC1_AT, MAC2_AT, NetworkSecret, RecipientKey,
};
use crate::proto::wire::sealed::{
    HEADER_LEN, HOP_LIMIT_AT, HOP_LIMIT_DIRECT, Header, Message, SIGNATURE_LEN, Sealed, TAG_LEN,
};
use crate::proto::wire::{Malformed, SETUP_LEN_MAX};

/// How far a packet's timestamp may lie from our clock, either way: clocks of machines without NTP.
pub const TIME_WINDOW: Duration = Duration::from_secs(600);
/// Packets that a [`ReplayCache`] remembers: 16 bytes each.
pub const REPLAY_CACHE_LEN_MAX: usize = 16_384;
/// Longest payload in bytes.
pub const PAYLOAD_LEN_MAX: usize = SETUP_LEN_MAX - BODY_AT - HEADER_LEN - TAG_LEN - SIGNATURE_LEN;

const KEY_CONTEXT: &str = "auramesh v1 sealed key";
const SIGNATURE_CONTEXT: &[u8] = b"auramesh v1 sealed";

/// Why a sealed packet was not opened. None of them is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SealedError {
    /// The bytes are no sealed packet.
    #[error("malformed sealed packet: {0}")]
    Malformed(#[from] Malformed),
    /// Another kind of setup packet.
    #[error("not a sealed packet")]
    Kind,
    /// For another node.
    #[error("sealed to another node")]
    NotForUs,
    /// Sent by ourselves.
    #[error("sealed by this node itself")]
    OwnIdentity,
    /// Timestamp more than [`TIME_WINDOW`] away from our clock.
    #[error("sealed too long ago or in the future")]
    Time,
    /// The signature is not by the sender, or its key is unusable.
    #[error("the signature is wrong")]
    Signature,
    /// The payload does not open.
    #[error("the payload does not authenticate")]
    Authentication,
}

/// Seals a payload to a node of which nothing but its ID is known; returns the whole packet, ready to send.
///
/// `None` when the recipient's ID is unusable or our own, or the payload longer than [`PAYLOAD_LEN_MAX`].
pub fn seal(
    identity: &Identity,
    recipient: NodeId,
    message: Message,
    payload: &[u8],
    wall: WallTime,
    network: &NetworkSecret,
    rng: &mut Rng,
) -> Option<Vec<u8>> {
    if payload.len() > PAYLOAD_LEN_MAX || recipient == identity.node_id() {
        return None;
    }
    let secret = draw_secret(rng);
    let header = Header {
        hop_limit: 0,
        message,
        timestamp: wall,
        sender: identity.node_id(),
        recipient,
        ephemeral: identity::x25519_public(&secret),
    };
    let shared = recipient.agree(&secret)?;
    let key = packet_key(&shared, &header);
    let aad = header.emit();

    let mut packet = vec![0; BODY_AT];
    packet.extend(aad);
    packet.extend(payload);
    seal_once(key, &aad, &mut packet, BODY_AT + HEADER_LEN);
    let signature = identity.sign(&[SIGNATURE_CONTEXT, &packet[BODY_AT..]].concat());
    packet.extend(signature);
    packet[BODY_AT + HOP_LIMIT_AT] = HOP_LIMIT_DIRECT;
    RecipientKey::new(&recipient, network).close(Kind::Sealed, None, draw(rng), &mut packet);
    Some(packet)
}

/// Puts a cookie into a sealed packet, by which the recipient asked to have the sender's address proved.
pub fn prove(packet: &mut [u8], recipient: &NodeId, network: &NetworkSecret, cookie: &[u8; MAC_LEN]) {
    let key = RecipientKey::new(recipient, network);
    if key.open(packet).is_ok() {
        key.close(Kind::Sealed, Some(cookie), [0; MAC_LEN], packet);
    }
}

/// What opens the recipient's cookie reply to a sealed packet; `None` when it is none.
pub fn cookie_key(packet: &[u8], recipient: &NodeId, network: &NetworkSecret) -> Option<RecipientKey> {
    let mac1 = packet.get(MAC1_AT..MAC2_AT)?.try_into().ok()?;
    Some(RecipientKey::new(recipient, network).for_cookie_reply(&mac1))
}

/// Opens a packet sealed to us: its header and payload. Whether it came before is the [`ReplayCache`]'s question.
///
/// # Errors
/// [`SealedError`], in the order of its checks.
pub fn open(
    identity: &Identity,
    envelope: &Envelope<'_>,
    wall: WallTime,
) -> Result<(Header, Vec<u8>), SealedError> {
    if envelope.kind != Kind::Sealed {
        return Err(SealedError::Kind);
    }
    let sealed = Sealed::parse(envelope.body())?;
    let header = sealed.header;
    if header.recipient != identity.node_id() {
        return Err(SealedError::NotForUs);
    }
    if header.sender == identity.node_id() {
        return Err(SealedError::OwnIdentity);
    }
    let window_ms = TIME_WINDOW.as_secs() * 1000;
    if header.timestamp.as_unix_ms().abs_diff(wall.as_unix_ms()) > window_ms {
        return Err(SealedError::Time);
    }
    let aad = Header { hop_limit: 0, ..header }.emit();
    if !header.sender.verify(&[SIGNATURE_CONTEXT, &aad, sealed.ciphertext].concat(), &sealed.signature) {
        return Err(SealedError::Signature);
    }
    let shared = identity.open_secret(&header.ephemeral).ok_or(SealedError::Authentication)?;
    let payload = open_once(packet_key(&shared, &header), &aad, sealed.ciphertext);
    Ok((header, payload.ok_or(SealedError::Authentication)?))
}

fn packet_key(shared: &[u8; 32], header: &Header) -> Zeroizing<[u8; 32]> {
    let mut material = Zeroizing::new([0; 128]);
    material[..32].copy_from_slice(shared);
    material[32..64].copy_from_slice(&header.ephemeral);
    material[64..96].copy_from_slice(header.sender.as_bytes());
    material[96..].copy_from_slice(header.recipient.as_bytes());
    Zeroizing::new(blake3::derive_key(KEY_CONTEXT, material.as_ref()))
}

/// The signature of a sealed packet, by which a [`ReplayCache`] knows it.
///
/// # Errors
/// [`Malformed`] when the body is no sealed packet.
pub fn signature(envelope: &Envelope<'_>) -> Result<[u8; SIGNATURE_LEN], Malformed> {
    Sealed::parse(envelope.body()).map(|sealed| sealed.signature)
}

/// Remembers authentic packets for as long as their timestamps are acceptable, by their signatures.
///
/// Two generations of at most half of [`REPLAY_CACHE_LEN_MAX`] each: when the younger is full, or spans all the time in
/// which a packet can be replayed, it becomes the older one. A flood shortens the memory, it never grows it.
#[derive(Debug)]
pub struct ReplayCache {
    young: BTreeSet<[u8; 16]>,
    old: BTreeSet<[u8; 16]>,
    since: Instant,
}

impl ReplayCache {
    /// An empty cache.
    pub const fn new(now: Instant) -> Self {
        Self { young: BTreeSet::new(), old: BTreeSet::new(), since: now }
    }

    /// True the first time that an authentic packet with this signature comes.
    pub fn first_seen(&mut self, now: Instant, signature: &[u8; SIGNATURE_LEN]) -> bool {
        // A packet dated TIME_WINDOW ahead is acceptable for twice as long.
        let is_old = now.saturating_since(self.since) > TIME_WINDOW * 2;
        if is_old || self.young.len() >= REPLAY_CACHE_LEN_MAX / 2 {
            self.old = std::mem::take(&mut self.young);
            self.since = now;
        }
        let name = std::array::from_fn(|i| signature[i]);
        !self.old.contains(&name) && self.young.insert(name)
    }

    /// Packets remembered.
    pub fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }

    /// True when no packet is remembered.
    pub fn is_empty(&self) -> bool {
        self.young.is_empty() && self.old.is_empty()
    }
}
