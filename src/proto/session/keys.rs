//! Key derivation, the ratchet, and the AEAD of session packets.
//!
//! ```text
//! raw split key ‖ handshake hash          one per direction
//!  └─ chain 0 ── ratchet ──▶ chain 1 ── ratchet ──▶ chain 2 …      BLAKE3 derive_key, one way
//!       └─ key 0                └─ key 1               └─ key 2    ‖ sending thread ‖ suite
//! ```
//!
//! An epoch has one key for each sending thread; that of thread 0 is derived at once, the others with their first
//! packet. So it keeps its chain, and both go together: keys of an epoch that was dropped cannot be derived again.

use std::hint::black_box;

use ring::aead::{AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use zeroize::{Zeroize, Zeroizing};

use super::threads::PerThread;
use crate::proto::wire::handshake::Suite;
use crate::proto::wire::session::{HEADER_LEN, TAG_LEN};

const CHAIN_CONTEXT: &str = "auramesh v1 session chain";
const RATCHET_CONTEXT: &str = "auramesh v1 session ratchet";
const KEY_CONTEXT: &str = "auramesh v1 session key";

/// A chaining key: gives the AEAD key of one epoch, then the chain of the next.
pub(super) struct Chain(Zeroizing<[u8; 32]>);

impl Chain {
    /// The chain of epoch 0, from one direction of the raw split and the final handshake hash.
    pub(super) fn new(split: &[u8; 32], handshake_hash: &[u8; 32]) -> Self {
        let mut material = Zeroizing::new([0; 64]);
        material[..32].copy_from_slice(split);
        material[32..].copy_from_slice(handshake_hash);
        Self(Zeroizing::new(blake3::derive_key(CHAIN_CONTEXT, material.as_ref())))
    }

    /// The chain of the next epoch.
    pub(super) fn ratchet(&self) -> Self {
        Self(Zeroizing::new(blake3::derive_key(RATCHET_CONTEXT, self.0.as_ref())))
    }

    /// The AEAD key of a sending thread in this epoch.
    fn key(&self, suite: Suite, thread: u8) -> Key {
        Key::new(suite, &self.key_bytes(suite, thread))
    }

    pub(super) fn key_bytes(&self, suite: Suite, thread: u8) -> Zeroizing<[u8; 32]> {
        let mut material = Zeroizing::new([0; 34]);
        material[..32].copy_from_slice(self.0.as_ref());
        material[32] = thread;
        material[33] = suite.number();
        Zeroizing::new(blake3::derive_key(KEY_CONTEXT, material.as_ref()))
    }
}

/// The keys of one epoch and direction.
pub(super) struct Epoch {
    chain: Chain,
    suite: Suite,
    keys: PerThread<Key>,
}

impl Epoch {
    /// The epoch of a chain, for so many sending threads.
    pub(super) fn new(chain: Chain, suite: Suite, threads: u8) -> Self {
        let keys = PerThread::new(threads, chain.key(suite, 0));
        Self { chain, suite, keys }
    }

    /// The epoch after this one.
    pub(super) fn next(&self) -> Self {
        Self::new(self.chain.ratchet(), self.suite, self.keys.threads())
    }

    /// Encrypts as `thread`, whose counter must be fresh.
    ///
    /// # Panics
    /// When there is no such thread.
    pub(super) fn seal(
        &self,
        thread: u8,
        counter: u64,
        header: &[u8; HEADER_LEN],
        text: &mut [u8],
    ) -> [u8; TAG_LEN] {
        let key = self.keys.get_or_init(thread, || self.chain.key(self.suite, thread));
        key.expect("counters are given to threads of the session only").seal(counter, header, text)
    }

    /// Decrypts what `thread` sealed. The key of a thread that was not heard before is kept only if it fits: garbage
    /// leaves nothing behind.
    pub(super) fn open<'t>(
        &self,
        thread: u8,
        counter: u64,
        header: &[u8; HEADER_LEN],
        text_and_tag: &'t mut [u8],
    ) -> Option<&'t mut [u8]> {
        if let Some(key) = self.keys.get(thread) {
            return key.open(counter, header, text_and_tag);
        }
        let key = self.chain.key(self.suite, thread);
        let text = key.open(counter, header, text_and_tag)?;
        self.keys.get_or_init(thread, || key)?;
        Some(text)
    }

    /// Bytes that it takes.
    #[cfg(test)]
    pub(super) fn memory(&self) -> usize {
        size_of::<Self>() + self.keys.memory_of_others()
    }
}

/// An AEAD key, wiped when dropped.
pub(super) struct Key {
    aead: LessSafeKey,
}

impl Key {
    pub(super) fn new(suite: Suite, bytes: &[u8; 32]) -> Self {
        Self { aead: expand(algorithm(suite), bytes) }
    }

    /// Encrypts in place; the counter must be fresh under this key.
    pub(super) fn seal(&self, counter: u64, header: &[u8; HEADER_LEN], text: &mut [u8]) -> [u8; TAG_LEN] {
        let tag = self
            .aead
            .seal_in_place_separate_tag(nonce(counter), Aad::from(header), text)
            .expect("a datagram is shorter than the AEAD's limit");
        std::array::from_fn(|i| tag.as_ref()[i])
    }

    /// Decrypts in place and returns the plaintext without the tag.
    pub(super) fn open<'t>(
        &self,
        counter: u64,
        header: &[u8; HEADER_LEN],
        text_and_tag: &'t mut [u8],
    ) -> Option<&'t mut [u8]> {
        self.aead.open_in_place(nonce(counter), Aad::from(header), text_and_tag).ok()
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        // `ring` does not wipe its keys: the expanded key is overwritten by that of zeros, and the compiler is told
        // that somebody looks.
        self.aead = expand(self.aead.algorithm(), &[0; 32]);
        black_box(&self.aead);
    }
}

fn algorithm(suite: Suite) -> &'static Algorithm {
    match suite {
        Suite::Aes256Gcm => &AES_256_GCM,
        Suite::ChaCha20Poly1305 => &CHACHA20_POLY1305,
    }
}

fn expand(algorithm: &'static Algorithm, bytes: &[u8; 32]) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(algorithm, bytes).expect("both suites have keys of 32 bytes"))
}

fn nonce(counter: u64) -> Nonce {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&counter.to_be_bytes());
    Nonce::assume_unique_for_key(nonce)
}

/// ChaCha20-Poly1305 with a key for one message only, as sealed packets have; appends the tag.
pub(super) fn seal_once(mut key: Zeroizing<[u8; 32]>, aad: &[u8], text: &mut Vec<u8>, from: usize) {
    let aead = Key::new(Suite::ChaCha20Poly1305, &key);
    key.zeroize();
    let tag = aead
        .aead
        .seal_in_place_separate_tag(nonce(0), Aad::from(aad), &mut text[from..])
        .expect("a datagram is shorter than the AEAD's limit");
    text.extend(tag.as_ref());
}

/// The other side of [`seal_once`].
pub(super) fn open_once(mut key: Zeroizing<[u8; 32]>, aad: &[u8], text_and_tag: &[u8]) -> Option<Vec<u8>> {
    let aead = Key::new(Suite::ChaCha20Poly1305, &key);
    key.zeroize();
    let mut text = text_and_tag.to_vec();
    aead.aead.open_in_place(nonce(0), Aad::from(aad), &mut text).ok()?;
    text.truncate(text.len() - TAG_LEN);
    Some(text)
}
