//! Several sending threads of one node.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use super::packets::{ACK, read_tcp, stream, tcp, virtio};
use super::{End, NOW, Out, Outbox, Wire, endpoint, pair};
use crate::proto::datapath::{Arrival, DropReason, Inbound, Outbound, inbound};
use crate::proto::session::THREAD_SILENT_AFTER;
use crate::proto::session::transport::Content;
use crate::proto::wire::handshake::{CAPABILITY_FRAMES, with_threads};
use crate::proto::wire::session::{HEADER_LEN, Header, Kind, OVERHEAD, mask, thread_of};

const LEN: usize = 1472;
const FRAME: usize = 30_000;
/// The index that Bob gives the session.
const BOB: u32 = 22;

fn threads(n: u8) -> [End; 2] {
    pair(with_threads(CAPABILITY_FRAMES, n), LEN)
}

impl End {
    /// Sends a large packet of a flow of its own as a thread does.
    fn send_by(&mut self, thread: u8) -> Vec<Vec<u8>> {
        let at = u32::from(thread) * 1_000_000;
        let packet = tcp(at, ACK, &stream(at, FRAME));
        self.outbox = Outbox::of_thread(thread);
        let (wire, verdicts): (Wire, _) = self.send(&[(packet.clone(), virtio(&packet, 1348))]);
        assert_eq!(verdicts, [Outbound::Sent]);
        wire.datagrams()
    }
}

/// Bytes that came of each flow.
fn delivered(out: &Out) -> BTreeMap<u32, usize> {
    let mut flows = BTreeMap::new();
    for plain in out.plain() {
        let (sequence, _, payload) = read_tcp(&plain);
        assert_eq!(payload, stream(sequence, payload.len()));
        *flows.entry(sequence / 1_000_000).or_default() += payload.len();
    }
    flows
}

/// Slices of one superframe have consecutive counters of one thread.
#[test]
fn a_thread_seals_with_its_own_counters() {
    let [mut alice, bob] = threads(3);
    for thread in [2, 0, 1, 2] {
        let datagrams = alice.send_by(thread);
        let counters: Vec<_> = datagrams
            .iter()
            .map(|datagram| {
                let mut datagram = datagram.clone();
                mask(&bob.snapshot.own_key, &mut datagram).unwrap();
                Header::parse(datagram.first_chunk().unwrap()).unwrap().counter
            })
            .collect();
        assert!(counters.iter().all(|counter| thread_of(*counter) == thread));
        assert!(counters.windows(2).all(|pair| pair[0] + 1 == pair[1]), "{counters:?}");
    }
}

#[test]
fn superframes_of_threads_that_take_turns_are_whole() {
    let [mut alice, mut bob] = threads(3);
    let all = [0, 1, 2].map(|thread| alice.send_by(thread));
    let mixed: Vec<_> =
        (0..all[0].len()).flat_map(|slice| all.iter().map(move |d| d[slice].clone())).collect();
    let mut out = Out::default();
    bob.receive(&mixed, &mut out);
    assert_eq!(delivered(&out), BTreeMap::from([0, 1, 2].map(|flow| (flow, FRAME))));
    assert_eq!(out.packets.len(), 3);
}

/// Counters of two threads say nothing about which packet is newer.
#[test]
fn a_superframe_is_not_given_up_for_another_thread() {
    let [mut alice, mut bob] = threads(2);
    let (first, second) = (alice.send_by(0), alice.send_by(1));
    let (last, rest) = first.split_last().unwrap();
    let mut out = Out::default();
    bob.receive(rest, &mut out);
    bob.receive(&second, &mut out);
    assert_eq!(delivered(&out), BTreeMap::from([(1, FRAME)]));
    bob.receive(std::slice::from_ref(last), &mut out);
    assert_eq!(delivered(&out), BTreeMap::from([0, 1].map(|flow| (flow, FRAME))));
    assert_eq!(out.packets.len(), 2, "in one piece");
}

/// The slice's number would make it one of another thread's superframe, or of none.
#[test]
fn a_slice_before_the_first_counter_is_refused() {
    let [alice, bob] = threads(2);
    let route = alice.snapshot.routes.get(&super::identity(2).address()).unwrap();
    for thread in [0, 1] {
        let counter = route.session.reserve(thread, 1, NOW).unwrap();
        let mut datagram = vec![0; OVERHEAD + 400];
        datagram[HEADER_LEN] = 1;
        let content = Content { kind: Kind::Slice, partial: false, slice: (5, 10) };
        route.session.seal_at(counter, content, &mut datagram);
        let Arrival { verdict, .. } = inbound(&bob.snapshot, &bob.shared, endpoint(1), 0, &mut datagram, NOW);
        assert_eq!(verdict, Inbound::Drop(DropReason::Malformed));
    }
}

/// Of packets of different threads nobody knows which is newer: one that was held back must not move the peer.
#[test]
fn the_first_thread_that_is_heard_says_where_the_peer_is() {
    let [mut alice, bob] = threads(3);
    let mut packets = |thread| alice.send_by(thread).into_iter();
    let (mut first, mut second) = (packets(0), packets(2));
    let moves = |datagram: Option<Vec<u8>>, from: u8, now| {
        let mut datagram = datagram.unwrap();
        let Arrival { verdict, notice, .. } =
            inbound(&bob.snapshot, &bob.shared, endpoint(from), 0, &mut datagram, now);
        assert!(matches!(verdict, Inbound::Slice(_)), "{verdict:?}");
        bob.snapshot.receivers.get(&BOB).unwrap().noticed.store(false, Ordering::Relaxed);
        notice.is_some()
    };
    assert!(moves(first.next(), 1, NOW), "the first packet of the session");
    assert!(moves(first.next(), 9, NOW), "the newest one, from elsewhere");
    assert!(!moves(second.next(), 8, NOW), "one of another thread, while the first is heard");
    let later = NOW + THREAD_SILENT_AFTER;
    assert!(moves(second.next(), 8, later), "it is silent now");
    assert!(moves(first.next(), 9, later), "it always says");
    assert!(!moves(second.next(), 8, later + THREAD_SILENT_AFTER / 2));
}
