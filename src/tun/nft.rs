//! The program `nft`, which loads and reads the tables of the packet filter that are ours.

use std::io;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::timeout;

/// How long `nft` may take; it answers within milliseconds unless the machine is stuck.
const NFT_DEADLINE: Duration = Duration::from_secs(10);
/// Where packages put `nft`, before the search path of whoever started us.
const NFT_PLACES: [&str; 3] = ["/usr/sbin/nft", "/sbin/nft", "/usr/bin/nft"];

/// Why a table could not be loaded, read or removed.
#[derive(Debug)]
pub(super) enum Error {
    /// The program is not installed.
    Missing,
    /// The first line of its complaint.
    Failed(String),
}

/// Feeds `ruleset` to it, which declares a table in one transaction.
pub(super) async fn load(ruleset: &str) -> Result<(), Error> {
    nft(&["-f", "-"], ruleset).await.map(|_| ())
}

/// Takes a table (`family name`) away; not an error when it is gone already.
pub(super) async fn remove(table: &str) -> Result<(), Error> {
    // Adding before deleting: a table that is gone already is no reason to fail.
    load(&format!("table {table}\ndelete table {table}\n")).await
}

/// The table in nft's words, counters left out; `None` when there is none.
pub(super) async fn list(table: &str) -> Result<Option<String>, Error> {
    let arguments: Vec<&str> = ["-s", "list", "table"].into_iter().chain(table.split(' ')).collect();
    match nft(&arguments, "").await {
        Err(Error::Failed(cause)) if cause.contains("No such file or directory") => Ok(None),
        output => Ok(Some(output?)),
    }
}

async fn nft(arguments: &[&str], input: &str) -> Result<String, Error> {
    let output = match timeout(NFT_DEADLINE, run(arguments, input)).await {
        Ok(Ok(output)) => output,
        Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => return Err(Error::Missing),
        Ok(Err(error)) => return Err(Error::Failed(error.to_string())),
        Err(_) => return Err(Error::Failed(format!("no answer within {} s", NFT_DEADLINE.as_secs()))),
    };
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    Err(Error::Failed(complaint.lines().next().unwrap_or("no reason given").to_string()))
}

async fn run(arguments: &[&str], input: &str) -> io::Result<Output> {
    let program = NFT_PLACES.into_iter().find(|place| Path::new(place).exists()).unwrap_or("nft");
    let mut child = Command::new(program)
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // It may have given up already; its complaint says why.
        let _ = stdin.write_all(input.as_bytes()).await;
    }
    child.wait_with_output().await
}
