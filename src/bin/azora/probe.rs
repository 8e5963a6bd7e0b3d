//! `azora probe`: stage by stage, up to the first that fails.

use auramesh::control::exit::Exit;
use auramesh::control::message::ProbeReport;
use auramesh::control::target::Target;

use crate::args::Format;
use crate::output::{Outcome, milliseconds, show, table};
use crate::socket::Socket;

/// What a probe cannot see: refused packets get no answer.
const REFUSED: &str = "the mesh works up to that node; a program that still gets no answer may be refused by its rules, or \
    its interface may be down: on that node, `azora status` and `azora firewall trace` tell, and `azora firewall add in allow -p tcp --port N --peer NODEID` lets one node in\n";

pub(crate) async fn run(socket: &Socket, target: Target, format: Format) -> Outcome {
    let report = socket.connect().await?.probe(target).await?;
    let works = report.stages.iter().all(|stage| stage.ok);
    show(&report, format.json, |report| socket.hint(&text(report)) + if works { REFUSED } else { "" })?;
    Ok(if works { Exit::Ok } else { Exit::Failed })
}

fn text(report: &ProbeReport) -> String {
    let rows: Vec<_> = report
        .stages
        .iter()
        .map(|stage| {
            let verdict = if stage.ok { "ok" } else { "FAILED" };
            [stage.name.clone(), verdict.into(), milliseconds(stage.elapsed_ms), stage.detail.clone()]
        })
        .collect();
    let fixes = report.stages.iter().filter(|stage| !stage.ok).filter_map(|stage| stage.fix.as_ref());
    table(&rows) + &fixes.map(|fix| format!("try: {fix}\n")).collect::<String>()
}
