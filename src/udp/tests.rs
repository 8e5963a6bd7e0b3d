use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::AsFd;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt};
use tokio::time::timeout;

use crate::proto::datapath::Train;
use crate::udp::lan::is_neighbour;
use crate::udp::socket::is_mesh;
use crate::udp::{
    Error, LAN_DATAGRAM_BYTES_MAX, LanSocket, Sent, TrainReceiver, TrainSender, UdpSocket, is_too_big,
};

const V4: &str = "127.0.0.1:0";
const V6: &str = "[::1]:0";

fn bind(address: &str) -> UdpSocket {
    UdpSocket::bind(address.parse().unwrap()).unwrap()
}

/// The first datagram that is there now.
fn take(socket: &UdpSocket, buffer: &mut [u8]) -> Option<(usize, SocketAddr)> {
    let mut first = None;
    let _ = TrainReceiver::new().receive(socket, |received| {
        if received.bytes.is_empty() {
            return;
        }
        let len = received.bytes.len().min(received.datagram_len).min(buffer.len());
        buffer[..len].copy_from_slice(&received.bytes[..len]);
        first.get_or_insert((len, received.source));
    });
    first
}

/// Waits for a datagram, at most a second.
fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> Option<(usize, SocketAddr)> {
    // What wakes us may be a datagram that is passed over.
    for _ in 0..10 {
        let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::from(100u16)).unwrap();
        if let Some(received) = take(socket, buffer) {
            return Some(received);
        }
    }
    None
}

#[test]
fn a_datagram_arrives_with_its_sender() {
    for address in [V4, V6] {
        let (a, b) = (bind(address), bind(address));
        assert_eq!(b.send_to(b"hello", a.local_addr()).unwrap(), 5);
        let mut buffer = [0; 16];
        assert_eq!(receive(&a, &mut buffer), Some((5, b.local_addr())));
        assert_eq!(&buffer[..5], b"hello");
        assert_eq!(take(&a, &mut buffer), None);
    }
}

#[test]
fn the_two_families_share_a_port_and_do_not_mix() {
    let v6 = bind("[::]:0");
    let port = v6.local_addr().port();
    let v4 = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port).into()).unwrap();
    let sender = bind(V4);
    sender.send_to(b"x", (Ipv4Addr::LOCALHOST, port).into()).unwrap();
    assert_eq!(receive(&v4, &mut [0; 4]), Some((1, sender.local_addr())));
    assert_eq!(take(&v6, &mut [0; 4]), None, "IPv4 on the IPv6 socket");
}

#[test]
fn a_taken_port_is_named_with_what_to_do() {
    let first = bind(V4);
    let error = UdpSocket::bind(first.local_addr()).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, Error::InUse { .. }));
    assert!(text.contains(&first.local_addr().port().to_string()) && text.contains("--listen"), "{text}");
    let absent = UdpSocket::bind("192.0.2.1:0".parse().unwrap()).unwrap_err();
    assert!(matches!(absent, Error::NoSuchAddress { .. }), "{absent}");
}

#[test]
fn siblings_share_an_address_and_each_sender_keeps_to_one() {
    for address in [V4, V6] {
        let first = bind(address);
        let sockets = [first.sibling().unwrap(), first.sibling().unwrap(), first];
        let shared = sockets[0].local_addr();
        assert!(sockets.iter().all(|socket| socket.local_addr() == shared));
        let senders: Vec<_> = (0..32).map(|_| bind(address)).collect();
        for _ in 0..4 {
            senders.iter().for_each(|sender| assert_eq!(sender.send_to(b"hello", shared).unwrap(), 5));
        }
        let mut got = [0; 3];
        let mut owners = std::collections::BTreeSet::new();
        for (at, socket) in sockets.iter().enumerate() {
            let mut receiver = TrainReceiver::new();
            while receiver
                .receive(socket, |received| {
                    got[at] += received.bytes.chunks(received.datagram_len).len();
                    owners.insert((received.source, at));
                })
                .is_ok()
            {}
        }
        assert_eq!(got.iter().sum::<usize>(), 4 * 32, "{got:?}");
        assert_eq!(owners.len(), 32, "all of one sender to the same socket");
        assert!(got.iter().all(|n| *n > 0), "{got:?}");
        let stranger = UdpSocket::bind(shared).unwrap_err();
        assert!(matches!(stranger, Error::InUse { .. }), "nobody else gets in: {stranger}");
        // Each of them is heard as the one address.
        for socket in &sockets {
            socket.send_to(b"hello", senders[0].local_addr()).unwrap();
            assert_eq!(receive(&senders[0], &mut [0; 16]), Some((5, shared)));
        }
    }
}

#[test]
fn the_mesh_is_not_its_own_underlay() {
    let inside: SocketAddr = "[612:3456::1]:5747".parse().unwrap();
    assert!(is_mesh(&inside));
    assert!(matches!(UdpSocket::bind(inside), Err(Error::InMesh { .. })));
    let socket = bind("[::]:0");
    assert_eq!(socket.send_to(b"x", inside).unwrap_err().kind(), ErrorKind::InvalidInput);
    for outside in ["[fd00::1]:1", "[512::1]:1", "6.0.0.1:1", "[2001:db8::1]:1"] {
        assert!(!is_mesh(&outside.parse().unwrap()), "{outside}");
    }
}

#[test]
fn an_icmp_answer_does_not_stop_reception() {
    for address in [V4, V6] {
        let socket = bind(address);
        let dead = bind(address).local_addr();
        for _ in 0..32 {
            socket.send_to(b"into the void", dead).unwrap();
        }
        let friend = bind(address);
        friend.send_to(b"y", socket.local_addr()).unwrap();
        assert_eq!(receive(&socket, &mut [0; 4]), Some((1, friend.local_addr())));
    }
}

#[test]
fn every_length_up_to_the_largest_is_received_and_nothing_is_passed_over() {
    let (a, b) = (bind(V4), bind(V4));
    let mut buffer = vec![0; 65_536];
    b.send_to(&[], a.local_addr()).unwrap();
    for len in [1, 1280, 1472, 1473, 2048, 9000, 65_507] {
        b.send_to(&vec![7; len], a.local_addr()).unwrap();
        assert_eq!(receive(&a, &mut buffer), Some((len, b.local_addr())), "{len}");
    }
}

#[test]
fn only_neighbours_are_listened_to() {
    let check = |from: &str, len, expected| {
        assert_eq!(is_neighbour(&from.parse().unwrap(), len), expected, "{from}, {len} bytes");
    };
    check("[fe80::1%3]:5748", 100, true);
    check("192.0.2.7:5748", LAN_DATAGRAM_BYTES_MAX, true);
    check("192.0.2.7:5748", LAN_DATAGRAM_BYTES_MAX + 1, false);
    check("192.0.2.7:5748", 0, false);
    check("[fe80::1]:5748", 100, false);
    check("[2001:db8::1]:5748", 100, false);
    check("[612::1]:5748", 100, false);
    check("0.0.0.0:5748", 100, false);
    check("239.255.97.122:5748", 100, false);
    check("255.255.255.255:5748", 100, false);
}

#[tokio::test(flavor = "current_thread")]
async fn several_daemons_on_one_machine_hear_each_other() {
    let mut sockets = [LanSocket::open().unwrap(), LanSocket::open().unwrap()];
    let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let index = nix::net::if_::if_nametoindex("lo").unwrap();
    for socket in &mut sockets {
        assert_eq!(socket.refresh(&[(index, loopback), (index, loopback)]), 1, "lo takes the IPv4 group");
        assert_eq!(socket.refresh(&[(index, loopback)]), 1, "joining again changes nothing");
    }
    assert_eq!(sockets[0].announce(b"here I am"), 1);
    for socket in &sockets {
        let (bytes, from) = timeout(Duration::from_secs(1), socket.recv()).await.unwrap();
        assert_eq!((bytes.as_slice(), from.ip()), (b"here I am".as_slice(), loopback));
    }
    assert_eq!(sockets[1].refresh(&[]), 0);
    assert_eq!(sockets[1].announce(b"nobody"), 0);
}

#[tokio::test(flavor = "current_thread")]
async fn mesh_addresses_and_unusable_ones_are_not_joined() {
    let mut socket = LanSocket::open().unwrap();
    let mesh: IpAddr = "612::1".parse().unwrap();
    let joined = socket.refresh(&[
        (1, mesh),
        (1, IpAddr::V6(Ipv6Addr::LOCALHOST)),
        (1, IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
        (0x7fff_ffff, "fe80::1".parse().unwrap()),
    ]);
    assert_eq!(joined, 0);
}

#[test]
fn a_scope_is_part_of_an_endpoint_and_a_flow_label_is_not() {
    let labelled = SocketAddrV6::new("fe80::1".parse().unwrap(), 1, 0xabcde, 4);
    let plain = SocketAddrV6::new("fe80::1".parse().unwrap(), 1, 0, 4);
    assert_eq!(crate::udp::socket::without_flow(labelled.into()), plain.into());
    assert_ne!(SocketAddrV6::new("fe80::1".parse().unwrap(), 1, 0, 5), plain);
}

/// A neighbour with a mesh address on its own interface cannot speak to the underlay socket with it.
#[test]
fn what_comes_from_inside_the_mesh_is_not_received() {
    let thread = std::thread::spawn(|| {
        if let Err(errno) = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET) {
            return eprintln!("SKIPPED, NOTHING TESTED: a network namespace needs root ({errno})");
        }
        for arguments in
            [&["link", "set", "lo", "up"][..], &["-6", "address", "add", "612::1/128", "dev", "lo", "nodad"]]
        {
            assert!(std::process::Command::new("ip").args(arguments).status().unwrap().success());
        }
        let socket = bind("[::]:0");
        let to = SocketAddr::from((Ipv6Addr::LOCALHOST, socket.local_addr().port()));
        let inside = std::net::UdpSocket::bind("[612::1]:0").unwrap();
        let outside = bind(V6);
        inside.send_to(b"inside", to).unwrap();
        outside.send_to(b"outside", to).unwrap();
        inside.send_to(b"inside", to).unwrap();
        assert_eq!(receive(&socket, &mut [0; 16]), Some((7, outside.local_addr())));
        outside.send_to(b"again", to).unwrap();
        assert_eq!(receive(&socket, &mut [0; 16]), Some((5, outside.local_addr())));
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn train(to: SocketAddr, bytes: &[u8], datagram_len: usize, ecn: u8) -> Train<'_> {
    Train { to, ecn, datagram_len, bytes }
}

/// All datagrams that arrive within a second, with their ECN codepoints, until there are `n`.
fn datagrams(socket: &UdpSocket, n: usize) -> Vec<(Vec<u8>, u8)> {
    let (mut receiver, mut all) = (TrainReceiver::new(), Vec::new());
    for _ in 0..10 {
        let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::from(100u16)).unwrap();
        let _ = receiver.receive(socket, |received| {
            let ecn = received.ecn;
            all.extend(received.bytes.chunks(received.datagram_len).map(|d| (d.to_vec(), ecn)));
        });
        if all.len() >= n {
            break;
        }
    }
    all
}

#[test]
fn trains_arrive_as_the_datagrams_that_they_are_made_of() {
    for address in [V4, V6] {
        for cut_by_the_kernel in [true, false] {
            let (a, b) = (bind(address), bind(address));
            if !cut_by_the_kernel {
                a.stop_cutting_trains();
            }
            let bytes: Vec<u8> = (0..64 * 1000 - 10).map(|i| (i / 1000) as u8).collect();
            let trains = [
                train(b.local_addr(), &bytes, 1000, 0),
                train(b.local_addr(), b"single", 6, 1),
                train(b.local_addr(), &bytes[..1500], 1000, 2),
            ];
            assert_eq!(TrainSender::new().send(&a, &trains), Sent::default());
            let got = datagrams(&b, 67);
            let expected: Vec<(Vec<u8>, u8)> = trains
                .iter()
                .flat_map(|train| train.bytes.chunks(train.datagram_len).map(|d| (d.to_vec(), train.ecn)))
                .collect();
            assert!(got == expected, "{} datagrams of {}", got.len(), expected.len());
        }
    }
}

/// A socket without checksums is given no trains (udp(7)): the kernel's answer is that of a device that cannot cut them.
#[test]
fn a_refused_train_is_sent_again_in_single_datagrams() {
    for address in [V4, V6] {
        let (a, b) = (bind(address), bind(address));
        let (level, name) = if address == V4 {
            (libc::SOL_SOCKET, libc::SO_NO_CHECK)
        } else {
            (libc::SOL_UDP, libc::UDP_NO_CHECK6_TX)
        };
        crate::udp::socket::set_int(&a.as_fd(), level, name, 1).unwrap();
        let bytes: Vec<u8> = (0..9500).map(|i| (i / 1000) as u8).collect();
        assert!(a.cuts_trains());
        for _ in 0..2 {
            let sent = TrainSender::new().send(&a, &[train(b.local_addr(), &bytes, 1000, 0)]);
            assert_eq!(sent, Sent::default());
            assert!(!a.cuts_trains(), "it is not tried again");
        }
        // Over IPv6, a datagram without a checksum does not arrive.
        if address == V4 {
            let got: Vec<u8> = datagrams(&b, 20).into_iter().flat_map(|(datagram, _)| datagram).collect();
            assert_eq!(got, [&bytes[..], &bytes].concat());
        }
    }
}

/// Path MTU discovery is told, and shorter trains go on as trains.
#[test]
fn a_train_too_long_for_the_link_is_refused() {
    let thread = std::thread::spawn(|| {
        if let Err(errno) = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET) {
            return eprintln!("SKIPPED, NOTHING TESTED: a network namespace needs root ({errno})");
        }
        let ip = std::process::Command::new("ip").args(["link", "set", "lo", "mtu", "1400", "up"]).status();
        assert!(ip.unwrap().success());
        for address in [V4, V6] {
            let (a, b) = (bind(address), bind(address));
            let bytes: Vec<u8> = (0..40_000).map(|i| (i / 1450) as u8).collect();
            let sent = TrainSender::new().send(&a, &[train(b.local_addr(), &bytes, 1450, 0)]);
            assert_eq!(sent, Sent { lost: 28, too_big: Some((b.local_addr(), 1450)), filtered: false });
            assert!(a.cuts_trains(), "shorter trains still are");
            let sent = TrainSender::new().send(&a, &[train(b.local_addr(), &bytes, 1300, 0)]);
            assert_eq!(sent, Sent::default());
            let got: Vec<u8> = datagrams(&b, 31).into_iter().flat_map(|(datagram, _)| datagram).collect();
            assert!(got == bytes, "{} of {} bytes", got.len(), bytes.len());
        }
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn without_trains_datagrams_come_one_by_one() {
    for address in [V4, V6] {
        let (a, b) = (bind(address), bind(address));
        b.renounce_trains().unwrap();
        assert!(!b.cuts_trains());
        let bytes = vec![7; 20_000];
        let sent = TrainSender::new().send(&a, &[train(b.local_addr(), &bytes, 1000, 0)]);
        assert_eq!(sent, Sent::default());
        let (mut receiver, mut messages) = (TrainReceiver::new(), 0);
        while messages < 20 {
            let mut fds = [PollFd::new(b.as_fd(), PollFlags::POLLIN)];
            assert_eq!(poll(&mut fds, PollTimeout::from(1000u16)), Ok(1), "{messages} of 20");
            let _ = receiver.receive(&b, |received| {
                assert_eq!((received.bytes.len(), received.datagram_len), (1000, 1000));
                messages += 1;
            });
        }
    }
}

#[test]
fn siblings_have_trains_only_if_the_first_has() {
    for address in [V4, V6] {
        let first = bind(address);
        assert!(first.sibling().unwrap().cuts_trains());
        first.renounce_trains().unwrap();
        let sibling = first.sibling().unwrap();
        assert!(!sibling.cuts_trains());
        assert!(!getsockopt(&sibling, sockopt::UdpGroSegment).unwrap());
    }
}

#[test]
fn what_cannot_be_sent_is_counted_and_the_rest_goes_on() {
    let (a, b) = (bind(V6), bind(V6));
    let mesh = "[612::1]:7".parse().unwrap();
    let bytes = vec![0; 100_000];
    let trains = [
        train(mesh, b"no", 2, 0),
        train(b.local_addr(), &bytes[..70_000], 70_000, 0),
        train(b.local_addr(), b"yes", 3, 0),
    ];
    let sent = TrainSender::new().send(&a, &trains);
    assert_eq!(sent, Sent { lost: 2, too_big: Some((b.local_addr(), 70_000)), filtered: false });
    assert_eq!(datagrams(&b, 1), [(b"yes".to_vec(), 0)]);
}

#[test]
fn what_the_own_link_does_not_carry_is_refused_rather_than_cut() {
    // Loopback carries 65,536 bytes: what exceeds it with headers would go in fragments.
    for (address, headers) in [(V4, 28), (V6, 48)] {
        let socket = bind(address);
        let fits = 65_536 - headers;
        if fits <= 65_507 {
            assert!(socket.send_to(&vec![0; fits], socket.local_addr()).is_ok());
        }
        if fits < 65_507 {
            let error = socket.send_to(&vec![0; fits + 1], socket.local_addr()).unwrap_err();
            assert!(is_too_big(&error), "{error}");
        }
    }
}

#[test]
fn a_refusal_says_what_to_do() {
    let check = |code, needle: &str| {
        let error = Error::opening("0.0.0.0:443".parse().unwrap(), std::io::Error::from_raw_os_error(code));
        let text = error.to_string();
        assert!(text.starts_with("UDP 0.0.0.0:443 ") && text.contains(needle), "{text}");
        assert!(text.contains("--listen"), "{text}");
    };
    check(libc::EACCES, "CAP_NET_BIND_SERVICE");
    check(libc::EADDRINUSE, "another program");
    check(libc::EADDRNOTAVAIL, "does not have that address");
    check(libc::EMFILE, "open files");
}
