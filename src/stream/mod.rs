//! Streams for networks that let no UDP through: WebSocket over TCP, plain or inside of TLS.
//!
//! ```text
//! node ── UDP, loopback ──► pump ── WebSocket ── TCP ── the network ── TCP ── WebSocket ── pump ── loopback ──► node
//!         127.a.b.c:port                                                                127.a.b.c:port
//! ```
//!
//! To a node, a stream is one more endpoint: each connection has a UDP socket on the loopback, at an address that follows from
//! where the connection comes from, so that limits for each source hold as they do for UDP. What goes through is what
//! would be sent by UDP, sealed and authenticated by the nodes: neither a certificate's name nor anything else of TLS or
//! HTTP is trusted.
//!
//! A listener answers as any small web server does. TLS and plain HTTP come by one port; the first byte tells them apart.
//! The path of the request that opens a stream is a ticket ([`crate::proto::wire::stream`]), which only those can make
//! who know the node's ID: all others are told that there is no such page.
//!
//! | file | what it does |
//! | --- | --- |
//! | `client` | dials |
//! | `counters` | what happened, for metrics |
//! | `http` | the request that opens a stream, and what others are answered |
//! | `loopback` | the node's side of a stream |
//! | `places` | who may hold a connection while there are many |
//! | `pump` | carries datagrams in both directions, with all deadlines |
//! | `queue` | what waits for the network, bounded in bytes and time |
//! | `server` | takes connections |
//! | `tls` | certificates: made at the start, or from files |

mod client;
mod counters;
mod http;
mod loopback;
mod places;
mod pump;
mod queue;
mod server;
mod tls;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::{LocalSet, spawn_local};
use tokio::time::sleep;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

pub use counters::{Counters, Counts};
pub use places::{PENDING_MAX, PENDING_PER_PREFIX_MAX, PLACES_MAX, PLACES_PER_PREFIX_MAX};
pub use tls::{CertificateFiles, Tls, TlsError};

use crate::engine::{Handle, Wish};
use crate::proto::node::Stream;
use crate::proto::wire::envelope::{NetworkSecret, RecipientKey};
use crate::proto::wire::stream::MESSAGE_LEN_MAX;

use loopback::{Buffers, Loopback};
use places::Places;
use pump::End;

/// Bytes that the kernel holds of what was not sent yet (`TCP_NOTSENT_LOWAT`, tcp(7)): what waits longer belongs into a queue
/// that drops.
const NOT_SENT_MAX: u32 = 128 * 1024;
/// A connection whose other end acknowledges nothing for this long is dead (`TCP_USER_TIMEOUT`, tcp(7)).
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(8);

/// What the node says to its peers at the end is still carried.
const GOODBYE: Duration = Duration::from_millis(50);

/// A listener could not be opened.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot take streams at TCP {address}: {source} (choose another for --stream-listen; ports below 1024 need CAP_NET_BIND_SERVICE)"
)]
pub struct BindError {
    /// Where.
    pub address: SocketAddr,
    /// What the system said.
    pub source: io::Error,
}

/// What streams need to know.
pub struct Setup {
    /// Open listeners, from [`bind`].
    pub listeners: Vec<std::net::TcpListener>,
    /// The way to the node.
    pub handle: Handle,
    /// What the node wants.
    pub wishes: mpsc::Receiver<Wish>,
    /// The network's secret.
    pub network: NetworkSecret,
    /// Where the node listens by UDP.
    pub udp: Vec<SocketAddr>,
    /// Dials with TLS first, and without when that fails; or the other way round.
    pub tls_first: bool,
    /// Certificates.
    pub tls: Tls,
}

/// All streams of a node, on a thread of their own: strangers who keep it busy keep nothing else busy.
#[derive(Debug)]
pub struct Streams {
    counters: Arc<Counters>,
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

/// Opens listeners.
///
/// # Errors
/// The first that the system refuses.
pub fn bind(addresses: &[SocketAddr]) -> Result<Vec<std::net::TcpListener>, BindError> {
    addresses
        .iter()
        .map(|at| server::bind(*at).map_err(|source| BindError { address: *at, source }))
        .collect()
}

impl Streams {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the system has no more threads or descriptors.
    pub fn start(setup: Setup) -> io::Result<Self> {
        let counters = Arc::new(Counters::default());
        let (stop, stopped) = oneshot::channel();
        let shared = counters.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let run = move || {
            let tasks = LocalSet::new();
            runtime.block_on(tasks.run_until(run(setup, shared, stopped)));
        };
        let thread = thread::Builder::new().name("azora-stream".into()).spawn(run)?;
        Ok(Self { counters, stop, thread })
    }

    /// What happened so far.
    pub fn counters(&self) -> Arc<Counters> {
        self.counters.clone()
    }

    /// Ends all streams.
    pub async fn stop(self) {
        let _ = self.stop.send(());
        // A panic of the thread was reported when it happened.
        let _ = tokio::task::spawn_blocking(move || self.thread.join()).await;
    }
}

/// What all tasks of the thread share.
struct Shell {
    handle: Handle,
    own_key: RecipientKey,
    network: NetworkSecret,
    loopback: Loopback,
    buffers: RefCell<Buffers>,
    tls: Tls,
    tls_first: bool,
    places: Rc<RefCell<Places>>,
    /// Streams by the node's name for them; who drops an entry hangs up.
    open: RefCell<BTreeMap<SocketAddr, oneshot::Sender<()>>>,
    counters: Arc<Counters>,
}

async fn run(setup: Setup, counters: Arc<Counters>, mut stopped: oneshot::Receiver<()>) {
    let Setup { listeners, handle, mut wishes, network, udp, tls_first, tls } = setup;
    let shell = Rc::new(Shell {
        own_key: RecipientKey::new(&handle.node_id(), &network),
        handle,
        network,
        loopback: Loopback::new(&udp),
        buffers: RefCell::default(),
        tls,
        tls_first,
        places: Rc::default(),
        open: RefCell::default(),
        counters,
    });
    for listener in listeners {
        spawn_local(server::serve(shell.clone(), listener));
    }
    loop {
        tokio::select! {
            _ = &mut stopped => return sleep(GOODBYE).await,
            wish = wishes.recv() => match wish {
                Some(Wish::Open(wanted)) => drop(spawn_local(client::dial(shell.clone(), wanted))),
                Some(Wish::HangUp(endpoint)) => drop(shell.open.borrow_mut().remove(&endpoint)),
                None => return,
            },
        }
    }
}

impl Shell {
    /// Makes a stream of a connection, until it ends.
    async fn carry<S>(
        &self,
        connection: pump::Connection<S>,
        stream: Stream,
        place: Option<places::Place>,
    ) -> End
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    {
        let socket = match self.loopback.bind(stream.remote.ip()) {
            Ok(socket) => socket,
            Err(error) => {
                tracing::warn!(%error, "a stream cannot be joined to the node");
                return End::Broken;
            }
        };
        let endpoint = socket.endpoint();
        let (hang_up, hung_up) = oneshot::channel();
        self.open.borrow_mut().insert(endpoint, hang_up);
        let _known = Known { shell: self, endpoint };
        let opened = self.handle.with(move |node, now, wall| {
            node.handle_stream_opened(now, wall, endpoint, stream);
        });
        if opened.await.is_err() {
            return End::Closed;
        }
        let end = pump::Pump::new(self, connection, &socket, place).run(hung_up).await;
        self.counters.count_end(end);
        end
    }
}

/// A stream that the node was told of. It is told of the end, too, also when the stream gives way to another in the midst of
/// its work.
struct Known<'a> {
    shell: &'a Shell,
    endpoint: SocketAddr,
}

impl Drop for Known<'_> {
    fn drop(&mut self) {
        let (handle, endpoint) = (self.shell.handle.clone(), self.endpoint);
        self.shell.open.borrow_mut().remove(&endpoint);
        spawn_local(async move {
            let closed = handle.with(move |node, now, wall| node.handle_stream_closed(now, wall, endpoint));
            // The node has stopped: nobody has to be told.
            let _ = closed.await;
        });
    }
}

/// Limits of the WebSocket layer; written at once, since what waits is in our own queue.
fn websocket() -> WebSocketConfig {
    const READ_BYTES: usize = 16 * 1024;
    WebSocketConfig::default()
        .read_buffer_size(READ_BYTES)
        .write_buffer_size(0)
        .max_write_buffer_size(4 * MESSAGE_LEN_MAX)
        .max_message_size(Some(MESSAGE_LEN_MAX))
        .max_frame_size(Some(MESSAGE_LEN_MAX))
}

/// Options of every connection.
fn prepare(stream: &tokio::net::TcpStream) {
    let socket = socket2::SockRef::from(stream);
    // Best effort: without them there is more delay, and the dead are noticed later.
    let _ = socket.set_tcp_nodelay(true);
    let _ = socket.set_tcp_notsent_lowat(NOT_SENT_MAX);
    let _ = socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED_MAX));
}

#[cfg(test)]
mod tests;
