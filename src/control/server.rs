//! The server side: the socket, who may ask, and limits. What the answers are is up to the [`Handler`].

use std::collections::BTreeMap;
use std::fs;
use std::future::pending;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde::Serialize;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Interest};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, SemaphorePermit, oneshot};
use tokio::task::{JoinSet, yield_now};
use tokio::time::{sleep, timeout};

use crate::host::descriptors::Complaint;

use super::message::{Failure, Request, Response};
use super::{
    ACCEPT_PAUSE, CONNECTIONS_KEPT, CONNECTIONS_MAX, CONNECTIONS_WAITING_MAX, IDLE_TIMEOUT,
    REQUEST_BYTES_MAX, WRITE_TIMEOUT,
};

/// Permissions of the socket file: owner and group.
const SOCKET_MODE: u32 = 0o660;
/// Permissions of the directory, if the server makes it.
const DIRECTORY_MODE: u32 = 0o750;

/// How often it is looked whether the client of a running request is still there.
const GONE_LOOK: Duration = Duration::from_millis(500);

/// Who asks, attested by the kernel for the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerCredentials {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Process, where known.
    pub pid: Option<i32>,
}

impl PeerCredentials {
    /// Whether this user may change a daemon that runs as `owner`.
    pub const fn may_change(&self, owner: u32) -> bool {
        self.uid == 0 || self.uid == owner
    }
}

/// What answers requests. The future is dropped at the request's deadline.
pub trait Handler: Send + Sync + 'static {
    /// Answers one request; permissions are checked already. Make the value with [`answer`].
    fn handle(&self, request: Request, origin: PeerCredentials) -> BoxFuture<'_, Result<Value, Failure>>;
}

/// An answer as the handler returns it.
///
/// # Errors
/// The value has no JSON form, which none of [`super::message`] is.
pub fn answer<T: Serialize>(value: &T) -> Result<Value, Failure> {
    serde_json::to_value(value).map_err(|error| {
        Failure::new(format!("the answer has no JSON form: {error}"), "report this as a bug")
    })
}

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// Another daemon answers there.
    #[error("another daemon answers at {}: stop it, or give this one its own --socket", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// Something that is no socket is in the way.
    #[error("{} exists and is not a socket: move it away, or choose another --socket", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The system refused.
    #[error("cannot make the control socket {}: {source} (choose another with --socket)", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// The bound control socket; dropping it removes the file.
#[derive(Debug)]
pub struct Listener {
    inner: UnixListener,
    path: PathBuf,
    /// Device and inode of the file, so that only our own is removed.
    file: (u64, u64),
}

impl Listener {
    /// Makes the socket file, and its directory if that is missing. Replaces a file that nobody answers at.
    ///
    /// # Errors
    /// Another daemon answers, another kind of file is in the way, or the system refuses.
    pub async fn bind(path: &Path) -> Result<Self, BindError> {
        let failed = |source| BindError::Io { path: path.into(), source };
        if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
            fs::DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(directory).map_err(failed)?;
        }
        clear_stale(path).await?;
        let inner = listen(path).map_err(failed)?;
        let metadata = fs::symlink_metadata(path).map_err(failed)?;
        Ok(Self { inner, path: path.into(), file: (metadata.dev(), metadata.ino()) })
    }

    /// Where it is bound.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path).is_ok_and(|m| (m.dev(), m.ino()) == self.file);
        if ours {
            // Nothing to do about a failure: the next daemon replaces the stale file.
            let _ = fs::remove_file(&self.path);
        }
    }
}

async fn clear_stale(path: &Path) -> Result<(), BindError> {
    let failed = |source| BindError::Io { path: path.into(), source };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(BindError::NotASocket { path: path.into() });
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path).await {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(failed)
        }
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(failed(error)),
        // Also a full queue: somebody listens.
        Ok(_) | Err(_) => Err(BindError::InUse { path: path.into() }),
    }
}

/// Binds with the final permissions from the first moment: the kernel takes them from the unbound socket, less the
/// umask, and they are completed before anybody is accepted.
fn listen(path: &Path) -> io::Result<UnixListener> {
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None)?;
    nix::sys::stat::fchmod(&socket, nix::sys::stat::Mode::from_bits_truncate(SOCKET_MODE))?;
    socket.bind(&socket2::SockAddr::unix(path)?)?;
    fs::set_permissions(path, fs::Permissions::from_mode(SOCKET_MODE))?;
    socket.listen(CONNECTIONS_MAX as i32)?;
    socket.set_nonblocking(true)?;
    UnixListener::from_std(std::os::unix::net::UnixListener::from(std::os::fd::OwnedFd::from(socket)))
}

/// Serves until the future is dropped, which also ends every connection and removes the socket file.
pub async fn serve(listener: Listener, handler: Arc<dyn Handler>) {
    let shared = Arc::new(Shared::new(handler));
    let mut connections = JoinSet::new();
    let mut complaint = Complaint::default();
    loop {
        let accepted = listener.inner.accept().await;
        while connections.try_join_next().is_some() {}
        match accepted {
            Ok((stream, _)) => {
                let Ok(origin) = origin(&stream) else { continue };
                if connections.len() < CONNECTIONS_MAX + shared.waiting_max(origin) {
                    connections.spawn(shared.clone().connection(stream, origin));
                }
                // Of a crowd, those that ask nothing idle, and make room, before the next is looked at.
                yield_now().await;
            }
            Err(error) => {
                complaint.tell(&error, "a control connection");
                shared.close_idlest(|_| true);
                // The descriptor of one that ends is free at once: a queue of idle ones is over soon.
                let ended = async {
                    if connections.join_next().await.is_none() {
                        pending().await
                    }
                };
                let _ = timeout(ACCEPT_PAUSE, ended).await;
            }
        }
    }
}

/// Who connected.
fn origin(stream: &UnixStream) -> io::Result<PeerCredentials> {
    let credentials = stream.peer_cred()?;
    Ok(PeerCredentials { uid: credentials.uid(), gid: credentials.gid(), pid: credentials.pid() })
}

/// Ends when the client is gone altogether. One that only says no more waits for its answer.
async fn gone(client: &UnixStream) {
    let is_there =
        async || client.ready(Interest::WRITABLE).await.is_ok_and(|ready| !ready.is_write_closed());
    while is_there().await {
        sleep(GONE_LOOK).await;
    }
}

pub(super) struct Shared {
    handler: Arc<dyn Handler>,
    /// Effective user of this process.
    owner: u32,
    places: Semaphore,
    /// Those of the places that users who may only read can have.
    places_of_readers: Semaphore,
    idle: Mutex<Idle>,
}

/// Connections that wait for a request.
#[derive(Default)]
struct Idle {
    /// Whose each is and how to close it, those that began to wait first in front.
    waiting: BTreeMap<u64, (PeerCredentials, oneshot::Sender<()>)>,
    /// How often one began.
    begun: u64,
}

impl Idle {
    /// A connection's place in the order, and what tells it to close.
    fn begin(&mut self, origin: PeerCredentials) -> (u64, oneshot::Receiver<()>) {
        let (close, closed) = oneshot::channel();
        self.begun += 1;
        self.waiting.insert(self.begun, (origin, close));
        (self.begun, closed)
    }
}

impl Shared {
    pub(super) fn new(handler: Arc<dyn Handler>) -> Self {
        Self {
            handler,
            owner: nix::unistd::geteuid().as_raw(),
            places: Semaphore::new(CONNECTIONS_MAX),
            places_of_readers: Semaphore::new(CONNECTIONS_MAX - CONNECTIONS_KEPT),
            idle: Mutex::default(),
        }
    }

    const fn may_change(&self, origin: PeerCredentials) -> bool {
        origin.may_change(self.owner)
    }

    /// How many may wait for a place when somebody connects; those of readers do not count against others.
    const fn waiting_max(&self, origin: PeerCredentials) -> usize {
        if self.may_change(origin) {
            CONNECTIONS_WAITING_MAX + CONNECTIONS_KEPT
        } else {
            CONNECTIONS_WAITING_MAX
        }
    }

    /// A place of those that this user can have, until it is dropped.
    async fn place(
        &self,
        origin: PeerCredentials,
    ) -> Option<(Option<SemaphorePermit<'_>>, SemaphorePermit<'_>)> {
        let of_reader = match self.may_change(origin) {
            true => None,
            false => Some(self.acquire(&self.places_of_readers, |idle| !self.may_change(idle)).await?),
        };
        Some((of_reader, self.acquire(&self.places, |_| true).await?))
    }

    /// One of those; while there is none, closes the connections idle for longest that hold one.
    async fn acquire<'a>(
        &self,
        places: &'a Semaphore,
        holds_one: impl Fn(PeerCredentials) -> bool,
    ) -> Option<SemaphorePermit<'a>> {
        loop {
            if let Ok(place) = places.try_acquire() {
                return Some(place);
            }
            self.close_idlest(&holds_one);
            if let Ok(place) = timeout(ACCEPT_PAUSE, places.acquire()).await {
                return place.ok();
            }
        }
    }

    fn idle(&self) -> MutexGuard<'_, Idle> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn close_idlest(&self, which: impl Fn(PeerCredentials) -> bool) {
        let mut idle = self.idle();
        let Some((&order, _)) = idle.waiting.iter().find(|(_, (origin, _))| which(*origin)) else { return };
        if let Some((_, close)) = idle.waiting.remove(&order) {
            // A connection that has just ended needs no closing.
            let _ = close.send(());
        }
    }

    async fn connection(self: Arc<Self>, stream: UnixStream, origin: PeerCredentials) {
        let Some(_place) = self.place(origin).await else { return };
        if let Err(error) = self.converse(stream, origin).await {
            tracing::debug!(%error, "control connection ended");
        }
    }

    async fn converse(&self, stream: UnixStream, origin: PeerCredentials) -> io::Result<()> {
        let mut stream = BufReader::new(stream);
        let mut line = Vec::new();
        while self.next_line(&mut stream, &mut line, origin).await? {
            let Some(response) = self.respond(&line, origin, stream.get_ref()).await else { return Ok(()) };
            let mut bytes = serde_json::to_vec(&response)?;
            bytes.push(b'\n');
            timeout(WRITE_TIMEOUT, stream.write_all(&bytes)).await??;
        }
        Ok(())
    }

    /// Reads one request line. False at the end, when idle for too long, or when the place is needed.
    pub(super) async fn next_line(
        &self,
        stream: &mut BufReader<UnixStream>,
        line: &mut Vec<u8>,
        origin: PeerCredentials,
    ) -> io::Result<bool> {
        line.clear();
        let (order, closed) = self.idle().begin(origin);
        let mut limited = stream.take(REQUEST_BYTES_MAX as u64);
        let read = tokio::select! {
            // A request that is there is answered, whoever needs the place.
            biased;
            read = timeout(IDLE_TIMEOUT, limited.read_until(b'\n', line)) => read,
            _ = closed => return Ok(false),
        };
        self.idle().waiting.remove(&order);
        match read {
            Ok(read) => read.map(|_| line.ends_with(b"\n")),
            Err(_) => Ok(false),
        }
    }

    /// The answer to one line; `None` closes the connection in silence.
    async fn respond(
        &self,
        line: &[u8],
        origin: PeerCredentials,
        client: &UnixStream,
    ) -> Option<Response<Value>> {
        let request: Value = serde_json::from_slice(line).ok().filter(Value::is_object)?;
        Some(match self.decide(request, origin, client).await {
            Ok(value) => Response::Ok(value),
            Err(failure) => Response::Error(failure),
        })
    }

    async fn decide(
        &self,
        request: Value,
        origin: PeerCredentials,
        client: &UnixStream,
    ) -> Result<Value, Failure> {
        let request: Request = serde_json::from_value(request).map_err(|error| {
            let version = env!("CARGO_PKG_VERSION");
            Failure::new(
                format!("this daemon (version {version}) does not understand the request: {error}"),
                "use an azora of the same version as the daemon",
            )
        })?;
        let restricted = match &request {
            request if request.changes() => Some("change it"),
            request if request.names_place() => Some("name a place (@IP:PORT)"),
            _ => None,
        };
        if let Some(what) = restricted.filter(|_| !self.may_change(origin)) {
            return Err(Failure::new(
                format!("only root and the daemon's user (uid {}) may {what}", self.owner),
                "run the command with sudo",
            ));
        }
        let deadline = request.deadline().ok_or_else(|| {
            Failure::new("the timeout is beyond the limit of 60 s", "use a shorter timeout")
        })?;
        let changes = request.changes();
        let answered = tokio::select! {
            biased;
            answered = timeout(deadline, self.handler.handle(request, origin)) => answered,
            // What was asked to change is changed, whoever hears of it.
            () = gone(client), if !changes => return Err(Failure::new("the client has gone", "ask again")),
        };
        match answered {
            Ok(answer) => answer,
            Err(_) => Err(Failure::new(
                format!("no result after {} s", deadline.as_secs()),
                "look at `azora status`; if this stays, restart the daemon and report it",
            )),
        }
    }
}
