use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use proptest::prelude::{any, proptest};

use super::*;
use crate::proto::identity::{Identity, NodeId};

fn node_id(seed: u8) -> NodeId {
    Identity::from_seed([seed; 32]).node_id()
}

fn parse(text: &str) -> Result<Config, Error> {
    Config::parse(text, Path::new("test.toml"))
}

/// Asserts that the text is refused with every one of `needles` in the message.
fn refused(text: &str, needles: &[&str]) {
    let message = parse(text).expect_err(text).to_string();
    for needle in needles {
        assert!(message.contains(needle), "{text:?} gave {message:?}, which lacks {needle:?}");
    }
    assert_eq!(message.lines().count(), 1, "one line: {message}");
}

/// The example with its commented defaults switched on.
fn example_uncommented() -> String {
    let switch_on = |line: &str| match line.strip_prefix('#') {
        Some(rest) if rest.starts_with(|c: char| c.is_ascii_lowercase()) => format!("{rest}\n"),
        _ => format!("{line}\n"),
    };
    EXAMPLE.lines().map(switch_on).collect()
}

fn values(config: &Config) -> Vec<(&'static str, String)> {
    config.settings().into_iter().map(|s| (s.key, s.value)).collect()
}

#[test]
fn the_example_shows_exactly_the_defaults() {
    let defaults = values(&Config::default());
    assert_eq!(values(&parse(EXAMPLE).unwrap()), defaults, "as it stands");
    let on = parse(&example_uncommented()).unwrap();
    assert_eq!(values(&on), defaults, "switched on");
    for setting in on.settings() {
        assert_eq!(setting.origin, Origin::File, "{} is missing from packaging/azora.toml", setting.key);
    }
}

#[test]
fn settings_read_back_as_the_same_configuration() {
    let (a, b) = (node_id(1), node_id(2));
    let text = format!(
        "[net]\nlisten = [\"127.0.0.1:0\"]\nbootstrap = [\"{a}@192.0.2.1:5747\"]\n[policy]\n\
         allow = [{{ proto = \"tcp\", port = 22, peer = \"{b}\" }}, {{ proto = \"icmp\" }}]\n\
         [metrics]\nlisten = \"127.0.0.1:9747\"\n[data]\nworkers = 3\n[node]\nstate_dir = \"/a \\\" b\"\n"
    );
    let config = parse(&text).unwrap();
    let again: String = config.settings().iter().map(|s| format!("{} = {}\n", s.key, s.value)).collect();
    assert_eq!(values(&parse(&again).unwrap()), values(&config));
    assert_eq!(config.node.state_dir, PathBuf::from("/a \" b"));
    assert_eq!(config.policy.allow.len(), 2);
}

#[test]
fn unknown_keys_are_refused_with_line_and_key() {
    refused("[tun]\nname = \"a\"\nmtuu = 1400\n", &["test.toml:3:1:", "mtuu"]);
    refused("[relay]\nenabled = true\nquota = 1\n", &["test.toml:3:1:", "quota"]);
    refused("[names]\nsuffix = \"x\"\n", &["names"]);
    refused("[net]\nport_maping = true\n", &["test.toml:2:1:", "port_maping"]);
    refused("[policy]\nallow = [{ proto = \"tcp\", ports = 1 }]\n", &["test.toml:2:", "ports"]);
    refused("stray = 1\n", &["test.toml:1:1:", "stray"]);
}

#[test]
fn wrong_values_are_refused_with_their_line() {
    let line_2: &[(&str, &[&str])] = &[
        ("[tun]\nmtu = 1279", &["1279", "1280 to 1420"]),
        ("[relay]\nlimits = { kbit_s = 0 }", &["kbit_s 0"]),
        ("[relay]\nlimits = { kbit_s = 1, burst = 2 }", &["burst"]),
        ("[relay]\nenabled = 1", &["true or false"]),
        ("[tun]\nmtu = 1421", &["1421"]),
        ("[tun]\nmtu = -1", &["-1"]),
        ("[tun]\nmtu = 9223372036854775807", &["9223372036854775807"]),
        ("[tun]\nmtu = 99999999999999999999", &["test.toml"]),
        ("[tun]\nmtu = \"1400\"", &["wrong kind of value: text \"1400\", expected a whole number"]),
        ("[tun]\nname = \"\"", &["interface name"]),
        ("[tun]\nname = \"lo\"", &["interface name"]),
        ("[tun]\nname = \"a/b\"", &["interface name"]),
        ("[tun]\nname = \"sixteen-bytes-xx\"", &["interface name"]),
        ("[tun]\nname = \"userspace-networking\"", &["not available yet"]),
        ("[net]\nlisten = 5", &["number `5`, expected a list in brackets"]),
        ("[policy]\nallow = [5]", &["expected a table"]),
        ("[net]\nlisten = [\"5747\"]", &["IP:PORT"]),
        ("[net]\nlisten = [\"192.0.2.1\"]", &["without a port: write 192.0.2.1:5747"]),
        ("[net]\nlisten = [\"2001:db8::1\"]", &["without a port: write [2001:db8::1]:5747"]),
        (
            "[net]\nlisten = [\"2001:db8::1:5747\"]",
            &["write [2001:db8::1]:5747, or [2001:db8::1:5747]:5747 if"],
        ),
        ("[net]\nlisten = [\"2001:db8:1:2:3:4:5:6:5747\"]", &["write [2001:db8:1:2:3:4:5:6]:5747"]),
        ("[net]\nlisten = [\"[ff02::1]:1\"]", &["multicast"]),
        ("[net]\nlisten = [\"[600::1]:1\"]", &["mesh address"]),
        ("[net]\nlisten = [\"[::ffff:192.0.2.1]:1\"]", &["IPv4"]),
        ("[net]\nlisten = [\"0.0.0.0:5748\"]", &["LAN discovery"]),
        ("[net]\nlisten = [\"0.0.0.0:65536\"]", &["`65536` is no port: a number up to 65535"]),
        ("[net]\nlisten = [\"[::]:x\"]", &["`x` is no port"]),
        ("[net]\nbootstrap = [\"192.0.2.1:5747\"]", &["write NODEID@192.0.2.1:5747"]),
        ("[net]\nbootstrap = [\"abc@192.0.2.1:5747\"]", &["52 characters"]),
        ("[net]\nbootstrap = [\"example.org:5747\"]", &["NODEID@IP:PORT", "the IP address"]),
        ("[net]\nlan_discovery = 1", &["number `1`, expected true or false"]),
        ("[net]\nstream_listen = [\"443\"]", &["IP:PORT"]),
        ("[net]\nstream_listen = [\"[600::1]:443\"]", &["mesh address"]),
        ("[net]\nstream_ports = [443, 0]", &["port 0"]),
        ("[net]\nstream_ports = [65536]", &["65536"]),
        (
            "[net]\nsecret = 12345678901234567",
            &["test.toml:2:10: expected a text in quotes (in `secret = …`)"],
        ),
        ("[net]\nsecret = \"guessable\"", &["16 to 256 bytes", "secret = …"]),
        ("[dht]\nmode = \"both\"", &["both", "auto, server, client"]),
        ("[data]\ntun_offload = \"udp\"", &["udp", "auto, tcp, none"]),
        ("[data]\nudp_offload = \"tcp\"", &["auto, none"]),
        ("[data]\nsuperframes = \"yes\"", &["text \"yes\", expected true or false"]),
        ("[data]\ncipher = \"aes\"", &["auto, aes-256-gcm, chacha20-poly1305"]),
        ("[policy]\ninbound = \"drop\"", &["deny, allow"]),
        ("[policy]\nallow = [{ port = 22 }]", &["tcp or udp"]),
        ("[policy]\nallow = [{ proto = \"icmp\", port = 1 }]", &["tcp or udp"]),
        ("[policy]\nallow = [{ proto = \"tcp\", port = 0 }]", &["port 0"]),
        ("[policy]\nallow = [{ proto = \"tcp\", port = 65536 }]", &["65536", "number from 1 to 65535"]),
        ("[node]\nlog = \"loud\"", &["error, warn, info, debug, trace"]),
        ("[node]\nstate_dir = \"\"", &["1 to"]),
        ("[metrics]\nlisten = \"9747\"", &["IP:PORT"]),
        ("[data]\nworkers = 9", &["9", "to 8"]),
        ("[data]\nworkers = -1", &["-1", "to 8"]),
    ];
    for (text, needles) in line_2 {
        refused(text, &["test.toml:2:"]);
        refused(text, needles);
    }
    refused(&format!("[node]\nsocket = \"/{}\"", "s".repeat(107)), &["107", "108"]);
    refused("[tun\n", &["test.toml:1:"]);
    refused("é = [tun\n", &["test.toml:1:"]);
}

#[test]
fn unusable_bootstrap_endpoints_are_refused() {
    let check = |endpoint: &str, needle: &str| {
        let text = format!("{}@{endpoint}", node_id(1));
        let message = text.parse::<Bootstrap>().expect_err(endpoint).to_string();
        assert!(message.contains(needle), "{message}");
    };
    check("192.0.2.1:0", "port 0");
    check("192.0.2.1", "without a port");
    check("example.org:5747", "names are not resolved");
    check("0.0.0.0:5747", "unspecified");
    check("[::]:5747", "unspecified");
    check("224.0.0.1:5747", "multicast");
    check("255.255.255.255:5747", "broadcast");
    check("[612::1]:5747", "mesh address");
    check("[::ffff:192.0.2.1]:5747", "IPv4");
    let alone = node_id(1).to_string();
    let missing = alone.parse::<Bootstrap>().unwrap_err().to_string();
    assert!(missing.contains(&format!("write {alone}@IP:PORT")), "{missing}");
}

#[test]
fn contradictions_are_refused() {
    let (a, b) = (node_id(1), node_id(2));
    refused("[net]\nlisten = []", &["net.listen is empty"]);
    refused("[net]\nlisten = [\"[::]:1\", \"[::]:1\"]", &["twice"]);
    refused(&format!("[net]\nbootstrap = [\"{a}@192.0.2.1:1\", \"{a}@192.0.2.1:1\"]"), &["twice"]);
    refused(
        &format!("[net]\nbootstrap = [\"{a}@192.0.2.1:1\", \"{b}@192.0.2.1:1\"]"),
        &["two different nodes"],
    );
    refused("[policy]\nallow = [{ proto = \"tcp\" }, { proto = \"tcp\" }]", &["in allow -p tcp", "twice"]);
    let any = vec!["\"127.0.0.1:0\""; LISTEN_MAX];
    assert!(parse(&format!("[net]\nlisten = [{}]", any.join(","))).is_ok(), "port 0 may repeat");
    refused(&format!("[net]\nlisten = [{}, \"[::]:0\"]", any.join(",")), &["17", "at most 16"]);
}

#[test]
fn flags_win_over_environment_over_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("azora.toml");
    std::fs::write(&path, "[node]\nlog = \"warn\"\nsocket = \"/file\"\nstate_dir = \"/file\"\n").unwrap();
    let listen: SocketAddr = "127.0.0.1:1".parse().unwrap();
    let overrides = Overrides {
        file: Some(Given::flag(path.clone())),
        socket: Some(Given::environment("/env".into())),
        state_dir: Some(Given::flag("/flag".into())),
        listen: Some(Given::flag(vec![listen])),
        ..Overrides::default()
    };
    let config = Config::load(&overrides).unwrap();
    assert_eq!(config.node.log, LogLevel::Warn);
    assert_eq!(config.node.socket, PathBuf::from("/env"));
    assert_eq!(config.node.state_dir, PathBuf::from("/flag"));
    assert_eq!(config.net.listen, [listen]);
    assert_eq!(config.file(), Some(path.as_path()));
    let origin = |key| config.settings().iter().find(|s| s.key == key).unwrap().origin;
    assert_eq!(origin("node.log"), Origin::File);
    assert_eq!(origin("node.socket"), Origin::Environment);
    assert_eq!(origin("node.state_dir"), Origin::Flag);
    assert_eq!(origin("tun.mtu"), Origin::Default);
}

#[test]
fn reload_keeps_the_overrides_and_fails_whole() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("azora.toml");
    std::fs::write(&path, "[tun]\nmtu = 1300\n").unwrap();
    let overrides = Overrides {
        file: Some(Given::flag(path.clone())),
        log: Some(Given::flag(LogLevel::Debug)),
        ..Overrides::default()
    };
    let config = Config::load(&overrides).unwrap();
    std::fs::write(&path, "[tun]\nmtu = 1310\n").unwrap();
    let reloaded = config.reload().unwrap();
    assert_eq!((reloaded.tun.mtu, reloaded.node.log), (1310, LogLevel::Debug));
    std::fs::write(&path, "[tun]\nmtu = 1320\nx = 1\n").unwrap();
    assert!(config.reload().is_err());
    assert_eq!(config.tun.mtu, 1300);
}

#[test]
fn what_is_other_in_a_fresh_configuration_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("secret");
    let file = format!("secret_file = {:?}", secret.to_str().unwrap());
    std::fs::write(&secret, "correct horse battery staple\n").unwrap();
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).unwrap();
    let load = |text: &str| {
        let path = dir.path().join("azora.toml");
        std::fs::write(&path, text).unwrap();
        let file = Some(Given::flag(path));
        Config::load(&Overrides { file, ..Overrides::default() }).unwrap()
    };
    let check =
        |old: &str, new: &str, keys: &[&str]| assert_eq!(load(old).changed(&load(new)), keys, "{new}");
    check("", "", &[]);
    check("", "[tun]\nmtu = 1420\n", &[]);
    check("[tun]\nmtu = 1300\n", "[net]\nport_mapping = false\n", &["tun.mtu", "net.port_mapping"]);
    check("", "[policy]\ninbound = 'allow'\n", &["policy.inbound"]);
    let one = "[net]\nsecret = 'one secret of some length'\n";
    check(one, one, &[]);
    check(one, "[net]\nsecret = 'two secrets of some length'\n", &["net.secret"]);
    check("", one, &["net.secret"]);
    let named = format!("[net]\n{file}\n");
    let old = load(&named);
    std::fs::write(&secret, "correct horse battery stable\n").unwrap();
    assert_eq!(old.changed(&load(&named)), ["net.secret_file"], "another secret in the same file");
}

#[test]
fn a_named_file_must_exist_and_be_of_bounded_size() {
    let load = |path: &Path| {
        Config::load(&Overrides { file: Some(Given::flag(path.into())), ..Overrides::default() })
    };
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(load(&dir.path().join("none")), Err(Error::Read { .. })));
    assert!(matches!(load(dir.path()), Err(Error::Read { .. })));
    assert!(matches!(load(Path::new("/dev/zero")), Err(Error::TooLarge { .. })));
}

#[test]
fn a_rule_reads_back_from_its_words() {
    let same = |peer, proto, port| {
        let rule = AllowRule::new(peer, proto, port).unwrap();
        assert_eq!(rule.to_string().parse(), Ok(rule));
    };
    same(None, None, None);
    same(Some(node_id(1)), Some(Protocol::Tcp), Some(22));
    same(None, Some(Protocol::Icmp), None);
    for wrong in
        ["", "out allow", "in allow -p", "in allow -p tcp -p udp", "in allow --port 1", "in allow x y"]
    {
        assert!(wrong.parse::<AllowRule>().is_err(), "{wrong:?}");
    }
}

proptest! {
    /// Whatever stands in the file: a configuration or one line that says where it is wrong.
    #[test]
    fn any_text_is_answered(text in any::<String>(), at in 0..EXAMPLE.len(), cut in any::<bool>()) {
        let example = example_uncommented();
        let at = (0..=at).rev().find(|at| example.is_char_boundary(*at)).unwrap_or(0);
        let (head, tail) = example.split_at(at);
        for text in [text.clone(), format!("{head}{text}{}", if cut { "" } else { tail })] {
            if let Err(error) = parse(&text) {
                assert_eq!(error.to_string().lines().count(), 1, "{error}");
            }
        }
    }

    #[test]
    fn any_words_are_answered(text in any::<String>()) {
        let _ = (text.parse::<Bootstrap>(), text.parse::<AllowRule>(), tun_name(&text), listen_address(&text));
        let _ = format!("in allow {text}").parse::<AllowRule>();
    }
}

#[test]
fn nothing_shows_a_secret() {
    let text = "correct horse battery staple";
    let config = parse(&format!("[net]\nsecret = \"{text}\"\n")).unwrap();
    let shown = config.settings().into_iter().find(|setting| setting.key == "net.secret").unwrap();
    assert_eq!(shown.value, format!("\"{SECRET_SHOWN}\""));
    let long = parse(&format!("[net]\nsecret = \"{}\"\n", text.repeat(20))).unwrap_err();
    for said in [format!("{config:?}"), long.to_string(), format!("{long:?}")] {
        assert!(!said.contains("horse"), "{said}");
    }
}

#[test]
fn a_secret_is_read_from_a_file_that_only_its_owner_reads() {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("secret");
    let load = |mode: u32, text: &str| {
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        let file = directory.path().join("azora.toml");
        std::fs::write(&file, format!("[net]\nsecret_file = \"{}\"\n", path.display())).unwrap();
        Config::load(&Overrides { file: Some(Given::flag(file)), ..Overrides::default() })
    };
    let config = load(0o600, "sixteen letters!\n").unwrap();
    let inline = parse("[net]\nsecret = \"sixteen letters!\"\n").unwrap();
    assert_eq!(config.net.secret, inline.net.secret, "a newline at the end is none of it");
    assert!(inline.net.secret.unwrap().network().0 != [0; 32]);
    assert!(load(0o640, "sixteen letters!").is_ok(), "of the daemon's group");
    for (mode, text, cause) in [(0o644, "sixteen letters!", "every user"), (0o600, "short", "16 to 256")] {
        let error = load(mode, text).unwrap_err();
        assert!(error.to_string().contains(cause) && error.next_step().contains("chmod 600"), "{error}");
    }
}

#[test]
fn what_belongs_together_is_given_together() {
    refused("[net]\nstream_cert = \"/a\"\n", &["stream_cert", "stream_key"]);
    refused("[net]\nsecret = \"sixteen letters!\"\nsecret_file = \"/a\"\n", &["one of them"]);
    refused("[net]\nstream_listen = [\"0.0.0.0:443\", \"0.0.0.0:443\"]\n", &["0.0.0.0:443", "twice"]);
    refused("[net]\nstream_ports = [1, 2, 3, 4, 5]\n", &["5 values", "at most 4"]);
}
