//! What reaches the terminal: text, tables, JSON, and errors with their next step.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::time::Duration;

use auramesh::control::client;
use auramesh::control::exit::Exit;
use auramesh::proto::identity::NodeId;
use serde::Serialize;

use crate::socket::Socket;

/// Characters of a node ID that people see where the whole would not fit.
const SHORT_ID_CHARS: usize = 10;

/// Why a command ends early.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// To be told.
    Failed {
        /// How the program ends.
        exit: Exit,
        /// Cause, one line.
        message: String,
        /// What to try next.
        next_step: String,
    },
    /// Whoever read the output went away: nothing to tell, nobody to tell it.
    Unread,
}

pub(crate) type Outcome = Result<Exit, Fault>;

impl Fault {
    pub(crate) fn failed(message: impl ToString, next_step: impl Into<String>) -> Self {
        Self::new(Exit::Failed, message, next_step)
    }

    pub(crate) fn new(exit: Exit, message: impl ToString, next_step: impl Into<String>) -> Self {
        Self::Failed { exit, message: message.to_string(), next_step: next_step.into() }
    }

    /// With hints that can be typed here.
    pub(crate) fn hinted(self, socket: &Socket) -> Self {
        match self {
            Self::Failed { exit, message, next_step } => {
                Self::Failed { exit, message: socket.hint(&message), next_step: socket.hint(&next_step) }
            }
            Self::Unread => Self::Unread,
        }
    }

    /// Tells about it on stderr, and how the program ends.
    pub(crate) fn report(self) -> Exit {
        match self {
            Self::Unread => Exit::Ok,
            Self::Failed { exit, message, next_step } => {
                let mut text = format!("azora: {message}\n");
                if !next_step.is_empty() {
                    let _ = writeln!(text, "  try: {next_step}");
                }
                complain(&text);
                exit
            }
        }
    }
}

impl From<client::Error> for Fault {
    fn from(error: client::Error) -> Self {
        let join;
        let (exit, next_step) = match &error {
            client::Error::NoDaemon { .. } => (
                Exit::NoDaemon,
                "start it (scripts/run, or sudo systemctl start azora), or name its socket with --socket; if it ran before, its log \
                 says why it ended (journalctl -u azora)",
            ),
            client::Error::NotASocket { .. } => (
                Exit::NoDaemon,
                "name the socket that the daemon was started with: --socket, or AZORA_SOCKET",
            ),
            client::Error::NotPermitted { group: Some(group), .. } => {
                join = format!("run the command with sudo, or join the group {group}, which may read");
                (Exit::Failed, join.as_str())
            }
            client::Error::NotPermitted { group: None, .. } => (Exit::Failed, "run the command with sudo"),
            client::Error::Failed(failure) => (Exit::Failed, failure.next_step.as_str()),
            client::Error::Answer(_) => (Exit::Failed, "use an azora of the same version as the daemon"),
            client::Error::Timeout { .. } => (
                Exit::Failed,
                "ps -eo pid,stat,pcpu,args | grep azora-meshing shows a process that is stopped (T: kill -CONT PID lets it go on) or \
                 overloaded; its log (journalctl -u azora) may say more, and sudo systemctl restart azora starts it anew",
            ),
            client::Error::Io(_) | client::Error::Closed | client::Error::TooLong | _ => {
                (Exit::Failed, "look at the daemon's log (journalctl -u azora) and try again")
            }
        };
        Self::new(exit, &error, next_step)
    }
}

/// What to try after a failure to write: with a full disk it is always the same.
pub(crate) fn after_writing(error: &io::Error, otherwise: &str) -> String {
    let full = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
    if full { "free some space, then try again".into() } else { otherwise.into() }
}

/// Writes to stderr; a closed one is no reason to fail.
pub(crate) fn complain(text: &str) {
    let _ = io::stderr().write_all(text.as_bytes());
}

/// Writes to stdout at once.
pub(crate) fn print(text: &str) -> Result<(), Fault> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Fault::Unread),
        Err(error) => Err(Fault::failed(format!("cannot write the output: {error}"), "write it elsewhere")),
    }
}

/// Writes one line of JSON.
pub(crate) fn print_json<T: Serialize>(value: &T) -> Result<(), Fault> {
    let json = serde_json::to_string(value)
        .map_err(|error| Fault::failed(format!("the answer has no JSON form: {error}"), ""))?;
    print(&format!("{json}\n"))
}

/// JSON or the text for people.
pub(crate) fn show<T: Serialize>(value: &T, json: bool, human: impl FnOnce(&T) -> String) -> Outcome {
    if json {
        print_json(value)?
    } else {
        print(&human(value))?
    }
    Ok(Exit::Ok)
}

/// Rows with aligned columns; the last column is not padded.
pub(crate) fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let widths: [usize; N] =
        std::array::from_fn(|i| rows.iter().map(|row| row[i].chars().count()).max().unwrap_or(0));
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            let _ = write!(line, "{cell:width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Values with commas, or a dash.
pub(crate) fn joined<T: ToString>(values: impl IntoIterator<Item = T>) -> String {
    let texts: Vec<_> = values.into_iter().map(|value| value.to_string()).collect();
    if texts.is_empty() { "-".into() } else { texts.join(", ") }
}

/// The value, or a dash.
pub(crate) fn or_dash<T>(value: Option<T>, text: impl FnOnce(T) -> String) -> String {
    value.map_or_else(|| "-".into(), text)
}

/// The head of a node ID.
pub(crate) fn short(node_id: &NodeId) -> String {
    node_id.to_string().chars().take(SHORT_ID_CHARS).collect()
}

/// Milliseconds with three digits.
pub(crate) fn milliseconds(value: f64) -> String {
    format!("{value:.3} ms")
}

/// Bytes in the unit that fits.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = UNITS[0];
    for next in &UNITS[1..] {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    format!("{value:.1} {unit}")
}

/// Seconds in the unit that fits.
pub(crate) fn age(seconds: f64) -> String {
    let whole = Duration::try_from_secs_f64(seconds).unwrap_or_default().as_secs();
    match whole {
        0..60 => format!("{seconds:.1} s"),
        60..3600 => format!("{} min", whole / 60),
        3600..86_400 => format!("{} h", whole / 3600),
        _ => format!("{} d", whole / 86_400),
    }
}
