//! The file that holds the network's secret.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use zeroize::Zeroizing;

use super::Error;
use super::value::{SECRET_BYTES_MAX, Secret};

/// Bits of a mode that let others than the owner and its group in.
const OTHERS: u32 = 0o007;
/// Bytes read at most: the longest secret and white space around it.
const READ_MAX: u64 = 2 * SECRET_BYTES_MAX as u64;

/// Reads it. A file that every user of the machine reads keeps no secret.
pub(super) fn read(path: &Path) -> Result<Secret, Error> {
    let failed = |cause: String| Error::Secret { path: path.into(), cause };
    let file = File::open(path).map_err(|error| failed(error.to_string()))?;
    let mode = file.metadata().map_err(|error| failed(error.to_string()))?.permissions().mode();
    if mode & OTHERS != 0 {
        return Err(failed(format!("every user of this machine may open it (mode {:o})", mode & 0o777)));
    }
    let mut text = Zeroizing::new(String::new());
    file.take(READ_MAX).read_to_string(&mut text).map_err(|error| failed(error.to_string()))?;
    text.parse().map_err(|error: super::InvalidValue| failed(error.to_string()))
}
