//! The envelope of every setup packet: what can be checked before any curve operation.
//!
//! ```text
//! 0        0b11 ‖ kind (6 bits, masked)
//! 1..17    mac1    BLAKE3(mac key of the recipient; byte 0 ‖ body), first 16 bytes
//! 17..33   mac2    BLAKE3(cookie; byte 0 ‖ mac1 ‖ body), first 16 bytes; without a cookie 16 random bytes
//! 33..     body    masked
//! ```
//!
//! The mask is the BLAKE3 output stream keyed by the recipient's mask key over mac1. mac1 is computed before
//! masking, so it is a keyed hash over all the mask hides: no two different packets share a mask (the SIV idea,
//! RFC 5297). mac1 and mac2 are those of the WireGuard paper §5.4.4.
//!
//! Kinds (6 bits): 1 initiation, 2 response, 3 cookie reply, 4 sealed; others are unknown.

use aes::Aes128Enc;
use aes::cipher::{BlockCipherEncrypt, KeyInit};
use blake3::Hasher;

use super::{FAMILY_MASK, FAMILY_SETUP, Malformed, SETUP_LEN_MAX};
use crate::proto::identity::NodeId;

/// Offset of mac1.
pub const MAC1_AT: usize = 1;
/// Offset of mac2.
pub const MAC2_AT: usize = 17;
/// Offset of the body.
pub const BODY_AT: usize = 33;
/// Length of mac1, mac2 and cookies in bytes.
pub const MAC_LEN: usize = 16;

const HEADER_CONTEXT: &str = "auramesh v1 header mask";
const MASK_CONTEXT: &str = "auramesh v1 mask";
const MAC1_CONTEXT: &str = "auramesh v1 mac1";
const REPLY_CONTEXT: &str = "auramesh v1 cookie reply";
const STREAM_CONTEXT: &str = "auramesh v1 stream ticket";

/// What a setup packet carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Noise message 1.
    Initiation,
    /// Noise message 2.
    Response,
    /// A cookie for a sender under suspicion.
    CookieReply,
    /// A signed, sealed message outside any session.
    Sealed,
}

impl Kind {
    /// The six bits on the wire.
    pub const fn bits(self) -> u8 {
        match self {
            Self::Initiation => 1,
            Self::Response => 2,
            Self::CookieReply => 3,
            Self::Sealed => 4,
        }
    }

    /// The kind of six bits.
    pub const fn from_bits(bits: u8) -> Result<Self, Malformed> {
        match bits {
            1 => Ok(Self::Initiation),
            2 => Ok(Self::Response),
            3 => Ok(Self::CookieReply),
            4 => Ok(Self::Sealed),
            other => Err(Malformed::Kind(other)),
        }
    }
}

/// A network's secret, mixed into masks, MACs and the Noise psk2. All zero: the open network.
#[derive(Clone, Default, zeroize::Zeroize, zeroize::ZeroizeOnDrop)]
pub struct NetworkSecret(pub [u8; 32]);

impl NetworkSecret {
    /// True for the network of all who have no secret.
    pub fn is_open(&self) -> bool {
        self.0 == [0; 32]
    }
}

/// Keys that anyone derives who knows a recipient's ID (and the network's secret).
#[derive(Clone)]
pub struct RecipientKey {
    mask: [u8; 32],
    mac: [u8; 32],
    header: Aes128Enc,
}

impl RecipientKey {
    /// For packets to `recipient`.
    pub fn new(recipient: &NodeId, network: &NetworkSecret) -> Self {
        let mut material = [0; 64];
        material[..32].copy_from_slice(recipient.as_bytes());
        material[32..].copy_from_slice(&network.0);
        Self::of(blake3::derive_key(MASK_CONTEXT, &material), blake3::derive_key(MAC1_CONTEXT, &material))
    }

    fn of(mask: [u8; 32], mac: [u8; 32]) -> Self {
        let [key @ .., _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _] =
            blake3::derive_key(HEADER_CONTEXT, &mask);
        Self { mask, mac, header: Aes128Enc::new(&key.into()) }
    }

    /// For the cookie reply to a packet with this mac1: its sender may be unknown, but knows what it sent.
    pub fn for_cookie_reply(&self, mac1: &[u8; MAC_LEN]) -> Self {
        let mut material = [0; 48];
        material[..32].copy_from_slice(&self.mac);
        material[32..].copy_from_slice(mac1);
        let mut keys = Hasher::new_derive_key(REPLY_CONTEXT).update(&material).finalize_xof();
        let (mut mask, mut mac) = ([0; 32], [0; 32]);
        keys.fill(&mut mask);
        keys.fill(&mut mac);
        Self::of(mask, mac)
    }

    /// Mask of a session header, from a sample of ciphertext: one block of AES-128, as in QUIC (RFC 9001 §5.4.3).
    pub(super) fn header_mask(&self, sample: [u8; 16]) -> [u8; 16] {
        let mut block = sample.into();
        self.header.encrypt_block(&mut block);
        block.into()
    }

    /// What only those can compute who know the recipient's ID: for whoever asks it for a stream.
    pub(super) fn stream_mac(&self, said: &[u8]) -> [u8; MAC_LEN] {
        truncate(Hasher::new_keyed(&blake3::derive_key(STREAM_CONTEXT, &self.mac)).update(said).finalize())
    }

    fn mac1(&self, first: u8, body: &[u8]) -> [u8; MAC_LEN] {
        truncate(Hasher::new_keyed(&self.mac).update(&[first]).update(body).finalize())
    }

    fn apply_mask(&self, packet: &mut [u8]) {
        let mut stream = Hasher::new_keyed(&self.mask).update(&packet[MAC1_AT..MAC2_AT]).finalize_xof();
        let mut first = [0];
        stream.fill(&mut first);
        packet[0] ^= first[0] & !FAMILY_MASK;
        let mut block = [0; 64];
        for chunk in packet[BODY_AT..].chunks_mut(block.len()) {
            stream.fill(&mut block[..chunk.len()]);
            chunk.iter_mut().zip(&block).for_each(|(byte, mask)| *byte ^= mask);
        }
    }

    /// Finishes a packet whose body is written from [`BODY_AT`]: sets kind, mac1 and mac2, and masks it.
    /// `filler` stands in for mac2 when there is no cookie.
    ///
    /// # Panics
    /// When the packet is shorter than the envelope.
    pub fn close(
        &self,
        kind: Kind,
        cookie: Option<&[u8; MAC_LEN]>,
        filler: [u8; MAC_LEN],
        packet: &mut [u8],
    ) {
        packet[0] = FAMILY_SETUP | kind.bits();
        let mac1 = self.mac1(packet[0], &packet[BODY_AT..]);
        packet[MAC1_AT..MAC2_AT].copy_from_slice(&mac1);
        let mac2 = cookie.map_or(filler, |cookie| mac2(cookie, packet));
        packet[MAC2_AT..BODY_AT].copy_from_slice(&mac2);
        self.apply_mask(packet);
    }

    /// Unmasks a packet in place and checks mac1. On failure the packet is as it came.
    ///
    /// # Errors
    /// [`Opening::NotForUs`] when mac1 is wrong, [`Opening::Malformed`] when family, length or kind is none of ours.
    pub fn open<'p>(&self, packet: &'p mut [u8]) -> Result<Envelope<'p>, Opening> {
        plausible(packet).map_err(Opening::Malformed)?;
        self.apply_mask(packet);
        match self.check(packet) {
            Ok(kind) => Ok(Envelope { kind, packet }),
            Err(refusal) => {
                self.apply_mask(packet);
                Err(refusal)
            }
        }
    }

    /// The kind of an unmasked packet with a valid mac1.
    fn check(&self, packet: &[u8]) -> Result<Kind, Opening> {
        if !same(&self.mac1(packet[0], &packet[BODY_AT..]), &packet[MAC1_AT..MAC2_AT]) {
            return Err(Opening::NotForUs);
        }
        Kind::from_bits(packet[0] & !FAMILY_MASK).map_err(Opening::Malformed)
    }
}

/// What can be said of a packet without any key.
fn plausible(packet: &[u8]) -> Result<(), Malformed> {
    if packet.len() < BODY_AT {
        return Err(Malformed::Truncated);
    }
    if packet.len() > SETUP_LEN_MAX {
        return Err(Malformed::TooLong);
    }
    if packet[0] & FAMILY_MASK != FAMILY_SETUP {
        return Err(Malformed::Field("family"));
    }
    Ok(())
}

/// Why a setup packet was not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// mac1 does not verify: sent by someone who does not know our key, or damaged.
    NotForUs,
    /// Authentic as far as mac1 goes, but of no kind that we know; or of an impossible length.
    Malformed(Malformed),
}

/// An unmasked setup packet with a valid mac1.
#[derive(Debug)]
pub struct Envelope<'p> {
    /// What the body is.
    pub kind: Kind,
    packet: &'p mut [u8],
}

impl Envelope<'_> {
    /// Views a packet that [`RecipientKey::open`] has unmasked before.
    ///
    /// # Errors
    /// [`Malformed`] when the bytes cannot be such a packet.
    pub fn reopen(packet: &mut [u8]) -> Result<Envelope<'_>, Malformed> {
        if packet.len() < BODY_AT {
            return Err(Malformed::Truncated);
        }
        Ok(Envelope { kind: Kind::from_bits(packet[0] & !FAMILY_MASK)?, packet })
    }

    /// The body, unmasked.
    pub fn body(&self) -> &[u8] {
        &self.packet[BODY_AT..]
    }

    /// The packet's mac1, to which a cookie reply is bound.
    pub fn mac1(&self) -> [u8; MAC_LEN] {
        std::array::from_fn(|i| self.packet[MAC1_AT + i])
    }

    /// Length of the whole packet in bytes.
    pub const fn packet_len(&self) -> usize {
        self.packet.len()
    }

    /// True when mac2 proves that the sender received `cookie`.
    pub fn proves(&self, cookie: &[u8; MAC_LEN]) -> bool {
        same(&mac2(cookie, self.packet), &self.packet[MAC2_AT..BODY_AT])
    }
}

fn mac2(cookie: &[u8; MAC_LEN], packet: &[u8]) -> [u8; MAC_LEN] {
    let mut key = [0; 32];
    key[..MAC_LEN].copy_from_slice(cookie);
    truncate(Hasher::new_keyed(&key).update(&packet[..MAC2_AT]).update(&packet[BODY_AT..]).finalize())
}

fn truncate(hash: blake3::Hash) -> [u8; MAC_LEN] {
    std::array::from_fn(|i| hash.as_bytes()[i])
}

/// Comparison in constant time.
pub(super) fn same(a: &[u8; MAC_LEN], b: &[u8]) -> bool {
    b.len() == MAC_LEN && a.iter().zip(b).fold(0, |diff, (x, y)| diff | (x ^ y)) == 0
}
