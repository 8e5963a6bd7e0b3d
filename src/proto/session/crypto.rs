//! The Noise state by `snow`, with primitives of our own below it.
//!
//! `snow` is given its X25519, its ChaCha20-Poly1305 and its randomness by us: keys that are wiped, results of
//! all zeros refused (RFC 7748 §6.1), an ephemeral secret drawn by the caller instead of from the system, and the
//! public half of the static key not computed again in every handshake. BLAKE2s is `snow`'s.

use std::sync::{Arc, LazyLock, OnceLock};

use curve25519_dalek::montgomery::MontgomeryPoint;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use snow::params::{CipherChoice, DHChoice, HashChoice, NoiseParams};
use snow::resolvers::{CryptoResolver, DefaultResolver};
use snow::types::{Cipher, Dh, Hash, Random};
use snow::{Builder, HandshakeState};
use zeroize::Zeroizing;

use super::HandshakeError;
use crate::proto::identity::{Identity, NodeId};
use crate::proto::wire::envelope::NetworkSecret;

/// Name of the protocol (Noise specification §8).
pub(super) const PROTOCOL: &str = "Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s";
const PROLOGUE: &[u8] = b"auramesh v1";
const NETWORK_CONTEXT: &str = "auramesh v1 network";
const PSK2_CONTEXT: &str = "auramesh v1 psk2";
const TAG_LEN: usize = 16;

static PARAMS: LazyLock<NoiseParams> =
    LazyLock::new(|| PROTOCOL.parse().expect("the protocol name is valid"));

/// What both sides know before the first message.
pub(super) struct Setup<'a> {
    pub(super) identity: &'a Identity,
    pub(super) network: &'a NetworkSecret,
    pub(super) responder: NodeId,
    /// `None` makes the responder's side.
    pub(super) responder_x25519: Option<&'a [u8; 32]>,
    pub(super) initiator_index: u32,
}

/// The state of one handshake.
pub(super) struct Noise {
    /// Boxed, so that moving it leaves no copies of its secrets behind.
    state: Box<HandshakeState>,
    ephemeral: Arc<OnceLock<Zeroizing<[u8; 32]>>>,
}

impl Noise {
    pub(super) fn new(setup: &Setup<'_>) -> Self {
        let ephemeral = Arc::new(OnceLock::new());
        let resolver =
            Resolver { ephemeral: Arc::clone(&ephemeral), static_public: setup.identity.x25519_public() };
        let prologue = Self::prologue(setup);
        let builder = Builder::with_resolver(PARAMS.clone(), Box::new(resolver))
            .local_private_key(setup.identity.x25519_secret())
            .and_then(|builder| builder.prologue(&prologue));
        let state = match setup.responder_x25519 {
            Some(key) => {
                builder.and_then(|builder| builder.remote_public_key(key)).and_then(Builder::build_initiator)
            }
            None => builder.and_then(Builder::build_responder),
        };
        Self { state: Box::new(state.expect("every key that the pattern needs is given")), ephemeral }
    }

    /// What is authenticated before the first message.
    pub(super) fn prologue(setup: &Setup<'_>) -> Vec<u8> {
        let network = blake3::derive_key(NETWORK_CONTEXT, &setup.network.0);
        let index = setup.initiator_index.to_be_bytes();
        [PROLOGUE, setup.responder.as_bytes(), &network, &index].concat()
    }

    /// psk2 of a handshake between two indices.
    pub(super) fn psk(
        network: &NetworkSecret,
        initiator_index: u32,
        responder_index: u32,
    ) -> Zeroizing<[u8; 32]> {
        let mut material = Zeroizing::new([0; 40]);
        material[..32].copy_from_slice(&network.0);
        material[32..36].copy_from_slice(&initiator_index.to_be_bytes());
        material[36..].copy_from_slice(&responder_index.to_be_bytes());
        Zeroizing::new(blake3::derive_key(PSK2_CONTEXT, material.as_ref()))
    }

    /// Sets the secret that the next message written uses; once.
    pub(super) fn set_ephemeral(&self, secret: Zeroizing<[u8; 32]>) {
        assert!(self.ephemeral.set(secret).is_ok(), "one ephemeral key in a handshake");
    }

    /// Sets psk2; may be set again until message 2 is accepted.
    pub(super) fn set_psk(&mut self, network: &NetworkSecret, initiator_index: u32, responder_index: u32) {
        let psk = Self::psk(network, initiator_index, responder_index);
        self.state.set_psk(2, psk.as_ref()).expect("psk2 has 32 bytes and a place");
    }

    /// The handshake hash `h` as it is now.
    pub(super) fn hash(&self) -> [u8; 32] {
        self.state.get_handshake_hash().try_into().expect("BLAKE2s has 32 bytes")
    }

    /// The peer's static key, once it is known.
    pub(super) fn remote_static(&self) -> Option<[u8; 32]> {
        self.state.get_remote_static()?.try_into().ok()
    }

    /// Writes the next message, which fills `message` to its end.
    ///
    /// # Errors
    /// [`HandshakeError::UnusableKey`]: a key of the peer's is of small order; nothing else can fail.
    pub(super) fn write(&mut self, payload: &[u8], message: &mut [u8]) -> Result<(), HandshakeError> {
        let len = self.state.write_message(payload, message).map_err(|_| HandshakeError::UnusableKey)?;
        debug_assert_eq!(len, message.len(), "the lengths of the layout tables");
        Ok(())
    }

    /// Reads the next message; the state is as before when that fails.
    pub(super) fn read<'p>(
        &mut self,
        message: &[u8],
        payload: &'p mut [u8],
    ) -> Result<&'p [u8], HandshakeError> {
        let len = self.state.read_message(message, payload).map_err(|_| HandshakeError::Authentication)?;
        Ok(&payload[..len])
    }

    /// The raw split, initiator to responder first; the state ends here.
    ///
    /// # Errors
    /// [`HandshakeError::Over`] before the handshake is finished, which `snow` does not check.
    pub(super) fn split(mut self) -> Result<[Zeroizing<[u8; 32]>; 2], HandshakeError> {
        if !self.state.is_handshake_finished() {
            return Err(HandshakeError::Over);
        }
        let (first, second) = self.state.dangerously_get_raw_split();
        Ok([Zeroizing::new(first), Zeroizing::new(second)])
    }
}

struct Resolver {
    ephemeral: Arc<OnceLock<Zeroizing<[u8; 32]>>>,
    static_public: [u8; 32],
}

impl CryptoResolver for Resolver {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Some(Box::new(Ephemeral(Arc::clone(&self.ephemeral))))
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        matches!(choice, DHChoice::Curve25519).then(|| {
            Box::new(X25519 { secret: Zeroizing::new([0; 32]), public: self.static_public }) as Box<dyn Dh>
        })
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        DefaultResolver.resolve_hash(choice)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        matches!(choice, CipherChoice::ChaChaPoly)
            .then(|| Box::new(ChaChaPoly(Zeroizing::new([0; 32]))) as Box<dyn Cipher>)
    }
}

/// Randomness that has exactly one ephemeral secret to give.
struct Ephemeral(Arc<OnceLock<Zeroizing<[u8; 32]>>>);

impl Random for Ephemeral {
    fn try_fill_bytes(&mut self, dest: &mut [u8]) -> Result<(), snow::Error> {
        let secret = self.0.get().filter(|secret| secret.len() == dest.len()).ok_or(snow::Error::Rng)?;
        dest.copy_from_slice(secret.as_ref());
        Ok(())
    }
}

/// X25519 (RFC 7748).
struct X25519 {
    secret: Zeroizing<[u8; 32]>,
    /// Our static key's public half until [`Dh::generate`] makes this an ephemeral key.
    public: [u8; 32],
}

impl Dh for X25519 {
    fn name(&self) -> &'static str {
        "25519"
    }

    fn pub_len(&self) -> usize {
        32
    }

    fn priv_len(&self) -> usize {
        32
    }

    /// Called for the static key only, whose public half we know.
    fn set(&mut self, secret: &[u8]) {
        self.secret.copy_from_slice(secret);
    }

    fn generate(&mut self, rng: &mut dyn Random) -> Result<(), snow::Error> {
        rng.try_fill_bytes(self.secret.as_mut())?;
        self.public = MontgomeryPoint::mul_base_clamped(*self.secret).0;
        Ok(())
    }

    fn pubkey(&self) -> &[u8] {
        &self.public
    }

    fn privkey(&self) -> &[u8] {
        self.secret.as_ref()
    }

    fn dh(&self, public: &[u8], out: &mut [u8]) -> Result<(), snow::Error> {
        let public = public.first_chunk().ok_or(snow::Error::Dh)?;
        let shared = Zeroizing::new(MontgomeryPoint(*public).mul_clamped(*self.secret).0);
        if shared.iter().all(|byte| *byte == 0) {
            return Err(snow::Error::Dh);
        }
        out[..32].copy_from_slice(shared.as_ref());
        Ok(())
    }
}

/// ChaCha20-Poly1305 with the nonce of the Noise specification §12.3.
struct ChaChaPoly(Zeroizing<[u8; 32]>);

impl ChaChaPoly {
    fn key(&self) -> LessSafeKey {
        let key = UnboundKey::new(&CHACHA20_POLY1305, self.0.as_ref());
        LessSafeKey::new(key.expect("ChaCha20-Poly1305 has keys of 32 bytes"))
    }

    #[expect(clippy::little_endian_bytes, reason = "Noise counts ChaCha20 nonces in little-endian")]
    fn nonce(nonce: u64) -> Nonce {
        let mut bytes = [0; 12];
        bytes[4..].copy_from_slice(&nonce.to_le_bytes());
        Nonce::assume_unique_for_key(bytes)
    }
}

impl Cipher for ChaChaPoly {
    fn name(&self) -> &'static str {
        "ChaChaPoly"
    }

    fn set(&mut self, key: &[u8; 32]) {
        self.0.copy_from_slice(key);
    }

    fn encrypt(&self, nonce: u64, authtext: &[u8], plaintext: &[u8], out: &mut [u8]) -> usize {
        let (text, tail) = out.split_at_mut(plaintext.len());
        text.copy_from_slice(plaintext);
        let tag = self
            .key()
            .seal_in_place_separate_tag(Self::nonce(nonce), Aad::from(authtext), text)
            .expect("a datagram is shorter than the AEAD's limit");
        tail[..TAG_LEN].copy_from_slice(tag.as_ref());
        plaintext.len() + TAG_LEN
    }

    fn decrypt(
        &self,
        nonce: u64,
        authtext: &[u8],
        ciphertext: &[u8],
        out: &mut [u8],
    ) -> Result<usize, snow::Error> {
        let (text, tag) = ciphertext.split_last_chunk::<TAG_LEN>().ok_or(snow::Error::Decrypt)?;
        let out = out.get_mut(..text.len()).ok_or(snow::Error::Decrypt)?;
        out.copy_from_slice(text);
        self.key()
            .open_in_place_separate_tag(Self::nonce(nonce), Aad::from(authtext), (*tag).into(), out, 0..)
            .map_err(|_| snow::Error::Decrypt)?;
        Ok(text.len())
    }
}
