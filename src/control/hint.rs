//! Commands in texts for people, as they can be typed.

use std::path::Path;

/// Commands that ask the daemon of this machine.
const ASKING: [&str; 11] =
    ["down", "dht", "firewall", "netcheck", "peers", "ping", "probe", "status", "trace", "up", "wait"];

/// Puts `--socket PATH` into every command that asks the daemon; for a socket that is not the default.
pub fn with_socket(text: &str, path: &Path) -> String {
    let mut parts = text.split("azora ");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        out.push_str("azora ");
        let command = part.split(|c: char| !c.is_ascii_lowercase()).next();
        if command.is_some_and(|command| ASKING.contains(&command)) {
            out.push_str(&format!("--socket {} ", path.display()));
        }
        out.push_str(part);
    }
    out
}
