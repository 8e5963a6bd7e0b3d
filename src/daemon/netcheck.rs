//! `azora netcheck`: what network this machine is in, by what contacts see of it now. What was not seen is not said.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::time::sleep;

use crate::control::counted;
use crate::control::message::NetcheckVerdict::{No, Unknown, Yes};
use crate::control::message::{NetcheckEntry, NetcheckReport, NetcheckVerdict, RelayCheck};
use crate::engine::{AskError, Handle};
use crate::host::clock;
use crate::proto::datapath::DropReason;
use crate::proto::node::Netcheck;
use crate::proto::path::is_global;
use crate::proto::path::observed::{Mapping, Observed};
use crate::proto::path::reach::Verdict;
use crate::proto::portmap::State;
use crate::proto::timer::Instant;

use super::health::SAME_SECRET;
use super::portmap::{Found, PortMapping};
use super::status::ms;
use super::why;

/// How long contacts may take: a handshake that loses its first packets, and a question.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long the router may take, from the start or a change of links on: three requests of each protocol, and UPnP.
const ROUTER_PATIENCE: Duration = Duration::from_secs(8);
/// How often it is looked whether all have answered.
const LOOK: Duration = Duration::from_millis(50);

const MORE_CONTACTS: &str = "azora peers add NODEID@IP:PORT of a node at a public address";

/// Asks, waits and judges.
pub(super) async fn netcheck(
    handle: &Handle,
    mapping: &PortMapping,
    port: u16,
) -> Result<NetcheckReport, AskError> {
    let start = clock::now();
    let shared = handle.with(|node, now, wall| {
        node.begin_netcheck(now, wall);
        node.shared()
    });
    let shared = shared.await?;
    let strange = || shared.drops.of(DropReason::Unauthenticated);
    let before = strange();
    loop {
        let found = handle.with(|node, now, _| node.poll_netcheck(now)).await?;
        let asking = matches!(mapping.found(), Found::Asked(_, State::Asking));
        let waited = clock::now().saturating_since(start);
        let settled = found.waiting == 0 || waited >= PATIENCE;
        if settled && (!asking || waited >= ROUTER_PATIENCE) {
            let told = handle.with(|node, now, _| node.status(now).port_mapping).await?;
            let told = told.is_some_and(|(_, told)| told);
            return Ok(judge(&found, strange() - before, mapping.found(), told, port));
        }
        sleep(LOOK).await;
    }
}

/// The verdicts, in the order in which they are told; `strange` datagrams that came meanwhile did not authenticate.
fn judge(found: &Netcheck, strange: u64, asked: Found, told: bool, port: u16) -> NetcheckReport {
    let seen = |v4: bool| seen(found, v4);
    NetcheckReport {
        global_v4: seen(true),
        global_v6: seen(false),
        checks: vec![
            udp(found, strange),
            version(found, true),
            version(found, false),
            mapping(found, port),
            port_mapping(asked, told, port),
            relays(found),
            mtu(found),
        ],
        relays: found
            .relays
            .iter()
            .map(|(node_id, data, rtt)| RelayCheck { node_id: *node_id, data: *data, rtt_ms: rtt.map(ms) })
            .collect(),
        mtu: found.mtu.and_then(|(mtu, _)| u16::try_from(mtu).ok()),
    }
}

fn entry(
    name: &str,
    verdict: NetcheckVerdict,
    detail: impl Into<String>,
    fix: Option<&str>,
) -> NetcheckEntry {
    NetcheckEntry { name: name.into(), verdict, detail: detail.into(), fix: fix.map(Into::into) }
}

fn udp(found: &Netcheck, strange: u64) -> NetcheckEntry {
    let contacts = found.contacts.iter().sum::<usize>();
    match (found.answers.len(), contacts) {
        (0, 0) => entry("UDP", Unknown, "no contact on the internet is known", Some(MORE_CONTACTS)),
        (0, n) => {
            let silent = match n {
                1 => "the only contact that is known does not answer".into(),
                n => format!("none of {n} contacts answers"),
            };
            if found.near > 0 {
                let near = counted(found.near as u64, "peer");
                let detail = format!("{silent}, but sessions by UDP stand with {near} on this network");
                let fix = "for who is on this network that is enough; look whether it is connected to others";
                return entry("UDP", Unknown, detail, Some(fix));
            }
            if strange == 0 {
                let fix = "look whether this machine is online; if it is, let UDP out of its firewalls, at least to port 5747";
                return entry("UDP", No, silent, Some(fix));
            }
            let came = counted(strange, "datagram");
            let detail = format!(
                "{silent}, but {came} came that did not authenticate: the others may have another network secret"
            );
            entry("UDP", Unknown, detail, Some(SAME_SECRET))
        }
        (n, _) => {
            entry("UDP", Yes, format!("{} on the internet answered", counted(n as u64, "contact")), None)
        }
    }
}

/// Whether a version of IP leads to the internet, and where we are seen there.
fn version(found: &Netcheck, v4: bool) -> NetcheckEntry {
    let (name, wanted) = if v4 { ("IPv4", "an IPv4 address") } else { ("IPv6", "a global IPv6 address") };
    let own: Vec<_> = found.own.iter().filter(|ip| ip.is_ipv4() == v4 && (v4 || is_global(**ip))).collect();
    let contacts = found.contacts[usize::from(!v4)];
    match (seen(found, v4), own.as_slice()) {
        (Some(seen), own) if own.contains(&&seen.ip()) => {
            let unasked = match found.reach[usize::from(!v4)] {
                Verdict::Unknown => "",
                Verdict::Open => ", open to everybody",
                Verdict::Closed => "; a firewall lets in only what was asked for",
            };
            entry(name, Yes, format!("{seen}, an address of this machine{unasked}"), None)
        }
        (Some(seen), _) => entry(name, Yes, format!("seen at {seen}, behind a NAT"), None),
        (None, []) => entry(name, No, format!("this machine does not have {wanted}"), None),
        (None, _) if contacts == 0 => {
            let detail = format!("needs a contact on the internet, at {wanted}");
            entry(name, Unknown, detail, Some(MORE_CONTACTS))
        }
        (None, own) => {
            let own: Vec<_> = own.iter().map(ToString::to_string).collect();
            let detail = format!(
                "{}, but no contact answers ({} known)",
                own.join(", "),
                counted(contacts as u64, "contact")
            );
            entry(name, No, detail, Some("look at the route (ip route) and at firewalls for UDP"))
        }
    }
}

/// Whether the NAT gives every destination another port, by contacts in different networks.
fn mapping(found: &Netcheck, port: u16) -> NetcheckEntry {
    const NAME: &str = "MappingVariesByDestIP";
    let v4 = seen(found, true).is_some();
    let observed = observed(found);
    let own = |ip: IpAddr| found.own.contains(&ip);
    let contacts = found.answers.iter().filter(|answer| answer.seen.is_ipv4() == v4).count();
    match (observed.mapping(NOW, v4, own), observed.endpoint(NOW, v4)) {
        (Mapping::None, Some((seen, _))) => {
            entry(NAME, No, format!("no NAT in between: seen at {seen}, as it is"), None)
        }
        (Mapping::Independent, Some((seen, agree))) => {
            let all = counted(contacts as u64, "contact");
            entry(NAME, No, format!("{agree} of {all} in different networks see {seen}"), None)
        }
        (Mapping::Dependent, _) => {
            let detail = format!(
                "symmetric NAT: {} in different networks see as many ports; nodes behind two such NATs need a relay to each \
                 other",
                counted(contacts as u64, "contact")
            );
            entry(NAME, Yes, detail, Some(&why::open_up(port)))
        }
        (Mapping::Unknown | Mapping::None | Mapping::Independent, _) => {
            entry(NAME, Unknown, "needs 2 contacts in different networks", Some(MORE_CONTACTS))
        }
    }
}

/// Whether the router maps a port to us.
fn port_mapping(found: Found, told: bool, port: u16) -> NetcheckEntry {
    const NAME: &str = "PortMapping";
    let by_hand = format!("forward UDP port {port} to this machine by hand, where that is possible");
    let (verdict, detail, fix) = match found {
        Found::Off => (
            No,
            "switched off".into(),
            Some("set [net] port_mapping = true, or forward the port by hand".to_owned()),
        ),
        Found::NotListening => (
            No,
            "nothing listens on IPv4, which is what routers translate".into(),
            Some("add an IPv4 address to [net] listen".to_owned()),
        ),
        Found::NotNeeded => (No, "not needed: this machine has an address of the internet".into(), None),
        Found::NoGateway => (No, "no router to ask: there is no IPv4 default route to one".into(), None),
        Found::Asked(gateway, State::Asking) => {
            let fix = "azora netcheck in a few seconds".to_owned();
            (Unknown, format!("the router {gateway} is being asked"), Some(fix))
        }
        Found::Asked(_, State::Held(_)) | Found::Upnp(..) => {
            let Some((protocol, outside)) = found.mapping() else { return entry(NAME, No, "none", None) };
            let of_use = format!("{protocol} maps {outside}");
            if told {
                return entry(NAME, Yes, of_use, None);
            }
            let fix = "ask the owner of that other NAT to forward the port, or use IPv6";
            let detail = format!(
                "{of_use}, but no contact sees this node at that address, so others are not told of it: there may be another \
                 NAT behind the router"
            );
            (Yes, detail, Some(fix.to_owned()))
        }
        Found::Asked(gateway, State::Silent) => {
            let detail = format!("the router {gateway} answers neither PCP nor NAT-PMP nor UPnP");
            (No, detail, Some(format!("switch it on in the router, or {by_hand}")))
        }
        Found::Asked(gateway, State::Refused(protocol, code)) => {
            let detail = format!("the router {gateway} refuses by {} with code {code}", protocol.name());
            (No, detail, Some(format!("let it in the router, or {by_hand}")))
        }
        Found::Asked(gateway, State::Useless(protocol, outside)) => {
            let detail = format!(
                "the router {gateway} offers by {} a port of {outside}, which is no address of the internet, or not for long enough: it may be behind another NAT itself",
                protocol.name()
            );
            let fix = "ask the owner of that other NAT to forward the port, or use IPv6".to_owned();
            (No, detail, Some(fix))
        }
    };
    entry(NAME, verdict, detail, fix.as_deref())
}

fn relays(found: &Netcheck) -> NetcheckEntry {
    const NAME: &str = "Relays";
    let told: Vec<_> = found
        .relays
        .iter()
        .map(|(id, data, rtt)| {
            let rtt = rtt.map(|rtt| format!(" {:.1} ms", ms(rtt))).unwrap_or_default();
            format!("{id}{rtt}{}", if *data { "" } else { " (no data)" })
        })
        .collect();
    match (told.as_slice(), found.mapped) {
        ([], false) => {
            let (verdict, detail, fix) = possible(found);
            entry(NAME, verdict, detail, fix)
        }
        ([], true) => {
            let fix = "azora peers add NODEID@IP:PORT of a node at a public address that serves the DHT";
            entry(
                NAME,
                No,
                format!("this node is behind {}, and no node carries packets to it", place(found)),
                Some(fix),
            )
        }
        (told, _) => {
            let fix = "set [relay] enabled = true on one of them, or name this node in its [relay] peers";
            let data = found.relays.iter().any(|(_, data, _)| *data);
            entry(NAME, Yes, told.join(", "), (!data).then_some(fix))
        }
    }
}

/// Relays for a node that needs none, as far as is known.
fn possible(found: &Netcheck) -> (NetcheckVerdict, String, Option<&'static str>) {
    match (found.possible_relays, found.answers.len()) {
        (0, 0) => (Unknown, "nobody on the internet has answered".into(), Some(MORE_CONTACTS)),
        (0, _) => (No, "none in use, and none known: this node is reached without".into(), None),
        (n, _) => {
            let detail = format!(
                "none in use: this node is reached without; {} could be asked",
                counted(n as u64, "node")
            );
            (Yes, detail, None)
        }
    }
}

/// What is between us and the internet.
fn place(found: &Netcheck) -> &'static str {
    let own = |v4| seen(found, v4).is_some_and(|seen| found.own.contains(&seen.ip()));
    if own(true) || own(false) { "a firewall that lets in only what was asked for" } else { "a NAT" }
}

fn mtu(found: &Netcheck) -> NetcheckEntry {
    match found.mtu {
        Some((mtu, peers)) => {
            let detail =
                format!("{mtu} bytes in one datagram, measured to {}", counted(peers as u64, "peer"));
            entry("MTU", Yes, detail, None)
        }
        None => {
            let fix = "azora probe TARGET measures it now; it is also measured while data flows";
            entry("MTU", Unknown, "not measured to any peer yet", Some(fix))
        }
    }
}

/// All answers are of one moment.
const NOW: Instant = Instant::ZERO;

/// The answers, judged as those that come by themselves.
fn observed(found: &Netcheck) -> Observed {
    let mut observed = Observed::default();
    found.answers.iter().for_each(|answer| observed.vote(NOW, answer.observer, answer.seen));
    observed
}

/// Where most contacts see us by one version of IP.
fn seen(found: &Netcheck, v4: bool) -> Option<SocketAddr> {
    observed(found).endpoint(NOW, v4).map(|(seen, _)| seen)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::identity::Identity;
    use crate::proto::node::Observation;

    fn answer(n: u8, seen: &str) -> Observation {
        Observation {
            node_id: Identity::from_seed([n; 32]).node_id(),
            observer: match seen.starts_with('[') {
                true => format!("[2a00:{n}::1]:5747").parse().unwrap(),
                false => format!("20.{n}.0.2:5747").parse().unwrap(),
            },
            seen: seen.parse().unwrap(),
            rtt: Duration::from_millis(5),
        }
    }

    fn verdicts(own: &[&str], contacts: [usize; 2], seen: &[&str]) -> Vec<(NetcheckVerdict, String)> {
        let answers = (1..).zip(seen).map(|(n, seen)| answer(n, seen)).collect();
        let own = own.iter().map(|ip| ip.parse().unwrap()).collect();
        let report = judge(
            &Netcheck { answers, contacts, own, ..Netcheck::default() },
            0,
            Found::NoGateway,
            false,
            5747,
        );
        assert!(report.checks.iter().all(|check| check.verdict != Unknown || check.fix.is_some()));
        report.checks.into_iter().map(|check| (check.verdict, check.detail)).collect()
    }

    #[test]
    fn verdicts_follow_from_what_was_seen() {
        let check = |own: &[&str], contacts, seen: &[&str], expected: [NetcheckVerdict; 4]| {
            let got: Vec<_> =
                verdicts(own, contacts, seen).into_iter().map(|(verdict, _)| verdict).take(4).collect();
            assert_eq!(got, expected, "{own:?} {seen:?}");
        };
        check(&[], [0, 0], &[], [Unknown, No, No, Unknown]);
        check(&["192.168.1.2"], [0, 0], &[], [Unknown, Unknown, No, Unknown]);
        check(&["192.168.1.2"], [3, 0], &[], [No, No, No, Unknown]);
        check(&["20.9.0.2"], [1, 0], &["20.9.0.2:5747"], [Yes, Yes, No, No]);
        check(&["192.168.1.2"], [1, 0], &["20.9.0.2:5747"], [Yes, Yes, No, Unknown]);
        check(&["192.168.1.2"], [2, 0], &["20.9.0.2:5747", "20.9.0.2:5747"], [Yes, Yes, No, No]);
        check(&["192.168.1.2"], [2, 0], &["20.9.0.2:1", "20.9.0.2:2"], [Yes, Yes, No, Yes]);
        // One of three is mistaken, or lies.
        check(&["192.168.1.2"], [3, 0], &["20.9.0.2:5", "20.9.0.2:5", "20.9.0.3:2"], [Yes, Yes, No, No]);
        check(&["2a00::5"], [0, 1], &["[2a00::5]:5747"], [Yes, No, Yes, No]);
        check(&["2a00::5", "fd00::1"], [1, 0], &[], [No, No, Unknown, Unknown]);
        check(&["fd00::1"], [0, 1], &[], [No, No, No, Unknown]);
    }

    #[test]
    fn neighbours_that_are_reached_are_no_blocked_udp() {
        let found = Netcheck { contacts: [1, 0], near: 2, ..Netcheck::default() };
        let entry = udp(&found, 0);
        assert_eq!(entry.verdict, Unknown);
        assert!(entry.detail.ends_with("stand with 2 peers on this network"), "{}", entry.detail);
    }

    #[test]
    fn what_does_not_authenticate_is_no_silence() {
        let found = Netcheck { contacts: [1, 0], ..Netcheck::default() };
        let [silent, strange] = [0, 3].map(|strange| udp(&found, strange));
        assert_eq!((silent.verdict, strange.verdict), (No, Unknown));
        assert!(strange.detail.contains("3 datagrams came that did not authenticate"), "{}", strange.detail);
        assert_eq!(strange.fix.as_deref(), Some(SAME_SECRET));
    }
}
