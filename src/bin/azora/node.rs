//! `azora id`, `azora ip`, `azora inspect`.

use std::net::SocketAddr;

use auramesh::control::exit::Exit;
use auramesh::control::message::OwnNode;
use auramesh::control::target::Target;
use auramesh::proto::identity::NodeId;
use serde::Serialize;

use crate::args::Format;
use crate::dht::{not_found, why_not_found};
use crate::output::{Outcome, age, joined, or_dash, print, print_json, show, table};
use crate::socket::Socket;

pub(crate) async fn id(socket: &Socket, format: Format) -> Outcome {
    let own = socket.connect().await?.own().await?;
    show(&own, format.json, |own| format!("{}\n", own.node_id))
}

pub(crate) async fn ip(socket: &Socket, format: Format) -> Outcome {
    let own = socket.connect().await?.own().await?;
    show(&own, format.json, |own| format!("{}\n", own.address))
}

/// What `inspect ADDRESS` prints as JSON.
#[derive(Serialize)]
struct Inspected {
    node_id: Option<String>,
    address: String,
    endpoints: Vec<SocketAddr>,
    record_age_s: Option<f64>,
}

pub(crate) async fn inspect(socket: &Socket, target: Target, format: Format) -> Outcome {
    if let Some(node_id) = target.node_id() {
        return show(&node(node_id), format.json, own_table);
    }
    let found = socket.connect().await?.dht_lookup(target).await?;
    let node_id = found.node_id.map(|id| id.to_string());
    let (verdict, why) = (not_found(&found), why_not_found(&found));
    let address = target.address().to_string();
    let inspected =
        Inspected { node_id, address, endpoints: found.endpoints, record_age_s: found.record_age_s };
    if format.json {
        print_json(&inspected)?;
    } else {
        let mut rows = vec![
            ["node id".into(), inspected.node_id.unwrap_or_else(|| verdict.into())],
            ["address".into(), inspected.address],
            ["endpoints".into(), joined(&inspected.endpoints)],
            ["record age".into(), or_dash(inspected.record_age_s, age)],
        ];
        rows.extend(why.into_iter().filter(|_| !found.found));
        print(&socket.hint(&table(&rows)))?;
    }
    Ok(if found.found { Exit::Ok } else { Exit::Failed })
}

/// A node and the address that follows from its ID.
pub(crate) fn node(node_id: NodeId) -> OwnNode {
    OwnNode { node_id, address: node_id.address() }
}

pub(crate) fn own_table(own: &OwnNode) -> String {
    table(&[["node id".into(), own.node_id.to_string()], ["address".into(), own.address.to_string()]])
}
