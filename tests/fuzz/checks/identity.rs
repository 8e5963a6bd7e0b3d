//! Texts and bytes that claim to be keys.

use std::sync::LazyLock;

use auramesh::proto::identity::{Identity, NodeId, ParseNodeIdError, in_mesh};

static IDENTITY: LazyLock<Identity> = LazyLock::new(|| Identity::from_seed([1; 32]));

/// A node ID as text has one spelling; as bytes it is usable in text exactly when it is a usable key.
pub(crate) fn node_id(data: &[u8]) {
    if let Ok(text) = str::from_utf8(data) {
        parse(text);
    }
    if let Some((key, rest)) = data.split_first_chunk() {
        let id = NodeId(*key);
        let usable = id.is_usable();
        assert_eq!(id.to_string().parse(), if usable { Ok(id) } else { Err(ParseNodeIdError::NotAKey) });
        assert_eq!(id.agree(&[7; 32]).is_some(), usable);
        let _ = IDENTITY.open_secret(key);
        if let Some((signature, message)) = rest.split_first_chunk() {
            assert!(usable || !id.verify(message, signature));
        }
    }
}

fn parse(text: &str) {
    match text.parse::<NodeId>() {
        Ok(id) => {
            assert_eq!(id.to_string(), text);
            assert!(id.is_usable());
            assert!(in_mesh(&id.address().ipv6()));
        }
        Err(ParseNodeIdError::Length(len)) => assert_eq!(len, text.chars().count()),
        Err(_) => assert_eq!(text.chars().count(), 52),
    }
}
