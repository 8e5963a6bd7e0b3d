//! Running the two programs.

use std::ffi::OsStr;
use std::io::Write;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// What a program did.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ran {
    /// Asserts the exit code and hands itself on.
    #[track_caller]
    pub(crate) fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{self:?}");
        assert!(!self.err.contains("panicked"), "{self:?}");
        self
    }

    /// Asserts that stderr has every one of the needles, and stdout nothing.
    #[track_caller]
    pub(crate) fn complains(self, needles: &[&str]) -> Self {
        for needle in needles {
            assert!(self.err.contains(needle), "no {needle:?} in {self:?}");
        }
        assert_eq!(self.out, "", "{self:?}");
        self
    }

    /// Standard output as one JSON document.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Self { code: output.status.code().unwrap_or(-1), out: text(output.stdout), err: text(output.stderr) }
    }
}

/// `azora`, independent of this machine's environment and configuration.
pub(crate) fn azora_command() -> Command {
    plain(env!("CARGO_BIN_EXE_azora"))
}

/// `azora-meshing-daemon`, likewise.
pub(crate) fn daemon_command() -> Command {
    plain(env!("CARGO_BIN_EXE_azora-meshing-daemon"))
}

pub(crate) fn plain(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("AZORA_CONFIG", "/dev/null").stdin(Stdio::null());
    command
}

pub(crate) fn azora<S: AsRef<OsStr>>(arguments: &[S]) -> Ran {
    azora_command().args(arguments).output().unwrap().into()
}

pub(crate) fn daemon<S: AsRef<OsStr>>(arguments: &[S]) -> Ran {
    daemon_command().args(arguments).output().unwrap().into()
}

/// Runs `azora` with a text on standard input.
pub(crate) fn azora_fed(arguments: &[&str], input: &str) -> Ran {
    let mut child = azora_command()
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap().into()
}
