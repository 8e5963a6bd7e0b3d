//! `azora firewall`.

use auramesh::config::{AllowRule, Protocol};
use auramesh::control::counted;
use auramesh::control::exit::Exit;
use auramesh::control::message::{FirewallMatch, FirewallProtocol, FirewallRule, RefusedFlow};

use crate::args::FirewallCommand;
use crate::output::{Fault, Outcome, age, print, show, table};
use crate::socket::Socket;

/// The code of the health entry that says that `inbound = "allow"` is in force.
const OPEN: &str = "inbound-open";

pub(crate) async fn run(socket: &Socket, command: FirewallCommand) -> Outcome {
    match command {
        FirewallCommand::List(format) => {
            let mut client = socket.connect().await?;
            let rules = client.firewall_list().await?;
            let open = !format.json && client.status().await?.health.iter().any(|health| health.code == OPEN);
            show(&rules, format.json, |rules| rules_text(rules, open))
        }
        FirewallCommand::Trace(format) => {
            let refused = socket.connect().await?.firewall_trace().await?;
            show(&refused, format.json, |refused| socket.hint(&trace_text(refused)))
        }
        FirewallCommand::Add { protocol, port, peer, direction: _, action: _ } => {
            let rule = AllowRule::new(peer, protocol, port)
                .map_err(|error| Fault::new(Exit::Usage, error, "see `azora firewall add --help`"))?;
            let matches = FirewallMatch { proto: rule.proto.map(message_protocol), port, peer };
            let added = socket.connect().await?.firewall_add(matches).await?;
            print(&format!("rule {}: {rule}\n", added.index))?;
            if rule.is_open() {
                let undo = format!("azora firewall remove {}", added.index);
                let text = format!(
                    "every node of the mesh may connect to every port of this machine now; {undo} undoes that\n"
                );
                print(&socket.hint(&text))?;
            }
            Ok(Exit::Ok)
        }
        FirewallCommand::Remove { index } => {
            socket.connect().await?.firewall_remove(index).await?;
            print(&format!("removed rule {index}\n"))?;
            Ok(Exit::Ok)
        }
    }
}

const fn message_protocol(protocol: Protocol) -> FirewallProtocol {
    match protocol {
        Protocol::Tcp => FirewallProtocol::Tcp,
        Protocol::Udp => FirewallProtocol::Udp,
        Protocol::Icmp => FirewallProtocol::Icmp,
    }
}

fn trace_text(refused: &[RefusedFlow]) -> String {
    if refused.is_empty() {
        return "nothing was refused lately by this node (what another one refuses, its own azora firewall trace tells); \
                what was refused before a rule let it in is counted, but not listed, as are late segments of TCP \
                connections that have ended\n"
            .into();
    }
    let line = |flow: &RefusedFlow| {
        let (packets, ago) = (counted(flow.times, "packet"), age(flow.ago_s as f64));
        format!("{flow}: {packets}, the last {ago} ago\n  let in by: {}\n", flow.fix)
    };
    refused.iter().map(line).collect()
}

fn rules_text(rules: &[FirewallRule], open: bool) -> String {
    let mut text = String::new();
    if open {
        text.push_str("everything comes in, whatever the rules say: the daemon runs with inbound allow\n");
    }
    if rules.is_empty() {
        return text + if open { "no rules\n" } else { "no rules: only replies and ICMPv6 echo come in\n" };
    }
    let head = ["N", "PROTOCOL", "PORT", "PEER"].map(String::from);
    let rows = rules.iter().map(|rule| {
        let FirewallMatch { proto, port, peer } = rule.matches;
        let protocol = match proto {
            None => "any",
            Some(FirewallProtocol::Tcp) => "tcp",
            Some(FirewallProtocol::Udp) => "udp",
            Some(FirewallProtocol::Icmp) => "icmp",
        };
        let any = || "any".to_string();
        let port = port.map_or_else(any, |port| port.to_string());
        [rule.index.to_string(), protocol.into(), port, peer.map_or_else(any, |peer| peer.to_string())]
    });
    text + &table(&std::iter::once(head).chain(rows).collect::<Vec<_>>())
}
