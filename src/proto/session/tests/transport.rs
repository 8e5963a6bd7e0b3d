//! Sealing, opening, the window and the ratchet.

use super::super::transport::SealError;
use super::super::window::{Marked, ReplayWindow, WINDOW_LEN};
use super::*;

#[test]
fn sessions_can_be_shared_between_threads() {
    fn check<T: Send + Sync>() {}
    check::<Session>();
    fn check_send<T: Send>() {}
    check_send::<Initiator>();
    check_send::<Incoming>();
}

#[test]
fn a_plaintext_is_padded_with_zeros_up_to_the_mtu() {
    let (ours, theirs) = sessions();
    let bob = Node::bob();
    let check = |len: usize, len_max: usize, padded: usize| {
        let mut packet = vec![0xee; OVERHEAD + len + 15];
        packet[HEADER_LEN..HEADER_LEN + len].fill(7);
        let total = ours.seal(Kind::Data, &mut packet, len, len_max, START).unwrap();
        assert_eq!(total, padded + OVERHEAD, "{len} of {len_max}");
        let (plaintext, _) = open(&theirs, &bob, &packet[..total], START).unwrap();
        assert!(plaintext[..len].iter().all(|b| *b == 7));
        assert!(plaintext[len..].iter().all(|b| *b == 0));
    };
    check(0, 1420, 0);
    check(1, 1420, 16);
    check(15, 1420, 16);
    check(16, 1420, 16);
    check(1409, 1420, 1420);
    check(1420, 1420, 1420);
    check(1421, 1420, 1421);
    check(5, 0, 5);
}

#[test]
fn a_buffer_without_room_is_an_error() {
    let (ours, _) = sessions();
    for len in 0..OVERHEAD + 16 {
        assert_eq!(ours.seal(Kind::Data, &mut vec![0; len], 10, 1420, START), Err(SealError::NoRoom));
    }
    assert_eq!(ours.packets_sent(), 0);
    assert_eq!(ours.seal(Kind::Data, &mut [0; OVERHEAD + 16], 10, 1420, START), Ok(OVERHEAD + 16));
}

#[test]
fn the_header_says_kind_index_and_counter() {
    let (ours, theirs) = sessions();
    let bob = Node::bob();
    for counter in 0..3 {
        let mut packet = [0; OVERHEAD];
        let kind = if counter == 1 { Kind::Control } else { Kind::Data };
        ours.seal(kind, &mut packet, 0, 0, START).unwrap();
        let (header, _) = unmask(&bob, &packet);
        assert_eq!(
            header,
            Header { kind, epoch: false, partial: false, slice: (0, 1), receiver_index: BOB_INDEX, counter }
        );
        assert!(open(&theirs, &bob, &packet, START).is_ok());
    }
}

#[test]
fn newest_and_first_tell_the_node_what_a_packet_proves() {
    let (ours, theirs) = sessions();
    let bob = Node::bob();
    let packets: Vec<_> = (0..4).map(|_| seal(&ours, b"text", START)).collect();
    let flags = |i: usize| open(&theirs, &bob, &packets[i], START).map(|(_, flags)| flags);
    assert_eq!(flags(1), Ok([true, true, false]));
    assert_eq!(flags(0), Ok([false, false, false]));
    assert_eq!(flags(3), Ok([true, false, false]));
    assert_eq!(flags(2), Ok([false, false, false]));
}

#[test]
fn each_packet_is_delivered_at_most_once() {
    let (ours, theirs) = sessions();
    let bob = Node::bob();
    let packets: Vec<_> = (0..8100).map(|_| seal(&ours, b"", START)).collect();
    assert!(open(&theirs, &bob, &packets[8099], START).is_ok());
    for packet in packets[..8099].iter().rev() {
        assert!(open(&theirs, &bob, packet, START).is_ok(), "8,000 back is not too old");
    }
    for packet in &packets {
        assert_eq!(open(&theirs, &bob, packet, START), Err(OpenError::Replay));
    }
    assert_eq!((theirs.packets_received(), theirs.replays()), (8100, 8100));
}

/// Who knows the index but no key changes nothing.
#[test]
fn garbage_with_a_valid_index_leaves_no_trace() {
    let (ours, theirs) = sessions();
    let bob = Node::bob();
    let packet = seal(&ours, b"0123456789abcdef", START);
    for counter in [0, 1, 5000, REJECT_AFTER_PACKETS - 1, REJECT_AFTER_PACKETS, u64::MAX] {
        for epoch in [false, true] {
            let header = Header {
                kind: Kind::Data,
                epoch,
                partial: false,
                slice: (0, 1),
                receiver_index: BOB_INDEX,
                counter,
            };
            let mut garbage = [header.emit().to_vec(), vec![0x55; 200]].concat();
            assert_eq!(theirs.open(&header, &mut garbage, START).err(), Some(OpenError::Authentication));
        }
    }
    for at in 1..packet.len() {
        let mut changed = packet.clone();
        changed[at] ^= 1;
        let mut unmasked = changed.clone();
        session::mask(&bob.key, &mut unmasked).unwrap();
        let Ok(header) = Header::parse(unmasked.first_chunk().unwrap()) else { continue };
        assert_eq!(theirs.open(&header, &mut unmasked, START).err(), Some(OpenError::Authentication));
    }
    for len in 0..OVERHEAD {
        let (header, mut unmasked) = unmask(&bob, &packet);
        unmasked.truncate(len);
        assert_eq!(theirs.open(&header, &mut unmasked, START).err(), Some(OpenError::Authentication));
    }
    assert_eq!((theirs.packets_received(), theirs.replays(), theirs.last_received()), (0, 0, None));
    assert_eq!(open(&theirs, &bob, &packet, START).unwrap().1, [true, true, false]);
    assert_eq!(theirs.packets_sent(), 0);
}

/// Every field of the header is authenticated, also those that a change would let through otherwise.
#[test]
fn a_changed_header_is_refused() {
    let (ours, theirs) = sessions();
    let bob = Node::bob();
    let (header, packet) = unmask(&bob, &seal(&ours, b"text", START));
    let check = |changed: Header| {
        let mut packet = packet.clone();
        packet[..HEADER_LEN].copy_from_slice(&changed.emit());
        theirs.open(&changed, &mut packet, START).err()
    };
    assert_eq!(check(Header { kind: Kind::Control, ..header }), Some(OpenError::Authentication));
    assert_eq!(check(Header { epoch: true, ..header }), Some(OpenError::Authentication));
    assert_eq!(check(Header { receiver_index: 1, ..header }), Some(OpenError::Authentication));
    assert_eq!(check(Header { counter: 1, ..header }), Some(OpenError::Authentication));
    assert_eq!(check(header), None);
}

#[test]
fn a_packet_sent_back_is_refused() {
    let (ours, _) = sessions();
    let (header, mut packet) = unmask(&Node::bob(), &seal(&ours, b"text", START));
    assert_eq!(ours.open(&header, &mut packet, START).err(), Some(OpenError::Authentication));
}

#[test]
fn a_session_ends_by_age() {
    let (ours, theirs) = sessions();
    let bob = Node::bob();
    let last = START + REJECT_AFTER - Duration::from_nanos(1);
    let packet = seal(&ours, b"text", last);
    let (header, mut unmasked) = unmask(&bob, &packet);
    let expired = theirs.open(&header, &mut unmasked, START + REJECT_AFTER).err();
    assert_eq!(expired, Some(OpenError::Expired));
    assert!(open(&theirs, &bob, &packet, last).is_ok());
    let sealed = ours.seal(Kind::Data, &mut [0; 100], 4, 100, START + REJECT_AFTER);
    assert_eq!(sealed, Err(SealError::Expired));
    assert!(!ours.is_erasable(START + REJECT_AFTER));
    assert!(ours.is_erasable(START + ERASE_AFTER));
}

#[test]
fn the_initiator_wants_the_next_session_in_time() {
    let (ours, theirs) = sessions();
    let due = START + REKEY_AFTER;
    assert!(!ours.wants_rekey(due - Duration::from_nanos(1)));
    assert!(ours.wants_rekey(due));
    assert!(!theirs.wants_rekey(due));
    ours.skip_counters(0, REJECT_AFTER_PACKETS - EPOCH_PACKETS_MAX);
    theirs.skip_counters(0, REJECT_AFTER_PACKETS - EPOCH_PACKETS_MAX);
    assert!(ours.wants_rekey(START) && theirs.wants_rekey(START));
}

#[test]
fn a_session_is_retired_before_its_counter_wraps() {
    let (mut ours, _) = sessions();
    ours.skip_counters(0, REJECT_AFTER_PACKETS - 1);
    ours = ours.next_sending_epoch();
    let packet = seal(&ours, b"", START);
    assert_eq!(unmask(&Node::bob(), &packet).0.counter, REJECT_AFTER_PACKETS - 1);
    for _ in 0..3 {
        let refused = ours.seal(Kind::Data, &mut [0; 100], 4, 100, START);
        assert_eq!(refused, Err(SealError::Exhausted));
    }
    let refused = ours.next_sending_epoch().seal(Kind::Data, &mut [0; 100], 4, 100, START);
    assert_eq!(refused, Err(SealError::Exhausted));
}

#[test]
fn a_key_seals_a_limited_number_of_packets() {
    let (ours, _) = sessions();
    ours.skip_counters(0, EPOCH_PACKETS_MAX - 1);
    seal(&ours, b"", START);
    assert_eq!(ours.seal(Kind::Data, &mut [0; 100], 4, 100, START), Err(SealError::Exhausted));
    let next = ours.next_sending_epoch();
    seal(&next, b"", START);
    assert_eq!(ours.seal(Kind::Data, &mut [0; 100], 4, 100, START), Err(SealError::Exhausted));
    seal(&next, b"", START);
}

/// A clone with the old key at its limit must never hand a counter out again that the new one took.
#[test]
fn no_counter_is_used_twice_across_epochs() {
    let (old, _) = sessions();
    old.skip_counters(0, EPOCH_PACKETS_MAX);
    let new = old.next_sending_epoch();
    let bob = Node::bob();
    let mut counters = std::collections::BTreeSet::new();
    for _ in 0..10 {
        let before = old.packets_sent();
        let refused = old.seal(Kind::Data, &mut [0; 100], 4, 100, START);
        assert_eq!(refused, Err(SealError::Exhausted));
        // Taking the counter back would race with the new key: what it took meanwhile would be taken twice.
        assert_eq!(old.packets_sent(), before + 1, "the counter never goes back");
        assert!(counters.insert(unmask(&bob, &seal(&new, b"", START)).0.counter));
    }
}

#[test]
fn the_ratchet_is_due_by_packets_and_by_time() {
    let (ours, _) = sessions();
    let due = START + RATCHET_AFTER;
    assert!(!ours.wants_ratchet(due - Duration::from_nanos(1)));
    assert!(ours.wants_ratchet(due));
    assert!(!ours.next_sending_epoch().wants_ratchet(due));
    ours.skip_counters(0, RATCHET_AFTER_PACKETS - 1);
    assert!(!ours.wants_ratchet(START));
    seal(&ours, b"", START);
    assert!(ours.wants_ratchet(START));
    assert!(!ours.next_sending_epoch().wants_ratchet(START));
}

#[test]
fn two_epochs_are_open_at_all_times() {
    let (mut ours, mut theirs) = sessions();
    let bob = Node::bob();
    for epoch in 0..6 {
        assert_eq!((ours.sending_epoch(), theirs.receiving_epoch()), (epoch, epoch));
        let late = seal(&ours, b"late", START);
        let late_too = seal(&ours, b"late", START);
        ours = ours.next_sending_epoch();
        let new = seal(&ours, b"new", START);
        let newer = seal(&ours, b"new", START);
        assert_ne!(unmask(&bob, &late).0.epoch, unmask(&bob, &new).0.epoch);
        let advanced = |packet| open(&theirs, &bob, packet, START).unwrap().1[2];
        assert!(advanced(&new));
        assert!(!advanced(&newer), "told once");
        assert!(!advanced(&late), "reordered packets of the older epoch still open");
        theirs = theirs.next_receiving_epoch();
        let old = open(&theirs, &bob, &late_too, START);
        assert_eq!(old, Err(OpenError::Authentication), "the older key is gone");
        assert_eq!(open(&theirs, &bob, &new, START), Err(OpenError::Replay), "the window goes on");
    }
}

#[test]
fn clones_share_counters() {
    let (ours, theirs) = sessions();
    let bob = Node::bob();
    let packet = seal(&ours.clone(), b"text", at(1));
    seal(&ours.next_sending_epoch(), b"text", at(2));
    assert!(open(&theirs.clone(), &bob, &packet, at(3)).is_ok());
    assert_eq!(open(&theirs.next_receiving_epoch(), &bob, &packet, at(3)), Err(OpenError::Replay));
    assert_eq!((ours.packets_sent(), ours.bytes_sent(), ours.last_sent()), (2, 96, Some(at(2))));
    assert_eq!((theirs.packets_received(), theirs.bytes_received()), (1, 48));
    assert_eq!((theirs.last_received(), theirs.replays()), (Some(at(3)), 1));
    assert_eq!((theirs.last_sent(), ours.last_received()), (None, None));
}

#[test]
fn a_debug_print_shows_no_key() {
    let (ours, _) = sessions();
    let text = format!("{ours:?}");
    assert!(text.starts_with("Session { peer: ") && text.len() < 150, "{text}");
}

#[test]
fn the_window_takes_each_counter_once() {
    let window = ReplayWindow::default();
    let check = |counter, expected: Option<[bool; 2]>| {
        assert_eq!(window.is_fresh(counter), expected.is_some(), "{counter}");
        let expected = expected.map(|[newest, first]| Marked { newest, first });
        assert_eq!(window.mark(counter), expected, "{counter}");
    };
    check(3, Some([true, true]));
    check(3, None);
    check(0, Some([false, false]));
    check(0, None);
    check(WINDOW_LEN - 1, Some([true, false]));
    check(1, Some([false, false]));
    // One more lap: the slot of 0..32 now belongs to the new lap.
    check(WINDOW_LEN, Some([true, false]));
    check(2, None);
    check(32, Some([false, false]));
    check(WINDOW_LEN + 32, Some([true, false]));
    check(33, None);
    check(WINDOW_LEN * 50 + 5, Some([true, false]));
    check(WINDOW_LEN * 49 + 5, None);
    check(WINDOW_LEN * 49 + 32, Some([false, false]));
    // Too old although its slot was never used again.
    check(WINDOW_LEN * 20 + 4000, None);
    check(REJECT_AFTER_PACKETS - 1, Some([true, false]));
    check(REJECT_AFTER_PACKETS - 1, None);
    check(WINDOW_LEN * 50 + 6, None);
}

#[test]
fn the_window_agrees_with_a_plain_set() {
    use rand_core::Rng as _;
    let mut rng = rng(9);
    let window = ReplayWindow::default();
    let (mut seen, mut newest) = (std::collections::BTreeSet::new(), 0_u64);
    for _ in 0..200_000 {
        let counter = (newest + 40).saturating_sub(u64::from(rng.next_u32() % 10_000));
        let marked = window.mark(counter).is_some();
        assert!(!marked || seen.insert(counter), "{counter} twice");
        let is_recent = counter + WINDOW_LEN - 32 >= newest;
        assert!(marked || !is_recent || seen.contains(&counter), "{counter} refused at {newest}");
        newest = newest.max(counter);
    }
}
