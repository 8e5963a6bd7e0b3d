//! Closed and full outputs: no panic, and no complaint where nobody reads.

use std::process::Command;

use crate::run::{Ran, plain};

/// Runs a line of shell; `$azora` and `$daemon` are the programs.
fn shell(line: &str) -> Ran {
    let mut command: Command = plain("/bin/sh");
    command
        .args(["-c", line])
        .env("PATH", "/usr/bin:/bin")
        .env("azora", env!("CARGO_BIN_EXE_azora"))
        .env("daemon", env!("CARGO_BIN_EXE_azora-meshing-daemon"));
    command.output().unwrap().into()
}

#[test]
fn a_reader_that_goes_away_is_no_fault() {
    for line in [
        "\"$azora\" completions bash | true",
        "\"$azora\" config show | true",
        "\"$azora\" --help | true",
        "\"$daemon\" --man | true",
        "\"$daemon\" --help | true",
    ] {
        let ran = shell(line).exits(0);
        assert_eq!(ran.err, "", "{line}");
    }
}

#[test]
fn closed_outputs_do_not_panic() {
    for line in
        ["\"$azora\" config show >&-", "\"$azora\" config show >&- 2>&-", "\"$daemon\" --test >&- 2>&-"]
    {
        shell(line).exits(0);
    }
    shell("\"$azora\" id --socket /nonexistent >&- 2>&-").exits(3);
    shell("\"$azora\" frobnicate >&- 2>&-").exits(2);
    shell("\"$daemon\" --tun a/b >&- 2>&-").exits(2);
    // A full disk at stderr changes nothing, one at stdout is told.
    shell("\"$azora\" id --socket /nonexistent 2>/dev/full").exits(3);
    shell("\"$azora\" config show >/dev/full").exits(1).complains(&["cannot write the output"]);
}
