//! The handshake: Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s by `snow`, bound to both Ed25519 identities.
//!
//! ```text
//! prologue    "auramesh v1" ‖ responder's node ID ‖ BLAKE3(network) ‖ initiator's index
//! psk2        BLAKE3(network ‖ initiator's index ‖ responder's index)
//! message 1   e, es, s, ss   payload signed over "auramesh v1 initiation" ‖ h before message 1 ‖ s ‖ signed part
//! message 2   e, ee, se, psk payload signed over "auramesh v1 response" ‖ h after message 1 ‖ signed part
//! ```
//!
//! The static keys authenticate by Diffie-Hellman, the signatures tie them to the node IDs. Indices are part of what
//! Noise authenticates, so a packet whose index was changed on the way fails like any other garbage and the genuine one
//! that follows still counts. `snow` rolls back a message that does not authenticate.

use std::net::SocketAddr;

use super::crypto::{Noise, Setup};
use super::transport::{Outcome, Session};
use super::{Config, HandshakeError, Rng, draw, draw_len, draw_secret, gate};
use crate::proto::identity::{Identity, NodeId};
use crate::proto::timer::{Instant, WallTime};
use crate::proto::wire::envelope::{Envelope, Kind, MAC_LEN, MAC1_AT, MAC2_AT, NetworkSecret, RecipientKey};
use crate::proto::wire::handshake::{
    CAPABILITY_THREADS, INITIATION_LEN_MAX, INITIATION_LEN_MIN, INITIATION_NOISE_AT,
    INITIATION_NOISE_OVERHEAD, Initiation, InitiationPayload, RESPONSE_NOISE_AT, RESPONSE_NOISE_OVERHEAD,
    Response, ResponsePayload, Suite, threads,
};
use crate::proto::wire::{Malformed, SETUP_LEN_MAX};

const INITIATION_CONTEXT: &[u8] = b"auramesh v1 initiation";
const RESPONSE_CONTEXT: &[u8] = b"auramesh v1 response";

/// A handshake that we started, waiting for the response.
pub struct Initiator {
    /// `None` once the handshake is over.
    noise: Option<Noise>,
    peer: NodeId,
    peer_key: RecipientKey,
    cookie_key: RecipientKey,
    local_index: u32,
    suites: u8,
    capabilities: u16,
    network: NetworkSecret,
}

/// A finished handshake, as the initiator sees it.
#[derive(Debug)]
pub struct Established {
    /// The session; the initiator may send at once.
    pub session: Session,
    /// Our endpoint as the responder sees it. Its claim, not a proof.
    pub observed: SocketAddr,
}

impl Initiator {
    /// Begins a handshake with `peer` and returns the packet to send, padded to a random length.
    ///
    /// `timestamp` must be greater than in every earlier handshake with the peer; `local_index` is free among our
    /// sessions; `cookie` is one from [`Initiator::read_cookie`] less than 120 s ago. To retry, start a new one.
    ///
    /// # Errors
    /// [`HandshakeError::OwnIdentity`] and [`HandshakeError::UnusableKey`], before any packet exists.
    #[expect(
        clippy::too_many_arguments,
        reason = "each is one field of the packet or one of the two parties"
    )]
    pub fn start(
        identity: &Identity,
        config: &Config,
        peer: NodeId,
        peer_x25519: &[u8; 32],
        local_index: u32,
        timestamp: WallTime,
        cookie: Option<&[u8; MAC_LEN]>,
        rng: &mut Rng,
    ) -> Result<(Self, Vec<u8>), HandshakeError> {
        if peer == identity.node_id() || *peer_x25519 == identity.x25519_public() {
            return Err(HandshakeError::OwnIdentity);
        }
        if !peer.is_usable() {
            return Err(HandshakeError::UnusableKey);
        }
        let mut noise = Noise::new(&Setup {
            identity,
            network: &config.network,
            responder: peer,
            responder_x25519: Some(peer_x25519),
            initiator_index: local_index,
        });
        noise.set_ephemeral(draw_secret(rng));
        let mut payload = InitiationPayload {
            node_id: identity.node_id(),
            timestamp,
            suites: config.suites,
            preferred: config.preferred,
            capabilities: config.capabilities,
            signature: [0; 64],
        };
        let signed = initiation_text(&noise.hash(), &identity.x25519_public(), &payload);
        payload.signature = identity.sign(&signed);

        let mut draw_initiation_len = || draw_len(rng, INITIATION_LEN_MIN, INITIATION_LEN_MAX);
        let mut len = draw_initiation_len();
        // Long ones are rarer: most handshakes of a node that idles are for a question or two.
        for _ in 0..2 {
            if len > INITIATION_LEN_MIN.midpoint(INITIATION_LEN_MAX) {
                len = draw_initiation_len();
            }
        }
        let noise_len = len - INITIATION_NOISE_AT;
        let padding = noise_len - INITIATION_NOISE_OVERHEAD - InitiationPayload::LEN;
        let mut packet = Initiation::emit(local_index, noise_len);
        noise.write(&payload.emit(padding), &mut packet[INITIATION_NOISE_AT..])?;
        let peer_key = RecipientKey::new(&peer, &config.network);
        peer_key.close(Kind::Initiation, cookie, draw(rng), &mut packet);
        let mac1 = std::array::from_fn(|i| packet[MAC1_AT..MAC2_AT][i]);
        let initiator = Self {
            noise: Some(noise),
            peer,
            cookie_key: peer_key.for_cookie_reply(&mac1),
            peer_key,
            local_index,
            suites: config.suites,
            capabilities: config.capabilities,
            network: config.network.clone(),
        };
        Ok((initiator, packet))
    }

    /// Who the handshake is with.
    pub const fn peer(&self) -> NodeId {
        self.peer
    }

    /// The index that we gave in the initiation.
    pub const fn local_index(&self) -> u32 {
        self.local_index
    }

    /// Reads the response. The handshake stays pending after whatever is not the genuine one.
    ///
    /// # Errors
    /// [`HandshakeError`]. After [`HandshakeError::Signature`], [`HandshakeError::Suite`] and a malformed payload,
    /// which only the holder of the peer's X25519 key can cause, the handshake is over.
    pub fn finish(&mut self, envelope: &Envelope<'_>, now: Instant) -> Result<Established, HandshakeError> {
        let noise = self.noise.as_mut().ok_or(HandshakeError::Over)?;
        if envelope.kind != Kind::Response {
            return Err(HandshakeError::Kind);
        }
        let response = Response::parse(envelope.body())?;
        if response.receiver_index != self.local_index {
            return Err(HandshakeError::Index);
        }
        let after = noise.hash();
        noise.set_psk(&self.network, self.local_index, response.sender_index);
        let mut payload = [0; SETUP_LEN_MAX];
        let payload = noise.read(response.noise, &mut payload)?;

        let noise = self.noise.take().ok_or(HandshakeError::Over)?;
        let payload = ResponsePayload::parse(payload)?;
        let signed = response_text(&after, payload.suite, payload.capabilities);
        if !self.peer.verify(&signed, &payload.signature) {
            return Err(HandshakeError::Signature);
        }
        if self.suites & payload.suite.bit() == 0 {
            return Err(HandshakeError::Suite);
        }
        let handshake_hash = noise.hash();
        let session = Session::new(Outcome {
            peer: self.peer,
            peer_key: self.peer_key.clone(),
            local_index: self.local_index,
            remote_index: response.sender_index,
            suite: payload.suite,
            capabilities: self.capabilities & payload.capabilities,
            threads: sending_threads(self.capabilities, payload.capabilities),
            is_initiator: true,
            established: now,
            split: noise.split()?,
            handshake_hash,
        });
        Ok(Established { session, observed: payload.observed })
    }

    /// The cookie, if the packet is a cookie reply to our initiation.
    pub fn read_cookie(&self, packet: &[u8]) -> Option<[u8; MAC_LEN]> {
        gate::read_cookie(&self.cookie_key, packet)
    }
}

/// An authentic initiation by somebody else. Dropping it refuses it silently.
pub struct Incoming {
    noise: Noise,
    peer: NodeId,
    peer_x25519: [u8; 32],
    remote_index: u32,
    timestamp: WallTime,
    suite: Suite,
    /// Ours and the initiator's.
    capabilities: (u16, u16),
    network: NetworkSecret,
    initiation_len: usize,
}

impl Incoming {
    /// Reads an initiation: two Diffie-Hellmans and a signature check, so ask [`super::gate::Gate`] first.
    ///
    /// # Errors
    /// [`HandshakeError`]; nothing is to be answered or recorded then.
    pub fn open(
        identity: &Identity,
        config: &Config,
        envelope: &Envelope<'_>,
    ) -> Result<Self, HandshakeError> {
        if envelope.kind != Kind::Initiation {
            return Err(HandshakeError::Kind);
        }
        // The response may be as long as the initiation: a short one would make us an amplifier.
        if envelope.packet_len() < INITIATION_LEN_MIN {
            return Err(Malformed::Truncated.into());
        }
        let initiation = Initiation::parse(envelope.body())?;
        let mut noise = Noise::new(&Setup {
            identity,
            network: &config.network,
            responder: identity.node_id(),
            initiator_index: initiation.sender_index,
            responder_x25519: None,
        });
        let before = noise.hash();
        let mut payload = [0; SETUP_LEN_MAX];
        let payload = noise.read(initiation.noise, &mut payload)?;
        let peer_x25519 = noise.remote_static().ok_or(HandshakeError::Authentication)?;
        let payload = InitiationPayload::parse(payload)?;
        if payload.node_id == identity.node_id() || peer_x25519 == identity.x25519_public() {
            return Err(HandshakeError::OwnIdentity);
        }
        if !payload.node_id.verify(&initiation_text(&before, &peer_x25519, &payload), &payload.signature) {
            return Err(HandshakeError::Signature);
        }
        let suite = config.choose(payload.suites, payload.preferred).ok_or(HandshakeError::Suite)?;
        Ok(Self {
            noise,
            peer: payload.node_id,
            peer_x25519,
            remote_index: initiation.sender_index,
            timestamp: payload.timestamp,
            suite,
            capabilities: (config.capabilities, payload.capabilities),
            network: config.network.clone(),
            initiation_len: envelope.packet_len(),
        })
    }

    /// Who initiates; proven.
    pub const fn peer(&self) -> NodeId {
        self.peer
    }

    /// The initiator's X25519 key; proven to be its own.
    pub const fn peer_x25519(&self) -> &[u8; 32] {
        &self.peer_x25519
    }

    /// When the initiator says it started. Not greater than the last one of this peer: a replay.
    pub const fn timestamp(&self) -> WallTime {
        self.timestamp
    }

    /// Opens the session and returns the response to send, no longer than the initiation was.
    ///
    /// Nothing may be sent in the session before a packet came in it ([`super::transport::Opened::first`]): the
    /// initiation may be a replay. `observed` is where it came from.
    ///
    /// # Errors
    /// [`HandshakeError::UnusableKey`] when the initiator's ephemeral key is of small order.
    pub fn accept(
        mut self,
        identity: &Identity,
        local_index: u32,
        observed: SocketAddr,
        now: Instant,
        rng: &mut Rng,
    ) -> Result<(Session, Vec<u8>), HandshakeError> {
        let (capabilities, theirs) = self.capabilities;
        let signed = response_text(&self.noise.hash(), self.suite, capabilities);
        let signature = identity.sign(&signed);
        let payload = ResponsePayload { suite: self.suite, capabilities, signature, observed };
        let mut payload = payload.emit(0);
        let len_min = RESPONSE_NOISE_AT + RESPONSE_NOISE_OVERHEAD + payload.len();
        let len = draw_len(rng, len_min, self.initiation_len);
        payload.resize(payload.len() + len - len_min, 0);

        let mut packet = Response::emit(local_index, self.remote_index, len - RESPONSE_NOISE_AT);
        self.noise.set_ephemeral(draw_secret(rng));
        self.noise.set_psk(&self.network, self.remote_index, local_index);
        self.noise.write(&payload, &mut packet[RESPONSE_NOISE_AT..])?;
        let peer_key = RecipientKey::new(&self.peer, &self.network);
        peer_key.close(Kind::Response, None, draw(rng), &mut packet);
        let handshake_hash = self.noise.hash();
        let session = Session::new(Outcome {
            peer: self.peer,
            peer_key,
            local_index,
            remote_index: self.remote_index,
            suite: self.suite,
            capabilities: capabilities & theirs,
            threads: sending_threads(capabilities, theirs),
            is_initiator: false,
            established: now,
            split: self.noise.split()?,
            handshake_hash,
        });
        Ok((session, packet))
    }
}

/// Our sending threads and the peer's, as far as the other side understands more than one.
const fn sending_threads(ours: u16, theirs: u16) -> (u8, u8) {
    if ours & theirs & CAPABILITY_THREADS == 0 {
        return (1, 1);
    }
    (threads(ours), threads(theirs))
}

/// What the initiator signs. Covers the responder (by the hash), the initiator's static key and the payload.
pub(super) fn initiation_text(before: &[u8; 32], x25519: &[u8; 32], payload: &InitiationPayload) -> Vec<u8> {
    [INITIATION_CONTEXT, before, x25519, &payload.signed_part()].concat()
}

/// What the responder signs. Covers all of message 1.
pub(super) fn response_text(after: &[u8; 32], suite: Suite, capabilities: u16) -> Vec<u8> {
    [RESPONSE_CONTEXT, after, &ResponsePayload::signed_part(suite, capabilities)].concat()
}
