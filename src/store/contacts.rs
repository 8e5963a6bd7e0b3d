//! `peers`: the contacts that a restarted node tries first.
//!
//! ```text
//! azora-contacts-1 ⏎
//! node ID ␠ X25519 public key (both base32) ␠ IP:PORT ⏎      up to 1,000 times
//! ```
//!
//! Nothing here is precious or believed: a key that is wrong makes a handshake fail. A line that cannot be read is
//! skipped and counted, the others stay.

use super::{Error, StateDir};
use crate::proto::identity::base32;
use crate::proto::wire::control::Contact;

/// Name of the file.
const FILE: &str = "peers";
const HEADER: &str = "azora-contacts-1";
/// Contacts kept: half of a full table's worth, enough to find the network again after most have gone.
pub const CONTACTS_MAX: usize = 1000;
/// Bytes of one line: two keys and the longest endpoint with its scope.
const LINE_BYTES_MAX: usize = 2 * 53 + 80;
const FILE_BYTES_MAX: u64 = (CONTACTS_MAX as u64 + 1) * LINE_BYTES_MAX as u64;

/// What [`StateDir::load_contacts`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadedContacts {
    /// The contacts in the order in which they were saved.
    pub contacts: Vec<Contact>,
    /// Lines that could not be read.
    pub skipped: usize,
}

impl StateDir {
    /// Replaces the saved contacts by the first [`CONTACTS_MAX`] of these.
    ///
    /// # Errors
    /// When the file cannot be written; the old one is there still.
    pub fn save_contacts(&self, contacts: &[Contact]) -> Result<(), Error> {
        let mut text = format!("{HEADER}\n");
        for Contact { node_id, x25519, endpoint } in contacts.iter().take(CONTACTS_MAX) {
            text.push_str(&format!("{node_id} {} {endpoint}\n", base32().encode(x25519)));
        }
        self.write(FILE, text.as_bytes())
    }

    /// Reads the saved contacts; none when none were saved.
    ///
    /// # Errors
    /// When the file exists and cannot be read at all. A node can start without it.
    pub fn load_contacts(&self) -> Result<LoadedContacts, Error> {
        let Some(content) = self.read(FILE, FILE_BYTES_MAX)? else { return Ok(LoadedContacts::default()) };
        let damaged = |cause| Error::Damaged { path: self.path().join(FILE), cause };
        let text = str::from_utf8(&content).map_err(|_| damaged("it is not text"))?;
        let mut lines = text.lines();
        if lines.next() != Some(HEADER) {
            return Err(damaged("it does not begin with `azora-contacts-1`"));
        }
        let mut loaded = LoadedContacts::default();
        for line in lines {
            match parse(line).filter(|_| loaded.contacts.len() < CONTACTS_MAX) {
                Some(contact) => loaded.contacts.push(contact),
                None => loaded.skipped += 1,
            }
        }
        Ok(loaded)
    }
}

fn parse(line: &str) -> Option<Contact> {
    let mut words = line.split(' ').take(3);
    let node_id = words.next()?.parse().ok()?;
    let x25519 = base32().decode(words.next()?.as_bytes()).ok()?.try_into().ok()?;
    let endpoint = words.next()?.parse().ok()?;
    Some(Contact { node_id, x25519, endpoint }).filter(|_| line.len() <= LINE_BYTES_MAX)
}
