//! `firewall`: the rules that `azora firewall add` made while the daemon ran.
//!
//! ```text
//! azora-firewall-1 ⏎
//! a rule in the words of the command line ⏎       up to 1,024 times
//! ```
//!
//! What a rule means is not known here. Unlike contacts, rules are all or nothing: a file that is not whole is an
//! error, because a rule set with a hole in it is not what its owner ordered.

use super::{Error, StateDir};

/// Name of the file.
const FILE: &str = "firewall";
const HEADER: &str = "azora-firewall-1";
/// Rules kept.
pub const RULES_MAX: usize = 1024;
/// Bytes of one rule.
pub(super) const RULE_BYTES_MAX: usize = 256;
const FILE_BYTES_MAX: u64 = (RULES_MAX as u64 + 1) * (RULE_BYTES_MAX as u64 + 1);

impl StateDir {
    /// Replaces the saved rules.
    ///
    /// # Errors
    /// [`Error::Rule`] when one is empty, too long or more than a line, or there are more than [`RULES_MAX`];
    /// when the file cannot be written. The old rules are there still.
    pub fn save_rules(&self, rules: &[String]) -> Result<(), Error> {
        let fits = |rule: &String| {
            !rule.is_empty() && rule.len() <= RULE_BYTES_MAX && !rule.chars().any(char::is_control)
        };
        if rules.len() > RULES_MAX || !rules.iter().all(fits) {
            return Err(Error::Rule);
        }
        let mut text = format!("{HEADER}\n");
        for rule in rules {
            text.push_str(rule);
            text.push('\n');
        }
        self.write(FILE, text.as_bytes())
    }

    /// Reads the saved rules; none when none were saved.
    ///
    /// # Errors
    /// When the file exists and is not whole.
    pub fn load_rules(&self) -> Result<Vec<String>, Error> {
        let Some(content) = self.read(FILE, FILE_BYTES_MAX)? else { return Ok(Vec::new()) };
        let damaged = |cause| Error::Damaged { path: self.path().join(FILE), cause };
        let text = str::from_utf8(&content).map_err(|_| damaged("it is not text"))?;
        let Some(lines) = text.strip_suffix('\n') else { return Err(damaged("it is cut short")) };
        let mut lines = lines.split('\n');
        if lines.next() != Some(HEADER) {
            return Err(damaged("it does not begin with `azora-firewall-1`"));
        }
        Ok(lines.map(String::from).collect())
    }
}
