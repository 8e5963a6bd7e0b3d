use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use crate::host::changes::{Burst, Change, Changes, Message};
use crate::host::{addresses, clock, cpu, descriptors, entropy, priority, privileges};
use crate::proto::timer::Instant;

#[test]
fn monotonic_time_does_not_go_back_and_counts_from_boot() {
    let before = clock::now();
    let after = clock::now();
    assert!(after >= before);
    assert!(after.as_nanos() > 0);
    // 2024-01-01: whoever runs this has a clock that is right to the decade.
    assert!(clock::wall().as_unix_s() > 1_704_067_200);
}

#[test]
fn two_seeds_differ() {
    assert_ne!(entropy::seed(), entropy::seed());
}

#[test]
fn the_capability_is_read_from_the_effective_set() {
    let check = |line: &str, expected| assert_eq!(privileges::effective(line, 12), expected, "{line}");
    check("Name:\tx\nCapEff:\t0000000000001000\n", true);
    check("CapEff:\t000001ffffffffff", true);
    check("CapEff:\t0000000000000fff", false);
    check("CapPrm:\t0000000000001000\nCapEff:\t0000000000000000", false);
    check("CapEff:\tnot hex", false);
    check("", false);
}

#[test]
fn the_processor_answers_the_same_twice() {
    assert_eq!(cpu::has_aes(), cpu::has_aes());
}

#[test]
fn the_loopback_is_listed() {
    let local = addresses::local().unwrap();
    let lo = local.iter().find(|a| a.ip == IpAddr::V4(Ipv4Addr::LOCALHOST));
    let Some(lo) = lo else {
        // A fresh network namespace, where lo is down.
        assert!(local.iter().all(|a| !a.loopback || !a.up));
        return;
    };
    assert!(lo.loopback && lo.index != 0);
    assert!(local.is_sorted());
}

/// A netlink message with a body.
fn message(kind: u16, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&(16 + body.len() as u32).to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(&[0; 10]);
    bytes.extend_from_slice(body);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&(4 + value.len() as u16).to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn link(name: &str) -> Vec<u8> {
    // Another attribute first, as the kernel sends them.
    let attributes = [attribute(13, &[0; 1]), attribute(3, format!("{name}\0").as_bytes())].concat();
    message(16, &[vec![0; 16], attributes].concat())
}

fn route(family: u8, destination_len: u8, destination: &[u8]) -> Vec<u8> {
    let mut body = vec![0; 12];
    (body[0], body[1]) = (family, destination_len);
    if destination_len != 0 {
        body.extend(attribute(1, destination));
    }
    message(24, &body)
}

fn seen(messages: &[Vec<u8>]) -> Vec<Change> {
    let mut burst = Burst::default();
    burst.routes(Message::Bytes(&messages.concat()));
    std::iter::from_fn(|| burst.pop()).collect()
}

#[test]
fn route_messages_become_changes_once_each() {
    let azora = Change::Link { name: "azora0".into() };
    assert_eq!(seen(&[link("azora0"), link("azora0")]), std::slice::from_ref(&azora));
    assert_eq!(seen(&[message(20, &[0; 8]), link("azora0"), message(21, &[0; 8])]), [azora, Change::Address]);
    let mesh = [6, 1, 2, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let mut other = mesh;
    other[0] = 0x20;
    assert_eq!(seen(&[route(10, 8, &mesh)]), [Change::Route]);
    assert_eq!(seen(&[route(10, 0, &[])]), [Change::Route]);
    assert_eq!(seen(&[route(2, 0, &[])]), [Change::Route]);
    assert_eq!(seen(&[route(10, 64, &other)]), []);
    assert_eq!(seen(&[route(2, 24, &[6, 0, 0, 0])]), []);
    assert_eq!(seen(&[message(28, &[0; 40])]), [], "neighbours are nobody's business");
}

#[test]
fn any_bytes_are_survived() {
    let whole = [link("azora0"), route(10, 8, &[6; 16])].concat();
    for len in 0..whole.len() {
        seen(&[whole[..len].to_vec()]);
    }
    for byte in 0..whole.len() {
        for value in [0, 1, 3, 4, 255] {
            let mut broken = whole.clone();
            broken[byte] = value;
            seen(&[broken]);
        }
    }
}

#[test]
fn an_overflow_or_too_many_changes_are_a_change_of_everything() {
    let mut burst = Burst::default();
    burst.routes(Message::Bytes(&link("a")));
    burst.routes(Message::Overflow);
    burst.filter(Message::Overflow);
    assert_eq!(burst.pop(), Some(Change::Everything));
    assert!(burst.is_empty());
    let many: Vec<_> = (0..1000).map(|i| link(&format!("veth{i}"))).collect();
    assert_eq!(seen(&many), [Change::Everything]);
}

#[tokio::test(flavor = "current_thread")]
async fn listening_needs_no_privileges_for_links_and_reports_nothing_by_itself() {
    let mut changes = Changes::listen().unwrap();
    assert_eq!(changes.sees_ruleset(), privileges::can_administer_network());
    let quiet = tokio::time::timeout(Duration::from_millis(1), changes.next()).await;
    // Something else on this machine may change just now; only the loss of messages would be wrong.
    assert_ne!(quiet.ok(), Some(Change::Everything));
}

/// A descriptor that is none of netlink's cannot be read as one.
#[tokio::test(start_paused = true)]
async fn a_socket_that_breaks_is_a_change_of_everything_until_another_one_listens() {
    let (broken, writer) = nix::unistd::pipe().unwrap();
    nix::unistd::write(&writer, b"x").unwrap();
    let mut changes = Changes::read(broken).unwrap();
    let mut within = async |time| tokio::time::timeout(time, changes.next()).await.ok();
    assert_eq!(within(Duration::from_millis(100)).await, Some(Change::Everything), "at once");
    assert_eq!(within(Duration::from_millis(5200)).await, Some(Change::Everything), "it listens again");
    assert_ne!(within(Duration::from_secs(20)).await, Some(Change::Everything));
}

/// Runs `ip`, or `nft`, in the namespace of this thread.
fn run(program: &str, arguments: &[&str]) {
    let done = std::process::Command::new(program).args(arguments).status();
    assert!(done.unwrap().success(), "{program} {arguments:?}");
}

#[test]
fn changes_are_reported_while_they_happen() {
    let thread = std::thread::spawn(|| {
        if let Err(errno) = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET) {
            return eprintln!("SKIPPED, NOTHING TESTED: a network namespace needs root ({errno})");
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut changes = Changes::listen().unwrap();
            run("ip", &["link", "set", "lo", "up"]);
            assert_eq!(changes.next().await, Change::Link { name: "lo".into() });
            assert_eq!(changes.next().await, Change::Address);
            run("ip", &["-6", "route", "add", "600::/8", "dev", "lo"]);
            run("ip", &["-6", "route", "add", "2001:db8::/32", "dev", "lo"]);
            assert_eq!(changes.next().await, Change::Route);
            run("/usr/sbin/nft", &["add", "table", "inet", "azora_test"]);
            assert_eq!(changes.next().await, Change::Ruleset);
            let nothing = tokio::time::timeout(Duration::from_millis(100), changes.next()).await;
            assert!(nothing.is_err(), "{nothing:?}");
            // More than the socket holds, while nobody reads.
            for _ in 0..3 {
                let batch: String = (0..3000)
                    .map(|i| {
                        format!(
                            "address add 10.{}.{}.1/32 dev lo\naddress del 10.{}.{}.1/32 dev lo\n",
                            i / 256,
                            i % 256,
                            i / 256,
                            i % 256
                        )
                    })
                    .collect();
                let mut ip = std::process::Command::new("ip")
                    .args(["-batch", "-"])
                    .stdin(std::process::Stdio::piped())
                    .spawn()
                    .unwrap();
                std::io::Write::write_all(&mut ip.stdin.take().unwrap(), batch.as_bytes()).unwrap();
                assert!(ip.wait().unwrap().success());
            }
            assert_eq!(changes.next().await, Change::Everything);
        });
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn a_chosen_nice_value_stays() {
    // A thread of its own: the value cannot be lowered again without rights.
    let values = std::thread::spawn(|| (priority::set_nice(5).unwrap(), priority::set_nice(7).unwrap()));
    let (first, second) = values.join().unwrap();
    assert_eq!(first, second);
}

#[test]
fn the_log_is_told_once_in_ten_seconds_that_nothing_can_be_accepted() {
    let mut complaint = descriptors::Complaint::default();
    let told = (0..250).filter(|i| complaint.is_due(Instant::from_nanos(i * 100_000_000))).count();
    assert_eq!(told, 3, "of 250 attempts in 25 s");
}
