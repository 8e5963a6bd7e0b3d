//! The client side: one method for each request.

use std::fs;
use std::future::pending;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::Group;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};

use super::message::{
    DhtStatus, Done, Failure, FirewallMatch, FirewallRule, LookupReport, NetcheckReport, OwnNode, PeerStatus,
    PingOutcome, ProbeReport, Readiness, RefusedFlow, Request, Response, Status, TraceReport,
};
use super::target::Target;
use super::{ANSWER_SLACK, ANSWER_TIMEOUT, RESPONSE_BYTES_MAX};
use crate::proto::identity::NodeId;

/// Root's group.
const ROOT: u32 = 0;

/// Between two attempts to get into the daemon's queue.
const QUEUE_PAUSE: Duration = Duration::from_millis(20);

/// How long a daemon may be silent before the user is told that it is.
const SILENCE: Duration = Duration::from_secs(2);
/// And for how long it may be to a question that takes it no time, while it works on one that does.
const SILENCE_ASKED: Duration = Duration::from_secs(1);

/// A connection to the daemon.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
    path: PathBuf,
    /// Told that the daemon is silent, once for each request, and for how long it is waited for.
    on_silence: Option<fn(&Path, Duration)>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Nobody listens there.
    #[error("no daemon answers at {}: {source}", path.display())]
    NoDaemon {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// What is there is something else.
    #[error("{} is no socket", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The system does not let this user open the socket.
    #[error("not permitted to open {}", path.display())]
    NotPermitted {
        /// The socket.
        path: PathBuf,
        /// The group that may read there.
        group: Option<String>,
    },
    /// Sending or receiving failed.
    #[error("the connection to the daemon broke: {0}")]
    Io(#[from] io::Error),
    /// The daemon closed the connection, because it ended or does not serve this one.
    #[error("the daemon closed the connection without an answer")]
    Closed,
    /// The daemon did not answer in time.
    #[error("the daemon at {} has not answered for {} s: its process is stopped, or overloaded", path.display(), waited.as_secs())]
    Timeout {
        /// Its socket.
        path: PathBuf,
        /// For how long.
        waited: Duration,
    },
    /// The answer is not what this version understands.
    #[error("the daemon's answer is not understood: {0}")]
    Answer(#[from] serde_json::Error),
    /// The answer is longer than [`RESPONSE_BYTES_MAX`].
    #[error("the daemon's answer is longer than {RESPONSE_BYTES_MAX} bytes")]
    TooLong,
    /// The daemon answered that it failed.
    #[error(transparent)]
    Failed(#[from] Failure),
}

impl Client {
    /// Connects to the daemon's socket.
    ///
    /// # Errors
    /// Nobody listens there, or the socket may not be opened.
    pub async fn connect(path: &Path) -> Result<Self, Error> {
        match timeout(ANSWER_TIMEOUT, queue(path)).await {
            Ok(Ok(stream)) => {
                Ok(Self { stream: BufReader::new(stream), path: path.into(), on_silence: None })
            }
            Ok(Err(error)) if error.kind() == io::ErrorKind::PermissionDenied => {
                Err(Error::NotPermitted { path: path.into(), group: group(path) })
            }
            Ok(Err(_)) if fs::metadata(path).is_ok_and(|at| !at.file_type().is_socket()) => {
                Err(Error::NotASocket { path: path.into() })
            }
            Ok(Err(source)) => Err(Error::NoDaemon { path: path.into(), source }),
            Err(_) => Err(Error::Timeout { path: path.into(), waited: ANSWER_TIMEOUT }),
        }
    }

    /// Has `tell` called when the daemon is silent for two seconds, with its socket and how long it is waited for.
    #[must_use]
    pub fn on_silence(mut self, tell: fn(&Path, Duration)) -> Self {
        self.on_silence = Some(tell);
        self
    }

    async fn ask<T: DeserializeOwned>(&mut self, request: Request) -> Result<T, Error> {
        let deadline = request.deadline().unwrap_or(ANSWER_TIMEOUT) + ANSWER_SLACK;
        let (path, tell) = (self.path.clone(), self.on_silence.take());
        let told = async {
            if let Some(tell) = tell {
                silence(&path, &request).await;
                tell(&path, deadline);
            }
            pending().await
        };
        let line = tokio::select! {
            line = timeout(deadline, self.exchange(&request)) => line,
            line = told => line,
        };
        let line = line.map_err(|_| Error::Timeout { path, waited: deadline })??;
        self.on_silence = tell;
        match serde_json::from_slice(&line)? {
            Response::Ok(value) => Ok(value),
            Response::Error(failure) => Err(Error::Failed(failure)),
        }
    }

    async fn exchange(&mut self, request: &Request) -> Result<Vec<u8>, Error> {
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        self.stream.write_all(&line).await?;
        line.clear();
        (&mut self.stream).take(RESPONSE_BYTES_MAX as u64).read_until(b'\n', &mut line).await?;
        match line.last() {
            Some(b'\n') => Ok(line),
            Some(_) if line.len() == RESPONSE_BYTES_MAX => Err(Error::TooLong),
            _ => Err(Error::Closed),
        }
    }
}

/// Ends when the daemon is silent, though it need not be.
async fn silence(path: &Path, request: &Request) {
    sleep(SILENCE).await;
    let takes_time = request.deadline() != Some(ANSWER_TIMEOUT);
    let own = async { Client::connect(path).await?.exchange(&Request::Own).await };
    if takes_time && timeout(SILENCE_ASKED, own).await.is_ok() {
        pending().await
    }
}

/// Connects; in a crowd it waits until the daemon's queue of those who connect has room (`EAGAIN`, connect(2)).
async fn queue(path: &Path) -> io::Result<UnixStream> {
    loop {
        match UnixStream::connect(path).await {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => sleep(QUEUE_PAUSE).await,
            connected => return connected,
        }
    }
}

/// The group whose members may open the socket; none for root's, which nobody is asked to join.
fn group(path: &Path) -> Option<String> {
    // Whoever may not enter its directory sees no more than that.
    let seen = fs::metadata(path).or_else(|_| fs::metadata(path.parent().unwrap_or(path)));
    let gid = seen.ok()?.gid();
    let group = Group::from_gid(gid.into()).ok().flatten();
    group.filter(|_| gid != ROOT).map(|group| group.name)
}

/// One method for each request: its answer's type stands here and nowhere else.
macro_rules! requests {
    ($($(#[$doc:meta])* $method:ident($($argument:ident: $type:ty),*) -> $answer:ty = $request:expr;)*) => {
        impl Client {
            $(
                $(#[$doc])*
                ///
                /// # Errors
                /// The connection broke, or the daemon could not do it.
                pub async fn $method(&mut self $(, $argument: $type)*) -> Result<$answer, Error> {
                    self.ask($request).await
                }
            )*
        }
    };
}

requests! {
    /// The daemon's own node.
    own() -> OwnNode = Request::Own;
    /// Everything about the running node.
    status() -> Status = Request::Status;
    /// Brings the interface up.
    up() -> Done = Request::Up;
    /// Takes the interface down.
    down() -> Done = Request::Down;
    /// Every peer.
    peers() -> Vec<PeerStatus> = Request::Peers;
    /// Adds a peer until the daemon ends.
    peers_add(node_id: NodeId, endpoint: std::net::SocketAddr) -> Done = Request::PeersAdd { node_id, endpoint };
    /// Forgets a peer.
    peers_remove(node_id: NodeId) -> Done = Request::PeersRemove { node_id };
    /// One ping.
    ping(target: Target, timeout_ms: u64, seq: u64, seek_direct: bool) -> PingOutcome =
        Request::Ping { target, timeout_ms, seq, seek_direct };
    /// One walk through the DHT.
    dht_lookup(target: Target) -> LookupReport = Request::DhtLookup { target };
    /// The DHT in detail.
    dht_status() -> DhtStatus = Request::DhtStatus;
    /// How far a connection gets.
    probe(target: Target) -> ProbeReport = Request::Probe { target };
    /// What network the machine is in.
    netcheck() -> NetcheckReport = Request::Netcheck;
    /// The present path to a node.
    trace(target: Target) -> TraceReport = Request::Trace { target };
    /// Firewall rules in force.
    firewall_list() -> Vec<FirewallRule> = Request::FirewallList;
    /// What was refused lately.
    firewall_trace() -> Vec<RefusedFlow> = Request::FirewallTrace;
    /// Adds a firewall rule.
    firewall_add(matches: FirewallMatch) -> FirewallRule = Request::FirewallAdd(matches);
    /// Removes a firewall rule.
    firewall_remove(index: u32) -> Done = Request::FirewallRemove { index };
    /// Waits until the node is ready, at most so long.
    wait(timeout_ms: u64) -> Readiness = Request::Wait { timeout_ms };
}
