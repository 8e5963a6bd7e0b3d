use proptest::prelude::{any, proptest};

use auramesh::proto::identity::Identity;

use crate::output::{age, bytes, table};
use crate::report::Redaction;

#[test]
fn addresses_are_replaced_wherever_they_stand() {
    let check = |text: &str, expected: &str| assert_eq!(Redaction::default().apply(text), expected, "{text}");
    check("at 198.51.100.7:5747.", "at 192.0.2.1:5747.");
    check("\"203.0.113.7\"", "\"192.0.2.1\"");
    check("[2001:db8:9::7]:5747, and 2001:db8:9::7", "[2001:db8::1]:5747, and 2001:db8::1");
    check("fe80::77%eth0 192.168.1.0/24", "fe80::1%eth0 192.0.2.2/24");
    check("(10.0.0.1) 10.0.0.2 10.0.0.1:", "(192.0.2.1) 192.0.2.2 192.0.2.1:");
    check("key@198.51.100.7:1", "key@192.0.2.1:1");
    check(
        "checks of 198.51.100.7:1, [2001:db8:9::7]:2: dropped",
        "checks of 192.0.2.1:1, [2001:db8::2]:2: dropped",
    );
    check("seen at 2001:db8:9::7: refused", "seen at 2001:db8::1: refused");
    check("é198.51.100.7é", "é192.0.2.1é");
    for kept in ["127.0.0.1:1", "[::]:5747", "0.0.0.0:5747", "[::1]:9", "0.1.0", "12:30:05", "a::b::c"] {
        check(kept, kept);
    }
    let [one, two] = [1, 2].map(|seed| Identity::from_seed([seed; 32]).node_id());
    let (at_one, at_two) = (one.address(), two.address());
    check(&format!("{one}@198.51.100.7:5747 [{at_one}]:22"), "node-1@192.0.2.1:5747 [600::1]:22");
    check(&format!("{at_two}/128, {one}.azora: {two}"), "600::1/128, node-2.azora: node-1");
    check(&format!("peer = \"{}", &one.to_string()[..32]), "peer = \"node-?");
    let eleven: String =
        (1..=11).map(|seed| Identity::from_seed([seed; 32]).node_id().to_string() + " ").collect();
    let eleventh = Identity::from_seed([11; 32]).address();
    assert!(Redaction::default().apply(&format!("{eleven}{eleventh}")).ends_with("node-11 600::11"));
    let many: String = (0..=255).map(|n| format!("10.0.0.{n} ")).collect();
    assert!(!Redaction::default().apply(&many).contains("10.0."), "however many there are");
}

#[test]
fn quantities_take_the_unit_that_fits() {
    assert_eq!([bytes(0), bytes(1023), bytes(1024), bytes(5 << 30)], ["0 B", "1023 B", "1.0 KiB", "5.0 GiB"]);
    assert_eq!(bytes(u64::MAX), "16777216.0 TiB");
    assert_eq!([age(0.44), age(60.0), age(7200.0), age(1e6)], ["0.4 s", "1 min", "2 h", "11 d"]);
    assert_eq!([age(-1.0), age(f64::NAN)], ["-1.0 s", "NaN s"]);
}

#[test]
fn columns_align_and_lines_have_no_trailing_space() {
    let rows = [["a", "bb", ""], ["ccc", "d", "e"]].map(|row| row.map(String::from));
    assert_eq!(table(&rows), "a    bb\nccc  d   e\n");
}

proptest! {
    #[test]
    fn any_text_is_redacted(text in any::<String>(), ip in any::<u32>()) {
        let ip = std::net::Ipv4Addr::from(ip | 0x8000_0000);
        let redacted = Redaction::default().apply(&format!("{text} {ip}:1 {text}"));
        assert!(ip.octets()[..3] == [192, 0, 2] || !redacted.contains(&format!(" {ip}:1 ")), "{redacted}");
    }
}
