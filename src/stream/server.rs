//! Takes connections: TLS or not, one request, and then a stream.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::{self, OnUpgrade};
use hyper::{Request, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::counters::add;
use super::places::Place;
use super::pump::{Connection, End};
use super::{Shell, http, prepare, websocket};
use crate::host::clock;
use crate::host::descriptors::Complaint;
use crate::proto::node::Stream;

/// From the TCP connection to the request that makes a stream of it, TLS included.
pub(super) const REQUEST: Duration = Duration::from_secs(10);
/// How long one request's head may take.
const HEAD: Duration = Duration::from_secs(5);
/// Largest head of a request in bytes (hyper's smallest buffer).
const HEAD_BYTES_MAX: usize = 8192;
/// Wait after a connection that could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// First byte of a TLS connection: a handshake record (RFC 8446 §5.1).
const TLS_HANDSHAKE: u8 = 22;
/// Connections that the kernel holds for us.
const BACKLOG: i32 = 128;

/// Opens a listener. An IPv6 one does not take IPv4, as with UDP.
pub(super) fn bind(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // A daemon that is started again finds connections of the one before.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Takes connections until the task is ended.
pub(super) async fn serve(shell: Rc<Shell>, listener: std::net::TcpListener) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "no streams are taken"),
    };
    let mut complaint = Complaint::default();
    loop {
        match listener.accept().await {
            Ok((stream, remote)) => {
                add(&shell.counters.accepted, 1);
                let (number, evicted) = shell.places.borrow_mut().admit(remote.ip());
                let place = Place::new(number, shell.places.clone());
                add(&shell.counters.crowded, shell.places.borrow_mut().take_evicted());
                let shell = shell.clone();
                spawn_local(async move {
                    tokio::select! {
                        () = take(&shell, stream, remote, place) => {}
                        Ok(()) = evicted => {}
                    }
                });
            }
            Err(error) => {
                complaint.tell(&error, "a stream");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn take(shell: &Shell, stream: TcpStream, remote: SocketAddr, place: Place) {
    let until = Instant::now() + REQUEST;
    prepare(&stream);
    let mut first = [0];
    let late = || {
        add(&shell.counters.timed_out, 1);
        End::TimedOut
    };
    let end = match timeout_at(until, stream.peek(&mut first)).await {
        Err(_) => late(),
        Ok(Err(_) | Ok(0)) => End::Broken,
        Ok(Ok(_)) if first == [TLS_HANDSHAKE] => {
            match timeout_at(until, shell.tls.acceptor.accept(stream)).await {
                Ok(Ok(stream)) => answer(shell, stream, (remote, true), place, until).await,
                Ok(Err(_)) => {
                    add(&shell.counters.rejected, 1);
                    End::Broken
                }
                Err(_) => late(),
            }
        }
        Ok(Ok(_)) => answer(shell, stream, (remote, false), place, until).await,
    };
    tracing::debug!(%remote, ?end, "connection ended");
}

/// Answers requests until one of them opens a stream, and carries that.
async fn answer<S>(
    shell: &Shell,
    io: S,
    (remote, tls): (SocketAddr, bool),
    place: Place,
    until: Instant,
) -> End
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let upgrading: RefCell<Option<OnUpgrade>> = RefCell::default();
    let rejected = Cell::new(0);
    let service = service_fn(|mut request: Request<Incoming>| {
        let on_upgrade = upgrade::on(&mut request);
        let (parts, _) = request.into_parts();
        let mut response = http::judge(&parts, &shell.own_key, clock::wall().as_unix_ms());
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            rejected.set(rejected.get() + 1);
        } else if place.upgrade() {
            upgrading.replace(Some(on_upgrade));
        } else {
            add(&shell.counters.crowded, 1);
            response = http::busy();
        }
        async move { Ok::<_, Infallible>(response) }
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(io), service)
        .with_upgrades();
    let served = timeout_at(until, serving).await;
    // What hyper refuses by itself never came to us.
    let malformed = matches!(&served, Ok(Err(error)) if error.is_parse() || error.is_parse_too_large());
    add(&shell.counters.rejected, rejected.get() + u64::from(malformed));
    let Some(on_upgrade) = upgrading.take() else {
        let late = served.is_err() || matches!(&served, Ok(Err(error)) if error.is_timeout());
        if late {
            add(&shell.counters.timed_out, 1);
        }
        return if late { End::TimedOut } else { End::Closed };
    };
    let Ok(Ok(upgraded)) = timeout_at(until, on_upgrade).await else { return End::Broken };
    let Ok(parts) = upgraded.downcast::<TokioIo<S>>() else { return End::Broken };
    let (io, early) = (parts.io.into_inner(), parts.read_buf.to_vec());
    let socket = WebSocketStream::from_partially_read(io, early, Role::Server, Some(websocket())).await;
    add(&shell.counters.opened, 1);
    let connection = Connection { socket, key: shell.own_key.clone() };
    shell.carry(connection, Stream { remote, peer: None, tls }, Some(place)).await
}
