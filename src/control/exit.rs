//! Exit codes of both programs: part of the interface that scripts rely on.

use std::process::ExitCode;

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Exit {
    /// It did what it was asked.
    Ok = 0,
    /// It could not.
    Failed = 1,
    /// Wrong usage or configuration.
    Usage = 2,
    /// No daemon at the socket.
    NoDaemon = 3,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}
