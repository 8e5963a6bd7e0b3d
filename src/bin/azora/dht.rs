//! `azora dht`.

use auramesh::control::counted;
use auramesh::control::exit::Exit;
use auramesh::control::message::{Cause, DhtRefused, DhtStatus, LookupReport, LookupStep};

use crate::args::DhtCommand;
use crate::output::{Outcome, age, bytes, joined, milliseconds, or_dash, short, show, table};
use crate::socket::Socket;
use crate::status::role;

/// What to do when there is no record.
const WHY_NOT_FOUND: &str = "check the ID or address; a node is found once it has run for a few seconds with others in reach: azora dht status shows \
    whether they are";

pub(crate) async fn run(socket: &Socket, command: DhtCommand) -> Outcome {
    let mut client = socket.connect().await?;
    match command {
        DhtCommand::Lookup { target, format } => {
            let report = client.dht_lookup(target).await?;
            show(&report, format.json, |report| socket.hint(&lookup_text(report)))?;
            Ok(if report.found { Exit::Ok } else { Exit::Failed })
        }
        DhtCommand::Status(format) => show(&client.dht_status().await?, format.json, status_text),
    }
}

fn lookup_text(report: &LookupReport) -> String {
    let verdict = match (report.found, &report.unheard) {
        (true, None) => "found".into(),
        (true, Some(_)) => format!("own copy, {}", not_found(report)),
        (false, _) => not_found(report).into(),
    };
    let mut rows = vec![[
        verdict,
        format!(
            "{}, {}, {}",
            counted(report.rounds, "round"),
            counted(report.rpcs, "request"),
            milliseconds(report.elapsed_ms)
        ),
    ]];
    if report.found {
        rows.push(["node id".into(), or_dash(report.node_id, |id| id.to_string())]);
        rows.push(["endpoints".into(), joined(&report.endpoints)]);
        let number = or_dash(report.record_seq, |number| number.to_string());
        rows.push([
            "record".into(),
            format!("number {number}, signed {} ago", or_dash(report.record_age_s, age)),
        ]);
        let alone = || "this node; nobody else showed it".into();
        let holders = if report.holders.is_empty() { alone() } else { joined(&report.holders) };
        rows.push(["held by".into(), holders]);
        rows.push(["signature".into(), "valid".into()]);
    }
    if !report.found || report.unheard.is_some() {
        rows.extend(why_not_found(report));
    }
    let mut text = table(&rows);
    if !report.steps.is_empty() {
        let head = ["ROUND", "NODE", "SHARED BITS", "ANSWER"].map(String::from);
        let mut steps: Vec<_> = report.steps.iter().collect();
        steps.sort_by_key(|step| step.round);
        let steps = steps.into_iter().map(step);
        text.push('\n');
        text.push_str(&table(&std::iter::once(head).chain(steps).collect::<Vec<_>>()));
    }
    text
}

/// What became of a search that nobody helped.
pub(crate) const fn not_found(report: &LookupReport) -> &'static str {
    match (report.rpcs, &report.unheard) {
        (0, _) => "nobody could be asked",
        (_, Some(_)) => "nobody answered",
        (_, None) => "not found",
    }
}

/// Why it did, as far as it is known, and what to do.
pub(crate) fn why_not_found(report: &LookupReport) -> Vec<[String; 2]> {
    match &report.unheard {
        Some(Cause { text, fix }) => vec![["why".into(), text.clone()], ["try".into(), fix.clone()]],
        None => vec![["try".into(), WHY_NOT_FOUND.into()]],
    }
}

fn step(step: &LookupStep) -> [String; 4] {
    let answer = step.answered_ms.map_or_else(
        || "none".into(),
        |ms| {
            let record = if step.held { "the record, " } else { "" };
            format!("{record}{}, {}", counted(step.contacts, "contact"), milliseconds(ms))
        },
    );
    [step.round.to_string(), short(&step.node_id), step.shared_bits.to_string(), answer]
}

/// What was not taken in, and why.
fn refused(refused: &DhtRefused) -> String {
    let reasons = [
        (refused.crowded, "node of a crowded network", "nodes of crowded networks"),
        (refused.records_invalid, "invalid record", "invalid records"),
        (refused.records_full, "record for want of room", "records for want of room"),
        (
            refused.unsolicited,
            "answer that was not asked for or came late",
            "answers that were not asked for or came late",
        ),
        (refused.lookups, "lookup too many", "lookups too many"),
    ];
    let told = reasons.iter().filter(|(count, _, _)| *count > 0);
    let told: Vec<_> =
        told.map(|(count, one, many)| format!("{count} {}", if *count == 1 { one } else { many })).collect();
    if told.is_empty() { "nothing".into() } else { told.join(", ") }
}

fn status_text(status: &DhtStatus) -> String {
    let mut text = table(&[
        ["mode".into(), role(status.mode).into()],
        ["contacts".into(), status.contacts.to_string()],
        [
            "network".into(),
            or_dash(status.network_size_estimate, |n| {
                let error =
                    status.network_size_error_percent.map(|percent| format!(", give or take {percent} %"));
                format!("about {}{}", counted(n, "node"), error.unwrap_or_default())
            }),
        ],
        [
            "records".into(),
            format!("{} held for others, {}", status.records_stored, bytes(status.records_bytes)),
        ],
        ["our record".into(), format!("held by {}", counted(status.record_holders, "node"))],
        ["refused".into(), refused(&status.refused)],
    ]);
    if !status.buckets.is_empty() {
        let head = ["DISTANCE", "CONTACTS", "REPLACEMENTS"].map(String::from);
        let rows = status.buckets.iter().map(|bucket| {
            [
                format!("2^{}", bucket.distance_bits),
                bucket.contacts.to_string(),
                bucket.replacements.to_string(),
            ]
        });
        text.push('\n');
        text.push_str(&table(&std::iter::once(head).chain(rows).collect::<Vec<_>>()));
    }
    text
}
