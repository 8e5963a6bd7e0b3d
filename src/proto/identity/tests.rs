use super::*;

#[test]
fn a_node_id_has_one_spelling() {
    let id = Identity::from_seed([7; 32]).node_id();
    let text = id.to_string();
    assert_eq!(text.len(), NODE_ID_TEXT_LEN);
    assert_eq!(text.parse(), Ok(id));
    for (position, found) in [(1, 'A'), (17, '1'), (52, 'é')] {
        let wrong: String =
            text.chars().enumerate().map(|(i, c)| if i + 1 == position { found } else { c }).collect();
        assert_eq!(wrong.parse::<NodeId>(), Err(ParseNodeIdError::Alphabet { position, found }));
    }
    assert_eq!(text[1..].parse::<NodeId>(), Err(ParseNodeIdError::Length(51)));
    let two_bytes_each = "é".repeat(NODE_ID_TEXT_LEN / 2);
    assert_eq!(two_bytes_each.parse::<NodeId>(), Err(ParseNodeIdError::Length(26)));
    // 52 characters hold 260 bits: the last four must be zero.
    let last = text.chars().next_back().unwrap();
    assert!("aq".contains(last), "{last}");
    for wrong in ('b'..='z').chain('2'..='7').filter(|letter| *letter != 'q') {
        let other = format!("{}{wrong}", &text[..51]);
        assert_eq!(other.parse::<NodeId>(), Err(ParseNodeIdError::LastLetter));
    }
}

#[test]
fn weak_and_impossible_keys_are_refused() {
    let mut identity_point = [0; 32];
    identity_point[0] = 1;
    for bytes in [[0; 32], identity_point, [0xff; 32]] {
        let id = NodeId(bytes);
        assert!(!id.is_usable());
        assert_eq!(id.to_string().parse::<NodeId>(), Err(ParseNodeIdError::NotAKey));
        assert!(id.agree(&[9; 32]).is_none());
    }
}

/// Every y around p, with both signs of x: usable is what compressing the point again gives back, weak points aside.
#[test]
fn a_key_has_one_spelling() {
    let (mut usable, mut respelled) = (0, 0);
    for low in 0x80..=0xff {
        for high in [0x7f, 0xff] {
            let mut bytes = [0xff; 32];
            (bytes[0], bytes[31]) = (low, high);
            let point = curve25519_dalek::edwards::CompressedEdwardsY(bytes).decompress();
            let strong = point.filter(|point| !point.is_small_order());
            let again = strong.map(|point| point.compress().0);
            assert_eq!(NodeId(bytes).is_usable(), again == Some(bytes), "{bytes:?}");
            usable += u32::from(again == Some(bytes));
            respelled += u32::from(again.is_some_and(|again| again != bytes));
        }
    }
    assert!(usable > 50 && respelled > 5, "{usable} usable, {respelled} have another spelling");
}

#[test]
fn address_shows_120_bits_of_the_position() {
    let id = Identity::from_seed([1; 32]).node_id();
    let address = id.address();
    assert!(in_mesh(&address.ipv6()));
    assert_eq!(address.octets()[1..], id.position().0[..15]);
    assert!(address.position_prefix().distance(&id.position()).leading_zeros() >= ADDRESS_POSITION_BITS);
    assert_eq!(address.position_prefix().address(), address);
    assert_eq!(MeshAddress::from_ipv6("fd00::1".parse().unwrap()), None);
}

#[test]
fn sealing_agreement_is_the_same_on_both_sides() {
    let node = Identity::from_seed([3; 32]);
    let ephemeral = [5; 32];
    let ours = node.node_id().agree(&ephemeral).unwrap();
    let theirs = node.open_secret(&x25519_public(&ephemeral)).unwrap();
    assert_eq!(*ours, *theirs);
    assert!(node.open_secret(&[0; 32]).is_none(), "a low-order point agrees on nothing");
}

#[test]
fn signatures_are_bound_to_key_and_message() {
    let (a, b) = (Identity::from_seed([1; 32]), Identity::from_seed([2; 32]));
    let signature = a.sign(b"hello");
    assert!(a.node_id().verify(b"hello", &signature));
    assert!(!a.node_id().verify(b"hullo", &signature));
    assert!(!b.node_id().verify(b"hello", &signature));
}

#[test]
fn distance_orders_by_the_first_differing_bit() {
    let zero = Position([0; 32]);
    let mut near = [0; 32];
    near[31] = 1;
    let mut far = [0; 32];
    far[0] = 0x10;
    assert_eq!(zero.distance(&Position(near)).leading_zeros(), 255);
    assert_eq!(zero.distance(&Position(far)).leading_zeros(), 3);
    assert_eq!(zero.distance(&zero).leading_zeros(), 256);
    assert!(zero.distance(&Position(near)) < zero.distance(&Position(far)));
}

/// The vectors another implementation would check itself against.
#[test]
fn golden_vectors() {
    let text = include_str!("../../../tests/vectors/identity.json");
    let vectors: serde_json::Value = serde_json::from_str(text).unwrap();
    let hex = data_encoding::HEXLOWER;
    let cases = vectors["vectors"].as_array().unwrap();
    assert!(cases.len() >= 4);
    for case in cases {
        let field = |name: &str| case[name].as_str().unwrap().to_string();
        let seed: [u8; 32] = hex.decode(field("seed").as_bytes()).unwrap().try_into().unwrap();
        let identity = Identity::from_seed(seed);
        let id = identity.node_id();
        assert_eq!(hex.encode(id.as_bytes()), field("ed25519_public"));
        assert_eq!(id.to_string(), field("node_id"));
        assert_eq!(hex.encode(&identity.x25519_public()), field("x25519_public"));
        assert_eq!(hex.encode(&id.position().0), field("position"));
        assert_eq!(id.address().to_string(), field("address"));
    }
}
