//! Somebody who speaks the protocol, knows every public key, and means ill.

use std::net::SocketAddr;
use std::time::Duration;

use auramesh::proto::identity::{Identity, NodeId};
use auramesh::proto::session::noise::Initiator;
use auramesh::proto::session::transport::Session;
use auramesh::proto::session::{self, Rng};
use auramesh::proto::timer::{Instant, WallTime};
use auramesh::proto::wire::control::{CONTROL_LEN_MAX, Control};
use auramesh::proto::wire::envelope::{NetworkSecret, RecipientKey};
use auramesh::proto::wire::record::{CAPABILITY_DHT_SERVER, Content, NodeRecord};
use auramesh::proto::wire::session::{HEADER_LEN, Header, Kind, OVERHEAD, PADDING_MULTIPLE, mask};
use rand_core::SeedableRng;

use crate::host::{MTU, WALL_START_MS};
use crate::world::{HostId, World};

pub(crate) struct Attacker {
    pub(crate) identity: Identity,
    pub(crate) endpoint: SocketAddr,
    pub(crate) session: Option<Session>,
    rng: Rng,
}

/// The key that packets to a node are masked with: anybody can derive it.
pub(crate) fn public_key(node_id: &NodeId) -> RecipientKey {
    RecipientKey::new(node_id, &NetworkSecret::default())
}

pub(crate) fn wall(now: Instant) -> WallTime {
    WallTime::from_unix_ms(WALL_START_MS + now.as_nanos() / 1_000_000)
}

impl Attacker {
    pub(crate) fn new(world: &mut World, endpoint: &str) -> Self {
        let endpoint = endpoint.parse().expect("an endpoint");
        world.tap(endpoint);
        let identity = Identity::from_seed(world.seed());
        Self { identity, endpoint, session: None, rng: Rng::from_seed(world.seed()) }
    }

    /// An initiation, ready to be sent.
    pub(crate) fn initiation(&mut self, world: &World, victim: HostId) -> (Initiator, Vec<u8>) {
        let config = session::Config::new(true, NetworkSecret::default());
        let victim = world.host(victim).machine.identity();
        Initiator::start(
            &self.identity,
            &config,
            victim.node_id(),
            &victim.x25519_public(),
            7,
            wall(world.now),
            None,
            &mut self.rng,
        )
        .expect("the victim's keys are usable")
    }

    /// Opens a session with the victim, which then knows it as a peer.
    pub(crate) fn connect(&mut self, world: &mut World, victim: HostId) {
        let (mut initiator, packet) = self.initiation(world, victim);
        world.deliver(victim, self.endpoint, packet);
        world.run_for(Duration::from_millis(600));
        self.confirm(world, victim, &mut initiator);
    }

    /// Reads the victim's response and introduces itself.
    pub(crate) fn confirm(&mut self, world: &mut World, victim: HostId, initiator: &mut Initiator) {
        for seen in world.tapped(self.endpoint) {
            let mut datagram = seen.datagram;
            let Ok(envelope) = public_key(&self.identity.node_id()).open(&mut datagram) else { continue };
            if let Ok(established) = initiator.finish(&envelope, world.now) {
                self.session = Some(established.session);
            }
        }
        assert!(self.session.is_some(), "the victim answers an honest handshake");
        let hello = Control::Hello { record: self.record(world.now).bytes().to_vec() };
        self.say(world, victim, &hello);
    }

    pub(crate) fn record(&self, now: Instant) -> NodeRecord {
        self.record_at(now, self.endpoint)
    }

    /// What it says of itself if it may be reached at an endpoint.
    pub(crate) fn record_at(&self, now: Instant, endpoint: SocketAddr) -> NodeRecord {
        let content = Content {
            sequence: now.as_nanos(),
            issued: wall(now),
            ttl: Duration::from_secs(3600),
            capabilities: CAPABILITY_DHT_SERVER,
            endpoints: vec![endpoint],
            relays: Vec::new(),
            streams: Vec::new(),
        };
        NodeRecord::sign(&self.identity, content)
    }

    /// Seals any plaintext for the victim.
    pub(crate) fn seal(&self, now: Instant, kind: Kind, plaintext: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; HEADER_LEN];
        packet.extend(plaintext);
        packet.resize(packet.len() + OVERHEAD + PADDING_MULTIPLE, 0);
        let session = self.session.as_ref().expect("connected");
        let len =
            session.seal(kind, &mut packet, plaintext.len(), MTU.max(CONTROL_LEN_MAX), now).expect("sealed");
        packet.truncate(len);
        packet
    }

    pub(crate) fn say(&self, world: &mut World, victim: HostId, message: &Control) {
        let mut plaintext = Vec::new();
        message.emit(&mut plaintext);
        let datagram = self.seal(world.now, Kind::Control, &plaintext);
        world.deliver(victim, self.endpoint, datagram);
    }

    /// What the victim has said in the session since the last call.
    pub(crate) fn hear(&self, world: &mut World) -> Vec<Control> {
        let (own, session) =
            (public_key(&self.identity.node_id()), self.session.as_ref().expect("connected"));
        let mut heard = Vec::new();
        for seen in world.tapped(self.endpoint) {
            let mut datagram = seen.datagram;
            if mask(&own, &mut datagram).is_ok()
                && let Ok(header) = Header::parse(datagram.first_chunk().expect("a header"))
                && header.kind == Kind::Control
                && let Ok(opened) = session.open(&header, &mut datagram, seen.at)
            {
                heard.extend(Control::parse_all(opened.plaintext).expect("well-formed"));
            }
        }
        heard
    }
}
