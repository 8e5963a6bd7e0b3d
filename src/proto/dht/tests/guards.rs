//! What strangers can make a node say, keep or do.

use super::swarm::*;
use crate::proto::dht::*;

fn contact(i: usize) -> Contact {
    contact_of(&identity(i), private_endpoint(i))
}

fn record(i: usize) -> NodeRecord {
    record_of(&identity(i), 1, at(0), private_endpoint(i))
}

fn server(n: usize) -> Dht {
    let mut dht = Dht::new(identity(0).node_id(), Mode::Server, [1; 32], at(0));
    (1..=n).for_each(|i| dht.handle_peer_up(at(0), contact(i), true));
    dht
}

fn request(dht: &mut Dht, from: usize, control: &Control) -> Option<Control> {
    dht.handle_request(at(1), wall(at(1)), identity(from).node_id(), control)
}

fn find(target: Position) -> Control {
    Control::Find { request: 7, want: Want::Record, target }
}

fn store(record: &NodeRecord) -> Control {
    Control::Store { request: 8, record: record.bytes().to_vec() }
}

fn stored(outcome: StoreOutcome) -> Option<Control> {
    Some(Control::Stored { request: 8, outcome })
}

#[test]
fn a_client_answers_nothing() {
    let mut dht = server(5);
    assert!(request(&mut dht, 1, &find(Position([0; 32]))).is_some());
    dht.set_mode(Mode::Client);
    assert_eq!(request(&mut dht, 1, &find(Position([0; 32]))), None);
    assert_eq!(request(&mut dht, 1, &store(&record(1))), None);
}

#[test]
fn answers_are_no_requests() {
    let mut dht = server(5);
    let found = Control::Found { request: 1, record: None, contacts: vec![contact(9)] };
    assert_eq!(request(&mut dht, 1, &found), None);
    assert_eq!(request(&mut dht, 1, &Control::Ping { nonce: 1 }), None);
}

#[test]
fn an_asker_is_not_told_of_itself_nor_of_the_silent() {
    let mut dht = server(5);
    for s in [10, 20] {
        dht.handle_peer_failed(at(s), identity(2).node_id());
    }
    let Some(Control::Found { contacts, .. }) = request(&mut dht, 1, &find(Position([0; 32]))) else {
        panic!()
    };
    let mut told: Vec<_> = contacts.iter().map(|c| c.node_id).collect();
    told.sort_unstable();
    let mut expected = [3, 4, 5].map(|i| identity(i).node_id());
    expected.sort_unstable();
    assert_eq!(told, expected);
}

#[test]
fn hearsay_never_enters_the_table() {
    let mut dht = server(1);
    dht.handle_timeout(at(0), wall(at(0)));
    let Some(Query { to, control: Control::Find { request: number, .. } }) = dht.poll_transmit() else {
        panic!()
    };
    let contacts = (50..60).map(contact).collect();
    let found = Control::Found { request: number, record: None, contacts };
    dht.handle_reply(at(1), wall(at(1)), to.node_id, found);
    assert_eq!((dht.status().contacts, dht.status().known), (1, 1));
    let Some(Control::Found { contacts, .. }) = request(&mut dht, 2, &find(Position([0; 32]))) else {
        panic!()
    };
    assert_eq!(contacts, [contact(1)]);
}

#[test]
fn clients_do_not_stand_in_tables() {
    let mut dht = server(2);
    dht.handle_peer_up(at(1), contact(3), false);
    dht.handle_peer_up(at(1), contact(2), false);
    assert_eq!((dht.status().contacts, dht.status().known), (1, 1), "also not those that stopped serving");
}

#[test]
fn unsolicited_answers_are_counted_and_change_nothing() {
    let mut dht = server(3);
    dht.handle_timeout(at(0), wall(at(0)));
    let query = dht.poll_transmit().unwrap();
    let Control::Find { request: number, .. } = query.control else { panic!() };
    let other = (1..=3).map(contact).find(|c| *c != query.to).unwrap();
    let before = dht.status();
    for (from, reply) in [
        (other, Control::Found { request: number, record: None, contacts: vec![contact(9)] }),
        (query.to, Control::Found { request: number ^ 64, record: None, contacts: vec![contact(9)] }),
        (query.to, Control::Stored { request: number, outcome: StoreOutcome::Stored }),
        (query.to, Control::Find { request: number, want: Want::Record, target: Position([0; 32]) }),
    ] {
        dht.handle_reply(at(1), wall(at(1)), from.node_id, reply);
    }
    let after = dht.status();
    assert_eq!(after.counters.unsolicited, before.counters.unsolicited + 4);
    assert_eq!(after.rpcs_running, before.rpcs_running);
}

#[test]
fn only_valid_records_are_kept() {
    let mut dht = server(3);
    let mut forged = record(7).bytes().to_vec();
    *forged.last_mut().unwrap() ^= 1;
    let mut foreign = record(7).bytes().to_vec();
    foreign[16..48].copy_from_slice(identity(8).node_id().as_bytes());
    for bytes in [forged, foreign, vec![0; 640], Vec::new()] {
        let control = Control::Store { request: 8, record: bytes };
        assert_eq!(request(&mut dht, 1, &control), stored(StoreOutcome::Refused));
    }
    let future = record_of(&identity(7), 1, at(700), private_endpoint(7));
    assert_eq!(request(&mut dht, 1, &store(&future)), stored(StoreOutcome::Refused));
    assert_eq!(dht.status().records, 0);
    assert_eq!(dht.status().counters.records_invalid, 5);
    assert_eq!(request(&mut dht, 1, &store(&record(7))), stored(StoreOutcome::Stored));
    let older = record_of(&identity(7), 0, at(0), private_endpoint(7));
    assert_eq!(request(&mut dht, 1, &store(&older)), stored(StoreOutcome::Old));
    let Some(Control::Found { record: found, .. }) =
        request(&mut dht, 2, &find(identity(7).node_id().position()))
    else {
        panic!()
    };
    assert_eq!(found.as_deref(), Some(record(7).bytes()));
}

#[test]
fn a_record_goes_only_to_who_wants_it() {
    let mut dht = server(3);
    request(&mut dht, 1, &store(&record(7)));
    let target = identity(7).node_id().position();
    let control = Control::Find { request: 7, want: Want::Contacts, target };
    let Some(Control::Found { record, .. }) = request(&mut dht, 2, &control) else { panic!() };
    assert_eq!(record, None);
}

#[test]
fn our_own_record_is_answered_and_not_to_be_replaced() {
    let mut dht = server(3);
    let own = record(0);
    dht.publish(at(0), own.clone());
    let newer = record_of(&identity(0), 9, at(0), private_endpoint(666));
    assert_eq!(request(&mut dht, 1, &store(&newer)), stored(StoreOutcome::Refused));
    dht.handle_record(at(1), wall(at(1)), newer);
    assert_eq!(dht.status().records, 0);
    let Some(Control::Found { record, .. }) =
        request(&mut dht, 1, &find(identity(0).address().position_prefix()))
    else {
        panic!()
    };
    assert_eq!(record.as_deref(), Some(own.bytes()));
}

#[test]
fn one_network_places_only_its_part() {
    let mut dht = server(0);
    for i in 1..=3 {
        dht.handle_peer_up(
            at(0),
            Contact { endpoint: ([8, 8, i as u8 / 3, 1], i as u16).into(), ..contact(i) },
            true,
        );
    }
    let outcomes: Vec<_> = (10..10 + RECORDS_PER_SOURCE_MAX + 5)
        .map(|i| request(&mut dht, 1 + i % 2, &store(&record(i))))
        .collect();
    assert!(outcomes[..RECORDS_PER_SOURCE_MAX].iter().all(|o| *o == stored(StoreOutcome::Stored)));
    assert!(outcomes[RECORDS_PER_SOURCE_MAX..].iter().all(|o| *o == stored(StoreOutcome::Full)));
    assert_eq!(dht.status().counters.records_full, 5);
    assert_eq!(request(&mut dht, 3, &store(&record(500))), stored(StoreOutcome::Stored), "another network");
}

#[test]
fn any_message_of_any_peer_is_survived() {
    let mut dht = server(5);
    let ids = [NodeId([0; 32]), identity(0).node_id(), identity(1).node_id()];
    for from in ids {
        for control in [
            find(Position([0xff; 32])),
            Control::Store { request: 0, record: vec![1; 640] },
            Control::Found { request: 0, record: Some(vec![1; 640]), contacts: vec![contact(0); 20] },
            Control::Stored { request: 0, outcome: StoreOutcome::Full },
        ] {
            dht.handle_request(at(1), wall(at(1)), from, &control);
            dht.handle_reply(at(1), wall(at(1)), from, control);
        }
        dht.handle_peer_failed(at(1), from);
    }
    dht.handle_peer_up(at(1), contact(0), true);
    assert!(dht.contact(identity(0).node_id()).is_none());
}

#[test]
fn a_new_member_is_handed_the_records_it_is_nearest_to() {
    // The newcomer is nearer to the record than we are; another node that we know may stand between.
    let target = |i: usize| identity(i).node_id().position();
    let near = |record: usize, node: usize| target(record).distance(&target(node));
    let (mut given, mut kept) = (0, 0);
    for holding in 1..=30 {
        for (newcomer, other) in (31..=40).zip(41..=50) {
            let mut dht = Dht::new(identity(0).node_id(), Mode::Server, [1; 32], at(0));
            dht.handle_record(at(0), wall(at(0)), record(holding));
            dht.handle_peer_up(at(0), contact(other), true);
            while dht.poll_transmit().is_some() {}
            dht.handle_peer_up(at(0), contact(newcomer), true);
            let queries = std::iter::from_fn(|| dht.poll_transmit());
            let handed = queries.filter(|q| matches!(q.control, Control::Store { .. })).count();
            let ours = near(holding, newcomer) < near(holding, 0) && near(holding, 0) < near(holding, other);
            assert_eq!(handed, usize::from(ours));
            if ours { given += 1 } else { kept += 1 }
        }
    }
    assert!(given > 20 && kept > 20, "{given} given, {kept} kept");
}
