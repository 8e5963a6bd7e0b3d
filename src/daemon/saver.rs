//! Saves the known contacts, so that a restarted node finds the network again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::sleep;

use crate::engine::Handle;
use crate::proto::wire::control::Contact;
use crate::store::StateDir;

/// The first contacts are saved soon: a crash may follow.
const FIRST_WAIT: Duration = Duration::from_secs(3);
/// Wait between two looks once there is something saved.
const WAIT: Duration = Duration::from_secs(60);

/// The saving task.
pub(super) struct Saver {
    handle: Handle,
    state: Arc<StateDir>,
    failed: Arc<AtomicBool>,
}

impl Saver {
    pub(super) fn new(handle: Handle, state: Arc<StateDir>) -> Self {
        Self { handle, state, failed: Arc::default() }
    }

    /// True while the last attempt to save failed.
    pub(super) fn failed(&self) -> Arc<AtomicBool> {
        self.failed.clone()
    }

    pub(super) async fn run(self) {
        let mut saved: Vec<Contact> = Vec::new();
        loop {
            let failed = self.failed.load(Ordering::Relaxed);
            sleep(if saved.is_empty() && !failed { FIRST_WAIT } else { WAIT }).await;
            let Ok(mut known) = self.handle.with(|node, _, _| node.known()).await else { return };
            known.sort();
            if !is_due(&known, &saved, failed) {
                continue;
            }
            let written = write(self.state.clone(), known.clone()).await;
            self.failed.store(!written, Ordering::Relaxed);
            if written {
                saved = known;
            }
        }
    }
}

/// Whether to write: something is new, or only another try tells that the disk works again.
pub(super) fn is_due(known: &[Contact], saved: &[Contact], failed: bool) -> bool {
    failed || known != saved
}

/// Saves what the node knows now.
pub(super) async fn save(handle: &Handle, state: &Arc<StateDir>) {
    if let Ok(known) = handle.with(|node, _, _| node.known()).await
        && !known.is_empty()
    {
        write(state.clone(), known).await;
    }
}

/// Away from the runtime's only thread: the disk may take its time, and handshakes do not wait for it.
async fn write(state: Arc<StateDir>, known: Vec<Contact>) -> bool {
    match spawn_blocking(move || state.save_contacts(&known)).await {
        Ok(Ok(())) => true,
        Ok(Err(error)) => {
            tracing::warn!(%error, "the known contacts are not saved");
            false
        }
        Err(error) => {
            tracing::error!(%error, "the known contacts are not saved");
            false
        }
    }
}
