//! `azora config`: the file, without the daemon.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use auramesh::config::{Config, DEFAULT_FILE, EXAMPLE, Given, Overrides, Setting};
use auramesh::control::exit::Exit;
use serde::Serialize;

use crate::args::{ConfigCommand, Force, ShowArguments};
use crate::output::{Fault, Outcome, after_writing, print, print_json, table};

pub(crate) fn run(
    config: Option<PathBuf>,
    socket: Option<Given<PathBuf>>,
    command: ConfigCommand,
) -> Outcome {
    match command {
        ConfigCommand::Check { file } => check(file.or(config)),
        ConfigCommand::Show(ShowArguments { state_dir, log, format }) => {
            let config = load_with(Overrides {
                file: config.map(Given::flag),
                socket,
                state_dir: state_dir.map(Given::environment),
                log: log.map(Given::environment),
                ..Overrides::default()
            })?;
            if format.json {
                print_json(&config.settings().iter().map(SettingLine::from).collect::<Vec<_>>())?;
            } else {
                print(&settings_text(&config))?;
            }
            Ok(Exit::Ok)
        }
        ConfigCommand::Init { file, force: Force { force } } => {
            init(&file.or(config).unwrap_or_else(|| DEFAULT_FILE.into()), force)
        }
    }
}

/// The configuration that a daemon started now would use.
pub(crate) fn load(file: Option<PathBuf>) -> Result<Config, Fault> {
    load_with(Overrides { file: file.map(Given::flag), ..Overrides::default() })
}

fn load_with(overrides: Overrides) -> Result<Config, Fault> {
    Config::load(&overrides).map_err(|error| {
        let next_step = error.next_step();
        Fault::new(Exit::Usage, error, next_step)
    })
}

/// As [`load`]; `None` for a damaged file that nobody named, which keeps nobody from using the defaults. Whoever names
/// one means that one.
pub(crate) fn load_if_usable(file: Option<&Path>) -> Result<Option<Config>, Fault> {
    match load(file.map(Path::to_path_buf)) {
        Err(_) if file.is_none() => Ok(None),
        loaded => loaded.map(Some),
    }
}

/// A setting as JSON.
#[derive(Serialize)]
pub(crate) struct SettingLine {
    key: &'static str,
    value: String,
    origin: String,
}

impl From<&Setting> for SettingLine {
    fn from(setting: &Setting) -> Self {
        Self { key: setting.key, value: setting.value.clone(), origin: setting.origin.to_string() }
    }
}

/// TOML with the origin of each value as a comment.
pub(crate) fn settings_text(config: &Config) -> String {
    let rows: Vec<_> = config
        .settings()
        .into_iter()
        .map(|setting| [format!("{} = {}", setting.key, setting.value), format!("# {}", setting.origin)])
        .collect();
    table(&rows)
}

fn check(file: Option<PathBuf>) -> Outcome {
    let config = load(file)?;
    match config.file() {
        Some(path) => print(&format!("{}: ok\n", path.display()))?,
        None => print(&format!("{DEFAULT_FILE} does not exist: the defaults are used\n"))?,
    }
    Ok(Exit::Ok)
}

fn init(path: &Path, force: bool) -> Outcome {
    write_example(path, force).map_err(|error| {
        let at = path.display();
        if error.kind() == io::ErrorKind::AlreadyExists {
            let next = "add --force to overwrite it, or name another file: azora config init FILE";
            return Fault::failed(format!("{at} exists already"), next);
        }
        let next = "run the command with sudo, or name another file: azora config init FILE";
        Fault::failed(format!("cannot write {at}: {error}"), after_writing(&error, next))
    })?;
    print(&format!("wrote {}\n", path.display()))?;
    Ok(Exit::Ok)
}

fn write_example(path: &Path, force: bool) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    let mut file: File = if force {
        OpenOptions::new().write(true).create(true).truncate(true).open(path)?
    } else {
        OpenOptions::new().write(true).create_new(true).open(path)?
    };
    let written = file.write_all(EXAMPLE.as_bytes()).and_then(|()| file.sync_all());
    if written.is_err() && !force {
        // A part of it would be taken for a configuration.
        let _ = fs::remove_file(path);
    }
    written
}
