//! What is wrong, why, and what to do about it.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::config::{Config, Inbound};
use crate::control::counted;
use crate::control::message::{Health, NO_NETWORK};
use crate::host::clock;
use crate::proto::identity::{MeshAddress, NodeId};
use crate::proto::node::{PeerState, PeerStatus, Relayed, Silence, Status};
use crate::proto::timer::Instant;
use crate::tun::Condition;

use super::firewall::Firewall;
use super::keeper::Keeper;
use super::why;

/// After a start others get this long to answer before their silence is a problem.
pub(super) const GRACE: Duration = Duration::from_secs(3);

/// When all that was sent stays without an answer for this long, the others are gone or out of reach.
const SILENCE: Duration = Duration::from_secs(5);

/// What was heard from less long ago has lost a packet, not the network.
const UNHEARD: Duration = Duration::from_secs(2);

/// Packets that wait for so long for a way that carries them are worth a word: a straight way is found sooner, or not soon.
const UNCARRIED: Duration = Duration::from_secs(1);

/// A datagram that was refused so long ago says nothing of the packet filter now.
const FILTERED_LIFE: Duration = Duration::from_secs(30);

/// Facts that health is judged by, beside the node's own.
pub(super) struct Facts {
    save_failed: Arc<AtomicBool>,
    keeper: Arc<Keeper>,
    started: Instant,
    lan_guard: bool,
    lan_discovery: bool,
    firewall: Arc<Firewall>,
    /// That we listen on.
    port: u16,
    /// Datagrams that a packet filter of this machine refused, and when there was one more last.
    filtered: Mutex<(u64, Option<Instant>)>,
}

impl Facts {
    pub(super) fn new(
        config: &Config,
        save_failed: Arc<AtomicBool>,
        keeper: Arc<Keeper>,
        firewall: Arc<Firewall>,
        port: u16,
    ) -> Self {
        Self {
            save_failed,
            keeper,
            started: clock::now(),
            lan_guard: config.policy.lan_guard,
            lan_discovery: config.net.lan_discovery,
            firewall,
            port,
            filtered: Mutex::default(),
        }
    }

    /// What is wrong, worst first.
    pub(super) fn judge(&self, status: &Status, interface: Option<&Condition>) -> Vec<Health> {
        let mut found = Vec::new();
        let mut add = |code: &str, text: String, fix: &str| {
            found.push(Health { code: code.into(), text, fix: fix.into() });
        };
        if self.keeper.is_wanted() && !interface.is_some_and(|i| i.up && i.has_address && i.has_route) {
            let text = format!("the interface {} is not up with its address and route", self.keeper.name());
            add("interface", text, "azora up; if that fails, restart the daemon and read its log");
        }
        if !self.keeper.is_guarded() {
            let text = "the guard against LAN neighbours is missing: they reach services on the mesh address";
            add("guard", text.into(), "read the daemon's log; nft list ruleset shows what is there");
        }
        if let Some(ip) = status.twin {
            let text =
                format!("another machine, at {ip}, uses this node's key: packets reach one or the other");
            let fix = "azora id says the same there; one of the two needs a key of its own: stop the daemon, then azora key \
                       generate --force (with its --state-dir, if it has one)";
            add("key-in-use", text, fix);
        }
        for Health { code, text, fix } in self.reach(status) {
            add(&code, text, &fix);
        }
        if self.save_failed.load(Ordering::Relaxed) {
            let text = "the known contacts cannot be saved".into();
            add(
                "state-not-saved",
                text,
                "make room in the state directory (the daemon's log names the error)",
            );
        }
        if !self.lan_guard {
            let text = "the guard against LAN neighbours is switched off".into();
            add("guard-off", text, "set [policy] lan_guard = true, unless another firewall does its work");
        }
        if self.firewall.inbound() == Inbound::Allow {
            let text = "every node of the mesh may open connections to this machine (inbound allow)".into();
            let fix = "start it without --inbound allow or inbound = \"allow\" under [policy]; azora firewall add lets in what is \
                       meant";
            add("inbound-open", text, fix);
        } else if let Some(index) = self.firewall.open_rule() {
            let text = format!(
                "every node of the mesh may connect to every port of this machine (firewall rule {index})"
            );
            add(
                "rule-open",
                text,
                "azora firewall list, and remove it, or name what is meant: -p tcp --port N --peer NODEID",
            );
        }
        found
    }

    /// What keeps this node and others apart, worst first. Where there is no network, that is all that can be told.
    fn reach(&self, status: &Status) -> Vec<Health> {
        let entry = |code: &str, text, fix| Health { code: code.into(), text, fix };
        if let Some((text, fix)) = no_network(status) {
            return vec![entry(NO_NETWORK, text, fix)];
        }
        let settled = clock::now().saturating_since(self.started) >= GRACE;
        let no_answer = || {
            let (text, address) = no_answer(status)?;
            let fix = format!("{} azora probe {address} tells how far it gets", self.still_online());
            Some(entry("no-answer", text, fix))
        };
        // Before, nobody could have answered yet.
        // When all are silent, none of them is to blame.
        let unanswered = || match known(status) {
            0 | 1 => self.nobody(status).or_else(no_answer),
            _ => no_answer().or_else(|| self.nobody(status)),
        };
        let unanswered = settled.then(unanswered).flatten();
        let relays = settled.then(|| relays(status, self.port)).flatten();
        let unnamed = (status.endpoints.is_empty() && status.has_network).then(|| {
            let text = "others are told no address of this node: it listens at none but those of a link or of this machine";
            entry("no-endpoints", text.into(), "compare ip address with where azora status says that it listens".into())
        });
        // Filters for some destinations are common, and harmless while others answer. That something comes from a peer says
        // nothing of what goes to it.
        let answers = |peer: &PeerStatus| is_heard(peer) && !peer.filtered;
        let is_filtered = self.is_filtered(status) && !status.peers.iter().any(answers);
        let filtered = is_filtered.then(|| self.filter(status));
        let filtered = filtered.map(|(text, fix)| entry("udp-filtered", text, fix));
        // Where nothing can be sent, UDP is not to blame.
        let streams = streams(status).filter(|_| no_route(status).is_none());
        [filtered, unanswered, streams, relays, unnamed].into_iter().flatten().collect()
    }

    /// What keeps this node from being ready; `None` when it can reach somebody, or there is nobody to be reached.
    pub(super) fn unready(&self, status: &Status) -> Option<String> {
        if status.configured == 0 {
            return None;
        }
        let answers = status.peers.iter().any(is_heard);
        let filter = || (self.is_filtered(status) && !answers).then(|| self.filter(status).0);
        let nobody = || self.nobody(status).map(|health| health.text);
        let silent = || no_answer(status).map(|(text, _)| text);
        no_network(status).map(|(text, _)| text).or_else(filter).or_else(nobody).or_else(silent)
    }

    /// True when a packet filter of this machine has refused to send something lately.
    fn is_filtered(&self, status: &Status) -> bool {
        let now = clock::now();
        let mut seen = self.filtered.lock().unwrap_or_else(PoisonError::into_inner);
        if status.filtered > seen.0 {
            *seen = (status.filtered, Some(now));
        }
        // What went out to all of them since then was let out.
        let still = status.peers.is_empty() || status.peers.iter().any(|peer| peer.filtered);
        still && seen.1.is_some_and(|at| now.saturating_since(at) < FILTERED_LIFE)
    }

    /// That it does, and what to do.
    fn filter(&self, status: &Status) -> (String, String) {
        let refused = counted(status.filtered, "datagram");
        let text = format!("the packet filter of this machine refuses to let UDP out ({refused} so far)");
        let fix = format!(
            "let UDP from port {} out: nft list ruleset, or IPAddressDeny= of a systemd unit, shows what keeps it in",
            self.port
        );
        (text, fix)
    }

    /// Why nobody can be asked for anything; `None` when somebody can.
    pub(super) fn nobody(&self, status: &Status) -> Option<Health> {
        if status.peers.iter().any(PeerStatus::may_answer) {
            return None;
        }
        let (code, text, fix) = if status.configured > 0 {
            if let Some((text, fix)) = no_route(status) {
                return Some(Health { code: "bootstrap-unreachable".into(), text, fix });
            }
            let text = unanswered(status);
            let strange =
                status.peers.iter().filter(|peer| peer.configured).find_map(|peer| peer.unauthentic);
            match strange {
                Some(at) => {
                    ("bootstrap-unreachable", format!("{text}: {}", unauthentic(at)), SAME_SECRET.into())
                }
                None => {
                    let mut configured = status.peers.iter().filter(|peer| peer.configured);
                    let named = configured.find_map(|peer| Some((peer.node_id, *peer.candidates.first()?)));
                    let whom = named.map_or("NODEID@IP:PORT".into(), |(id, at)| format!("{id}@{at}"));
                    ("bootstrap-unreachable", text, format!("azora probe {whom} tells how far it gets"))
                }
            }
        } else if status.dht.contacts > 0 {
            return None;
        } else if status.unauthenticated > 0 {
            let text = format!(
                "no other node is known yet, and {} came that did not authenticate: strangers, or nodes with another network \
                 secret",
                counted(status.unauthenticated, "datagram")
            );
            let fix = "azora peers add NODEID@IP:PORT; nodes of one network have the same [net] secret or secret_file";
            ("unauthenticated", text, fix.into())
        } else {
            let fix = match self.lan_discovery {
                true => "azora peers add NODEID@IP:PORT, or start another node on this network",
                false => "azora peers add NODEID@IP:PORT, or start the daemon with --bootstrap",
            };
            ("no-contacts", "no other node is known yet".into(), fix.into())
        };
        Some(Health { code: code.into(), text, fix })
    }

    /// Why nobody answered who was asked for something, and what to do.
    pub(super) fn unheard(&self, status: &Status) -> (String, String) {
        let filter = || self.is_filtered(status).then(|| self.filter(status));
        let nobody = || self.nobody(status).map(|Health { text, fix, .. }| (text, fix));
        let no_answer = || no_answer(status).map(|(text, _)| (text, self.still_online()));
        no_network(status)
            .or_else(filter)
            .or_else(nobody)
            .or_else(no_answer)
            .unwrap_or_else(|| ("none of the nodes that were asked answered".into(), self.still_online()))
    }

    /// What to look at when nobody answers.
    fn still_online(&self) -> String {
        format!(
            "is this machine still online, and does its firewall let UDP of port {} in and out?",
            self.port
        )
    }

    /// Why the node at `address` does not answer, and what to do; `None` when others could be asked for it, or when it was
    /// heard from just now.
    pub(super) fn silence(&self, status: &Status, address: MeshAddress) -> Option<(String, String)> {
        if let Some(nowhere) = no_network(status) {
            return Some(nowhere);
        }
        let peer = status.peers.iter().find(|peer| peer.address == address);
        if let Some(at) = peer.and_then(|peer| peer.unauthentic) {
            return Some((unauthentic(at), SAME_SECRET.into()));
        }
        match peer.map(|peer| (peer.silence, peer.last_heard)) {
            Some((Some(Silence::Stopped), _)) => {
                return Some(("its daemon has stopped, as it said itself".into(), START_IT.into()));
            }
            // Whatever else may be the matter.
            Some(_) if self.is_filtered(status) => return Some(self.filter(status)),
            // One that is silent may have stopped; when all are, this machine is cut off.
            _ if known(status) > 1
                && let Some((text, _)) = no_answer(status) =>
            {
                return Some((text, self.still_online()));
            }
            Some((Some(Silence::Deaf(since)), _)) if since >= UNHEARD => {
                let since = since.as_secs();
                let text = format!(
                    "it is heard, but has not answered for {since} s: what is sent to it does not get there"
                );
                let fix = format!("let UDP of port {} out on this side, and in on the other", self.port);
                return Some((text, fix));
            }
            Some((_, Some(since))) if since >= UNHEARD => {
                let text = format!("nothing has come from it for {} s", since.as_secs());
                return Some((text, IS_IT_RUNNING.into()));
            }
            Some(_) | None => {}
        }
        match (peer, self.nobody(status)) {
            (Some(peer), _) if peer.state != PeerState::Known => None,
            (Some(peer), _) if let Some((at, other)) = occupied(status, peer) => {
                let text = format!("the node at {at} is {other}, which answers there");
                Some((text, "copy the ID or the endpoint again: azora id there shows the ID".into()))
            }
            (Some(peer), _) if peer.routeless => {
                let at = peer.candidates.first()?.ip();
                Some((format!("this machine has no route to {at}"), look_at_routes(at)))
            }
            (Some(peer), _) if !peer.candidates.is_empty() => {
                let tried: Vec<_> = peer.candidates.iter().map(ToString::to_string).collect();
                Some((format!("no answer at {}", tried.join(", ")), IS_IT_OPEN.into()))
            }
            (_, Some(Health { text, fix, .. })) => Some((text, fix)),
            (Some(_), None) => Some((UNREACHABLE.into(), NAME_ONE.into())),
            (None, None) => None,
        }
    }
}

/// What to do about a node that has stopped.
const START_IT: &str = "start it there; it is found again by itself";
/// What to look at when a node that was reached does not answer any more.
const IS_IT_RUNNING: &str = "is that machine on and online, and its daemon running? It is tried again as soon as something is sent to it";
/// What to look at when a node that ought to answer does not.
pub(super) const IS_IT_OPEN: &str =
    "is UDP to that port open on the way, and does the node run with this key and the same [net] secret?";
/// What to look at when something comes that does not authenticate.
pub(super) const SAME_SECRET: &str = "compare the ID with what azora id says there, and [net] secret or secret_file on \
     both nodes: with different ones they do not talk to each other";
/// What is said of a node behind addresses that lead nowhere from here.
pub(super) const UNREACHABLE: &str = "it says no endpoint that is reachable from here";
/// What to do then.
pub(super) const NAME_ONE: &str = "name one: azora probe NODEID@IP:PORT";

/// That something comes from where a node is asked, but not what that node would say.
fn unauthentic(at: SocketAddr) -> String {
    format!(
        "datagrams come from {at}, but do not authenticate: the node there may have another ID or another network secret"
    )
}

/// An endpoint at which a node is tried, and another one that is reached there.
fn occupied(status: &Status, peer: &PeerStatus) -> Option<(SocketAddr, NodeId)> {
    let others = status.peers.iter().filter(|other| other.node_id != peer.node_id && is_heard(other));
    let mut there = others.filter(|other| other.via.is_none() && !other.by_stream);
    there.find_map(|other| Some((other.endpoint.filter(|at| peer.candidates.contains(at))?, other.node_id)))
}

/// That no configured peer can be sent anything.
fn no_route(status: &Status) -> Option<(String, String)> {
    let mut configured = status.peers.iter().filter(|peer| peer.configured).peekable();
    let first = configured.peek().and_then(|peer| Some((peer.node_id, peer.candidates.first()?.ip())));
    let (id, at) = first.filter(|_| configured.all(|peer| peer.routeless))?;
    let text = match status.configured {
        1 => format!("this machine has no route to {at}, where the configured peer {id} is"),
        n => format!("this machine has no route to any of the {n} configured peers"),
    };
    Some((text, look_at_routes(at)))
}

/// What to do where there is no route.
fn look_at_routes(at: IpAddr) -> String {
    format!("look at its routes: ip route get {at}")
}

/// That no configured peer answers.
fn unanswered(status: &Status) -> String {
    let mut configured = status.peers.iter().filter(|peer| peer.configured);
    match status.configured {
        1 => configured.next().map_or_else(
            || "the configured peer does not answer".into(),
            |peer| format!("the configured peer {} does not answer", peer.node_id),
        ),
        n => format!("none of the {n} configured peers answers"),
    }
}

/// That UDP does not get through, and what goes on all the same.
fn streams(status: &Status) -> Option<Health> {
    status.streams.blocked?;
    let (text, fix) = match status.streams.dialled.as_slice() {
        [] => (
            "nobody outside of this network answers, neither by UDP nor by TCP".into(),
            "is this network connected to others? If it is, let UDP out on its firewall, or azora peers add NODEID@IP:PORT \
             of a node that takes streams ([net] stream_listen there)"
                .into(),
        ),
        [(node_id, stream), ..] => (
            format!("UDP does not get through: traffic goes by TCP through {node_id} at {}, which is slower", stream.remote),
            "let UDP out on this network's firewall, best to every port; it is tried again every minute".into(),
        ),
    };
    Some(Health { code: "udp-blocked".into(), text, fix })
}

/// What keeps others from reaching a node behind a NAT, or it from reaching them.
fn relays(status: &Status, port: u16) -> Option<Health> {
    let without_data = |peer: &&PeerStatus| {
        // A session that was renewed is young, the way is as old as before.
        let since = peer.history.first().map(|change| clock::now().saturating_since(change.at));
        let settled = peer.session_age.max(since).is_some_and(|age| age >= SILENCE);
        let waited_for = peer.packets_wait.is_some_and(|wait| wait >= UNCARRIED);
        (settled || waited_for) && peer.via.is_some_and(|(_, data)| !data)
    };
    let entry = |code: &str, text, fix| Some(Health { code: code.into(), text, fix });
    if let Some((peer, (relay, _))) =
        status.peers.iter().find(without_data).and_then(|peer| Some((peer, peer.via?)))
    {
        let cause =
            why::relayed(peer.relayed.as_ref().unwrap_or(&Relayed::Trying), Some(relay), peer.node_id, port);
        return entry("no-relay-for-data", format!("{}: {}", peer.node_id, cause.text), cause.fix);
    }
    let place = match status.mapped {
        Some(seen) => format!("a NAT (seen at {seen})"),
        None if status.firewalled => "a firewall that lets in only what was asked for".into(),
        None => return None,
    };
    if !status.relays.is_empty() {
        return None;
    }
    let text = format!("this node is behind {place}, and no node carries packets to it");
    let fix = "azora peers add NODEID@IP:PORT of a node at a public address that serves the DHT";
    entry("no-relay", text, fix.into())
}

/// Since when nobody answers, of all that are known here, and one of them; `None` when somebody does, or nobody was asked.
fn no_answer(status: &Status) -> Option<(String, MeshAddress)> {
    match silence(status) {
        Some((silence, address)) if silence >= SILENCE => {
            let silence = silence.as_secs();
            let text = match status.peers.iter().any(|peer| matches!(peer.silence, Some(Silence::Deaf(_)))) {
                true => format!(
                    "no peer has answered for {silence} s, though some are heard: what this node sends does not get there"
                ),
                false => format!("no peer has answered for {silence} s"),
            };
            Some((text, address))
        }
        Some(_) => None,
        None => cut_off(status),
    }
}

/// Number of other nodes that are known.
fn known(status: &Status) -> usize {
    status.dht.contacts.max(status.peers.len())
}

/// For how long every peer that we hold a session with has been silent to what we sent, and one of them; `None` when one
/// is not.
fn silence(status: &Status) -> Option<(Duration, MeshAddress)> {
    let connected = status.peers.iter().filter(|peer| peer.state != PeerState::Known);
    let (silence, address) = connected.map(|peer| (peer.unanswered(), peer.address)).min()?;
    Some((silence?, address))
}

/// That nobody is left who answers, of those who did, and the one that answered last; `None` as long as it may be that
/// nobody was asked, and when that one said that it stops.
fn cut_off(status: &Status) -> Option<(String, MeshAddress)> {
    if status.peers.iter().any(|peer| peer.state != PeerState::Known) {
        return None;
    }
    let last = status.peers.iter().filter(|peer| peer.last_heard.is_some()).min_by_key(|p| p.last_heard)?;
    let in_vain = match last.silence {
        Some(Silence::Stopped) => false,
        _ if last.unanswered().is_some_and(|silence| silence >= SILENCE) => true,
        _ => status.dht.alone && status.dht.contacts > 0,
    };
    let whom = match known(status) {
        1 => "the only node that is known here does not answer".into(),
        n => format!("none of the {n} nodes that are known here answers"),
    };
    let since = last.last_heard.map_or_else(String::new, |since| format!(", since {} s", since.as_secs()));
    in_vain.then_some((whom + &since, last.address))
}

/// True when what was sent to the peer did not wait for an answer too long.
pub(super) fn is_heard(peer: &PeerStatus) -> bool {
    peer.state != PeerState::Known && peer.unanswered().is_none_or(|silence| silence < SILENCE)
}

/// That there is nothing by which anybody could be reached.
pub(super) fn no_network(status: &Status) -> Option<(String, String)> {
    let text = "this machine is on no network: no link that is up has an address";
    let fix = "connect it: ip link, ip address";
    // Neighbours may talk by addresses of their link, and nodes of one machine by those of its loopback. From anywhere else
    // nothing comes any more: whoever is not silent for long yet will be.
    let reaches =
        |peer: &PeerStatus| is_heard(peer) && peer.endpoint.is_some_and(|at| needs_no_network(at.ip()));
    (!status.has_network && !status.peers.iter().any(reaches)).then(|| (text.into(), fix.into()))
}

fn needs_no_network(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_loopback() || ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unicast_link_local(),
    }
}
