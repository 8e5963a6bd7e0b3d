use super::*;

#[test]
fn both_sides_agree() {
    let (alice, bob) = (Node::alice(), Node::bob());
    let mut rng = rng(1);
    let (mut initiator, initiation) = alice.start(&bob, &mut rng);
    assert_eq!((initiator.peer(), initiator.local_index()), (bob.identity.node_id(), ALICE_INDEX));
    let incoming = bob.incoming(&initiation).unwrap();
    assert_eq!(incoming.peer(), alice.identity.node_id());
    assert_eq!(*incoming.peer_x25519(), alice.identity.x25519_public());
    assert_eq!(incoming.timestamp(), wall(0));
    let (theirs, response) = incoming.accept(&bob.identity, BOB_INDEX, alice_at(), at(1), &mut rng).unwrap();
    let Established { session: ours, observed } = alice.finish(&mut initiator, &response).unwrap();
    assert_eq!(observed, alice_at());
    assert_eq!((ours.peer(), theirs.peer()), (bob.identity.node_id(), alice.identity.node_id()));
    assert_eq!((ours.local_index(), ours.remote_index()), (ALICE_INDEX, BOB_INDEX));
    assert_eq!((theirs.local_index(), theirs.remote_index()), (BOB_INDEX, ALICE_INDEX));
    assert_eq!((ours.is_initiator(), theirs.is_initiator()), (true, false));
    assert_eq!((ours.established(), theirs.established()), (START, at(1)));
    assert_eq!((ours.suite(), theirs.suite()), (Suite::Aes256Gcm, Suite::Aes256Gcm));
    let packet = seal(&ours, b"hello bob", START);
    assert_eq!(open(&theirs, &bob, &packet, at(1)).unwrap().0, b"hello bob\0\0\0\0\0\0\0");
    let packet = seal(&theirs, b"hello, alice 16+", at(1));
    assert_eq!(open(&ours, &alice, &packet, START).unwrap().0, b"hello, alice 16+");
}
