//! `peers`: the contacts that a restarted node tries first.
//!
//! ```text
//! azora-contacts-1 ⏎
//! record (base64url, no padding) ␠ IP:PORT ⏎      up to 1,000 times
//! ```
//!
//! A record is a signed node record as it came over the wire; it is judged by whoever uses it. Nothing here is
//! precious: a line that cannot be read is skipped and counted, the others stay.

use std::net::SocketAddr;

use data_encoding::BASE64URL_NOPAD;

use super::{Error, StateDir};

/// Name of the file.
const FILE: &str = "peers";
const HEADER: &str = "azora-contacts-1";
/// Contacts kept: half of a full table's worth, enough to find the network again after most have gone.
pub const CONTACTS_MAX: usize = 1000;
/// Bytes of one record; node records have at most 640.
const RECORD_BYTES_MAX: usize = 1024;
/// Bytes of one line: a record in base64 and the longest endpoint with its scope.
const LINE_BYTES_MAX: usize = RECORD_BYTES_MAX.div_ceil(3) * 4 + 80;
const FILE_BYTES_MAX: u64 = (CONTACTS_MAX as u64 + 1) * LINE_BYTES_MAX as u64;

/// A contact as it is saved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CachedContact {
    /// Its signed node record in wire form, at most 1,024 bytes.
    pub record: Vec<u8>,
    /// Where it was last heard.
    pub endpoint: SocketAddr,
}

/// What [`StateDir::load_contacts`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadedContacts {
    /// The contacts in the order in which they were saved.
    pub contacts: Vec<CachedContact>,
    /// Lines that could not be read.
    pub skipped: usize,
}

impl StateDir {
    /// Replaces the saved contacts by the first [`CONTACTS_MAX`] of these. Records that are too long are left out.
    ///
    /// # Errors
    /// When the file cannot be written; the old one is there still.
    pub fn save_contacts(&self, contacts: &[CachedContact]) -> Result<(), Error> {
        let mut text = format!("{HEADER}\n");
        for contact in contacts.iter().filter(|c| c.record.len() <= RECORD_BYTES_MAX).take(CONTACTS_MAX) {
            BASE64URL_NOPAD.encode_append(&contact.record, &mut text);
            text.push_str(&format!(" {}\n", contact.endpoint));
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

fn parse(line: &str) -> Option<CachedContact> {
    let (record, endpoint) = line.split_once(' ')?;
    if line.len() > LINE_BYTES_MAX {
        return None;
    }
    let record = BASE64URL_NOPAD.decode(record.as_bytes()).ok()?;
    let fits = !record.is_empty() && record.len() <= RECORD_BYTES_MAX;
    Some(CachedContact { record, endpoint: endpoint.parse().ok()? }).filter(|_| fits)
}
