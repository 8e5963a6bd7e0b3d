//! `azora`: the command line. Parses, asks the daemon, prints.

mod args;
mod config;
mod dht;
mod firewall;
mod generate;
mod interface;
mod key;
mod netcheck;
mod node;
mod output;
mod peers;
mod ping;
mod probe;
mod report;
mod socket;
mod status;
#[cfg(test)]
mod tests;
mod trace;

use std::process::ExitCode;

use auramesh::config::{Given, without_empty_variables};
use auramesh::control::exit::Exit;
use clap::parser::ValueSource;
use clap::{CommandFactory, FromArgMatches};

use crate::args::{Arguments, Command};
use crate::output::{Fault, Outcome};
use crate::socket::Socket;

fn main() -> ExitCode {
    let command = without_empty_variables(Arguments::command());
    let parsed = command.try_get_matches().and_then(|matches| {
        let by_variable = matches.value_source("socket") == Some(ValueSource::EnvVariable);
        Ok((Arguments::from_arg_matches(&matches)?, by_variable))
    });
    let (arguments, by_variable) = match parsed {
        Ok(parsed) => parsed,
        Err(told) => return tell(&told).into(),
    };
    run(arguments, by_variable).unwrap_or_else(Fault::report).into()
}

/// Help, version or wrong usage, as clap words it.
fn tell(message: &clap::Error) -> Exit {
    // Whoever closed the output does not want it.
    let _ = message.print();
    if message.use_stderr() { Exit::Usage } else { Exit::Ok }
}

/// `by_variable`: the socket was named by the environment.
fn run(arguments: Arguments, by_variable: bool) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Fault::failed(format!("cannot start: {error}"), "free some file descriptors"))?;
    runtime.block_on(dispatch(arguments, by_variable))
}

async fn dispatch(arguments: Arguments, by_variable: bool) -> Outcome {
    let Arguments { socket, config, command } = arguments;
    let named = socket.clone().map(if by_variable { Given::environment } else { Given::flag });
    let socket = Socket::new(socket, config.as_deref());
    let outcome = match command {
        Command::Id(format) => node::id(&socket, format).await,
        Command::Ip(format) => node::ip(&socket, format).await,
        Command::Inspect { target, format } => node::inspect(&socket, target, format).await,
        Command::Key { state_dir, command } => key::run(state_dir, config.as_deref(), command),
        Command::Up => interface::up(&socket).await,
        Command::Down => interface::down(&socket).await,
        Command::Wait { timeout, format } => interface::wait(&socket, timeout, format).await,
        Command::Status { peers, drops, check: None, format } => {
            status::show(&socket, peers, drops, format).await
        }
        Command::Status { check: Some(check), .. } => status::check(&socket, check).await,
        Command::Peers { format, command } => peers::run(&socket, format, command).await,
        Command::Ping(arguments) => ping::run(&socket, &arguments).await,
        Command::Dht { command } => dht::run(&socket, command).await,
        Command::Probe { target, format } => probe::run(&socket, target, format).await,
        Command::Netcheck(format) => netcheck::run(&socket, format).await,
        Command::Trace { target, format } => trace::run(&socket, target, format).await,
        Command::Firewall { command } => firewall::run(&socket, command).await,
        Command::Config { command } => config::run(config, named, command),
        Command::Completions { shell } => generate::completions(shell),
        Command::Report { with_addresses, format } => {
            report::run(&socket, config, with_addresses, format).await
        }
        Command::Man { directory } => generate::man(&directory),
    };
    outcome.map_err(|fault| fault.hinted(&socket))
}
