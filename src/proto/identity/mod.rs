//! Who a node is: one seed, a signing key, a key for handshakes, and the address that follows from them.
//!
//! ```text
//! seed (32 bytes)
//!  ├─ Ed25519 signing key         public half = NodeId (text: 52 characters of lower-case base32)
//!  └─ X25519 static key           BLAKE3 derive_key("auramesh v1 x25519 static", seed)
//! position = BLAKE3 derive_key("auramesh v1 node position", NodeId)      256 bits, the Kademlia coordinate
//! address  = 0x06 ‖ first 120 bits of position                           IPv6 in 0600::/8
//! ```
//!
//! The address is the head of the DHT coordinate, so a packet to an address never seen before is resolved by one
//! lookup, and the record found proves itself: it counts only if its key hashes to the address.
//!
//! The two keys are independent on purpose: joint security of one key for signatures and Diffie-Hellman is proven
//! only for sealing to a key with a hashed KDF (Thormarker, eprint 2021/509), which is the one place where the
//! Ed25519 key is used in its Montgomery form ([`Identity::open_secret`]).

use std::fmt;
use std::net::{Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::sync::LazyLock;

use curve25519_dalek::montgomery::MontgomeryPoint;
use data_encoding::{BitOrder, Encoding, Specification};
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use zeroize::Zeroizing;

/// First byte of every mesh address. Free of ULAs, Yggdrasil (02/03), mycelium (04/05) and cjdns (fc).
pub const MESH_PREFIX_BYTE: u8 = 0x06;

/// The mesh's address range, `0600::/8`.
pub const MESH_PREFIX: Ipv6Addr = Ipv6Addr::new((MESH_PREFIX_BYTE as u16) << 8, 0, 0, 0, 0, 0, 0, 0);

/// Length of [`MESH_PREFIX`] in bits.
pub const MESH_PREFIX_LEN: u8 = 8;

/// Bits of the position that a mesh address shows.
pub const ADDRESS_POSITION_BITS: u32 = 120;

/// Characters of a node ID in text: 256 bits in groups of five.
pub const NODE_ID_TEXT_LEN: usize = 52;

const X25519_CONTEXT: &str = "auramesh v1 x25519 static";
const POSITION_CONTEXT: &str = "auramesh v1 node position";

/// Trailing bits must be zero, so every node ID has one spelling.
static BASE32_LOWER: LazyLock<Encoding> = LazyLock::new(|| {
    let mut spec = Specification::new();
    spec.symbols.push_str("abcdefghijklmnopqrstuvwxyz234567");
    spec.bit_order = BitOrder::MostSignificantFirst;
    spec.encoding().expect("the alphabet is valid")
});

/// Lower-case base32 without padding (RFC 4648 §6), the text form of keys.
pub fn base32() -> &'static Encoding {
    &BASE32_LOWER
}

/// True for addresses inside the mesh's own range.
pub const fn in_mesh(ip: &Ipv6Addr) -> bool {
    ip.octets()[0] == MESH_PREFIX_BYTE
}

/// A node's Ed25519 public key: its name in the network.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub [u8; 32]);

/// Why a text is not a node ID.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseNodeIdError {
    /// Not 52 characters long.
    #[error("a node ID has {NODE_ID_TEXT_LEN} characters, this has {0}: copy it again, whole")]
    Length(usize),
    /// Where a node may be, instead of its ID.
    #[error("{0} lacks the node's ID: write NODEID@{0} (`azora id` on that node shows it)")]
    Missing(SocketAddr),
    /// A character outside of a-z and 2-7.
    #[error("character {position} is `{found}`, and a node ID has only a-z (lower case) and 2-7")]
    Alphabet {
        /// Its place, from 1.
        position: usize,
        /// The character.
        found: char,
    },
    /// Trailing bits that are not zero: of the last character only one bit belongs to the key.
    #[error("the last letter of a node ID is `a` or `q`: this one is mistyped, copy it again")]
    LastLetter,
    /// The bytes are no usable Ed25519 public key.
    #[error("this is no usable key, so some letter of it is mistyped: copy it again")]
    NotAKey,
}

impl NodeId {
    /// The 32 bytes of the key (RFC 8032 §5.1.5).
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Where the node stands in the Kademlia space.
    pub fn position(&self) -> Position {
        Position(blake3::derive_key(POSITION_CONTEXT, &self.0))
    }

    /// The mesh address that belongs to this key.
    pub fn address(&self) -> MeshAddress {
        self.position().address()
    }

    /// True when the bytes are the canonical encoding of a point of the curve that is not of small order.
    pub fn is_usable(&self) -> bool {
        self.key().is_some()
    }

    fn key(&self) -> Option<VerifyingKey> {
        // Decompression reduces y modulo p: without this a key would have two spellings, hence two addresses. A wrong sign
        // of x = 0 would be another, but only points of small order have that x. Compressing again would tell as well, for
        // an inversion more.
        if !is_reduced(&self.0) {
            return None;
        }
        VerifyingKey::from_bytes(&self.0).ok().filter(|key| !key.is_weak())
    }

    /// Checks an Ed25519 signature by this node, strictly (no small-order keys, no malleable encodings).
    pub fn verify(&self, message: &[u8], signature: &[u8; 64]) -> bool {
        self.key().is_some_and(|key| key.verify_strict(message, &Signature::from_bytes(signature)).is_ok())
    }

    /// A Diffie-Hellman with the Montgomery form of this key: what `secret` and the node both know. `None` when
    /// the key is unusable or the result is all zero (RFC 7748 §6.1).
    pub fn agree(&self, secret: &[u8; 32]) -> Option<Zeroizing<[u8; 32]>> {
        non_zero(self.key()?.to_montgomery().mul_clamped(*secret))
    }
}

/// True when the y of an encoded point is below p = 2^255 - 19 (RFC 8032 §5.1.3); the highest bit is the sign of x.
fn is_reduced(point: &[u8; 32]) -> bool {
    let [low, middle @ .., high] = point;
    *low < 0xed || *high & 0x7f != 0x7f || middle.iter().any(|byte| *byte != 0xff)
}

fn non_zero(point: MontgomeryPoint) -> Option<Zeroizing<[u8; 32]>> {
    (point.0 != [0; 32]).then(|| Zeroizing::new(point.0))
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE32_LOWER.encode(&self.0))
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE32_LOWER.encode(&self.0)[..10])
    }
}

impl FromStr for NodeId {
    type Err = ParseNodeIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let len = text.chars().count();
        if len != NODE_ID_TEXT_LEN {
            return Err(text.parse().map_or(ParseNodeIdError::Length(len), ParseNodeIdError::Missing));
        }
        if let Some((i, found)) = text.chars().enumerate().find(|(_, c)| !matches!(c, 'a'..='z' | '2'..='7'))
        {
            return Err(ParseNodeIdError::Alphabet { position: i + 1, found });
        }
        let bytes = BASE32_LOWER.decode(text.as_bytes()).ok().and_then(|bytes| bytes.try_into().ok());
        let id = Self(bytes.ok_or(ParseNodeIdError::LastLetter)?);
        if id.is_usable() { Ok(id) } else { Err(ParseNodeIdError::NotAKey) }
    }
}

/// A point of the Kademlia space, 256 bits, most significant first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position(pub [u8; 32]);

impl Position {
    /// The mesh address made of the prefix byte and the first 120 bits.
    pub fn address(&self) -> MeshAddress {
        let mut octets = [MESH_PREFIX_BYTE; 16];
        octets[1..].copy_from_slice(&self.0[..15]);
        MeshAddress(Ipv6Addr::from(octets))
    }

    /// XOR distance (Kademlia paper §2.1).
    pub fn distance(&self, other: &Self) -> Distance {
        Distance(std::array::from_fn(|i| self.0[i] ^ other.0[i]))
    }
}

/// An XOR distance between two positions, ordered as a 256-bit number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Distance(pub [u8; 32]);

impl Distance {
    /// Number of leading zero bits, 0 to 256.
    pub fn leading_zeros(&self) -> u32 {
        match self.0.iter().position(|byte| *byte != 0) {
            Some(i) => i as u32 * 8 + self.0[i].leading_zeros(),
            None => 256,
        }
    }
}

/// An IPv6 address inside `0600::/8`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MeshAddress(Ipv6Addr);

impl MeshAddress {
    /// The address, if it lies in the mesh's range.
    pub fn from_ipv6(ip: Ipv6Addr) -> Option<Self> {
        in_mesh(&ip).then_some(Self(ip))
    }

    /// The plain IPv6 address.
    pub const fn ipv6(&self) -> Ipv6Addr {
        self.0
    }

    /// The 16 bytes in network order.
    pub const fn octets(&self) -> [u8; 16] {
        self.0.octets()
    }

    /// The position as far as the address shows it: 120 bits, then zeros. As a lookup target it has the same
    /// nearest nodes as the full position.
    pub fn position_prefix(&self) -> Position {
        let mut position = [0; 32];
        position[..15].copy_from_slice(&self.0.octets()[1..]);
        Position(position)
    }
}

impl fmt::Display for MeshAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for MeshAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A node's secrets and what follows from them. Wiped on drop.
pub struct Identity {
    seed: Zeroizing<[u8; 32]>,
    signing: SigningKey,
    x25519_secret: Zeroizing<[u8; 32]>,
    x25519_public: [u8; 32],
    node_id: NodeId,
}

impl Identity {
    /// The identity of a 32-byte seed.
    pub fn from_seed(seed: [u8; 32]) -> Self {
        let seed = Zeroizing::new(seed);
        let signing = SigningKey::from_bytes(&seed);
        let x25519_secret = Zeroizing::new(blake3::derive_key(X25519_CONTEXT, seed.as_ref()));
        let x25519_public = MontgomeryPoint::mul_base_clamped(*x25519_secret).0;
        let node_id = NodeId(signing.verifying_key().to_bytes());
        Self { seed, signing, x25519_secret, x25519_public, node_id }
    }

    /// The node ID.
    pub const fn node_id(&self) -> NodeId {
        self.node_id
    }

    /// The mesh address.
    pub fn address(&self) -> MeshAddress {
        self.node_id.address()
    }

    /// The seed, for saving it.
    pub fn seed(&self) -> &[u8; 32] {
        &self.seed
    }

    /// The X25519 public key for handshakes.
    pub const fn x25519_public(&self) -> [u8; 32] {
        self.x25519_public
    }

    /// The X25519 secret key for handshakes.
    pub fn x25519_secret(&self) -> &[u8; 32] {
        &self.x25519_secret
    }

    /// Signs a message (Ed25519, RFC 8032).
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.signing.sign(message).to_bytes()
    }

    /// The other side of [`NodeId::agree`]: the secret shared with whoever holds the secret of `ephemeral`.
    pub fn open_secret(&self, ephemeral: &[u8; 32]) -> Option<Zeroizing<[u8; 32]>> {
        non_zero(MontgomeryPoint(*ephemeral).mul_clamped(self.signing.to_scalar_bytes()))
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({:?})", self.node_id)
    }
}

/// The X25519 public key of a secret (RFC 7748 §6.1).
pub fn x25519_public(secret: &[u8; 32]) -> [u8; 32] {
    MontgomeryPoint::mul_base_clamped(*secret).0
}

#[cfg(test)]
mod tests;
