//! Where others see us: one vote for each network of observers.
//!
//! A node is behind a NAT when it is seen at an address that is not its own. Its mappings are endpoint-independent when
//! all see the same port (RFC 4787 §4.1), so that a third node can use it. An observer may lie; the endpoint is what most
//! say.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::is_global;
use super::reach::Verdict;
use crate::proto::timer::Instant;

/// Votes kept, one for each observer's network.
pub const VOTES_MAX: usize = 32;
/// So many networks are believed what we cannot see ourselves.
pub const VOTES_BELIEVED: usize = 3;
/// Two networks that change their minds within this time tell of a change of the NAT.
pub const CHANGE_LIFE: Duration = Duration::from_secs(60);
/// How long a vote counts.
pub const VOTE_LIFE: Duration = Duration::from_secs(600);

/// How our NAT maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mapping {
    /// Nobody has said, or too few to tell.
    Unknown,
    /// We are seen at an address of our own.
    None,
    /// The same port for every destination (endpoint-independent mapping).
    Independent,
    /// Another port for another destination.
    Dependent,
}

#[derive(Clone, Copy, Debug)]
struct Vote {
    seen: SocketAddr,
    at: Instant,
}

/// What observers say, for both families.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// By network of the observer: an IPv4 /16 or an IPv6 /32.
    votes: BTreeMap<Network, Vote>,
    /// Who changed its mind last, what it said before, and when.
    changed: Option<(Network, SocketAddr, Instant)>,
}

/// Family and prefix.
pub(crate) type Network = (bool, u32);

impl Observed {
    /// Somebody at `observer` saw us at `seen`. Observers of our own network, who see another side of us, are left out.
    pub fn vote(&mut self, now: Instant, observer: SocketAddr, seen: SocketAddr) {
        let sides_differ = observer.is_ipv4() != seen.is_ipv4();
        if !is_global(observer.ip()) || !is_global(seen.ip()) || sides_differ || seen.port() == 0 {
            return;
        }
        let network = network(observer.ip());
        if let Some(before) = self.votes.get(&network).map(|vote| vote.seen).filter(|before| *before != seen)
        {
            self.handle_change(now, network, before);
        }
        if self.votes.len() >= VOTES_MAX && !self.votes.contains_key(&network) {
            let oldest = self.votes.iter().min_by_key(|(_, vote)| vote.at).map(|(network, _)| *network);
            oldest.and_then(|network| self.votes.remove(&network));
        }
        self.votes.insert(network, Vote { seen, at: now });
    }

    /// When two networks see us elsewhere than both did before, the NAT has changed, and the others will see it too.
    fn handle_change(&mut self, now: Instant, network: Network, before: SocketAddr) {
        let confirms = |(other, seen, at): (Network, SocketAddr, Instant)| {
            other != network && seen == before && now.saturating_since(at) < CHANGE_LIFE
        };
        if self.changed.is_some_and(confirms) {
            self.votes.retain(|_, vote| vote.seen != before);
        }
        self.changed = Some((network, before, now));
    }

    /// Forgets everything: we are somewhere else.
    pub fn clear(&mut self) {
        self.votes.clear();
    }

    fn of(&self, now: Instant, v4: bool) -> impl Iterator<Item = SocketAddr> + '_ {
        let counts =
            move |vote: &&Vote| vote.seen.is_ipv4() == v4 && now.saturating_since(vote.at) < VOTE_LIFE;
        self.votes.values().filter(counts).map(|vote| vote.seen)
    }

    /// What most say of one family, and how many.
    pub fn endpoint(&self, now: Instant, v4: bool) -> Option<(SocketAddr, usize)> {
        let mut counts = BTreeMap::<SocketAddr, usize>::new();
        self.of(now, v4).for_each(|seen| *counts.entry(seen).or_default() += 1);
        counts.into_iter().max_by_key(|(_, votes)| *votes)
    }

    /// The address that most say of one family, whatever the port.
    pub fn address(&self, now: Instant, v4: bool) -> Option<IpAddr> {
        let mut counts = BTreeMap::<IpAddr, usize>::new();
        self.of(now, v4).for_each(|seen| *counts.entry(seen.ip()).or_default() += 1);
        counts.into_iter().max_by_key(|(_, votes)| *votes).map(|(ip, _)| ip)
    }

    /// What was said last of one family.
    pub fn latest(&self, now: Instant, v4: bool) -> Option<SocketAddr> {
        let counts = |vote: &&Vote| vote.seen.is_ipv4() == v4 && now.saturating_since(vote.at) < VOTE_LIFE;
        self.votes.values().filter(counts).max_by_key(|vote| vote.at).map(|vote| vote.seen)
    }

    /// How one family is mapped; `own` are our addresses.
    pub fn mapping(&self, now: Instant, v4: bool, own: impl Fn(IpAddr) -> bool) -> Mapping {
        let Some((endpoint, votes)) = self.endpoint(now, v4) else { return Mapping::Unknown };
        let all = self.of(now, v4).count();
        match votes {
            _ if own(endpoint.ip()) => Mapping::None,
            _ if 2 * votes > all && all > 1 => Mapping::Independent,
            _ if all > 1 => Mapping::Dependent,
            _ => Mapping::Unknown,
        }
    }

    /// True when nobody reaches us unasked: a NAT is in between us and all who observe us, or a firewall. Whoever has no
    /// global address and hears from one has a NAT, whatever the observer says; of a global address of ours only several
    /// are believed that it is not seen. An address of ours at which we are seen counts until others could not reach us
    /// there; beside a NAT for the other family only when they could.
    pub fn is_mapped(&self, now: Instant, own: &[IpAddr], verdict: impl Fn(bool) -> Verdict) -> bool {
        let reached = |v4: bool| {
            let (endpoint, votes) = self.endpoint(now, v4)?;
            let mut own_of_family = own.iter().filter(|ip| ip.is_ipv4() == v4).peekable();
            own_of_family.peek()?;
            let has_global = own_of_family.any(|ip| is_global(*ip));
            let denied = votes >= VOTES_BELIEVED && !own.contains(&endpoint.ip());
            Some(if !has_global || denied { Verdict::Closed } else { verdict(v4) })
        };
        let families: Vec<_> = [true, false].into_iter().filter_map(reached).collect();
        families.contains(&Verdict::Closed) && !families.contains(&Verdict::Open)
    }
}

/// The network of an observer: what one party can be expected to hold all of.
pub(crate) fn network(ip: IpAddr) -> Network {
    match ip.to_canonical() {
        IpAddr::V4(ip) => (true, ip.to_bits() >> 16),
        IpAddr::V6(ip) => (false, (ip.to_bits() >> 96) as u32),
    }
}
