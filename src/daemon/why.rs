//! Why a peer is reached through a relay, in words, and what would change it.

use crate::control::counted;
use crate::control::message::Cause;
use crate::proto::identity::NodeId;
use crate::proto::node::Relayed;

/// What lets others reach a node behind a NAT, as an order; `port` is the one that the node listens on.
pub(super) fn open_up(port: u16) -> String {
    format!(
        "let the router map a port (PCP, NAT-PMP or UPnP), forward UDP port {port} to the node, or use IPv6"
    )
}

/// Why no program reaches a node: the relay carries no data, and there is no straight way for this cause.
pub(super) fn no_data(relay: NodeId, straight: Cause) -> Cause {
    let Cause { text, fix } = straight;
    Cause {
        text: format!(
            "no program gets through: the relay {relay} carries no data, and there is no straight way ({text})"
        ),
        fix: format!(
            "{fix}; or set [relay] enabled = true on {relay} or another node at a public address that both know, or name this \
             node in its [relay] peers"
        ),
    }
}

/// Why the node `id` is reached so, and what to do; `mute` is a relay that carries no data, `port` the one that we listen on.
pub(super) fn relayed(relayed: &Relayed, mute: Option<NodeId>, id: NodeId, port: u16) -> Cause {
    let cause = indirect(relayed, id, port);
    match mute {
        Some(relay) => no_data(relay, cause),
        None => cause,
    }
}

/// Why there is no straight way to the node `id`, and what to do.
fn indirect(relayed: &Relayed, id: NodeId, port: u16) -> Cause {
    let forward = format!("on one side {}", open_up(port));
    let wait = format!("azora ping {id} --until-direct looks again, and says what came of it");
    let (text, fix) = match relayed {
        Relayed::Asking => ("the other side has not said yet where it can be reached".into(), wait),
        Relayed::Better(by_relay, straight) => (
            format!(
                "the relay is the better way: {} ms there and back by it, {} ms straight",
                by_relay.as_millis(),
                straight.as_millis()
            ),
            "nothing to do: the straight way is kept ready and used when it is better".into(),
        ),
        Relayed::Trying => ("a direct path is being looked for".into(), wait),
        Relayed::BothDependent => (
            "both sides are behind symmetric NATs, which give every destination another port: neither knows where to send"
                .into(),
            forward,
        ),
        Relayed::DependentHere(checks) => (symmetric("this", "the other", *checks), forward),
        Relayed::DependentThere(checks) => (symmetric("the other", "this", *checks), forward),
        Relayed::Nowhere => (
            "the other side names no endpoint that can be tried from here".into(),
            format!("give both nodes an address of the same IP version, or name one: azora probe {id}@IP:PORT"),
        ),
        Relayed::NoAnswer(checks, endpoints) => {
            let tried: Vec<_> = endpoints.iter().map(ToString::to_string).collect();
            let text = format!(
                "no answer to {} of {}: something on the way drops them, a firewall or a NAT",
                counted(*checks, "check"),
                tried.join(", ")
            );
            let fix = format!(
                "let UDP out to all ports on both sides, or in at port {port} on one; azora ping {id} --until-direct tries again \
                 at once"
            );
            (text, fix)
        }
    };
    Cause { text, fix }
}

/// Why, where no UDP gets through.
pub(super) fn no_udp() -> Cause {
    Cause {
        text: "no UDP gets through from here: packets go by TCP to the relay".into(),
        fix: "let UDP out on this network's firewall; it is tried again every minute".into(),
    }
}

fn symmetric(side: &str, other: &str, checks: u32) -> String {
    format!(
        "symmetric NAT on {side} side, port-restricted on {other}: {} did not meet the right port",
        counted(checks, "check")
    )
}
