//! `identity.key`: the seed, and the node ID as its check.
//!
//! ```text
//! azora-identity-1 ␠ seed ␠ node id ⏎        16 + 1 + 52 + 1 + 52 + 1 = 123 bytes, nothing else
//! ```
//!
//! Both 32-byte values are lower-case base32 without padding, like node IDs everywhere. `azora key export` prints
//! exactly this line and `azora key import` reads it.

use zeroize::Zeroizing;

use super::{Error, StateDir};
use crate::proto::identity::{Identity, NodeId, base32};

/// Name of the file.
pub const FILE: &str = "identity.key";
const TAG: &str = "azora-identity-1";
/// Characters of 32 bytes in base32.
const TEXT_LEN: usize = 52;
/// Bytes of the whole line, its end included.
const LINE_LEN: usize = TAG.len() + 2 * (1 + TEXT_LEN) + 1;
/// Longest file that is looked at, in bytes.
const FILE_BYTES_MAX: u64 = 4096;

impl StateDir {
    /// Reads the identity; `None` when none has ever been made here.
    ///
    /// # Errors
    /// [`Error::Damaged`] or [`Error::Untrusted`] when there is one that must not be used.
    pub fn load_identity(&self) -> Result<Option<Identity>, Error> {
        let Some(content) = self.read(FILE, FILE_BYTES_MAX)? else { return Ok(None) };
        let identity = parse_line(&content);
        identity.map(Some).map_err(|cause| Error::Damaged { path: self.path().join(FILE), cause })
    }

    /// Saves a new identity made of `seed`.
    ///
    /// # Errors
    /// [`Error::Exists`] when there is one, sound or not.
    pub fn create_identity(&self, seed: [u8; 32]) -> Result<Identity, Error> {
        if self.exists(FILE)? {
            return Err(Error::Exists { path: self.path().join(FILE) });
        }
        self.replace_identity(seed)
    }

    /// Saves an identity made of `seed` in place of whatever is there.
    ///
    /// # Errors
    /// When it cannot be written; the old one is there still.
    pub fn replace_identity(&self, seed: [u8; 32]) -> Result<Identity, Error> {
        let identity = Identity::from_seed(seed);
        self.write(FILE, export(&identity).as_bytes())?;
        Ok(identity)
    }

    /// Reads the identity, or makes one of the seed that `fresh` gives when none has ever been made here.
    ///
    /// # Errors
    /// As [`StateDir::load_identity`]: nothing is made in place of a damaged one.
    pub fn load_or_create_identity(&self, fresh: impl FnOnce() -> [u8; 32]) -> Result<Identity, Error> {
        match self.load_identity()? {
            Some(identity) => Ok(identity),
            None => self.create_identity(fresh()),
        }
    }

    /// Saves an exported identity; `replace` allows it to take the place of another.
    ///
    /// # Errors
    /// [`Error::Import`] when `text` is none, [`Error::Exists`] when there is another and `replace` is false.
    pub fn import_identity(&self, text: &str, replace: bool) -> Result<Identity, Error> {
        let seed = Zeroizing::new(*parse(text)?.seed());
        if replace { self.replace_identity(*seed) } else { self.create_identity(*seed) }
    }
}

/// The line that holds an identity, its end included. Secret.
pub fn export(identity: &Identity) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::with_capacity(LINE_LEN));
    text.push_str(TAG);
    text.push(' ');
    base32().encode_append(identity.seed(), &mut text);
    text.push(' ');
    base32().encode_append(identity.node_id().as_bytes(), &mut text);
    text.push('\n');
    text
}

/// The identity of an exported line; white space around it does not count.
///
/// # Errors
/// [`Error::Import`], without any of the text in it.
pub fn parse(text: &str) -> Result<Identity, Error> {
    let mut line = Zeroizing::new(String::with_capacity(text.len() + 1));
    line.push_str(text.trim());
    line.push('\n');
    parse_line(line.as_bytes()).map_err(|cause| Error::Import { cause })
}

fn parse_line(line: &[u8]) -> Result<Identity, &'static str> {
    if line.is_empty() {
        return Err("it is empty");
    }
    let Some(rest) = line.strip_prefix(TAG.as_bytes()).and_then(|rest| rest.strip_prefix(b" ")) else {
        return Err("it does not begin with `azora-identity-1`");
    };
    if line.len() < LINE_LEN {
        return Err("it is cut short");
    }
    let (seed, rest) = rest.split_at(TEXT_LEN);
    let (space, rest) = rest.split_at(1);
    let (node_id, end) = rest.split_at(TEXT_LEN);
    if space != b" " || end != b"\n" {
        return Err("it is not one line of three words");
    }
    let seed = decode(seed).ok_or("the seed is not base32")?;
    let node_id = decode(node_id).ok_or("the node ID is not base32")?;
    let identity = Identity::from_seed(*seed);
    if identity.node_id() != NodeId(*node_id) {
        return Err("the node ID does not belong to the seed");
    }
    Ok(identity)
}

fn decode(text: &[u8]) -> Option<Zeroizing<[u8; 32]>> {
    let mut bytes = Zeroizing::new([0; 32]);
    let len = base32().decode_mut(text, bytes.as_mut()).ok()?;
    (len == bytes.len()).then_some(bytes)
}
