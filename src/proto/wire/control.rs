//! Control messages between two peers, inside session packets of kind 1.
//!
//! ```text
//! a plaintext is a sequence of   type u8 ‖ length u16 ‖ value
//! type 0 ends it; what follows is zero padding, of any length. Unknown types are skipped.
//!
//!  1 Ping     nonce u64
//!  2 Pong     nonce u64 ‖ observed endpoint
//!  3 Hello    node record of the sender
//!  4 Close    reason u8
//!  5 MtuProbe token u64 ‖ length of the datagram u16; padded to that length
//!  6 MtuAck   token u64 ‖ length of the datagram u16
//!  7 Received newest counter and all before it u64 ‖ packets that came u64
//!  8 Allocate (empty)
//!  9 Allocated seconds u16 ‖ service u8 (0 none, 1 signals, 2 data)
//! 10 Bind     slot u64 ‖ node ID 32 ‖ datagram
//! 11 Bound    slot u64 ‖ service u8
//! 12 Invite   slot u64 ‖ node ID 32 ‖ service u8 ‖ datagram
//! 13 Candidates flags u8 (bit 0: an answer; bit 1: mappings depend on the destination) ‖ endpoints
//! 14 Spray    step u8 (0 ready, 1 open, 2 over)
//! 15 Vouch    answer u8 (0 none, 1 no, 2 yes) ‖ node ID 32 ‖ endpoint
//! 16 Find     request u64 ‖ want u8 (1 contacts, 2 record and contacts, 3 nothing) ‖ target 32
//! 17 Found    request u64 ‖ record length u16 ‖ record ‖ contacts
//! 18 Store    request u64 ‖ record
//! 19 Stored   request u64 ‖ outcome u8
//! 20 to 25    about routes through several relays: [`super::routing`]
//! 32 Dial     nonce u64
//! 33 Dialled  nonce u64
//!
//! contact      node ID 32 ‖ X25519 public key 32 ‖ endpoint
//! ```

use std::net::SocketAddr;

use super::cursor::Reader;
use super::record::RECORD_LEN_MAX;
use super::relay::Slot;
use super::routing::Routing;
use super::{Malformed, endpoint};
use crate::proto::identity::{NodeId, Position};

/// Longest plaintext of control messages in bytes: a datagram of 1280 bytes over IPv6 holds it.
pub const CONTROL_LEN_MAX: usize = 1200;
/// Most messages that one plaintext may hold.
pub const CONTROL_MESSAGES_MAX: usize = 16;
/// Most contacts in one answer: Kademlia's k. As many as fit are sent, 14 with IPv6.
pub const CONTACTS_MAX: usize = 20;

/// Longest datagram in a [`Control::Bind`] or [`Control::Invite`], in bytes.
pub const CARRIED_LEN_MAX: usize = CONTROL_LEN_MAX - MESSAGE_HEADER_LEN - 8 - 32 - 1;
/// Most endpoints in a [`Control::Candidates`].
pub const CANDIDATES_MAX: usize = 8;

/// A node as others are told of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Contact {
    /// Its name.
    pub node_id: NodeId,
    /// Its key for handshakes. A wrong one makes the handshake fail and nothing else.
    pub x25519: [u8; 32],
    /// Where it was last heard.
    pub endpoint: SocketAddr,
}

/// Longest encoding of a contact in bytes.
pub(super) const CONTACT_LEN_MAX: usize = 64 + endpoint::ENDPOINT_LEN_MAX;

/// What a lookup asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// The closest contacts.
    Contacts,
    /// The record whose position has the target as its first 120 bits, and the closest contacts.
    Record,
    /// Nothing but an answer: whether the node is there.
    Nothing,
}

/// What became of a record that was to be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreOutcome {
    /// Stored, or already there.
    Stored,
    /// A newer one is there.
    Old,
    /// No room.
    Full,
    /// Invalid, or we do not serve the DHT.
    Refused,
}

/// Why a peer ends a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// The node is stopping.
    Stopping,
    /// The node needs the place for others, or its owner removed the peer.
    Crowded,
}

/// What a relay does for a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Service {
    /// Nothing.
    None,
    /// Carries what two nodes need to find a way of their own, and little more.
    Signals,
    /// Carries data.
    Data,
}

/// How far one side is with guessing ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SprayStep {
    /// The sender would send checks to many ports of the recipient's NAT.
    Ready,
    /// The sender has opened many ports of its NAT for the recipient.
    Open,
    /// The sender has ended it.
    Over,
}

/// One control message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Control {
    /// Asks for a [`Control::Pong`].
    Ping {
        /// Comes back in the answer.
        nonce: u64,
    },
    /// Answers a ping.
    Pong {
        /// From the ping.
        nonce: u64,
        /// Where the ping came from.
        observed: SocketAddr,
    },
    /// The sender's own record, not yet checked.
    Hello {
        /// Bytes of a node record.
        record: Vec<u8>,
    },
    /// The sender forgets this session.
    Close {
        /// Why.
        reason: CloseReason,
    },
    /// A datagram of a certain length, sent to see whether it arrives (RFC 8899). The session has authenticated it as a
    /// whole: whoever reads it received all of it.
    MtuProbe {
        /// Comes back in the answer.
        token: u64,
        /// Bytes of the datagram that this came in, as the sender says.
        datagram_len: u16,
    },
    /// Answers a probe.
    MtuAck {
        /// From the probe.
        token: u64,
        /// Bytes of the datagram that arrived.
        datagram_len: u16,
    },
    /// How much of what the peer sent in this session came.
    Received {
        /// Packets that must have been sent: the newest counter and all before it.
        sent: u64,
        /// Packets that came.
        received: u64,
    },
    /// Asks for an allocation (RFC 8656 §3.2): others may reach the sender by way of the recipient.
    Allocate,
    /// Answers an allocate.
    Allocated {
        /// For how long it is granted.
        seconds: u16,
        /// What it is good for.
        service: Service,
    },
    /// Asks for a channel (RFC 8656 §12) to a node with an allocation, and has a datagram carried through it.
    Bind {
        /// How the sender names the channel.
        slot: Slot,
        /// Who is to be reached.
        peer: NodeId,
        /// A setup or session packet for the peer; may be empty.
        datagram: Vec<u8>,
    },
    /// Answers a bind.
    Bound {
        /// From the bind.
        slot: Slot,
        /// What the channel is good for; with [`Service::None`] there is none.
        service: Service,
    },
    /// Somebody bound a channel to the recipient.
    Invite {
        /// How the recipient names the channel.
        slot: Slot,
        /// Who it says it is; the datagram proves it.
        peer: NodeId,
        /// What the channel is good for.
        service: Service,
        /// What came with the bind.
        datagram: Vec<u8>,
    },
    /// Where the sender may be reached without a relay (candidates, RFC 8445 §5.1). Both sides send checks then.
    Candidates {
        /// True in answer to the other side's.
        answer: bool,
        /// The sender's NAT maps every destination to another port (RFC 4787 §4.1).
        dependent: bool,
        /// Most promising first.
        endpoints: Vec<SocketAddr>,
    },
    /// How far the sender is with guessing ports (`path::spray`).
    Spray {
        /// The step that it has taken.
        step: SprayStep,
    },
    /// Asks a relay whether a node that has a channel to the sender is where it says; or the answer, as long as the
    /// question.
    Vouch {
        /// Nothing in a question; else whether it is so.
        answer: Option<bool>,
        /// The node.
        peer: NodeId,
        /// Where it says that others see it; port 0 is any.
        endpoint: SocketAddr,
    },
    /// FIND_NODE and FIND_VALUE of Kademlia.
    Find {
        /// Comes back in the answer.
        request: u64,
        /// What is asked for.
        want: Want,
        /// Point of the key space.
        target: Position,
    },
    /// Answers a find.
    Found {
        /// From the find.
        request: u64,
        /// Bytes of a node record, not yet checked.
        record: Option<Vec<u8>>,
        /// Closest nodes that the sender knows to be alive.
        contacts: Vec<Contact>,
    },
    /// STORE of Kademlia.
    Store {
        /// Comes back in the answer.
        request: u64,
        /// Bytes of a node record, not yet checked.
        record: Vec<u8>,
    },
    /// Answers a store.
    Stored {
        /// From the store.
        request: u64,
        /// What became of it.
        outcome: StoreOutcome,
    },
    /// Asks to be sent a sealed packet from another port than that of the session, to where this came from.
    Dial {
        /// Comes in that packet.
        nonce: u64,
    },
    /// Answers a dial: the packet is on its way.
    Dialled {
        /// From the dial.
        nonce: u64,
    },
    /// About routes through several relays.
    Routing(Routing),
}

const END: u8 = 0;
/// Bytes before the value of a message.
pub(super) const MESSAGE_HEADER_LEN: usize = 3;

impl Control {
    /// Appends the message; contacts beyond what fits into [`CONTROL_LEN_MAX`] are left out.
    pub fn emit(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend([self.number(), 0, 0]);
        match self {
            Self::Ping { nonce } | Self::Dial { nonce } | Self::Dialled { nonce } => {
                out.extend(nonce.to_be_bytes());
            }
            Self::Pong { nonce, observed } => {
                out.extend(nonce.to_be_bytes());
                endpoint::emit(observed, out);
            }
            Self::Hello { record } => out.extend(record),
            Self::Close { reason } => out.push(reason.number()),
            Self::MtuProbe { token, datagram_len } | Self::MtuAck { token, datagram_len } => {
                out.extend(token.to_be_bytes());
                out.extend(datagram_len.to_be_bytes());
            }
            Self::Received { sent, received } => {
                out.extend(sent.to_be_bytes());
                out.extend(received.to_be_bytes());
            }
            Self::Allocate => {}
            Self::Allocated { seconds, service } => {
                out.extend(seconds.to_be_bytes());
                out.push(service.number());
            }
            Self::Bind { slot, peer, datagram } => {
                out.extend(slot.0.to_be_bytes());
                out.extend(peer.as_bytes());
                out.extend(datagram);
            }
            Self::Bound { slot, service } => {
                out.extend(slot.0.to_be_bytes());
                out.push(service.number());
            }
            Self::Invite { slot, peer, service, datagram } => {
                out.extend(slot.0.to_be_bytes());
                out.extend(peer.as_bytes());
                out.push(service.number());
                out.extend(datagram);
            }
            Self::Candidates { answer, dependent, endpoints } => {
                out.push(u8::from(*answer) | u8::from(*dependent) << 1);
                endpoints.iter().take(CANDIDATES_MAX).for_each(|e| endpoint::emit(e, out));
            }
            Self::Spray { step } => out.push(step.number()),
            Self::Vouch { answer, peer, endpoint } => {
                out.push(answer.map_or(0, |yes| 1 + u8::from(yes)));
                out.extend(peer.as_bytes());
                endpoint::emit(endpoint, out);
            }
            Self::Find { request, want, target } => {
                out.extend(request.to_be_bytes());
                out.push(want.number());
                out.extend(target.0);
            }
            Self::Found { request, record, contacts } => {
                out.extend(request.to_be_bytes());
                let record = record.as_deref().unwrap_or_default();
                out.extend((record.len() as u16).to_be_bytes());
                out.extend(record);
                contacts.iter().for_each(|contact| emit_contact_if_it_fits(contact, out));
            }
            Self::Store { request, record } => {
                out.extend(request.to_be_bytes());
                out.extend(record);
            }
            Self::Stored { request, outcome } => {
                out.extend(request.to_be_bytes());
                out.push(outcome.number());
            }
            Self::Routing(message) => message.emit(out),
        }
        let len = (out.len() - start - MESSAGE_HEADER_LEN) as u16;
        out[start + 1..start + MESSAGE_HEADER_LEN].copy_from_slice(&len.to_be_bytes());
    }

    /// Reads all messages of a plaintext. Messages of unknown types are left out.
    ///
    /// # Errors
    /// [`Malformed`] when any known message is; then none of them counts.
    pub fn parse_all(plaintext: &[u8]) -> Result<Vec<Self>, Malformed> {
        let mut reader = Reader::new(plaintext);
        let mut messages = Vec::new();
        while !reader.is_empty() {
            let number = reader.u8()?;
            if number == END {
                zeros(reader.rest())?;
                break;
            }
            let len = reader.u16()?;
            let value = Reader::new(reader.take(usize::from(len))?);
            if messages.len() == CONTROL_MESSAGES_MAX {
                return Err(Malformed::TooLong);
            }
            messages.extend(Self::parse(number, value)?);
        }
        Ok(messages)
    }

    fn parse(number: u8, mut value: Reader<'_>) -> Result<Option<Self>, Malformed> {
        let message = match number {
            1 => Self::Ping { nonce: value.u64()? },
            2 => Self::Pong { nonce: value.u64()?, observed: endpoint::parse(&mut value)? },
            3 => Self::Hello { record: record_bytes(value.rest())? },
            7 => Self::Received { sent: value.u64()?, received: value.u64()? },
            4 => Self::Close { reason: CloseReason::from_number(value.u8()?)? },
            5 => Self::MtuProbe { token: value.u64()?, datagram_len: value.u16()? },
            6 => Self::MtuAck { token: value.u64()?, datagram_len: value.u16()? },
            8 => Self::Allocate,
            9 => Self::Allocated { seconds: value.u16()?, service: Service::from_number(value.u8()?)? },
            10 => Self::Bind {
                slot: Slot(value.u64()?),
                peer: NodeId(value.array()?),
                datagram: carried(value.rest())?,
            },
            11 => Self::Bound { slot: Slot(value.u64()?), service: Service::from_number(value.u8()?)? },
            12 => Self::Invite {
                slot: Slot(value.u64()?),
                peer: NodeId(value.array()?),
                service: Service::from_number(value.u8()?)?,
                datagram: carried(value.rest())?,
            },
            13 => {
                let flags = value.u8()?;
                if flags > 3 {
                    return Err(Malformed::Field("flags"));
                }
                let endpoints = parse_endpoints(&mut value)?;
                Self::Candidates { answer: flags & 1 == 1, dependent: flags & 2 == 2, endpoints }
            }
            14 => Self::Spray { step: SprayStep::from_number(value.u8()?)? },
            15 => Self::Vouch {
                answer: match value.u8()? {
                    0 => None,
                    1 => Some(false),
                    2 => Some(true),
                    _ => return Err(Malformed::Field("answer")),
                },
                peer: NodeId(value.array()?),
                endpoint: endpoint::parse(&mut value)?,
            },
            16 => Self::Find {
                request: value.u64()?,
                want: Want::from_number(value.u8()?)?,
                target: Position(value.array()?),
            },
            17 => {
                let request = value.u64()?;
                let len = value.u16()?;
                let record = value.take(usize::from(len))?;
                let record = if record.is_empty() { None } else { Some(record_bytes(record)?) };
                Self::Found { request, record, contacts: parse_contacts(&mut value)? }
            }
            18 => Self::Store { request: value.u64()?, record: record_bytes(value.rest())? },
            19 => Self::Stored { request: value.u64()?, outcome: StoreOutcome::from_number(value.u8()?)? },
            32 => Self::Dial { nonce: value.u64()? },
            33 => Self::Dialled { nonce: value.u64()? },
            number if Routing::NUMBERS.contains(&number) => {
                Self::Routing(Routing::parse(number, &mut value)?)
            }
            _ => return Ok(None),
        };
        value.end()?;
        Ok(Some(message))
    }

    const fn number(&self) -> u8 {
        match self {
            Self::Ping { .. } => 1,
            Self::Pong { .. } => 2,
            Self::Hello { .. } => 3,
            Self::Close { .. } => 4,
            Self::MtuProbe { .. } => 5,
            Self::MtuAck { .. } => 6,
            Self::Received { .. } => 7,
            Self::Allocate => 8,
            Self::Allocated { .. } => 9,
            Self::Bind { .. } => 10,
            Self::Bound { .. } => 11,
            Self::Invite { .. } => 12,
            Self::Candidates { .. } => 13,
            Self::Spray { .. } => 14,
            Self::Vouch { .. } => 15,
            Self::Find { .. } => 16,
            Self::Found { .. } => 17,
            Self::Store { .. } => 18,
            Self::Stored { .. } => 19,
            Self::Dial { .. } => 32,
            Self::Dialled { .. } => 33,
            Self::Routing(message) => message.number(),
        }
    }
}

fn zeros(padding: &[u8]) -> Result<(), Malformed> {
    if padding.iter().all(|b| *b == 0) { Ok(()) } else { Err(Malformed::Field("padding")) }
}

fn record_bytes(bytes: &[u8]) -> Result<Vec<u8>, Malformed> {
    if bytes.len() > RECORD_LEN_MAX { Err(Malformed::TooLong) } else { Ok(bytes.to_vec()) }
}

fn emit_contact_if_it_fits(contact: &Contact, out: &mut Vec<u8>) {
    if out.len() + CONTACT_LEN_MAX <= CONTROL_LEN_MAX {
        contact.emit(out);
    }
}

fn parse_contacts(reader: &mut Reader<'_>) -> Result<Vec<Contact>, Malformed> {
    let mut contacts = Vec::new();
    while !reader.is_empty() {
        if contacts.len() == CONTACTS_MAX {
            return Err(Malformed::TooLong);
        }
        contacts.push(Contact::parse(reader)?);
    }
    Ok(contacts)
}

fn carried(bytes: &[u8]) -> Result<Vec<u8>, Malformed> {
    if bytes.len() > CARRIED_LEN_MAX { Err(Malformed::TooLong) } else { Ok(bytes.to_vec()) }
}

fn parse_endpoints(reader: &mut Reader<'_>) -> Result<Vec<SocketAddr>, Malformed> {
    let mut endpoints = Vec::new();
    while !reader.is_empty() {
        if endpoints.len() == CANDIDATES_MAX {
            return Err(Malformed::TooLong);
        }
        endpoints.push(endpoint::parse(reader)?);
    }
    Ok(endpoints)
}

impl Contact {
    /// Appends the contact.
    pub(super) fn emit(&self, out: &mut Vec<u8>) {
        out.extend(self.node_id.as_bytes());
        out.extend(self.x25519);
        endpoint::emit(&self.endpoint, out);
    }

    /// Reads a contact.
    pub(super) fn parse(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let (node_id, x25519) = (NodeId(reader.array()?), reader.array()?);
        Ok(Self { node_id, x25519, endpoint: endpoint::parse(reader)? })
    }
}

impl SprayStep {
    const fn number(self) -> u8 {
        match self {
            Self::Ready => 0,
            Self::Open => 1,
            Self::Over => 2,
        }
    }

    const fn from_number(number: u8) -> Result<Self, Malformed> {
        match number {
            0 => Ok(Self::Ready),
            1 => Ok(Self::Open),
            2 => Ok(Self::Over),
            _ => Err(Malformed::Field("step")),
        }
    }
}

impl Service {
    pub(super) const fn number(self) -> u8 {
        match self {
            Self::None => 0,
            Self::Signals => 1,
            Self::Data => 2,
        }
    }

    pub(super) const fn from_number(number: u8) -> Result<Self, Malformed> {
        match number {
            0 => Ok(Self::None),
            1 => Ok(Self::Signals),
            2 => Ok(Self::Data),
            _ => Err(Malformed::Field("service")),
        }
    }
}

impl Want {
    pub(super) const fn number(self) -> u8 {
        match self {
            Self::Contacts => 1,
            Self::Record => 2,
            Self::Nothing => 3,
        }
    }

    pub(super) const fn from_number(number: u8) -> Result<Self, Malformed> {
        match number {
            1 => Ok(Self::Contacts),
            2 => Ok(Self::Record),
            3 => Ok(Self::Nothing),
            _ => Err(Malformed::Field("want")),
        }
    }
}

impl StoreOutcome {
    const fn number(self) -> u8 {
        match self {
            Self::Stored => 0,
            Self::Old => 1,
            Self::Full => 2,
            Self::Refused => 3,
        }
    }

    const fn from_number(number: u8) -> Result<Self, Malformed> {
        match number {
            0 => Ok(Self::Stored),
            1 => Ok(Self::Old),
            2 => Ok(Self::Full),
            3 => Ok(Self::Refused),
            _ => Err(Malformed::Field("outcome")),
        }
    }
}

impl CloseReason {
    const fn number(self) -> u8 {
        match self {
            Self::Stopping => 1,
            Self::Crowded => 2,
        }
    }

    const fn from_number(number: u8) -> Result<Self, Malformed> {
        match number {
            1 => Ok(Self::Stopping),
            2 => Ok(Self::Crowded),
            _ => Err(Malformed::Field("reason")),
        }
    }
}
