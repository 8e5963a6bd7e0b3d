//! `azora netcheck`: what network this machine is in, by what contacts see of it now. What was not seen is not said.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::time::sleep;

use crate::control::counted;
use crate::control::message::NetcheckVerdict::{No, Unknown, Yes};
use crate::control::message::{NetcheckEntry, NetcheckReport, NetcheckVerdict, RelayCheck};
use crate::engine::{AskError, Handle};
use crate::host::clock;
use crate::proto::node::{Netcheck, Observation};
use crate::proto::path::is_global;
use crate::proto::path::reach::Verdict;
use crate::proto::portmap::State;

use super::portmap::{Found, PortMapping};
use super::status::ms;

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
    handle.with(|node, now, wall| node.begin_netcheck(now, wall)).await?;
    loop {
        let found = handle.with(|node, now, _| node.netcheck(now)).await?;
        let asking = matches!(mapping.found(), Found::Asked(_, State::Asking));
        let waited = clock::now().saturating_since(start);
        let settled = found.waiting == 0 || waited >= PATIENCE;
        if settled && (!asking || waited >= ROUTER_PATIENCE) {
            let told = handle.with(|node, now, _| node.status(now).port_mapping).await?;
            return Ok(judge(&found, mapping.found(), told.is_some_and(|(_, told)| told), port));
        }
        sleep(LOOK).await;
    }
}

/// The verdicts, in the order in which they are told.
fn judge(found: &Netcheck, asked: Found, told: bool, port: u16) -> NetcheckReport {
    let seen = |v4: bool| most(&found.answers, v4).map(|(seen, _, _)| seen);
    NetcheckReport {
        global_v4: seen(true),
        global_v6: seen(false),
        checks: vec![
            udp(found),
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

fn udp(found: &Netcheck) -> NetcheckEntry {
    let contacts = found.contacts.iter().sum::<usize>();
    match (found.answers.len(), contacts) {
        (0, 0) => entry("UDP", Unknown, "no contact on the internet is known", Some(MORE_CONTACTS)),
        (0, n) => entry(
            "UDP",
            No,
            match n {
                1 => "the only contact that is known does not answer".into(),
                n => format!("none of {n} contacts answers"),
            },
            Some(
                "is this machine online? Then a firewall drops UDP: let it out to all ports, at least to 5747",
            ),
        ),
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
    match (most(&found.answers, v4), own.as_slice()) {
        (Some((seen, _, _)), own) if own.contains(&&seen.ip()) => {
            let unasked = match found.reach[usize::from(!v4)] {
                Verdict::Unknown => "",
                Verdict::Open => ", open to everybody",
                Verdict::Closed => "; a firewall lets in only what was asked for",
            };
            entry(name, Yes, format!("{seen}, an address of this machine{unasked}"), None)
        }
        (Some((seen, _, _)), _) => entry(name, Yes, format!("seen at {seen}, behind a NAT"), None),
        (None, []) => entry(name, No, format!("this machine does not have {wanted}"), None),
        (None, _) if contacts == 0 => {
            let detail = format!("needs a contact at {wanted}");
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
    let translated = |ip: IpAddr| !found.own.contains(&ip);
    let Some((seen, agree, all)) = most(&found.answers, true).or_else(|| most(&found.answers, false)) else {
        return entry(NAME, Unknown, "needs 2 contacts in different networks", Some(MORE_CONTACTS));
    };
    if !translated(seen.ip()) {
        return entry(NAME, No, format!("no NAT in between: seen at {seen}, as it is"), None);
    }
    if all < 2 {
        return entry(NAME, Unknown, "needs 2 contacts in different networks", Some(MORE_CONTACTS));
    }
    if 2 * agree > all {
        let detail =
            format!("{agree} of {} in different networks see {seen}", counted(all as u64, "contact"));
        return entry(NAME, No, detail, None);
    }
    let fix = format!(
        "nodes behind such a NAT need a relay to each other: let the router map a port (PCP, NAT-PMP or UPnP), forward \
         UDP port {port} to this machine, or use IPv6"
    );
    let detail = format!("symmetric NAT: {} see as many ports", counted(all as u64, "contact"));
    entry(NAME, Yes, detail, Some(&fix))
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
        Found::NotNeeded => (No, "not needed: this machine has an address of the internet".into(), None),
        Found::NoGateway => (No, "no router to ask: there is no IPv4 default route to one".into(), None),
        Found::Asked(gateway, State::Asking) => {
            let fix = "azora netcheck again in a few seconds".to_owned();
            (Unknown, format!("the router {gateway} is being asked"), Some(fix))
        }
        Found::Asked(_, State::Held(_)) | Found::Upnp(..) => {
            let Some((protocol, outside)) = found.mapping() else { return entry(NAME, No, "none", None) };
            let of_use = format!("{protocol} maps {outside}");
            if told {
                return entry(NAME, Yes, of_use, None);
            }
            let fix = "is there another NAT behind the router? Then ask its owner to forward the port";
            let detail =
                format!("{of_use}, but no contact sees this node at that address: others are not told of it");
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
                "the router {gateway} offers by {} a port of {outside}: no address of the internet, or not for long enough",
                protocol.name()
            );
            let fix =
                "it is behind another NAT itself: its owner could forward the port, IPv6 would do without"
                    .to_owned();
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
            entry(NAME, if found.possible_relays > 0 { Yes } else { Unknown }, possible(found), None)
        }
        ([], true) => {
            let fix = "azora peers add NODEID@IP:PORT of a node at a public address that serves the DHT";
            entry(NAME, No, "this node is behind a NAT, and no node carries packets to it", Some(fix))
        }
        (told, _) => {
            let fix = "set [relay] enabled = true on one of them, or name this node in its [relay] peers";
            let data = found.relays.iter().any(|(_, data, _)| *data);
            entry(NAME, Yes, told.join(", "), (!data).then_some(fix))
        }
    }
}

fn possible(found: &Netcheck) -> String {
    match found.possible_relays {
        0 => "none in use: nobody on the internet has seen yet that this node is behind a NAT".into(),
        n => {
            format!("none in use: this node is reached without; {} could be asked", counted(n as u64, "node"))
        }
    }
}

fn mtu(found: &Netcheck) -> NetcheckEntry {
    match found.mtu {
        Some((mtu, peers)) => {
            let detail =
                format!("{mtu} bytes in one datagram, measured to {}", counted(peers as u64, "peer"));
            entry("MTU", Yes, detail, None)
        }
        None => {
            let fix = "it is measured while data flows: azora probe TARGET measures it now";
            entry("MTU", Unknown, "not measured to any peer yet", Some(fix))
        }
    }
}

/// Where most contacts see us by one version of IP; how many of them, and how many there are.
fn most(answers: &[Observation], v4: bool) -> Option<(SocketAddr, usize, usize)> {
    let mut counts = BTreeMap::<SocketAddr, usize>::new();
    let all = answers.iter().filter(|answer| answer.seen.is_ipv4() == v4);
    all.for_each(|answer| *counts.entry(answer.seen).or_default() += 1);
    let all = counts.values().sum();
    counts.into_iter().max_by_key(|(_, n)| *n).map(|(seen, n)| (seen, n, all))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::identity::Identity;

    fn answer(n: u8, seen: &str) -> Observation {
        Observation {
            node_id: Identity::from_seed([n; 32]).node_id(),
            observer: if seen.starts_with('[') { "[2a00::1]:5747" } else { "20.1.0.2:5747" }.parse().unwrap(),
            seen: seen.parse().unwrap(),
            rtt: Duration::from_millis(5),
        }
    }

    fn verdicts(own: &[&str], contacts: [usize; 2], seen: &[&str]) -> Vec<(NetcheckVerdict, String)> {
        let answers = (1..).zip(seen).map(|(n, seen)| answer(n, seen)).collect();
        let own = own.iter().map(|ip| ip.parse().unwrap()).collect();
        let report =
            judge(&Netcheck { answers, contacts, own, ..Netcheck::default() }, Found::NoGateway, false, 5747);
        assert!(
            report
                .checks
                .iter()
                .all(|check| check.verdict != Unknown || check.fix.is_some() || check.name == "Relays")
        );
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
}
