//! How the rest of the daemon talks to the node.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::proto::dht::Outcome;
use crate::proto::identity::{MeshAddress, NodeId};
use crate::proto::node::{Command, Node, PingFailure, PingReply, Target};
use crate::proto::timer::{Instant, WallTime};

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AskError {
    /// The time is over.
    #[error("no answer in {0:?}")]
    Timeout(Duration),
    /// The ping came to nothing.
    #[error(transparent)]
    Ping(#[from] PingFailure),
    /// The node has stopped.
    #[error("the node has stopped")]
    Stopped,
}

type Work = Box<dyn FnOnce(&mut Node, Instant, WallTime) + Send>;

/// A request to the control task.
pub(super) enum Ask {
    With(Work),
    Ping(Target, oneshot::Sender<Result<PingReply, PingFailure>>),
    Trace(NodeId, u8, oneshot::Sender<Result<PingReply, PingFailure>>),
    Lookup(MeshAddress, oneshot::Sender<Outcome>),
}

/// Where an outcome goes.
pub(super) enum Answer {
    Ping(oneshot::Sender<Result<PingReply, PingFailure>>),
    Lookup(oneshot::Sender<Outcome>),
}

impl Answer {
    pub(super) fn is_abandoned(&self) -> bool {
        match self {
            Self::Ping(answer) => answer.is_closed(),
            Self::Lookup(answer) => answer.is_closed(),
        }
    }
}

/// A cheap copy of the way to a node.
#[derive(Clone, Debug)]
pub struct Handle {
    asks: mpsc::Sender<Ask>,
    node_id: NodeId,
}

impl Handle {
    pub(super) const fn new(asks: mpsc::Sender<Ask>, node_id: NodeId) -> Self {
        Self { asks, node_id }
    }

    /// Our name.
    pub const fn node_id(&self) -> NodeId {
        self.node_id
    }

    /// Runs `work` with the node and returns what it returns. It must not wait for anything.
    ///
    /// # Errors
    /// [`AskError::Stopped`].
    pub async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Node, Instant, WallTime) -> T + Send + 'static,
    ) -> Result<T, AskError> {
        let (answer, result) = oneshot::channel();
        let work: Work = Box::new(move |node, now, wall| {
            let _ = answer.send(work(node, now, wall));
        });
        self.asks.send(Ask::With(work)).await.map_err(|_| AskError::Stopped)?;
        result.await.map_err(|_| AskError::Stopped)
    }

    /// Asks a node for a sign of life.
    ///
    /// # Errors
    /// [`AskError::Timeout`], or what the node knows about the failure.
    pub async fn ping(&self, target: Target, patience: Duration) -> Result<PingReply, AskError> {
        let (answer, result) = oneshot::channel();
        self.asks.send(Ask::Ping(target, answer)).await.map_err(|_| AskError::Stopped)?;
        let outcome = timeout(patience, result).await.map_err(|_| AskError::Timeout(patience))?;
        Ok(outcome.map_err(|_| AskError::Stopped)??)
    }

    /// Asks a relay on the way to a node, by its number from 0, for a sign of life.
    ///
    /// # Errors
    /// As for [`Self::ping`].
    pub async fn trace(&self, peer: NodeId, hop: u8, patience: Duration) -> Result<PingReply, AskError> {
        let (answer, result) = oneshot::channel();
        self.asks.send(Ask::Trace(peer, hop, answer)).await.map_err(|_| AskError::Stopped)?;
        let outcome = timeout(patience, result).await.map_err(|_| AskError::Timeout(patience))?;
        Ok(outcome.map_err(|_| AskError::Stopped)??)
    }

    /// Looks up who has an address.
    ///
    /// # Errors
    /// [`AskError::Stopped`]; a lookup always ends by itself.
    pub async fn lookup(&self, address: MeshAddress) -> Result<Outcome, AskError> {
        let (answer, result) = oneshot::channel();
        self.asks.send(Ask::Lookup(address, answer)).await.map_err(|_| AskError::Stopped)?;
        result.await.map_err(|_| AskError::Stopped)
    }

    /// Says goodbye to all peers.
    pub async fn stop(&self) {
        let _ = self.with(|node, now, wall| node.handle_command(now, wall, Command::Stop)).await;
    }
}
