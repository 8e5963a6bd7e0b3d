//! `azora key`: the identity file, without the daemon.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use auramesh::config::{Config, DEFAULT_STATE_DIR};
use auramesh::control::exit::Exit;
use auramesh::control::message::OwnNode;
use auramesh::host::entropy;
use auramesh::proto::identity::Identity;
use auramesh::store::{self, StateDir};
use zeroize::Zeroizing;

use crate::args::{Force, KeyCommand};
use crate::config::load_if_usable;
use crate::node::{node, own_table};
use crate::output::{Fault, Outcome, print, show};

/// Longest text that `import` reads, in bytes.
const IMPORT_BYTES_MAX: u64 = 4096;

pub(crate) fn run(state_dir: Option<PathBuf>, config: Option<&Path>, command: KeyCommand) -> Outcome {
    let directory = directory(state_dir, config)?;
    match command {
        KeyCommand::Generate(Force { force }) => {
            let state = StateDir::open(&directory)?;
            let seed = entropy::seed();
            let made = if force { state.replace_identity(seed)? } else { state.create_identity(seed)? };
            tell(&made, &directory)
        }
        KeyCommand::Show(format) => {
            show(&node(load(&directory)?.node_id()), format.json, |own| of_file(own, &directory))
        }
        KeyCommand::Export => {
            print(&store::export(&load(&directory)?))?;
            Ok(Exit::Ok)
        }
        KeyCommand::Import { file, force } => {
            let text = read(&file).map_err(|error| {
                let file = file.display();
                Fault::failed(
                    format!("cannot read {file}: {error}"),
                    "name the file that `azora key export` made",
                )
            })?;
            tell(&StateDir::open(&directory)?.import_identity(&text, force.force)?, &directory)
        }
    }
}

impl From<store::Error> for Fault {
    /// The texts of `store` name the next step themselves, but to a daemon when two want one directory.
    fn from(error: store::Error) -> Self {
        let store::Error::InUse { path, pid } = &error else { return Self::failed(error, "") };
        let process = pid.map(|pid| format!(" (process {pid})")).unwrap_or_default();
        Self::failed(
            format!(
                "{} is in use by a running azora-meshing-daemon{process}, which keeps the key that it has",
                path.display()
            ),
            "stop that daemon first, or name another directory with --state-dir",
        )
    }
}

fn directory(given: Option<PathBuf>, config: Option<&Path>) -> Result<PathBuf, Fault> {
    let of = |config: Option<Config>| {
        config.map_or_else(|| DEFAULT_STATE_DIR.into(), |config| config.node.state_dir)
    };
    given.map_or_else(|| load_if_usable(config).map(of), Ok)
}

fn load(directory: &Path) -> Result<Identity, Fault> {
    StateDir::open_to_read(directory)?.load_identity()?.ok_or_else(|| {
        Fault::failed(
            format!("there is no identity in {}", directory.display()),
            "`azora key generate` makes one, and so does the first start of the daemon",
        )
    })
}

fn tell(identity: &Identity, directory: &Path) -> Outcome {
    print(&of_file(&node(identity.node_id()), directory))?;
    Ok(Exit::Ok)
}

/// A daemon that runs with another directory is another node.
fn of_file(own: &OwnNode, directory: &Path) -> String {
    own_table(own) + &format!("file     {}\n", directory.join(store::IDENTITY_FILE).display())
}

fn read(file: &Path) -> io::Result<Zeroizing<String>> {
    let mut text = Zeroizing::new(String::with_capacity(IMPORT_BYTES_MAX as usize));
    if file == Path::new("-") {
        io::stdin().take(IMPORT_BYTES_MAX).read_to_string(&mut text)?;
    } else {
        File::open(file)?.take(IMPORT_BYTES_MAX).read_to_string(&mut text)?;
    }
    Ok(text)
}
