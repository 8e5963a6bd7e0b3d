//! `azora netcheck`: the verdicts on the network, and what to do about them.

use auramesh::control::message::{NetcheckReport, NetcheckVerdict};

use crate::args::Format;
use crate::output::{Outcome, show, table};
use crate::socket::Socket;

pub(crate) async fn run(socket: &Socket, format: Format) -> Outcome {
    let report = socket.connect().await?.netcheck().await?;
    show(&report, format.json, |report| socket.hint(&text(report)))
}

fn text(report: &NetcheckReport) -> String {
    let rows: Vec<_> = report
        .checks
        .iter()
        .map(|check| [check.name.clone(), verdict(check.verdict).into(), check.detail.clone()])
        .collect();
    let mut text = table(&rows);
    let mut fixes: Vec<_> = report.checks.iter().filter_map(|check| check.fix.as_ref()).collect();
    fixes.dedup();
    fixes.iter().for_each(|fix| text.push_str(&format!("try: {fix}\n")));
    text
}

const fn verdict(verdict: NetcheckVerdict) -> &'static str {
    match verdict {
        NetcheckVerdict::Yes => "yes",
        NetcheckVerdict::No => "no",
        NetcheckVerdict::Unknown => "unknown",
    }
}
