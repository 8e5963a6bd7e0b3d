//! Logs to stderr: short lines, with the time (UTC, RFC 3339) unless the journal adds its own.

use std::io::{self, IsTerminal, Write};

use auramesh::config::LogLevel;
use nix::sys::stat::fstat;
use tracing::level_filters::LevelFilter;

/// Starts logging. `journal_stream` is what systemd sets: `device:inode` of the journal's socket.
pub(crate) fn start(level: LogLevel, journal_stream: Option<&str>) {
    let level = match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    let format = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_target(false)
        .with_writer(|| Stderr)
        .with_ansi(io::stderr().is_terminal());
    if journal_stream.is_some_and(is_stderr) {
        format.without_time().init();
    } else {
        format.init();
    }
}

/// Whether stderr is that `device:inode`: the variable is inherited by programs whose stderr goes elsewhere.
fn is_stderr(stream: &str) -> bool {
    fstat(io::stderr()).is_ok_and(|stat| stream == format!("{}:{}", stat.st_dev, stat.st_ino))
}

/// Stderr whose failures nobody needs to hear of: it may be closed, or a file on a full disk.
struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = io::stderr().write_all(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
