//! `azora-meshing-daemon`: flags, logging, exit code. Everything else is `auramesh::daemon`.

mod args;
mod log;

use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;

use auramesh::config::{self, Config};
use auramesh::control::exit::Exit;
use auramesh::daemon;
use clap::{CommandFactory, FromArgMatches};

use crate::args::Arguments;

fn main() -> ExitCode {
    let command = config::without_empty_variables(Arguments::command());
    let matches = match command.try_get_matches() {
        Ok(matches) => matches,
        Err(told) => return tell(&told).into(),
    };
    match Arguments::from_arg_matches(&matches) {
        Ok(arguments) => run(&arguments, &matches).into(),
        Err(told) => tell(&told).into(),
    }
}

/// Help, version or wrong usage, as clap words it.
fn tell(message: &clap::Error) -> Exit {
    // Whoever closed the output does not want it.
    let _ = message.print();
    if message.use_stderr() { Exit::Usage } else { Exit::Ok }
}

fn run(arguments: &Arguments, matches: &clap::ArgMatches) -> Exit {
    if arguments.man {
        return print(&man_page());
    }
    if let Some(shell) = arguments.completions {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut Arguments::command(), "azora-meshing-daemon", &mut script);
        return print(&script);
    }
    let config = match Config::load(&arguments.overrides(matches)) {
        Ok(config) => config,
        Err(error) => {
            complain(&error, error.next_step());
            return Exit::Usage;
        }
    };
    if arguments.test {
        return print(b"the configuration is ok\n");
    }
    log::start(config.node.log, arguments.journal_stream.as_deref());
    match daemon::run(config) {
        Ok(()) => Exit::Ok,
        Err(error) => {
            complain(&error, "");
            Exit::Failed
        }
    }
}

fn man_page() -> Vec<u8> {
    let mut page = Vec::new();
    // Writing to memory does not fail.
    let _ = clap_mangen::Man::new(Arguments::command()).render(&mut page);
    page
}

fn print(bytes: &[u8]) -> Exit {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Ok(()) => Exit::Ok,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Exit::Ok,
        Err(_) => Exit::Failed,
    }
}

/// The whole chain of causes on stderr, without repeating what a text already says; a closed stderr is no reason to
/// fail.
fn complain(error: &dyn Error, next_step: &str) {
    let mut text = format!("azora-meshing-daemon: {error}");
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    if !next_step.is_empty() {
        text.push_str("\n  try: ");
        text.push_str(next_step);
    }
    text.push('\n');
    let _ = io::stderr().write_all(text.as_bytes());
}
