//! Which inner packets may enter: closed by default.
//!
//! ```text
//! inbound packet ──► allowed by a rule, or everything is? ──yes──► pass
//!                    ICMPv6 echo request?                 ──yes──► pass, at a limited rate per peer
//!                    reply to a flow that we started?     ──yes──► pass
//!                    otherwise                                     refuse, without any answer
//! ```
//!
//! Flows are remembered when we send and forgotten when they idle (RFC 4787 §4.3, RFC 5382 §5). A packet that a rule
//! lets in anyway makes no flow, so strangers cannot fill the table through an open port. Of TCP a reply never is a
//! bare SYN: nobody opens connections to us through the back of one of ours.
//!
//! Connections outlive the daemon, so one whose SYN it never saw is taken up by a later segment of ours. That ends when
//! a rule is taken back, until the daemon starts anew: what we still send on connections that it let in must not hold
//! them open.
//!
//! What was refused is remembered for each peer, a few protocols and ports, for its owner to see.

mod flows;
mod refused;

use std::net::Ipv6Addr;

pub use flows::{FLOWS_MAX, Flows};
pub use refused::{REFUSED_MAX, Refusals, Refused};

use crate::proto::identity::NodeId;
use crate::proto::limit::SharedBucket;
use crate::proto::timer::Instant;
use crate::proto::wire::inner::{IPV6_MTU_MIN, Inner, Traffic};

/// Echo requests that a peer may send, per second.
pub const ECHO_RATE_PER_S: u64 = 256;
/// Echo requests that a peer may send at once.
pub const ECHO_BURST: u64 = 512;
/// Most rules.
pub const RULES_MAX: usize = 256;

/// An upper-layer protocol that a rule may name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMPv6.
    Icmp,
}

/// Lets inbound flows in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// Only this protocol.
    pub protocol: Option<Protocol>,
    /// Only to this port of ours.
    pub port: Option<u16>,
    /// Only from this node.
    pub peer: Option<NodeId>,
}

/// What is let in without being asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Let in everything.
    pub allow_all: bool,
    /// Let in what one of these names.
    pub allow: Vec<Rule>,
    /// Take up no TCP connection in its middle (`nf_conntrack_tcp_loose` of Linux, off).
    pub strict: bool,
}

impl Rule {
    fn admits(&self, peer: &NodeId, protocol: Protocol, port: Option<u16>) -> bool {
        self.peer.is_none_or(|wanted| wanted == *peer)
            && self.protocol.is_none_or(|wanted| wanted == protocol)
            && self.port.is_none_or(|wanted| Some(wanted) == port)
    }
}

impl Rules {
    /// These rules in the place of `former` ones: strict as soon as something was taken back.
    #[must_use]
    pub fn in_place_of(mut self, former: &Self) -> Self {
        let taken_back = |rule: &Rule| !self.allow.contains(rule);
        let closed = !self.allow_all && (former.allow_all || former.allow.iter().any(taken_back));
        self.strict |= former.strict || closed;
        self
    }

    /// True when a packet of `protocol` to our `port` may come from `peer` unasked.
    fn admit(&self, peer: &NodeId, protocol: Protocol, port: Option<u16>) -> bool {
        self.allow_all || self.allow.iter().any(|rule| rule.admits(peer, protocol, port))
    }

    /// True when what was refused would be let in now.
    pub fn lets_in(&self, peer: &NodeId, refused: &Refused) -> bool {
        match refused.protocol {
            flows::TCP => self.admit(peer, Protocol::Tcp, refused.port),
            flows::UDP => self.admit(peer, Protocol::Udp, refused.port),
            _ => self.admit_other(peer),
        }
    }

    fn admit_inbound(&self, peer: &NodeId, traffic: &Traffic) -> bool {
        match *traffic {
            Traffic::Tcp { destination, .. } => self.admit(peer, Protocol::Tcp, Some(destination)),
            Traffic::Udp { destination, .. } => self.admit(peer, Protocol::Udp, Some(destination)),
            Traffic::EchoRequest(_) => self.admit(peer, Protocol::Icmp, None),
            Traffic::EchoReply(_) | Traffic::Error { .. } | Traffic::Tail => self.allow_all,
            Traffic::Other(_) => self.admit_other(peer),
        }
    }

    /// Protocols without ports pass by rules that name neither protocol nor port.
    fn admit_other(&self, peer: &NodeId) -> bool {
        let open = |rule: &Rule| rule.protocol.is_none() && rule.port.is_none();
        self.allow_all || self.allow.iter().any(|rule| open(rule) && rule.peer.is_none_or(|p| p == *peer))
    }

    /// True when the opposite direction of an outbound packet is let in by a rule.
    fn admit_reverse(&self, peer: &NodeId, traffic: &Traffic) -> bool {
        match *traffic {
            Traffic::Tcp { source, .. } => self.admit(peer, Protocol::Tcp, Some(source)),
            Traffic::Udp { source, .. } => self.admit(peer, Protocol::Udp, Some(source)),
            Traffic::EchoRequest(_)
            | Traffic::EchoReply(_)
            | Traffic::Error { .. }
            | Traffic::Tail
            | Traffic::Other(_) => self.allow_all,
        }
    }
}

/// Remembers an outbound packet, so that its replies pass.
pub fn outbound(rules: &Rules, flows: &Flows, peer: &NodeId, packet: &Inner, now: Instant) {
    let admitted = rules.admit_reverse(peer, &packet.traffic);
    if let Traffic::Tcp { opens, .. } = packet.traffic {
        if opens || !admitted && !rules.strict {
            flows.remember(packet, now);
        } else {
            flows.renew(packet, now);
        }
    } else if !admitted {
        flows.remember(packet, now);
    }
}

/// Decides about an inbound packet whose source is already known to be `peer`'s address.
pub fn inbound(
    rules: &Rules,
    flows: &Flows,
    account: &Account,
    peer: &NodeId,
    packet: &Inner,
    now: Instant,
) -> bool {
    let pass = rules.admit_inbound(peer, &packet.traffic)
        || match packet.traffic {
            Traffic::EchoRequest(_) => account.echo.take(now, 1),
            Traffic::Tcp { opens: true, .. } => false,
            Traffic::Error { mtu, .. } => {
                mtu.is_none_or(|mtu| mtu as usize >= IPV6_MTU_MIN) && flows.is_reply(packet, now)
            }
            Traffic::Tcp { .. }
            | Traffic::Udp { .. }
            | Traffic::EchoReply(_)
            | Traffic::Tail
            | Traffic::Other(_) => flows.is_reply(packet, now),
        };
    if !pass {
        account.refusals.note(&packet.traffic, now);
    } else if packet.fragment.is_some() {
        flows.remember_fragments(packet, now);
    }
    pass
}

/// What is kept of one peer, over all of its sessions.
#[derive(Debug)]
pub struct Account {
    /// Limit of its echo requests.
    echo: SharedBucket,
    /// What it was refused.
    pub refusals: Refusals,
}

impl Default for Account {
    fn default() -> Self {
        Self { echo: SharedBucket::new(ECHO_RATE_PER_S, ECHO_BURST), refusals: Refusals::default() }
    }
}

/// The flow of an outbound packet that has replies.
fn own_key(packet: &Inner) -> Option<flows::Key> {
    let key =
        |protocol, local, remote| Some(flows::Key { protocol, peer: packet.destination, local, remote });
    match packet.traffic {
        Traffic::Tcp { source, destination, .. } => key(flows::TCP, source, destination),
        Traffic::Udp { source, destination } => key(flows::UDP, source, destination),
        Traffic::EchoRequest(id) => key(flows::ICMP, id, id),
        Traffic::EchoReply(_) | Traffic::Error { .. } | Traffic::Tail | Traffic::Other(_) => None,
    }
}

/// The flow that an inbound packet replies to.
fn reply_key(packet: &Inner) -> Option<flows::Key> {
    let key = |protocol, local, remote| Some(flows::Key { protocol, peer: packet.source, local, remote });
    match packet.traffic {
        Traffic::Tcp { source, destination, .. } => key(flows::TCP, destination, source),
        Traffic::Udp { source, destination } => key(flows::UDP, destination, source),
        Traffic::EchoReply(id) => key(flows::ICMP, id, id),
        Traffic::Error { about, .. } => error_key(packet.source, &about),
        Traffic::Tail => packet.fragment.map(|f| flows::Key::fragments(packet.source, f.id)),
        Traffic::EchoRequest(_) | Traffic::Other(_) => None,
    }
}

/// An error counts as a reply when it quotes a packet that we sent to the very node that reports it.
fn error_key(reporter: Ipv6Addr, about: &crate::proto::wire::inner::Quoted) -> Option<flows::Key> {
    (about.destination == reporter).then_some(flows::Key {
        protocol: about.protocol,
        peer: reporter,
        local: about.ports.0,
        remote: about.ports.1,
    })
}

#[cfg(test)]
mod tests;
