//! Prometheus text over HTTP/1.1: `GET /metrics` and nothing else.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::ACCEPT_PAUSE;
use crate::host::descriptors::Complaint;

/// Connections served at once; more wait to be accepted.
pub const METRICS_CONNECTIONS_MAX: usize = 16;
/// How long a request's head may take.
pub const METRICS_HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection may live: two usual scrape intervals.
pub const METRICS_CONNECTION_TIMEOUT: Duration = Duration::from_secs(120);
/// Largest request head in bytes (hyper's smallest buffer).
pub const METRICS_HEAD_BYTES_MAX: usize = 8192;

/// Media type of the Prometheus text format.
const TEXT_FORMAT: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");

/// What makes the text.
pub type Render = Arc<dyn Fn() -> BoxFuture<'static, String> + Send + Sync>;

/// Binds the listener.
///
/// # Errors
/// The system refuses; the message names the address and the flag.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, BindError> {
    TcpListener::bind(address).await.map_err(|source| BindError { address, source })
}

/// Why metrics cannot be served.
#[derive(Debug, thiserror::Error)]
#[error("cannot serve metrics at {address}: {source} (choose another with --metrics)")]
pub struct BindError {
    /// Where.
    pub address: SocketAddr,
    /// What the system said.
    pub source: std::io::Error,
}

/// Serves until the future is dropped.
pub async fn serve(listener: TcpListener, render: Render) {
    let places = Arc::new(Semaphore::new(METRICS_CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    let mut complaint = Complaint::default();
    loop {
        while connections.try_join_next().is_some() {}
        let place = places.clone().acquire_owned().await;
        match listener.accept().await {
            Ok((stream, _)) => {
                let render = render.clone();
                connections.spawn(async move {
                    connection(stream, render).await;
                    drop(place);
                });
            }
            Err(error) => {
                complaint.tell(&error, "a metrics connection");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, render: Render) {
    let service = service_fn(|request| {
        let render = render.clone();
        async move { Ok::<_, Infallible>(respond(&request, &render).await) }
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(METRICS_HEAD_TIMEOUT)
        .max_buf_size(METRICS_HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    if let Ok(Err(error)) = timeout(METRICS_CONNECTION_TIMEOUT, serving).await {
        tracing::debug!(%error, "metrics connection ended");
    }
}

async fn respond(request: &Request<Incoming>, render: &Render) -> Response<Full<Bytes>> {
    if request.method() == Method::GET && request.uri().path() == "/metrics" {
        let mut response = Response::new(Full::from(render().await));
        response.headers_mut().insert(CONTENT_TYPE, TEXT_FORMAT);
        return response;
    }
    let mut response = Response::new(Full::from("only GET /metrics is served here\n"));
    *response.status_mut() = StatusCode::NOT_FOUND;
    response
}
