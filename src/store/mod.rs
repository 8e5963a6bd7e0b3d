//! What survives a restart: the identity, the known contacts, the firewall rules added at run time.
//!
//! One directory, mode 0700, one daemon at a time:
//!
//! ```text
//! lock           held with flock(2) as long as a daemon lives; names its process
//! identity.key   one line:   azora-identity-1 <seed> <node id>\n       32 bytes each as 52 characters of base32
//! peers          azora-contacts-1\n   then a line for each contact:  <node ID> <X25519 key> <IP:PORT>\n
//! firewall       azora-firewall-1\n   then a line for each rule, in the words of `azora firewall add`
//! *.tmp          a file that was being written when the power went; removed at the next start
//! ```
//!
//! Rules that hold for every file:
//!
//! - **Written whole or not at all**: a new file beside the old one, fsync, rename, fsync of the directory. A full
//!   disk or a crash leaves the old file as it was, and the caller an error to show.
//! - **Private**: mode 0600 is set on the open descriptor before the first byte; symbolic links are not followed;
//!   a file of another owner, of a looser mode, or that is no regular file is refused with one line that says what
//!   to type.
//! - **Never guessed**: the node ID beside the seed is its check. An identity file that is empty, half-written or
//!   altered is an error, and no new identity takes its place: a new key is a new address, for good.
//!
//! Secrets are wiped from memory after use and appear in no error text. Left out: chunks and the quorum log, which
//! come with their modules; encryption of the seed at rest, which a daemon that starts alone could not undo.

mod contacts;
mod directory;
mod firewall;
mod identity;

pub use contacts::{CONTACTS_MAX, LoadedContacts};
pub use directory::StateDir;
pub use firewall::RULES_MAX;
pub use identity::{FILE as IDENTITY_FILE, export, parse};

use std::io;
use std::path::PathBuf;

/// Why the state directory could not be read or written. Every text names the file, the cause and the next step.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A system call failed.
    #[error("cannot {action} {path}: {source}{}", next_step(action, source))]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The state directory is something else, or others could write to it.
    #[error("{path} cannot be the state directory: {cause}")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What is wrong and what to do.
        cause: String,
    },
    /// Another process holds the lock.
    #[error(
        "{path} is in use by another azora-meshing-daemon{}: stop that one, or give this one its own directory with --state-dir",
        match pid { Some(pid) => format!(" (process {pid})"), None => String::new() }
    )]
    InUse {
        /// The directory.
        path: PathBuf,
        /// The holder, if it said so.
        pid: Option<u32>,
    },
    /// The directory was opened for reading only.
    #[error("{path} was opened for reading only")]
    ReadOnly {
        /// The directory.
        path: PathBuf,
    },
    /// The file could be read or replaced by others, so it is not trusted.
    #[error("{path} is refused: {cause}")]
    Untrusted {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        cause: String,
    },
    /// The file's content is not what was written.
    #[error(
        "{path} is damaged: {cause}; restore it from a backup, or remove it yourself{}",
        consequence(path)
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Which check failed.
        cause: &'static str,
    },
    /// There is an identity already.
    #[error(
        "{path} exists: it is this node's identity and address, and replacing it cannot be undone; add --force if you mean it"
    )]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// The text to import is no exported identity.
    #[error("this is no exported identity: {cause}; expected one line as printed by `azora key export`")]
    Import {
        /// Which check failed.
        cause: &'static str,
    },
    /// A rule that cannot be one line of the file.
    #[error(
        "a firewall rule has to be one line of at most {} bytes, and there can be {RULES_MAX} of them",
        firewall::RULE_BYTES_MAX
    )]
    Rule,
}

/// What to do about a system call that failed.
fn next_step(action: &str, error: &io::Error) -> &'static str {
    let kind = error.kind();
    if matches!(kind, io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
        "; what was saved before is untouched: free some space and try again"
    } else if kind == io::ErrorKind::PermissionDenied {
        "; run as root or as the user that owns the directory"
    } else if kind == io::ErrorKind::ReadOnlyFilesystem {
        "; choose a writable directory with --state-dir"
    } else if kind == io::ErrorKind::NotADirectory {
        "; name a directory with --state-dir"
    } else if action == "create" {
        "; choose another directory with --state-dir"
    } else if kind == io::ErrorKind::NotFound {
        "; `azora-meshing-daemon` or `azora key generate` creates it"
    } else {
        "; look at `dmesg` for what is wrong with the disk, or choose another directory with --state-dir"
    }
}

/// What removing a damaged file means.
fn consequence(path: &std::path::Path) -> &'static str {
    if path.ends_with(identity::FILE) { " (a new key and a new address are made then)" } else { "" }
}

#[cfg(test)]
mod tests;
