//! Buckets: order, silence, replacement, diversity.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::swarm::at;
use crate::proto::dht::diversity::{Network, Tally};
use crate::proto::dht::table::{Admission, Table};
use crate::proto::dht::*;

const LOCAL: NodeId = NodeId([9; 32]);

/// Contacts with arbitrary names; a table does no arithmetic with keys.
fn contact(i: u32, endpoint: SocketAddr) -> Contact {
    let mut id = [0x33; 32];
    id[..4].copy_from_slice(&i.to_be_bytes());
    Contact { node_id: NodeId(id), x25519: [0; 32], endpoint }
}

fn private(i: u32) -> SocketAddr {
    (Ipv4Addr::new(192, 168, 1, 1), 1024 + i as u16).into()
}

fn table() -> Table {
    Table::new(LOCAL.position())
}

/// Contacts of the farthest bucket, which half of all fall into.
fn farthest(n: usize, endpoint: impl Fn(u32) -> SocketAddr) -> Vec<Contact> {
    let all = (0..).map(|i| contact(i, endpoint(i)));
    all.filter(|c| table().index(&c.node_id.position()) == Some(0)).take(n).collect()
}

fn enter(table: &mut Table, contact: Contact) {
    let _ = table.admit(at(1), contact);
}

fn miss(table: &mut Table, s: u64, node_id: NodeId) {
    let _ = table.handle_miss(at(s), node_id);
}

fn members(table: &Table) -> Vec<Contact> {
    table.closest(&LOCAL.position(), 10_000, None)
}

#[test]
fn closest_agrees_with_sorting_everything() {
    let mut table = table();
    (0..500).for_each(|i| enter(&mut table, contact(i, private(i))));
    for t in 0..200 {
        let mut target = contact(1000 + t, private(0)).node_id.position();
        if t % 4 == 0 {
            // Targets near ourselves go through the deep buckets.
            target.0[..1 + t as usize % 3].copy_from_slice(&LOCAL.position().0[..1 + t as usize % 3]);
        }
        let mut all = members(&table);
        all.sort_by_key(|c| c.node_id.position().distance(&target));
        for n in [0, 1, 7, K, all.len() + 5] {
            assert_eq!(table.closest(&target, n, None), all[..n.min(all.len())]);
        }
    }
    assert_eq!(table.closest(&LOCAL.position(), 3, None)[..], members(&table)[..3]);
}

#[test]
fn a_full_bucket_keeps_its_old_members() {
    let mut table = table();
    let contacts = farthest(K + REPLACEMENTS_MAX + 5, private);
    for (i, contact) in contacts.iter().enumerate() {
        let expected = if i < K { Admission::Added } else { Admission::Waiting };
        assert_eq!(table.admit(at(1), *contact), expected);
    }
    assert_eq!(table.buckets().collect::<Vec<_>>(), [(0, K, REPLACEMENTS_MAX)]);
    assert!(contacts[..K].iter().all(|c| table.contact(c.node_id, &c.node_id.position()).is_some()));
}

#[test]
fn two_misses_let_the_latest_replacement_in() {
    let mut table = table();
    let contacts = farthest(K + 2, private);
    contacts.iter().for_each(|c| enter(&mut table, *c));
    let dead = contacts[3].node_id;
    assert!(!table.handle_miss(at(10), dead));
    assert!(!table.handle_miss(at(12), dead), "failures of the same seconds are one miss");
    assert!(members(&table).iter().any(|c| c.node_id == dead), "a suspect is still passed on");
    assert_eq!(table.next_to_check().unwrap().node_id, dead, "suspects are checked first");
    assert!(table.handle_miss(at(20), dead));
    let after = members(&table);
    assert!(!after.iter().any(|c| c.node_id == dead));
    assert!(after.contains(&contacts[K + 1]));
    assert_eq!(table.next_to_check().unwrap(), contacts[K + 1], "whoever is promoted is checked next");
}

#[test]
fn the_silent_stay_but_are_not_passed_on() {
    let mut table = table();
    let contacts = farthest(K + 1, private);
    contacts[..K].iter().for_each(|c| enter(&mut table, *c));
    let dead = contacts[0];
    [10, 20].into_iter().for_each(|s| miss(&mut table, s, dead.node_id));
    assert_eq!(table.len(), K);
    assert!(!members(&table).contains(&dead));
    assert!(table.has_room_for(&dead.node_id.position()));
    table.handle_answer(at(30), dead.node_id);
    assert!(members(&table).contains(&dead), "an answer brings it back");
    [40, 50].into_iter().for_each(|s| miss(&mut table, s, dead.node_id));
    assert_eq!(
        table.admit(at(60), contacts[K]),
        Admission::Added,
        "a newcomer takes the place of the silent"
    );
    assert!(table.contact(dead.node_id, &dead.node_id.position()).is_none());
}

#[test]
fn one_answer_between_misses_clears_them() {
    let mut table = table();
    let contact = contact(1, private(1));
    table.admit(at(1), contact);
    table.handle_miss(at(10), contact.node_id);
    table.handle_answer(at(15), contact.node_id);
    table.handle_miss(at(20), contact.node_id);
    assert!(!table.is_alone());
}

#[test]
fn ten_thousand_identities_of_one_address_get_few_places() {
    let mut table = table();
    let attacker = |i: u32| SocketAddr::from(([8, 8, 8, 8], 1024 + (i % 60_000) as u16));
    (0..10_000).for_each(|i| enter(&mut table, contact(i, attacker(i))));
    assert_eq!(table.len(), PER_NETWORK_IN_TABLE_MAX);
    for (index, contacts, replacements) in table.buckets() {
        assert!(contacts <= PER_NETWORK_IN_BUCKET_MAX, "bucket {index} has {contacts}");
        assert_eq!(replacements, 0);
    }
    assert_eq!(
        table.admit(at(1), contact(99_999, ([8, 8, 9, 8], 1).into())),
        Admission::Added,
        "others get in"
    );
}

#[test]
fn a_lan_is_not_limited() {
    let mut table = table();
    farthest(K, private).iter().for_each(|c| assert_eq!(table.admit(at(1), *c), Admission::Added));
}

#[test]
fn replacements_are_limited_like_members() {
    let mut table = table();
    farthest(K, private).iter().for_each(|c| enter(&mut table, *c));
    let attackers = farthest(K + 10, |i| ([8, 8, 8, 8], 1024 + i as u16).into());
    let last: Vec<_> = attackers[K..].iter().map(|c| table.admit(at(1), *c)).collect();
    assert_eq!(last[..2], [Admission::Waiting; 2]);
    assert!(last[2..].iter().all(|admission| *admission == Admission::Refused));
}

#[test]
fn a_promotion_keeps_to_the_limits() {
    let mut table = table();
    let mut contacts = farthest(K + 1, private);
    for (i, contact) in contacts.iter_mut().enumerate().filter(|(i, _)| *i < 2 || *i == K) {
        contact.endpoint = ([8, 8, 8, 8], i as u16 + 1).into();
    }
    // The last of the three comes in while there is room for it to wait only.
    contacts[..K].iter().for_each(|c| assert_eq!(table.admit(at(1), *c), Admission::Added));
    let mut waiting = contacts[K];
    waiting.endpoint = ([8, 8, 9, 8], 1).into();
    assert_eq!(table.admit(at(1), waiting), Admission::Waiting);
    let mut moved = contacts[5];
    moved.endpoint = ([8, 8, 9, 8], 2).into();
    assert_eq!(table.admit(at(2), moved), Admission::Updated);
    moved = contacts[6];
    moved.endpoint = ([8, 8, 9, 8], 3).into();
    assert_eq!(table.admit(at(2), moved), Admission::Updated);
    assert!(
        ![10, 20].map(|s| table.handle_miss(at(s), contacts[7].node_id))[1],
        "its network is full by now"
    );
    [30, 40].into_iter().for_each(|s| miss(&mut table, s, contacts[5].node_id));
    assert!(members(&table).contains(&waiting), "a place of its own network is free");
}

#[test]
fn moving_into_a_crowded_network_costs_the_place() {
    let mut table = table();
    let mut contacts = farthest(3, |i| ([8, 8, 8, 8], 1 + i as u16).into());
    contacts[2].endpoint = ([1, 1, 1, 1], 5).into();
    contacts.iter().for_each(|c| assert_eq!(table.admit(at(1), *c), Admission::Added));
    assert_eq!(table.admit(at(2), contacts[0]), Admission::Updated, "it does not count itself");
    contacts[2].endpoint = contacts[0].endpoint;
    assert_eq!(table.admit(at(2), contacts[2]), Admission::Refused);
    assert_eq!(table.len(), 2);
}

#[test]
fn we_are_never_a_member_of_our_table() {
    let mut table = table();
    let own = Contact { node_id: LOCAL, x25519: [0; 32], endpoint: private(1) };
    assert_eq!(table.admit(at(1), own), Admission::Refused);
    assert!(table.is_alone());
}

#[test]
fn networks_are_told_from_addresses() {
    let of = |text: &str| Network::of(text.parse::<IpAddr>().unwrap());
    for exempt in [
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "127.0.0.1",
        "169.254.1.1",
        "100.64.0.1",
        "192.0.2.1",
        "198.51.100.1",
        "203.0.113.1",
        "198.18.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "fe80::1",
        "fc00::1",
        "fd00::1",
        "ff02::1",
        "2001:db8::1",
        "3fff::1",
        "0600::1",
        "2002:0a00:1::1",
        "64:ff9b::192.168.1.1",
    ] {
        assert_eq!(of(exempt), None, "{exempt}");
    }
    assert_eq!(of("8.8.8.8"), of("8.8.8.200"));
    assert_ne!(of("8.8.8.8"), of("8.8.9.8"));
    assert_ne!(of("100.63.0.1"), None);
    assert_ne!(of("198.20.0.1"), None);
    assert_eq!(of("2a00:1:2::1"), of("2a00:1:2:ffff::1"));
    assert_ne!(of("2a00:1:2::1"), of("2a00:1:3::1"));
    assert_eq!(of("2002:808:808::1"), of("8.8.8.8"), "6to4 is the IPv4 network");
    assert_eq!(of("64:ff9b::8.8.8.8"), of("8.8.8.8"), "and so is NAT64");
}

#[test]
fn a_tally_counts_per_network() {
    let mut tally = Tally::default();
    let of = |ip: [u8; 4]| contact(0, (ip, 1).into());
    let admitted =
        [[8, 8, 8, 1], [8, 8, 8, 2], [8, 8, 8, 3], [8, 8, 9, 1], [10, 0, 0, 1], [10, 0, 0, 2], [10, 0, 0, 3]]
            .map(|ip| tally.admits(&of(ip), 2));
    assert_eq!(admitted, [true, true, false, true, true, true, true]);
}

#[test]
fn the_stalest_bucket_is_the_one_no_lookup_went_through() {
    let mut table = table();
    (0..100).for_each(|i| enter(&mut table, contact(i, private(i))));
    let stalest = |table: &Table| table.refreshed().min_by_key(|(index, at)| (*at, *index)).unwrap();
    let (index, since) = stalest(&table);
    assert_eq!((index, since), (0, at(1)));
    table.handle_lookup(at(5), &farthest(1, private)[0].node_id.position());
    assert_eq!(stalest(&table).0, 1);
    table.handle_lookup(at(9), &LOCAL.position());
    let full = table.buckets().filter(|(_, members, _)| *members == K).count();
    let stale = stalest(&table);
    assert!(usize::from(stale.0) < full, "a lookup of ourselves refreshes all nearer than the last full one");
    assert!(at(9).saturating_since(stale.1) <= Duration::from_secs(8));
}

#[test]
fn a_member_is_named_by_the_ip_version_of_the_asker_while_it_answers_there() {
    let mut table = table();
    let [v4, v6]: [SocketAddr; 2] = ["192.168.1.1:1024", "[fd00::1]:1024"].map(|s| s.parse().unwrap());
    let (member, stranger) = (contact(1, v6), contact(2, v6));
    let id = member.node_id;
    enter(&mut table, member);
    let named = |table: &Table, s| {
        let contact = *table.contact(id, &id.position()).unwrap();
        [true, false].map(|is_v4| table.named_to(at(s), contact, is_v4).endpoint)
    };
    assert_eq!(named(&table, 1), [v6, v6]);
    assert!(table.may_be_also_at(at(1), id, v4) && !table.may_be_also_at(at(1), id, v6));
    table.handle_also_at(at(1), id, v6);
    table.handle_also_at(at(1), stranger.node_id, v4);
    assert_eq!(named(&table, 1), [v6, v6]);
    table.handle_also_at(at(1), id, v4);
    assert_eq!(named(&table, 3599), [v4, v6]);
    assert_eq!(table.named_to(at(2), stranger, true), stranger);
    assert!(!table.may_be_also_at(at(1800), id, v4) && table.may_be_also_at(at(1802), id, v4));
    assert_eq!(named(&table, 3602), [v6, v6], "it may have gone from there");
    // Reached by the other one from now on, and heard by this one until then.
    table.handle_answer(at(3602), id);
    let _ = table.admit(at(3603), Contact { endpoint: v4, ..member });
    assert_eq!(named(&table, 3603), [v4, v6]);
    let _ = table.admit(at(3604), Contact { endpoint: v4, ..member });
    assert_eq!(named(&table, 3604), [v4, v6]);
}
