//! Control messages about routes: ways through several relays, found and set up while nothing shorter is left.
//!
//! ```text
//! 20 Seek    nonce u64 ‖ hops left u8 (1..3) ‖ target 32 ‖ its relays 32 each, at most 3
//! 21 Sought  nonce u64 ‖ service u8 ‖ relays beyond the sender 32 each, nearest first, at most 3
//! 22 Bind    slot u64 ‖ origin 32 ‖ peer 32 ‖ service u8 ‖ m u8 ‖ n u8 ‖ m relays to come ‖ n relays passed ‖ datagram
//! 23 Invite  slot u64 ‖ peer 32 ‖ service u8 ‖ n u8 ‖ n relays passed, the sender last ‖ datagram
//! 24 Trace   flags u8 (bit 0: an answer) ‖ nonce u64 ‖ slot u64 ‖ relays left u8
//! 25 Forward request u64 ‖ node 32 ‖ want u8 ‖ target 32
//! ```
//!
//! Nodes are named by their keys and never by their addresses: whom a key belongs to, the neighbour of a node knows.
//! A bound answers a bind as it does for a channel of one relay ([`super::control::Control::Bound`]); a found answers
//! a forward.

use super::Malformed;
use super::control::{CONTROL_LEN_MAX, MESSAGE_HEADER_LEN, Service, Want};
use super::cursor::Reader;
use super::record::RECORD_RELAYS_MAX;
use super::relay::{HOPS_MAX, Slot};
use crate::proto::identity::{NodeId, Position};

/// Sessions that a search goes along, one after the other.
pub const SEEK_HOPS_MAX: u8 = HOPS_MAX - 1;
/// Relays before or behind a relay on the same route.
pub const OTHERS_MAX: usize = HOPS_MAX as usize - 1;
/// Longest datagram in a [`Routing::Bind`] or [`Routing::Invite`], in bytes.
pub const ROUTED_LEN_MAX: usize = CONTROL_LEN_MAX - MESSAGE_HEADER_LEN - 8 - 2 * 32 - 3 - OTHERS_MAX * 32;

/// A message about routes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Routing {
    /// Who of you, or of those that you know, reaches this node?
    Seek {
        /// Names the question; comes back in answers.
        nonce: u64,
        /// Sessions that it still may go along, the one that it came by included.
        ttl: u8,
        /// Who is sought.
        target: NodeId,
        /// By way of whom the target says that it is reached.
        relays: Vec<NodeId>,
    },
    /// Answers a seek: the sender reaches the target.
    Sought {
        /// From the seek.
        nonce: u64,
        /// What the way is good for.
        service: Service,
        /// Relays between the sender and the target, nearest to the sender first.
        hops: Vec<NodeId>,
    },
    /// Asks for a channel that leads through more relays, and has a datagram carried through it.
    Bind {
        /// How the sender names the channel.
        slot: Slot,
        /// Who opens it.
        origin: NodeId,
        /// Who is to be reached.
        peer: NodeId,
        /// What the relays passed so far carry.
        service: Service,
        /// Relays behind the recipient, nearest first.
        next: Vec<NodeId>,
        /// Relays before the recipient, in their order; the last one is the sender.
        passed: Vec<NodeId>,
        /// A setup or session packet for the peer; may be empty.
        datagram: Vec<u8>,
    },
    /// Somebody bound a channel through several relays to the recipient.
    Invite {
        /// How the recipient names the channel.
        slot: Slot,
        /// Who it says it is; the datagram proves it.
        peer: NodeId,
        /// What the channel is good for.
        service: Service,
        /// Its relays in their order; the last one is the sender.
        passed: Vec<NodeId>,
        /// What came with the bind.
        datagram: Vec<u8>,
    },
    /// Asks a relay of a channel for a sign of life, or gives it.
    Trace {
        /// True for the sign of life.
        answer: bool,
        /// Comes back in the answer.
        nonce: u64,
        /// How the recipient and the sender name the channel.
        slot: Slot,
        /// Relays that the question still passes.
        left: u8,
    },
    /// Asks the recipient to ask another node of the DHT, which the sender does not reach.
    Forward {
        /// Comes back in the answer, a `Found` as the other node gave it.
        request: u64,
        /// Who is to be asked.
        to: NodeId,
        /// What is asked for.
        want: Want,
        /// Point of the key space.
        target: Position,
    },
}

impl Routing {
    /// Numbers of these messages.
    pub(super) const NUMBERS: std::ops::RangeInclusive<u8> = 20..=25;

    pub(super) const fn number(&self) -> u8 {
        match self {
            Self::Seek { .. } => 20,
            Self::Sought { .. } => 21,
            Self::Bind { .. } => 22,
            Self::Invite { .. } => 23,
            Self::Trace { .. } => 24,
            Self::Forward { .. } => 25,
        }
    }

    /// Appends the value.
    pub(super) fn emit(&self, out: &mut Vec<u8>) {
        match self {
            Self::Seek { nonce, ttl, target, relays } => {
                out.extend(nonce.to_be_bytes());
                out.push(*ttl);
                out.extend(target.as_bytes());
                emit_nodes(relays, out);
            }
            Self::Sought { nonce, service, hops } => {
                out.extend(nonce.to_be_bytes());
                out.push(service.number());
                emit_nodes(hops, out);
            }
            Self::Bind { slot, origin, peer, service, next, passed, datagram } => {
                out.extend(slot.0.to_be_bytes());
                emit_nodes(&[*origin, *peer], out);
                out.extend([service.number(), next.len() as u8, passed.len() as u8]);
                emit_nodes(next, out);
                emit_nodes(passed, out);
                out.extend(datagram);
            }
            Self::Invite { slot, peer, service, passed, datagram } => {
                out.extend(slot.0.to_be_bytes());
                out.extend(peer.as_bytes());
                out.extend([service.number(), passed.len() as u8]);
                emit_nodes(passed, out);
                out.extend(datagram);
            }
            Self::Trace { answer, nonce, slot, left } => {
                out.push(u8::from(*answer));
                out.extend(nonce.to_be_bytes());
                out.extend(slot.0.to_be_bytes());
                out.push(*left);
            }
            Self::Forward { request, to, want, target } => {
                out.extend(request.to_be_bytes());
                out.extend(to.as_bytes());
                out.push(want.number());
                out.extend(target.0);
            }
        }
    }

    /// Reads a value whose number is one of [`Self::NUMBERS`].
    pub(super) fn parse(number: u8, value: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(match number {
            20 => {
                let (nonce, ttl, target) = (value.u64()?, value.u8()?, NodeId(value.array()?));
                if !(1..=SEEK_HOPS_MAX).contains(&ttl) {
                    return Err(Malformed::Field("hops left"));
                }
                Self::Seek { nonce, ttl, target, relays: rest_nodes(value, RECORD_RELAYS_MAX)? }
            }
            21 => {
                let (nonce, service) = (value.u64()?, Service::from_number(value.u8()?)?);
                Self::Sought { nonce, service, hops: rest_nodes(value, OTHERS_MAX)? }
            }
            22 => {
                let slot = Slot(value.u64()?);
                let (origin, peer) = (NodeId(value.array()?), NodeId(value.array()?));
                let service = Service::from_number(value.u8()?)?;
                let (m, n) = (usize::from(value.u8()?), usize::from(value.u8()?));
                if m + n > OTHERS_MAX {
                    return Err(Malformed::TooLong);
                }
                let (next, passed) = (nodes(value, m)?, nodes(value, n)?);
                Self::Bind { slot, origin, peer, service, next, passed, datagram: carried(value)? }
            }
            23 => {
                let (slot, peer) = (Slot(value.u64()?), NodeId(value.array()?));
                let (service, n) = (Service::from_number(value.u8()?)?, usize::from(value.u8()?));
                if !(1..=usize::from(HOPS_MAX)).contains(&n) {
                    return Err(Malformed::Field("relays passed"));
                }
                Self::Invite { slot, peer, service, passed: nodes(value, n)?, datagram: carried(value)? }
            }
            24 => {
                let flags = value.u8()?;
                if flags > 1 {
                    return Err(Malformed::Field("flags"));
                }
                let (nonce, slot, left) = (value.u64()?, Slot(value.u64()?), value.u8()?);
                if left >= HOPS_MAX {
                    return Err(Malformed::Field("relays left"));
                }
                Self::Trace { answer: flags == 1, nonce, slot, left }
            }
            _ => Self::Forward {
                request: value.u64()?,
                to: NodeId(value.array()?),
                want: Want::from_number(value.u8()?)?,
                target: Position(value.array()?),
            },
        })
    }
}

fn emit_nodes(nodes: &[NodeId], out: &mut Vec<u8>) {
    nodes.iter().for_each(|node| out.extend(node.as_bytes()));
}

fn nodes(reader: &mut Reader<'_>, n: usize) -> Result<Vec<NodeId>, Malformed> {
    (0..n).map(|_| Ok(NodeId(reader.array()?))).collect()
}

fn rest_nodes(reader: &mut Reader<'_>, max: usize) -> Result<Vec<NodeId>, Malformed> {
    let n = reader.len() / 32;
    if n > max { Err(Malformed::TooLong) } else { nodes(reader, n) }
}

fn carried(reader: &mut Reader<'_>) -> Result<Vec<u8>, Malformed> {
    let bytes = reader.rest();
    if bytes.len() > ROUTED_LEN_MAX { Err(Malformed::TooLong) } else { Ok(bytes.to_vec()) }
}
