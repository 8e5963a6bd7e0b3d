//! The k-buckets: which nodes we pass on and start lookups from.
//!
//! Bucket `i` holds nodes whose position shares exactly `i` leading bits with ours (Kademlia paper §2.2, the whole
//! range of buckets laid out beforehand, made when first used). A node enters only after it answered at its endpoint.
//! Full buckets keep their old members, since those who were long here stay longest (§4.1), and set newcomers aside.
//!
//! ```text
//!            room, or a silent member
//! verified ──────────────────────────▶ member ──miss──▶ suspect ──miss──▶ silent ──replacement waits──▶ out
//!     │ full                             ▲ │ answer        │ answer          │ answer
//!     └──▶ replacement ──────────────────┘ └◀──────────────┴◀────────────────┘
//! ```

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use super::diversity::{Network, PER_NETWORK_IN_BUCKET_MAX, PER_NETWORK_IN_TABLE_MAX};
use crate::proto::identity::{Distance, NodeId, Position};
use crate::proto::timer::Instant;
use crate::proto::wire::control::Contact;

/// Contacts in a bucket, and how many nodes keep a record (Kademlia paper §2.3).
pub const K: usize = 20;
/// Verified contacts that wait for a place in a full bucket (Kademlia paper §4.1).
pub const REPLACEMENTS_MAX: usize = 16;
/// Unanswered checks after which a contact is silent: not passed on, first to be replaced.
pub const MISSES_MAX: u8 = 2;
/// One bucket for each possible number of leading bits shared.
const BUCKETS: u16 = 256;
/// Members of our nearest bucket that make it unlikely that there is nobody nearer: one in 2^8.
const LOPSIDED: usize = 8;
/// Failures closer together than this are one miss: several queries may be on their way to a node when it dies.
const MISS_GAP: Duration = Duration::from_secs(5);
/// How long a member is named by an endpoint of the other IP version at which it answered as well.
const ALSO_AT_FOR: Duration = Duration::from_secs(3600);

/// What became of a contact that was offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// A new member of a bucket.
    Added,
    /// Was a member already; its endpoint is updated.
    Updated,
    /// Waits in the replacement cache.
    Waiting,
    /// Too many of its network are here.
    Refused,
}

/// The k-buckets of one node.
#[derive(Debug)]
pub(super) struct Table {
    local: Position,
    /// By number of leading bits shared with us; an empty bucket does not exist.
    buckets: BTreeMap<u16, Bucket>,
}

#[derive(Debug)]
struct Bucket {
    members: Vec<Member>,
    /// Most recently verified first.
    replacements: Vec<Member>,
    /// When a lookup last went through here.
    refreshed: Instant,
}

#[derive(Clone, Copy, Debug)]
struct Member {
    contact: Contact,
    position: Position,
    /// Its endpoint of the other IP version, and when it answered there.
    also_at: Option<(SocketAddr, Instant)>,
    /// Last answer.
    seen: Instant,
    /// Last answer or last question.
    checked: Instant,
    missed: Instant,
    misses: u8,
}

impl Table {
    pub(super) const fn new(local: Position) -> Self {
        Self { local, buckets: BTreeMap::new() }
    }

    /// Takes in a node that answered at `contact.endpoint`, or notes that it did so again.
    pub(super) fn admit(&mut self, now: Instant, contact: Contact) -> Admission {
        let position = contact.node_id.position();
        let Some(index) = self.index(&position) else { return Admission::Refused };
        let admissible = self.is_admissible(index, &contact, None);
        let bucket = self.buckets.entry(index).or_insert_with(|| Bucket::new(now));
        let newcomer = Member {
            contact,
            position,
            also_at: None,
            seen: now,
            checked: now,
            missed: Instant::ZERO,
            misses: 0,
        };
        bucket.replacements.retain(|waiting| waiting.contact.node_id != contact.node_id);
        let admission = match bucket.members.iter().position(|m| m.contact.node_id == contact.node_id) {
            Some(at) if admissible => {
                let before = std::mem::replace(&mut bucket.members[at], newcomer);
                let both = [before.also_at, Some((before.contact.endpoint, before.seen))];
                let other =
                    |(endpoint, _): &(SocketAddr, _)| endpoint.is_ipv4() != contact.endpoint.is_ipv4();
                bucket.members[at].also_at = both.into_iter().flatten().find(other);
                Admission::Updated
            }
            Some(at) => {
                bucket.members.remove(at);
                Admission::Refused
            }
            None if admissible => bucket.take_in(newcomer),
            None => Admission::Refused,
        };
        self.drop_if_empty(index);
        admission
    }

    /// A node answered.
    pub(super) fn handle_answer(&mut self, now: Instant, node_id: NodeId) {
        if let Some(member) = self.member_mut(node_id) {
            (member.seen, member.checked, member.misses) = (now, now, 0);
        }
    }

    /// A member answered at `endpoint` as well.
    pub(super) fn handle_also_at(&mut self, now: Instant, node_id: NodeId, endpoint: SocketAddr) {
        let other = |member: &&mut Member| member.contact.endpoint.is_ipv4() != endpoint.is_ipv4();
        if let Some(member) = self.member_mut(node_id).filter(other) {
            member.also_at = Some((endpoint, now));
        }
    }

    /// True for a member that has not answered at `endpoint` lately and may be named by it to others if it does.
    pub(super) fn may_be_also_at(&self, now: Instant, node_id: NodeId, endpoint: SocketAddr) -> bool {
        self.member(node_id).is_some_and(|member| {
            let is_known = member
                .also_at
                .is_some_and(|(known, at)| known == endpoint && now.saturating_since(at) < ALSO_AT_FOR / 2);
            member.contact.endpoint.is_ipv4() != endpoint.is_ipv4() && !is_known
        })
    }

    /// The contact as it is named to somebody who has this IP version alone.
    pub(super) fn named_to(&self, now: Instant, contact: Contact, is_ipv4: bool) -> Contact {
        let also_at = self.member(contact.node_id).and_then(|member| member.also_at);
        let fresh = also_at.filter(|(_, at)| now.saturating_since(*at) < ALSO_AT_FOR);
        let known = [contact.endpoint].into_iter().chain(fresh.map(|(endpoint, _)| endpoint));
        let endpoint = known.into_iter().find(|endpoint| endpoint.is_ipv4() == is_ipv4);
        Contact { endpoint: endpoint.unwrap_or(contact.endpoint), ..contact }
    }

    /// A node did not answer. Returns true when it lost its place to a replacement.
    pub(super) fn handle_miss(&mut self, now: Instant, node_id: NodeId) -> bool {
        let Some(member) = self.member_mut(node_id) else { return false };
        member.checked = now;
        if member.misses > 0 && now.saturating_since(member.missed) < MISS_GAP {
            return false;
        }
        (member.missed, member.misses) = (now, member.misses.saturating_add(1));
        member.misses >= MISSES_MAX && self.replace(node_id)
    }

    /// Forgets a node that does not serve the DHT any more.
    pub(super) fn remove(&mut self, node_id: NodeId) {
        let Some(index) = self.index(&node_id.position()) else { return };
        if let Some(bucket) = self.buckets.get_mut(&index) {
            bucket.members.retain(|member| member.contact.node_id != node_id);
            bucket.replacements.retain(|member| member.contact.node_id != node_id);
            self.drop_if_empty(index);
        }
    }

    /// The member of that name.
    pub(super) fn contact(&self, node_id: NodeId, position: &Position) -> Option<&Contact> {
        let bucket = self.buckets.get(&self.index(position)?)?;
        bucket.members.iter().map(|member| &member.contact).find(|contact| contact.node_id == node_id)
    }

    /// Up to `n` members that are not silent, closest to `target` first, without `except`.
    pub(super) fn closest(&self, target: &Position, n: usize, except: Option<NodeId>) -> Vec<Contact> {
        let mut closest = self.near(target, n, &Distance([0; 32]), except);
        closest.truncate(n);
        closest
    }

    /// At least `n` members that are not silent, if there are so many, and all that stand in a region, closest to `target`
    /// first, without `except`.
    pub(super) fn near(
        &self,
        target: &Position,
        n: usize,
        region: &Distance,
        except: Option<NodeId>,
    ) -> Vec<Contact> {
        let wanted = |member: &Member| member.is_live() && Some(member.contact.node_id) != except;
        self.near_where(target, n, region, wanted)
    }

    /// Like [`Self::near`], with silent ones when there are no others.
    pub(super) fn seeds(&self, target: &Position, n: usize, region: &Distance) -> Vec<Contact> {
        let live = self.near(target, n, region, None);
        if live.is_empty() { self.near_where(target, n, region, |_| true) } else { live }
    }

    /// Buckets come in order of distance from the target: its own, then all nearer to us than that one (they
    /// differ from the target in the same first bit), then the farther ones one by one.
    fn near_where(
        &self,
        target: &Position,
        n: usize,
        region: &Distance,
        wanted: impl Fn(&Member) -> bool,
    ) -> Vec<Contact> {
        let own = self.index(target).unwrap_or(BUCKETS);
        let mut out = Vec::with_capacity(2 * n);
        let mut add = |buckets: &mut dyn Iterator<Item = &Bucket>| {
            let mut group: Vec<_> = buckets
                .flat_map(|bucket| &bucket.members)
                .filter(|member| wanted(member))
                .map(|member| (member.position.distance(target), member.contact))
                .collect();
            group.sort_unstable_by_key(|(distance, _)| *distance);
            let inside = group.partition_point(|(distance, _)| distance < region);
            let is_past = inside < group.len();
            group.truncate(inside.max(n.saturating_sub(out.len())));
            out.extend(group.into_iter().map(|(_, contact)| contact));
            // The next group is farther away than all of this one.
            out.len() >= n && is_past
        };
        if add(&mut self.buckets.get(&own).into_iter())
            || add(&mut self.buckets.range(own.saturating_add(1)..).map(|(_, bucket)| bucket))
        {
            return out;
        }
        for (_, bucket) in self.buckets.range(..own).rev() {
            if add(&mut std::iter::once(bucket)) {
                break;
            }
        }
        out
    }

    /// Whom to check next: suspects first, then whoever was asked longest ago.
    pub(super) fn next_to_check(&self) -> Option<Contact> {
        let members = self.buckets.values().flat_map(|bucket| &bucket.members);
        let urgency = |member: &&Member| (member.misses != 1, member.checked, member.contact.node_id);
        members.min_by_key(urgency).map(|member| member.contact)
    }

    /// Notes that a question is on its way to a node.
    pub(super) fn handle_check(&mut self, now: Instant, node_id: NodeId) {
        if let Some(member) = self.member_mut(node_id) {
            member.checked = now;
        }
    }

    /// True when a stranger at that position would find a free place.
    pub(super) fn has_room_for(&self, position: &Position) -> bool {
        let Some(index) = self.index(position) else { return false };
        self.buckets.get(&index).is_none_or(|b| b.members.len() < K || b.members.iter().any(|m| !m.is_live()))
    }

    /// Buckets farther away than our own neighbourhood with fewer than `n` members that answer, farthest first, without
    /// those that `may_be_few` says so of. Where the nearest one that is not empty has many members, there are as many
    /// nearer to us, whom nobody has named yet.
    pub(super) fn sparse(&self, n: usize, may_be_few: impl Fn(u16) -> bool) -> Vec<u16> {
        let nearest =
            self.buckets.keys().rev().find(|index| self.live_in(**index) > 0).map_or(0, |index| *index);
        let is_lopsided = self.live_in(nearest) >= LOPSIDED;
        let end = if is_lopsided { (nearest + 2).min(BUCKETS) } else { nearest };
        let is_sparse = |index: &u16| self.live_in(*index) < n && (*index > nearest || !may_be_few(*index));
        (0..end).filter(is_sparse).collect()
    }

    /// Members of a bucket that answer.
    pub(super) fn live_in(&self, index: u16) -> usize {
        let members = self.buckets.get(&index).into_iter().flat_map(|bucket| &bucket.members);
        members.filter(|member| member.is_live()).count()
    }

    /// A member that answers of each bucket farther away than this one, the `chance`th, farthest first.
    pub(super) fn farther(&self, index: u16, chance: usize) -> impl Iterator<Item = Contact> {
        self.buckets.range(..index).filter_map(move |(_, bucket)| {
            let live: Vec<_> = bucket.members.iter().filter(|member| member.is_live()).collect();
            live.get(chance % live.len().max(1)).map(|member| member.contact)
        })
    }

    /// True when nobody here answers.
    pub(super) fn is_alone(&self) -> bool {
        !self.buckets.values().flat_map(|bucket| &bucket.members).any(Member::is_live)
    }

    /// Number of members.
    pub(super) fn len(&self) -> usize {
        self.buckets.values().map(|bucket| bucket.members.len()).sum()
    }

    /// Per bucket: leading bits shared, members, replacements.
    pub(super) fn buckets(&self) -> impl Iterator<Item = (u16, usize, usize)> {
        self.buckets.iter().map(|(index, bucket)| (*index, bucket.members.len(), bucket.replacements.len()))
    }

    /// A lookup for `target` went through its bucket; one for ourselves through all that are nearer than the last full one.
    pub(super) fn handle_lookup(&mut self, now: Instant, target: &Position) {
        match self.index(target) {
            Some(index) => {
                if let Some(bucket) = self.buckets.get_mut(&index) {
                    bucket.refreshed = now;
                }
            }
            None => {
                let near = self.buckets.values_mut().rev().take_while(|bucket| bucket.members.len() < K);
                near.for_each(|bucket| bucket.refreshed = now);
            }
        }
    }

    /// The buckets, and when a lookup last went through each.
    pub(super) fn refreshed(&self) -> impl Iterator<Item = (u16, Instant)> {
        self.buckets.iter().map(|(index, bucket)| (*index, bucket.refreshed))
    }

    /// The bucket of a position; `None` for our own.
    pub(super) fn index(&self, position: &Position) -> Option<u16> {
        u16::try_from(self.local.distance(position).leading_zeros()).ok().filter(|index| *index < BUCKETS)
    }

    fn member(&self, node_id: NodeId) -> Option<&Member> {
        let bucket = self.buckets.get(&self.index(&node_id.position())?)?;
        bucket.members.iter().find(|member| member.contact.node_id == node_id)
    }

    fn member_mut(&mut self, node_id: NodeId) -> Option<&mut Member> {
        let index = self.index(&node_id.position())?;
        self.buckets.get_mut(&index)?.members.iter_mut().find(|member| member.contact.node_id == node_id)
    }

    /// True when the networks of bucket and table leave room for `contact`, itself and `leaving` not counted.
    fn is_admissible(&self, index: u16, contact: &Contact, leaving: Option<NodeId>) -> bool {
        let Some(network) = Network::of_contact(contact) else { return true };
        let (mut in_bucket, mut in_table) = (0, 0);
        for (other_index, bucket) in &self.buckets {
            let same = bucket.members.iter().filter(|member| {
                let id = member.contact.node_id;
                id != contact.node_id
                    && Some(id) != leaving
                    && Network::of_contact(&member.contact) == Some(network)
            });
            let n = same.count();
            in_table += n;
            in_bucket += if *other_index == index { n } else { 0 };
        }
        in_bucket < PER_NETWORK_IN_BUCKET_MAX && in_table < PER_NETWORK_IN_TABLE_MAX
    }

    /// Puts the most recently verified admissible replacement into the place of a silent member. Nobody has heard
    /// of it for a while, so it comes in as a suspect and is checked next.
    fn replace(&mut self, silent: NodeId) -> bool {
        let Some(index) = self.index(&silent.position()) else { return false };
        let waiting: Vec<Contact> =
            self.buckets.get(&index).into_iter().flat_map(|b| &b.replacements).map(|m| m.contact).collect();
        let chosen = waiting.iter().position(|contact| self.is_admissible(index, contact, Some(silent)));
        let (Some(chosen), Some(bucket)) = (chosen, self.buckets.get_mut(&index)) else { return false };
        let mut promoted = bucket.replacements.remove(chosen);
        promoted.misses = MISSES_MAX - 1;
        bucket.members.retain(|member| member.contact.node_id != silent);
        bucket.members.push(promoted);
        true
    }

    fn drop_if_empty(&mut self, index: u16) {
        if self.buckets.get(&index).is_some_and(|b| b.members.is_empty() && b.replacements.is_empty()) {
            self.buckets.remove(&index);
        }
    }
}

impl Bucket {
    const fn new(now: Instant) -> Self {
        Self { members: Vec::new(), replacements: Vec::new(), refreshed: now }
    }

    /// Finds a place for an admissible newcomer.
    fn take_in(&mut self, newcomer: Member) -> Admission {
        if self.members.len() < K {
            self.members.push(newcomer);
            return Admission::Added;
        }
        let silent = self.members.iter_mut().filter(|member| !member.is_live());
        if let Some(silent) = silent.min_by_key(|member| member.seen) {
            *silent = newcomer;
            return Admission::Added;
        }
        self.set_aside(newcomer)
    }

    fn set_aside(&mut self, newcomer: Member) -> Admission {
        let network = Network::of_contact(&newcomer.contact);
        let alike = |m: &&Member| network.is_some() && Network::of_contact(&m.contact) == network;
        if self.replacements.iter().filter(alike).count() >= PER_NETWORK_IN_BUCKET_MAX {
            return Admission::Refused;
        }
        self.replacements.truncate(REPLACEMENTS_MAX - 1);
        self.replacements.insert(0, newcomer);
        Admission::Waiting
    }
}

impl Member {
    const fn is_live(&self) -> bool {
        self.misses < MISSES_MAX
    }
}
