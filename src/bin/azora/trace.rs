//! `azora trace`: the nodes on the way to another one, and how fast each answers.

use auramesh::control::exit::Exit;
use auramesh::control::message::TraceReport;
use auramesh::control::target::Target;

use crate::args::Format;
use crate::output::{Outcome, milliseconds, or_dash, short, show, table};
use crate::socket::Socket;

pub(crate) async fn run(socket: &Socket, target: Target, format: Format) -> Outcome {
    let report = socket.connect().await?.trace(target).await?;
    let answered = report.lost.is_none();
    show(&report, format.json, |report| socket.hint(&text(report)))?;
    Ok(if answered { Exit::Ok } else { Exit::Failed })
}

fn text(report: &TraceReport) -> String {
    let row = |(n, hop): (usize, &auramesh::control::message::TraceHop)| {
        let what = if hop.relay { "relay" } else { "target" };
        [
            (n + 1).to_string(),
            what.into(),
            short(&hop.node_id),
            hop.address.to_string(),
            or_dash(hop.endpoint, |endpoint| endpoint.to_string()),
            hop.rtt_ms.map_or_else(|| "no answer".into(), milliseconds),
        ]
    };
    let hops: Vec<_> = report.hops.iter().enumerate().map(row).collect();
    let target = report.target;
    let fix = report.fix.clone().unwrap_or_else(|| format!("azora probe {target} tells how far it gets"));
    let lost = |why: &String| format!("{why}\ntry: {fix}\n");
    table(&hops) + &report.lost.as_ref().map(lost).unwrap_or_default()
}
