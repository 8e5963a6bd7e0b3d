use std::future::Future;
use std::io::ErrorKind;
use std::net::Ipv6Addr;
use std::os::fd::AsFd;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use tun_rs::{DeviceBuilder, Layer};

use crate::proto::identity::{Identity, MeshAddress};
use crate::proto::timer::Instant;
use crate::proto::wire::gso::{Transport, Virtio};
use crate::tun::guard::{self, Guard};
use crate::tun::interface::overlap;
use crate::tun::netlink::{Address, Kind, Netlink, Route};
use crate::tun::{
    Condition, Device, Error, Interface, InterfaceConfig, Offloads, Probe, QueueProbe, is_deleted, is_down,
    is_name,
};

fn own() -> MeshAddress {
    Identity::from_seed([1; 32]).address()
}

fn config(name: &str) -> InterfaceConfig {
    InterfaceConfig { name: name.into(), mtu: 1420, offloads: Offloads::TcpUdp, address: own(), queues: 1 }
}

/// The one line that a user reads: no line break, and something to type or do.
fn line(error: &Error, parts: &[&str]) {
    let text = error.to_string();
    assert!(!text.contains('\n'), "{text}");
    for part in parts {
        assert!(text.contains(part), "{part:?} is missing: {text}");
    }
}

#[test]
fn names_are_those_that_linux_nft_and_a_shell_take() {
    for good in ["azora0", "a", "mesh-0.1_x", "abcdefghijklmno"] {
        assert!(is_name(good), "{good}");
    }
    let bad = [
        "",
        "abcdefghijklmnop",
        "0a",
        "-a",
        ".",
        "..",
        "a b",
        "a/b",
        "a\"b",
        "a;b",
        "a:b",
        "é",
        "a\n",
        "all",
        "default",
    ];
    for bad in bad {
        assert!(!is_name(bad), "{bad:?}");
    }
}

#[test]
fn the_guard_replaces_itself_in_one_transaction() {
    assert_eq!(
        guard::ruleset("azora0"),
        r#"table inet azora_azora0
delete table inet azora_azora0
table inet azora_azora0 {
	chain prerouting {
		type filter hook prerouting priority raw; policy accept;
		iifname != { "azora0", "lo" } ip6 daddr 600::/8 drop
		iifname != { "azora0", "lo" } ip6 saddr 600::/8 drop
	}
}
"#
    );
    assert_eq!(guard::table("mesh-1"), "inet azora_mesh-1");
    let rules = guard::ruleset("azora0");
    let whole = rules.lines().skip(2).collect::<Vec<_>>().join("\n");
    assert!(guard::is_whole(&whole, &rules));
    assert!(!guard::is_whole(&whole.replace("drop", "accept"), &rules));
    assert!(!guard::is_whole(&whole.replacen("\t\tiifname", "\t\taccept\n\t\tiifname", 1), &rules));
    assert!(!guard::is_whole("table inet azora_azora0 {\n}", &rules));
}

#[test]
fn an_overlap_is_what_lies_inside_the_range_on_another_interface() {
    let address = |index, ip: &str| Address { index, ip: ip.parse().unwrap(), prefix_len: 64 };
    let route = |index, to: &str, prefix_len| Route {
        index,
        destination: to.parse().unwrap(),
        prefix_len,
        main: true,
    };
    let check = |addresses: &[Address], routes: &[Route], expected: Option<(u32, &'static str, &str)>| {
        let found = overlap(addresses, routes, Some(5));
        assert_eq!(found.as_ref().map(|(i, what, prefix)| (*i, *what, prefix.as_str())), expected);
    };
    check(&[], &[], None);
    check(&[address(2, "612::1")], &[], Some((2, "address", "612::1/64")));
    check(&[address(5, "612::1"), address(2, "2001:db8::1"), address(3, "fe80::1")], &[], None);
    check(&[], &[route(2, "600::", 8)], Some((2, "route", "600::/8")));
    check(&[], &[route(2, "6ab::", 16), route(5, "600::", 8)], Some((2, "route", "6ab::/16")));
    check(&[], &[route(0, "6ff::", 16)], Some((0, "route", "6ff::/16")));
    check(
        &[],
        &[route(5, "600::", 8), route(2, "200::", 7), route(2, "400::", 7), route(2, "700::", 8)],
        None,
    );
    check(&[], &[route(2, "::", 0), route(2, "::", 1), route(2, "400::", 6), route(2, "600::", 7)], None);
}

#[test]
fn refusals_say_what_to_do() {
    let (name, mtu, address) = ("azora0".to_string(), 1420, own().ipv6());
    line(
        &Error::NotPermitted { name: name.clone(), mtu, address },
        &[
            "root",
            "CAP_NET_ADMIN",
            "ip tuntap add dev azora0 mode tun multi_queue user",
            "mtu 1420",
            "route replace 0600::/8",
        ],
    );
    line(
        &Error::NotPrepared { name: name.clone(), missing: "the route 0600::/8", mtu, address },
        &["lacks the route", "ip -6 route"],
    );
    line(
        &Error::Overlap { interface: "wg0".into(), what: "route", prefix: "600::/8".into() },
        &["wg0", "ip -6 route del 600::/8 dev wg0"],
    );
    line(&Error::NoDeviceNode, &["modprobe tun", "--device /dev/net/tun"]);
    line(&Error::Busy { name: name.clone() }, &["azora0", "--tun"]);
    line(&Error::NotTun { name, kind: "a veth interface".into() }, &["a veth interface", "--tun"]);
    line(&Error::Name { name: "a\nb".into() }, &["cannot be the name"]);
    assert!(guard::Error::NoNft.to_string().contains("lan_guard = false"));
}

#[test]
fn a_condition_is_sound_only_as_a_whole() {
    let sound = Condition {
        exists: true,
        up: true,
        mtu: 1420,
        has_address: true,
        has_route: true,
        strangers: vec![],
    };
    assert!(sound.is_sound(1420));
    assert!(!sound.is_sound(1400));
    assert!(!Condition { exists: false, ..sound.clone() }.is_sound(1420));
    assert!(!Condition { up: false, ..sound.clone() }.is_sound(1420));
    assert!(!Condition { has_address: false, ..sound.clone() }.is_sound(1420));
    assert!(!Condition { has_route: false, ..sound.clone() }.is_sound(1420));
    assert!(!Condition { strangers: vec![Ipv6Addr::LOCALHOST], ..sound }.is_sound(1420));
}

// From here on: real interfaces, each test in a network namespace of its own, so nothing of the machine is touched.

/// Runs `test` in a fresh network namespace. Without root there is none: says so, and that nothing was tested.
fn in_namespace<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    let thread = std::thread::spawn(|| {
        if let Err(errno) = unshare(CloneFlags::CLONE_NEWNET) {
            eprintln!("SKIPPED, NOTHING TESTED: a network namespace needs root ({errno})");
            return;
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test());
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Waits at most `ms` for a packet.
fn packet(device: &Device, ms: u16) -> Option<Vec<u8>> {
    let mut fds = [PollFd::new(device.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::from(ms)).unwrap();
    let mut buffer = vec![0; 2000];
    let (len, virtio) = device.recv([&mut buffer[..]]).ok()?;
    buffer.truncate(len);
    if virtio.offload().partial {
        Transport::locate(&buffer).unwrap().complete(&mut buffer);
    }
    Some(buffer)
}

async fn index(kernel: &Netlink, name: &str) -> Option<u32> {
    kernel.links().await.unwrap().into_iter().find(|link| link.name == name).map(|link| link.index)
}

/// A TUN prepared in advance, as `ip tuntap add` makes it.
fn prepare(name: &str) {
    let device =
        DeviceBuilder::new().name(name).layer(Layer::L3).inherit_enable_state().build_sync().unwrap();
    device.persist().unwrap();
}

#[test]
fn a_fresh_interface_carries_packets_and_nothing_else() {
    in_namespace(|| async {
        let interface = Interface::open(&config("azora0")).await.unwrap();
        assert!(interface.inspect().await.unwrap().is_sound(1420));
        assert!(!interface.is_prepared());
        assert_eq!(interface.repair().await.unwrap(), Vec::<&str>::new());
        let device = interface.devices()[0].clone();
        assert_eq!(device.recv([&mut [0; 100][..]]).unwrap_err().kind(), ErrorKind::WouldBlock);
        let socket = std::net::UdpSocket::bind((own().ipv6(), 0)).unwrap();
        socket.send_to(b"hello", "[612::1]:7").unwrap();
        let out = packet(&device, 1000).unwrap();
        assert_eq!((out[0] >> 4, &out[8..24], out.len()), (6, &own().octets()[..], 40 + 8 + 5));
        assert_eq!(packet(&device, 100), None, "the kernel sends packets of its own");
        let kernel = Netlink::open().unwrap();
        let link_local = |address: &Address| address.ip.is_unicast_link_local();
        assert!(!kernel.addresses().await.unwrap().iter().any(link_local), "it would solicit routers");
        // What comes in reaches the socket: the same packet, turned round.
        let mut back = out.clone();
        back[8..24].copy_from_slice(&out[24..40]);
        back[24..40].copy_from_slice(&out[8..24]);
        back[40..42].copy_from_slice(&out[42..44]);
        back[42..44].copy_from_slice(&out[40..42]);
        device.send(Virtio::PLAIN, &[&back]).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        let (len, from) = socket.recv_from(&mut [0; 16]).unwrap();
        assert_eq!((len, from.to_string()), (5, "[612::1]:7".to_string()));
        interface.close().await.unwrap();
        assert_eq!(index(&kernel, "azora0").await, None, "gone although its device is held");
        drop(device);
    });
}

#[test]
fn a_probe_comes_out_of_the_queue_and_only_its_owner_knows_it() {
    in_namespace(|| async {
        let interface = Interface::open(&config("azora0")).await.unwrap();
        let device = interface.devices()[0].clone();
        let reader = |secret, sender| QueueProbe::new(own().ipv6(), [secret; 32], sender);
        let mut probe = reader(1, 0);
        let sent_at = Instant::from_nanos(123_456_789);
        probe.send(sent_at);
        let out = packet(&device, 1000).unwrap();
        assert_eq!(probe.read(&out), Some(Probe::Own(sent_at)));
        assert!((0..out.len()).all(|len| probe.read(&out[..len]).is_none()));
        assert_eq!(reader(1, 3).read(&out), Some(Probe::Stray), "for another queue");
        assert_eq!(reader(2, 0).read(&out), None, "another secret");
        let mut elsewhere = out.clone();
        elsewhere[39] ^= 1;
        assert_eq!(probe.read(&elsewhere), None, "another destination");
        interface.close().await.unwrap();
        probe.send(sent_at);
    });
}

#[test]
fn a_renewed_probe_finds_the_queue_of_its_sender() {
    in_namespace(|| async {
        let several = InterfaceConfig { queues: 4, ..config("azora0") };
        let interface = Interface::open(&several).await.unwrap();
        for sender in 0..4 {
            let mut probe = QueueProbe::new(own().ipv6(), [1; 32], sender);
            let device = &interface.devices()[usize::from(sender)];
            let sent_at = Instant::from_nanos(u64::from(sender) + 1);
            let found = (0..200).any(|_| {
                probe.send(sent_at);
                let read = packet(device, 10).and_then(|packet| probe.read(&packet));
                probe.renew();
                read == Some(Probe::Own(sent_at))
            });
            assert!(found, "queue {sender}");
        }
    });
}

#[test]
fn a_fresh_interface_vanishes_with_its_device() {
    in_namespace(|| async {
        drop(Interface::open(&config("azora0")).await.unwrap());
        let kernel = Netlink::open().unwrap();
        assert_eq!(index(&kernel, "azora0").await, None);
        assert!(kernel.routes().await.unwrap().iter().all(|route| route.destination.octets()[0] != 6));
    });
}

#[test]
fn what_others_change_is_repaired() {
    in_namespace(|| async {
        let interface = Interface::open(&config("azora0")).await.unwrap();
        let kernel = Netlink::open().unwrap();
        let index = index(&kernel, "azora0").await.unwrap();
        let own = Address { index, ip: own().ipv6(), prefix_len: 128 };

        interface.down().await.unwrap();
        let now = interface.inspect().await.unwrap();
        assert!(now.exists && !now.up && !now.has_address && !now.has_route, "{now:?}");
        assert!(is_down(&interface.devices()[0].clone().send(Virtio::PLAIN, &[&[0x60; 40]]).unwrap_err()));
        assert_eq!(interface.repair().await.unwrap(), ["link", "address", "route"]);
        interface.down().await.unwrap();
        interface.up().await.unwrap();

        for (mtu, expected) in
            [(600, vec!["mtu", "address", "route"]), (1280, vec!["mtu"]), (9000, vec!["mtu"])]
        {
            kernel.set_mtu(index, mtu).await.unwrap();
            assert_eq!(interface.repair().await.unwrap(), expected, "MTU {mtu}");
        }
        kernel.delete_address(own).await.unwrap();
        assert_eq!(interface.repair().await.unwrap(), ["address"]);
        kernel.delete_route(index).await.unwrap();
        assert_eq!(interface.repair().await.unwrap(), ["route"]);
        kernel.add_address(index, "612::bad".parse().unwrap()).await.unwrap();
        assert_eq!(interface.inspect().await.unwrap().strangers.len(), 1);
        assert_eq!(interface.repair().await.unwrap(), ["foreign address"]);
        assert!(interface.inspect().await.unwrap().is_sound(1420));
        assert_eq!(packet(&interface.devices()[0].clone(), 100), None, "the kernel sends packets of its own");
    });
}

/// Between a look and a repair the link loses IPv6, and the kernel answers as if it were gone.
#[test]
fn what_changes_during_a_repair_is_not_taken_for_a_deletion() {
    in_namespace(|| async {
        let interface = Interface::open(&config("azora0")).await.unwrap();
        let kernel = Netlink::open().unwrap();
        let index = index(&kernel, "azora0").await.unwrap();
        let changes = async {
            for mtu in [600, 1420].repeat(500) {
                // Somebody else may have put it up or down, which is no matter here.
                let _ = kernel.set_mtu(index, mtu).await;
            }
        };
        let repairs = async {
            loop {
                let repaired = interface.repair().await;
                assert!(!matches!(repaired, Err(Error::Deleted { .. })), "{repaired:?}");
            }
        };
        tokio::select! {
            () = changes => {}
            () = repairs => {}
        }
        interface.repair().await.unwrap();
        assert!(interface.inspect().await.unwrap().is_sound(1420));
    });
}

/// Queues that are open, as the kernel counts them; `None` for a TUN of one.
async fn queues(kernel: &Netlink, name: &str) -> Option<u32> {
    let links = kernel.links().await.unwrap();
    match links.into_iter().find(|link| link.name == name).map(|link| link.kind) {
        Some(Kind::Tun { queues, .. }) => queues,
        other => panic!("{other:?}"),
    }
}

/// Waits until so many are open. One that we closed is open for as long as a child that another test has just forked
/// has not become its program.
async fn await_queues(kernel: &Netlink, name: &str, expected: u32) {
    for _ in 0..200 {
        if queues(kernel, name).await == Some(expected) {
            return;
        }
        poll(&mut [], PollTimeout::from(10u16)).unwrap();
    }
    panic!("{:?} queues are open, not {expected}", queues(kernel, name).await);
}

fn with_queues(name: &str, queues: usize) -> InterfaceConfig {
    InterfaceConfig { queues, ..config(name) }
}

#[test]
fn several_queues_carry_one_interface() {
    in_namespace(|| async {
        let mut interface = Interface::open(&with_queues("azora0", 3)).await.unwrap();
        assert_eq!(interface.devices().len(), 3);
        assert!(interface.inspect().await.unwrap().is_sound(1420));
        let kernel = Netlink::open().unwrap();
        assert_eq!(queues(&kernel, "azora0").await, Some(3));
        let busy = Interface::open(&with_queues("azora0", 3)).await.err().unwrap();
        assert!(matches!(busy, Error::Busy { .. }), "{busy}");
        assert_eq!(queues(&kernel, "azora0").await, Some(3));
        // Every flow comes out of one queue, and all that was sent comes out.
        let offloads: Vec<_> = interface.devices().iter().map(|device| device.offloads()).collect();
        assert!(offloads.iter().all(|o| *o == offloads[0]), "{offloads:?}");
        let sockets: Vec<_> =
            (0..16).map(|_| std::net::UdpSocket::bind((own().ipv6(), 0)).unwrap()).collect();
        for socket in sockets.iter().chain(&sockets).chain(&sockets) {
            socket.send_to(b"hello", "[612::1]:7").unwrap();
        }
        let mut ports = Vec::new();
        for (queue, device) in interface.devices().iter().enumerate() {
            while let Some(packet) = packet(device, 50) {
                ports.push((u16::from_be_bytes([packet[40], packet[41]]), queue));
            }
        }
        assert_eq!(ports.len(), 48);
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 16, "one queue for each flow: {ports:?}");
        interface.keep_queues(1);
        await_queues(&kernel, "azora0", 1).await;
        let device = interface.devices()[0].clone();
        sockets.iter().for_each(|socket| assert_eq!(socket.send_to(b"hello", "[612::1]:7").unwrap(), 5));
        let came = std::iter::from_fn(|| packet(&device, 50)).count();
        assert_eq!(came, 16, "nothing is sent to a queue that nobody reads");
        kernel.delete_link(index(&kernel, "azora0").await.unwrap()).await.unwrap();
        assert!(is_deleted(&device.recv([&mut [0; 100][..]]).unwrap_err()));
    });
}

#[test]
fn a_prepared_tun_has_the_queues_that_it_was_made_for() {
    in_namespace(|| async {
        prepare("azora0");
        let interface = Interface::open(&with_queues("azora0", 3)).await.unwrap();
        assert_eq!(interface.devices().len(), 1);
        interface.close().await.unwrap();
        let kernel = Netlink::open().unwrap();
        kernel.delete_link(index(&kernel, "azora0").await.unwrap()).await.unwrap();
        for wanted in [1, 3] {
            let builder = DeviceBuilder::new().name("azora0").layer(Layer::L3).inherit_enable_state();
            let device = builder.with(|builder| {
                builder.multi_queue(true);
            });
            device.build_sync().unwrap().persist().unwrap();
            await_queues(&kernel, "azora0", 0).await;
            let interface = Interface::open(&with_queues("azora0", wanted)).await.unwrap();
            assert_eq!((interface.devices().len(), interface.is_prepared()), (wanted, true));
            assert_eq!(queues(&kernel, "azora0").await, Some(wanted as u32));
            interface.close().await.unwrap();
            kernel.delete_link(index(&kernel, "azora0").await.unwrap()).await.unwrap();
        }
    });
}

#[test]
fn a_deleted_interface_is_told_apart() {
    in_namespace(|| async {
        let interface = Interface::open(&config("azora0")).await.unwrap();
        let device = interface.devices()[0].clone();
        let kernel = Netlink::open().unwrap();
        kernel.delete_link(index(&kernel, "azora0").await.unwrap()).await.unwrap();
        assert!(matches!(interface.repair().await, Err(Error::Deleted { .. })));
        assert!(matches!(interface.down().await, Err(Error::Deleted { .. })));
        assert_eq!(interface.inspect().await.unwrap(), Condition::default());
        assert!(is_deleted(&device.recv([&mut [0; 100][..]]).unwrap_err()));
        assert!(is_deleted(&device.send(Virtio::PLAIN, &[&[0x60; 40]]).unwrap_err()));
        let again = Interface::open(&config("azora0")).await.unwrap();
        interface.close().await.unwrap();
        assert!(
            again.inspect().await.unwrap().is_sound(1420),
            "closing the old one is no harm to the new one"
        );
    });
}

#[test]
fn what_is_taken_is_refused_and_left_alone() {
    in_namespace(|| async {
        let first = Interface::open(&config("azora0")).await.unwrap();
        let busy = Interface::open(&config("azora0")).await.err().unwrap();
        assert!(matches!(busy, Error::Busy { .. }), "{busy}");
        let other = InterfaceConfig { address: Identity::from_seed([2; 32]).address(), ..config("azora0") };
        let busy = Interface::open(&other).await.err().unwrap();
        assert!(matches!(busy, Error::Busy { .. }), "another node's, which runs: {busy}");
        let overlap = Interface::open(&config("azora1")).await.err().unwrap();
        assert!(matches!(&overlap, Error::Overlap { interface, .. } if interface == "azora0"), "{overlap}");
        let lo = Interface::open(&config("lo")).await.err().unwrap();
        assert!(matches!(lo, Error::NotTun { .. }), "{lo}");
        let name = Interface::open(&config("a b")).await.err().unwrap();
        assert!(matches!(name, Error::Name { .. }), "{name}");
        let mtu = Interface::open(&InterfaceConfig { mtu: 1279, ..config("azora1") }).await.err().unwrap();
        assert!(matches!(mtu, Error::Mtu { .. }), "{mtu}");
        let _tap = DeviceBuilder::new().name("tap0").layer(Layer::L2).build_sync().unwrap();
        let tap = Interface::open(&config("tap0")).await.err().unwrap();
        line(&tap, &["tap0", "TAP"]);
        let _queues = DeviceBuilder::new()
            .name("tun9")
            .with(|builder| {
                builder.multi_queue(true);
            })
            .build_sync()
            .unwrap();
        let queues = Interface::open(&config("tun9")).await.err().unwrap();
        assert!(matches!(queues, Error::Busy { .. }), "several queues let others in: {queues}");
        assert!(first.inspect().await.unwrap().is_sound(1420));
        // A route alone is enough, and one that merely contains the range is none.
        let kernel = Netlink::open().unwrap();
        kernel
            .delete_address(Address {
                index: index(&kernel, "azora0").await.unwrap(),
                ip: own().ipv6(),
                prefix_len: 128,
            })
            .await
            .unwrap();
        let route = Interface::open(&config("azora1")).await.err().unwrap();
        assert!(matches!(route, Error::Overlap { what: "route", .. }), "{route}");
        assert_eq!(index(&kernel, "azora1").await, None);
    });
}

#[test]
fn a_prepared_tun_is_used_and_left_as_it_was() {
    in_namespace(|| async {
        prepare("azora0");
        let kernel = Netlink::open().unwrap();
        let index = index(&kernel, "azora0").await.unwrap();
        let interface = Interface::open(&config("azora0")).await.unwrap();
        assert!(interface.is_prepared() && interface.inspect().await.unwrap().is_sound(1420));
        interface.close().await.unwrap();
        let link = kernel.links().await.unwrap().into_iter().find(|link| link.index == index).unwrap();
        assert_eq!((link.up, link.mtu), (false, 1500));
        assert!(kernel.addresses().await.unwrap().iter().all(|address| address.ip != own().ipv6()));

        kernel.set_up(index, true).await.unwrap();
        kernel.add_address(index, "612::bad".parse().unwrap()).await.unwrap();
        let error = Interface::open(&config("azora0")).await.err().unwrap();
        line(&error, &["612::bad", "ip -6 address replace"]);
        kernel
            .delete_address(Address { index, ip: "612::bad".parse().unwrap(), prefix_len: 128 })
            .await
            .unwrap();

        kernel.add_address(index, own().ipv6()).await.unwrap();
        kernel.add_route(index).await.unwrap();
        Interface::open(&config("azora0")).await.unwrap().close().await.unwrap();
        assert!(kernel.addresses().await.unwrap().iter().any(|address| address.ip == own().ipv6()));
        assert!(
            kernel.routes().await.unwrap().iter().any(|route| route.index == index && route.prefix_len == 8)
        );
    });
}

#[test]
fn the_guard_is_loaded_checked_and_removed() {
    in_namespace(|| async {
        let guard = match Guard::install("azora0").await {
            Err(guard::Error::NoNft) => return eprintln!("SKIPPED, NOTHING TESTED: nft is missing"),
            guard => guard.unwrap(),
        };
        assert!(guard.check().await.unwrap());
        // A second one (after a crash) replaces the first.
        let guard = {
            drop(guard);
            Guard::install("azora0").await.unwrap()
        };
        assert!(guard.check().await.unwrap());
        let nft = |arguments: &[&str]| {
            let done = std::process::Command::new("/usr/sbin/nft").args(arguments).status().unwrap();
            assert!(done.success(), "{arguments:?}");
        };
        for change in [
            &["flush", "ruleset"][..],
            &["delete", "table", "inet", "azora_azora0"],
            &["flush", "chain", "inet", "azora_azora0", "prerouting"],
            &["insert", "rule", "inet", "azora_azora0", "prerouting", "accept"],
        ] {
            nft(change);
            assert!(!guard.check().await.unwrap(), "{change:?}");
            guard.reinstall().await.unwrap();
            assert!(guard.check().await.unwrap(), "after {change:?}");
        }
        // Emptied while it is put back: whatever came first, what is empty is not taken for sound.
        for round in 0..30 {
            let flush = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(round));
                let empty = ["flush", "table", "inet", "azora_azora0"];
                std::process::Command::new("/usr/sbin/nft").args(empty).status().unwrap()
            });
            let put_back = guard.reinstall().await;
            while !flush.is_finished() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            if guard.check().await.unwrap() {
                let listed = guard.list().await.unwrap().unwrap();
                assert!(listed.contains(" drop"), "round {round}, {put_back:?}: {listed}");
            }
            guard.reinstall().await.unwrap();
        }
        nft(&["add", "table", "inet", "other"]);
        assert!(guard.check().await.unwrap(), "other tables are nobody's business");
        guard.remove().await.unwrap();
        assert!(!guard.check().await.unwrap());
        guard.remove().await.unwrap();
        assert!(matches!(Guard::install("a b").await, Err(guard::Error::Name(_))));
    });
}
