//! `azora completions`, `azora man`: made of the same flags that are parsed.

use std::path::Path;

use auramesh::control::exit::Exit;
use clap::CommandFactory;
use clap_complete::Shell;

use crate::args::Arguments;
use crate::output::{Fault, Outcome, after_writing, print};

pub(crate) fn completions(shell: Shell) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "azora", &mut script);
    print(&String::from_utf8_lossy(&script))?;
    Ok(Exit::Ok)
}

/// One page for each command.
pub(crate) fn man(directory: &Path) -> Outcome {
    clap_mangen::generate_to(Arguments::command(), directory).map_err(|error| {
        let at = directory.display();
        Fault::failed(
            format!("cannot write man pages to {at}: {error}"),
            after_writing(&error, "name an existing directory"),
        )
    })?;
    Ok(Exit::Ok)
}
