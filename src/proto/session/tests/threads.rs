//! Several sending threads of one session.

use std::collections::BTreeSet;

use proptest::collection::vec;
use proptest::prelude::{Strategy, any, prop_assert_eq, prop_oneof, proptest};

use super::super::keys::Chain;
use super::super::loss::Totals;
use super::super::transport::{Content, Outcome, SealError};
use super::*;
use crate::proto::wire::handshake::{CAPABILITY_FRAMES, THREADS_MAX, with_threads};
use crate::proto::wire::session::{TAG_LEN, count_of, counter, thread_of};

/// Sessions between nodes that have so many sending threads.
fn sessions_of(ours: u8, theirs: u8) -> (Session, Session) {
    let (mut alice, mut bob) = (Node::alice(), Node::bob());
    alice.config = alice.config.with_threads(ours);
    bob.config = bob.config.with_threads(theirs);
    sessions_between(&alice, &bob, &mut rng(1))
}

/// The same session as two sides see it that do not agree on the threads.
fn disagreeing(sending: u8, receiving: u8) -> (Session, Session) {
    let bob = RecipientKey::new(&Node::bob().identity.node_id(), &NetworkSecret::default());
    let side = |is_initiator, threads| {
        Session::new(Outcome {
            peer: Node::bob().identity.node_id(),
            peer_key: bob.clone(),
            local_index: BOB_INDEX,
            remote_index: BOB_INDEX,
            suite: Suite::Aes256Gcm,
            capabilities: 0,
            threads,
            is_initiator,
            established: START,
            split: [[1; 32], [2; 32]].map(Zeroizing::new),
            handshake_hash: [3; 32],
        })
    };
    (side(true, (sending, 1)), side(false, (1, receiving)))
}

const CONTENT: Content = Content { kind: Kind::Data, partial: false, slice: (0, 1) };

/// Seals 16 bytes as a thread does.
fn seal_by(session: &Session, thread: u8) -> Vec<u8> {
    let counter = session.reserve(thread, 1, START).unwrap();
    let mut packet = vec![thread; HEADER_LEN + 16 + TAG_LEN];
    session.seal_at(counter, CONTENT, &mut packet);
    session.count_sent(thread, packet.len(), START);
    packet
}

fn result(session: &Session, packet: &[u8]) -> Result<[bool; 3], OpenError> {
    open(session, &Node::bob(), packet, START).map(|(_, flags)| flags)
}

/// The packet with another counter in its header.
fn with_counter(packet: &[u8], counter: u64) -> Vec<u8> {
    let (header, mut packet) = unmask(&Node::bob(), packet);
    packet[..HEADER_LEN].copy_from_slice(&Header { counter, ..header }.emit());
    session::mask(&Node::bob().key, &mut packet).unwrap();
    packet
}

#[test]
fn both_sides_know_how_many_threads_the_other_has() {
    let check = |ours: u8, theirs: u8| {
        let (alice, bob) = sessions_of(ours, theirs);
        assert_eq!((alice.sending_threads(), alice.receiving_threads()), (ours, theirs));
        assert_eq!((bob.sending_threads(), bob.receiving_threads()), (theirs, ours));
    };
    for threads in 1..=THREADS_MAX {
        check(threads, 1);
        check(1, threads);
    }
    check(3, THREADS_MAX);
}

#[test]
fn a_peer_that_knows_of_no_threads_gets_packets_of_one() {
    for (ours, theirs) in [(with_threads(0, 4), CAPABILITY_FRAMES), (0x0700, with_threads(0, 4)), (0, 0)] {
        let (mut alice, mut bob) = (Node::alice(), Node::bob());
        (alice.config.capabilities, bob.config.capabilities) = (ours, theirs);
        let (alice, bob) = sessions_between(&alice, &bob, &mut rng(1));
        let threads = [&alice, &bob].map(|s| (s.sending_threads(), s.receiving_threads()));
        assert_eq!(threads, [(1, 1); 2]);
        for count in 0..6 {
            let packet = seal_by(&alice, count as u8);
            assert_eq!(unmask(&Node::bob(), &packet).0.counter, count, "all count as one thread");
            assert!(result(&bob, &packet).is_ok());
        }
        assert_eq!((alice.packets_sent(), alice.bytes_sent()), (6, 6 * 48));
    }
}

#[test]
fn every_thread_has_a_count_and_a_window_of_its_own() {
    let (ours, theirs) = sessions_of(3, 1);
    let packets: Vec<_> = [0, 1, 2, 1, 2, 2].map(|thread| seal_by(&ours, thread)).into();
    let counters: Vec<_> = packets.iter().map(|packet| unmask(&Node::bob(), packet).0.counter).collect();
    let split: Vec<_> = counters.iter().map(|counter| (thread_of(*counter), count_of(*counter))).collect();
    assert_eq!(split, [(0, 0), (1, 0), (2, 0), (1, 1), (2, 1), (2, 2)]);
    for packet in &packets {
        assert!(result(&theirs, packet).is_ok());
    }
    for packet in &packets {
        assert_eq!(result(&theirs, packet), Err(OpenError::Replay));
    }
    assert_eq!((ours.packets_sent(), ours.bytes_sent(), ours.last_sent()), (6, 6 * 48, Some(START)));
    assert_eq!((theirs.packets_received(), theirs.bytes_received(), theirs.replays()), (6, 6 * 48, 6));
    assert_eq!(theirs.last_received(), Some(START));
}

/// What gets lost is judged over all threads together.
#[test]
fn what_came_of_all_threads_is_told_in_one() {
    let (ours, theirs) = sessions_of(3, 1);
    let totals = |sent, received| assert_eq!(theirs.totals_received(), Totals { sent, received });
    totals(0, 0);
    let packets: Vec<_> = [0, 0, 2, 2, 2, 1, 1].map(|thread| seal_by(&ours, thread)).into();
    assert!(result(&theirs, &packets[1]).is_ok());
    totals(2, 1);
    assert!(result(&theirs, &packets[4]).is_ok());
    totals(5, 2);
    assert!(result(&theirs, &packets[3]).is_ok());
    totals(5, 3);
    assert!(result(&theirs, &packets[6]).is_ok());
    totals(7, 4);
    assert_eq!(ours.packets_sent(), 7, "a report never says more than was sent");
}

#[test]
fn every_thread_has_a_key_of_its_own() {
    let chain = Chain::new(&[1; 32], &[2; 32]);
    let keys: BTreeSet<_> = (0..=255).map(|thread| *chain.key_bytes(Suite::Aes256Gcm, thread)).collect();
    assert_eq!(keys.len(), 256);
}

/// The peer authenticates itself, but not this: refused before anything is done for it.
#[test]
fn a_thread_that_was_not_announced_is_refused_untouched() {
    let (ours, theirs) = disagreeing(4, 2);
    let before = theirs.memory();
    for thread in [2, 3] {
        let (header, sealed) = unmask(&Node::bob(), &seal_by(&ours, thread));
        let mut packet = sealed.clone();
        assert_eq!(theirs.open(&header, &mut packet, START).err(), Some(OpenError::Authentication));
        assert_eq!(packet, sealed, "nothing was decrypted");
    }
    for thread in [2, 8, 127, 255] {
        let forged = with_counter(&seal_by(&ours, 0), counter(thread, 0));
        assert_eq!(result(&theirs, &forged), Err(OpenError::Authentication));
    }
    assert_eq!((theirs.memory(), theirs.packets_received(), theirs.replays()), (before, 0, 0));
    assert_eq!(result(&theirs, &seal_by(&ours, 1)), Ok([true, true, false]));
}

#[test]
fn garbage_of_a_thread_that_was_never_heard_leaves_nothing() {
    let (ours, theirs) = sessions_of(8, 1);
    let before = theirs.memory();
    for thread in 0..8 {
        for count in [100, 9000, REJECT_AFTER_PACKETS - 1, REJECT_AFTER_PACKETS, (1 << 56) - 1] {
            let forged = with_counter(&seal_by(&ours, 0), counter(thread, count));
            assert_eq!(result(&theirs, &forged), Err(OpenError::Authentication));
        }
    }
    assert_eq!((theirs.memory(), theirs.packets_received(), theirs.replays()), (before, 0, 0));
    for thread in 0..8 {
        assert!(result(&theirs, &seal_by(&ours, thread)).is_ok());
    }
    assert!(theirs.memory() > before);
}

#[test]
fn first_and_new_epoch_are_told_once_over_all_threads() {
    let (mut ours, theirs) = sessions_of(3, 1);
    let flags = |packet: &[u8]| result(&theirs, packet);
    assert_eq!(flags(&seal_by(&ours, 2)), Ok([true, true, false]));
    assert_eq!(flags(&seal_by(&ours, 0)), Ok([true, false, false]));
    let late = seal_by(&ours, 1);
    ours = ours.next_sending_epoch();
    assert_eq!(flags(&seal_by(&ours, 1)), Ok([true, false, true]));
    assert_eq!(flags(&seal_by(&ours, 2)), Ok([true, false, false]));
    assert_eq!(flags(&late), Ok([false, false, false]), "the older epoch still opens");
    let theirs = theirs.next_receiving_epoch();
    let newer = ours.next_sending_epoch();
    for thread in 0..3 {
        assert!(result(&theirs, &seal_by(&ours, thread)).is_ok());
        assert!(result(&theirs, &seal_by(&newer, thread)).is_ok());
    }
    assert_eq!(result(&theirs, &late), Err(OpenError::Replay), "the window goes on");
}

#[test]
fn limits_hold_for_every_thread_by_itself() {
    let (ours, _) = sessions_of(3, 1);
    ours.skip_counters(1, EPOCH_PACKETS_MAX);
    assert_eq!(ours.reserve(1, 1, START), Err(SealError::Exhausted));
    assert!(!ours.is_usable(1, START) && ours.is_usable(0, START) && ours.is_usable(2, START));
    assert_eq!(ours.reserve(0, 1, START), Ok(counter(0, 0)));
    let next = ours.next_sending_epoch();
    assert!(next.is_usable(1, START));
    assert_eq!(next.reserve(1, 1, START), Ok(counter(1, EPOCH_PACKETS_MAX + 1)), "no counter twice");
    next.skip_counters(2, EPOCH_PACKETS_MAX);
    assert_eq!(
        next.reserve(2, 1, START),
        Err(SealError::Exhausted),
        "since the epoch began, not since the other thread"
    );
    assert!(!next.is_usable(2, START));
}

#[test]
fn one_busy_thread_is_enough_for_ratchet_and_rekey() {
    let (ours, _) = sessions_of(3, 1);
    for thread in 0..3 {
        ours.skip_counters(thread, RATCHET_AFTER_PACKETS - 1);
    }
    assert!(!ours.wants_ratchet(START), "the limit is one of each key");
    ours.skip_counters(2, 1);
    assert!(ours.wants_ratchet(START));
    let ours = ours.next_sending_epoch();
    assert!(!ours.wants_ratchet(START) && !ours.wants_rekey(START));
    ours.skip_counters(1, REJECT_AFTER_PACKETS - EPOCH_PACKETS_MAX);
    assert!(ours.wants_rekey(START));
    ours.skip_counters(1, EPOCH_PACKETS_MAX);
    assert_eq!(ours.next_sending_epoch().reserve(1, 1, START), Err(SealError::Exhausted));
}

/// DESIGN: 64 KiB a peer, which has up to three sessions for a moment, and two for long.
#[test]
fn a_session_is_small() {
    let used = |threads: u8| {
        let (ours, theirs) = sessions_of(threads, threads);
        let unused = ours.memory();
        for thread in 0..threads {
            assert!(result(&theirs, &seal_by(&ours, thread)).is_ok());
            let back = seal_by(&theirs, thread);
            open(&ours, &Node::alice(), &back, START).unwrap();
        }
        println!("{threads} threads: {unused} bytes, all in use {}", ours.memory());
        (unused, ours.memory())
    };
    let (one, same) = used(1);
    assert_eq!(one, same);
    assert!(one <= 5 << 10, "{one}");
    let (idle, busy) = used(THREADS_MAX);
    assert!(idle <= one + 1024, "{idle}");
    assert!(busy <= 32 << 10, "{busy}");
}

/// What may happen to a packet on its way.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// A thread seals another one.
    Seal(u8),
    /// One of them arrives, perhaps again.
    Arrive(usize),
    /// One arrives that says it is of another thread.
    Rename(usize, u8),
    /// One arrives with another count.
    Recount(usize, u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..4_u8).prop_map(Step::Seal),
        4 => any::<usize>().prop_map(Step::Arrive),
        1 => (any::<usize>(), any::<u8>()).prop_map(|(packet, thread)| Step::Rename(packet, thread)),
        1 => (any::<usize>(), 0..20_u64).prop_map(|(packet, count)| Step::Recount(packet, count)),
    ]
}

proptest! {
    /// Each packet opens once, whatever else comes under its thread, its count or both.
    #[test]
    fn a_packet_opens_once_and_as_what_it_was_sealed(steps in vec(step(), 1..120)) {
        let (ours, theirs) = sessions_of(4, 1);
        let mut sealed: Vec<(u64, Vec<u8>)> = Vec::new();
        let mut opened = BTreeSet::new();
        for step in steps {
            let (at, changed) = match step {
                Step::Seal(thread) => {
                    let packet = seal_by(&ours, thread);
                    sealed.push((unmask(&Node::bob(), &packet).0.counter, packet));
                    continue;
                }
                _ if sealed.is_empty() => continue,
                Step::Arrive(at) => (at % sealed.len(), None),
                Step::Rename(at, thread) => {
                    let at = at % sealed.len();
                    (at, Some(counter(thread, count_of(sealed[at].0))))
                }
                Step::Recount(at, count) => {
                    let at = at % sealed.len();
                    (at, Some(counter(thread_of(sealed[at].0), count)))
                }
            };
            let (genuine, packet) = &sealed[at];
            let counter = changed.unwrap_or(*genuine);
            let got = result(&theirs, &with_counter(packet, counter)).map(|_| ());
            let expected = match () {
                () if opened.contains(&counter) => Err(OpenError::Replay),
                () if counter != *genuine => Err(OpenError::Authentication),
                () => {
                    opened.insert(counter);
                    Ok(())
                }
            };
            prop_assert_eq!(got, expected);
            prop_assert_eq!(theirs.packets_received(), opened.len() as u64);
        }
    }
}
