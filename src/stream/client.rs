//! Dials: an ordinary WebSocket handshake, inside of TLS or not.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::select_ok;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::tungstenite::{self, client::IntoClientRequest as _};
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

use super::counters::add;
use super::pump::{Connection, End};
use super::{Shell, prepare, tls, websocket};
use crate::host::{clock, entropy};
use crate::proto::node::{Stream, StreamWanted};
use crate::proto::wire::envelope::RecipientKey;
use crate::proto::wire::stream::{NONCE_LEN, ticket};

/// For each of TCP, TLS and WebSocket.
const STEP: Duration = Duration::from_secs(4);
const HTTPS: u16 = 443;
const HTTP: u16 = 80;

/// Why nobody was reached.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("no answer in {STEP:?}")]
    Silent,
    #[error("TCP: {0}")]
    Tcp(io::Error),
    #[error("TLS: {0}")]
    Tls(io::Error),
    #[error("WebSocket: {0}")]
    WebSocket(#[from] Box<tungstenite::Error>),
}

enum Dialled {
    Plain(Box<WebSocketStream<TcpStream>>),
    Tls(Box<WebSocketStream<TlsStream<TcpStream>>>),
}

/// Opens a stream to a node and carries it until it ends.
pub(super) async fn dial(shell: Rc<Shell>, wanted: StreamWanted) {
    let StreamWanted { node_id, at } = wanted;
    let key = RecipientKey::new(&node_id, &shell.network);
    let attempts: Vec<_> = at.iter().map(|at| reach(&shell, &key, *at).boxed_local()).collect();
    let found = if attempts.is_empty() {
        Err(Failure::Silent)
    } else {
        select_ok(attempts).await.map(|(found, _)| found)
    };
    let (remote, dialled) = match found {
        Ok(found) => found,
        Err(error) => {
            add(&shell.counters.dials_failed, 1);
            tracing::debug!(peer = %node_id, ?at, %error, "no stream");
            let told = shell.handle.with(move |node, now, _| node.handle_dial_failed(now, node_id)).await;
            return told.unwrap_or_default();
        }
    };
    add(&shell.counters.dialled, 1);
    let tls = matches!(dialled, Dialled::Tls(_));
    tracing::info!(peer = %node_id, tls, "UDP does not get through: reached by TCP");
    let stream = Stream { remote, peer: Some(node_id), tls };
    let end = match dialled {
        Dialled::Plain(socket) => {
            shell.carry(Connection { socket: *socket, key: key.clone() }, stream, None).await
        }
        Dialled::Tls(socket) => {
            shell.carry(Connection { socket: *socket, key: key.clone() }, stream, None).await
        }
    };
    match end {
        End::Closed => tracing::info!(peer = %node_id, "the stream has ended"),
        End::Broken | End::TimedOut | End::Malformed => {
            tracing::info!(peer = %node_id, ?end, "the stream has broken");
        }
    }
}

/// Tries one endpoint in both ways; a server that TCP does not reach is not asked twice.
async fn reach(shell: &Shell, key: &RecipientKey, at: SocketAddr) -> Result<(SocketAddr, Dialled), Failure> {
    match attempt(shell, key, at, shell.tls_first).await {
        Ok(dialled) => Ok((at, dialled)),
        Err(failure @ (Failure::Silent | Failure::Tcp(_))) => Err(failure),
        Err(Failure::Tls(_) | Failure::WebSocket(_)) => {
            attempt(shell, key, at, !shell.tls_first).await.map(|dialled| (at, dialled))
        }
    }
}

async fn attempt(shell: &Shell, key: &RecipientKey, at: SocketAddr, tls: bool) -> Result<Dialled, Failure> {
    let stream = within(TcpStream::connect(at)).await?.map_err(Failure::Tcp)?;
    prepare(&stream);
    if !tls {
        return shake_hands(stream, key, at, "ws", HTTP).await.map(|socket| Dialled::Plain(Box::new(socket)));
    }
    let connecting = shell.tls.connector.connect(tls::name(at), stream);
    // A middlebox that swallows TLS is no reason to give up.
    let stream = match within(connecting).await {
        Ok(connected) => connected.map_err(Failure::Tls)?,
        Err(_) => return Err(Failure::Tls(io::ErrorKind::TimedOut.into())),
    };
    let socket = shake_hands(stream, key, at, "wss", HTTPS).await?;
    Ok(Dialled::Tls(Box::new(socket)))
}

async fn shake_hands<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    key: &RecipientKey,
    at: SocketAddr,
    scheme: &str,
    usual_port: u16,
) -> Result<WebSocketStream<S>, Failure> {
    let seed = entropy::seed();
    let nonce: [u8; NONCE_LEN] = std::array::from_fn(|i| seed[i]);
    let host = if at.port() == usual_port { host(at) } else { at.to_string() };
    let url = format!("{scheme}://{host}/{}", ticket(key, clock::wall().as_unix_ms(), nonce));
    let request = url.into_client_request().map_err(Box::new)?;
    let (socket, _) =
        within(client_async_with_config(request, stream, Some(websocket()))).await?.map_err(Box::new)?;
    Ok(socket)
}

/// The address as it stands in a URL.
fn host(at: SocketAddr) -> String {
    match at {
        SocketAddr::V4(v4) => v4.ip().to_string(),
        SocketAddr::V6(v6) => format!("[{}]", v6.ip()),
    }
}

async fn within<T>(work: impl Future<Output = T>) -> Result<T, Failure> {
    timeout(STEP, work).await.map_err(|_| Failure::Silent)
}
