use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, poll_immediate};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpStream, UnixListener, UnixStream};

use super::client::{self, Client};
use super::hint::with_socket;
use super::message::*;
use super::server::{self, BindError, Handler, Listener, PeerCredentials, answer};
use super::target::{ParseTargetError, Target};
use super::*;
use crate::proto::identity::{Identity, NodeId};

fn node_id(seed: u8) -> NodeId {
    Identity::from_seed([seed; 32]).node_id()
}

fn endpoint() -> SocketAddr {
    "192.0.2.7:5747".parse().unwrap()
}

/// Answers what the tests ask; a wait never ends.
struct Fake;

impl Handler for Fake {
    #[expect(clippy::wildcard_enum_match_arm, reason = "the rest is of no interest here")]
    fn handle(&self, request: Request, _: PeerCredentials) -> BoxFuture<'_, Result<Value, Failure>> {
        Box::pin(async move {
            match request {
                Request::Own => answer(&OwnNode { node_id: node_id(1), address: node_id(1).address() }),
                Request::Up => answer(&Done {}),
                Request::Wait { .. } => std::future::pending().await,
                _ => Err(Failure::new("not here", "ask something else")),
            }
        })
    }
}

struct Server {
    path: PathBuf,
    _directory: tempfile::TempDir,
    task: tokio::task::JoinHandle<()>,
}

async fn serve() -> Server {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("run/azora.sock");
    let listener = Listener::bind(&path).await.unwrap();
    let task = tokio::spawn(server::serve(listener, Arc::new(Fake)));
    Server { path, _directory: directory, task }
}

/// Sends raw bytes, closes the sending side, returns everything that comes back.
async fn raw(server: &Server, bytes: &[u8]) -> String {
    let mut stream = UnixStream::connect(&server.path).await.unwrap();
    // The server may close before it has read everything.
    let _ = stream.write_all(bytes).await;
    let _ = stream.shutdown().await;
    let mut back = Vec::new();
    let _ = stream.read_to_end(&mut back).await;
    String::from_utf8(back).unwrap()
}

#[tokio::test]
async fn requests_are_answered_in_order() {
    let server = serve().await;
    let mut client = Client::connect(&server.path).await.unwrap();
    assert_eq!(client.own().await.unwrap().node_id, node_id(1));
    assert_eq!(client.up().await.unwrap(), Done {});
    let Err(client::Error::Failed(failure)) = client.dht_status().await else { panic!("no failure") };
    assert_eq!(failure.next_step, "ask something else");
    let two = raw(&server, b"{\"command\":\"up\"}\n{\"command\":\"own\"}\n").await;
    let lines: Vec<_> = two.lines().collect();
    assert_eq!(lines[0], "{\"ok\":{}}");
    assert!(lines[1].starts_with("{\"ok\":{\"address\":"), "{two}");
}

#[tokio::test]
async fn what_is_no_json_object_gets_nothing() {
    let server = serve().await;
    let http = b"GET /status HTTP/1.1\r\nHost: localhost\r\n\r\n{\"command\":\"own\"}\n";
    assert_eq!(raw(&server, http).await, "", "not even a request in the body");
    assert_eq!(raw(&server, b"POST / HTTP/1.1\r\n\r\n{\"command\":\"up\"}\n").await, "");
    assert_eq!(raw(&server, b"\n").await, "");
    assert_eq!(raw(&server, b"[1]\n").await, "");
    assert_eq!(raw(&server, b"\"own\"\n").await, "");
    assert_eq!(raw(&server, b"\xff\xfe\n").await, "");
    assert_eq!(raw(&server, "[".repeat(10_000).as_bytes()).await, "", "nesting");
    assert_eq!(raw(&server, b"{\"command\":\"own\"}").await, "", "no end of line");
}

#[tokio::test]
async fn a_request_line_is_limited() {
    let server = serve().await;
    let line = |len: usize| {
        let head = "{\"command\":\"own\"";
        let mut line = format!("{head}{}}}\n", " ".repeat(len - head.len() - 2)).into_bytes();
        assert_eq!(line.len(), len);
        line.extend_from_slice(b"{\"command\":\"up\"}\n");
        line
    };
    assert_eq!(raw(&server, &line(REQUEST_BYTES_MAX)).await.lines().count(), 2);
    assert_eq!(raw(&server, &line(REQUEST_BYTES_MAX + 1)).await, "");
}

#[tokio::test]
async fn unknown_requests_are_told_the_version() {
    let server = serve().await;
    let check = async |line: &str| {
        let back = raw(&server, format!("{line}\n").as_bytes()).await;
        assert!(back.starts_with("{\"error\":{\"message\":\"this daemon (version "), "{line} gave {back:?}");
    };
    check("{}").await;
    check("{\"command\":\"format-disk\"}").await;
    check("{\"command\":\"wait\",\"timeout_ms\":1,\"more\":1}").await;
    check("{\"command\":\"ping\",\"target\":\"nobody\",\"timeout_ms\":1,\"seq\":1}").await;
    check("{\"command\":\"ping\",\"target\":\"600::1\",\"timeout_ms\":-1,\"seq\":1}").await;
}

#[tokio::test(start_paused = true)]
async fn a_request_has_a_deadline() {
    let server = serve().await;
    let mut client = Client::connect(&server.path).await.unwrap();
    let Err(client::Error::Failed(failure)) = client.wait(1000).await else { panic!("no failure") };
    assert!(failure.message.contains("no result after 3 s"), "{failure}");
    let Err(client::Error::Failed(failure)) = client.wait(u64::MAX).await else { panic!("no failure") };
    assert!(failure.message.contains("limit"), "{failure}");
}

#[tokio::test(start_paused = true)]
async fn idle_connections_are_closed_and_running_requests_are_not() {
    let server = serve().await;
    let mut idle = UnixStream::connect(&server.path).await.unwrap();
    let mut slow = UnixStream::connect(&server.path).await.unwrap();
    slow.write_all(b"{\"command\":").await.unwrap();
    let mut busy = Client::connect(&server.path).await.unwrap();
    let running = tokio::spawn(async move { busy.wait(58_000).await });
    let start = tokio::time::Instant::now();
    assert_eq!(idle.read(&mut [0]).await.unwrap(), 0);
    assert_eq!(slow.read(&mut [0]).await.unwrap(), 0);
    assert!((IDLE_TIMEOUT..IDLE_TIMEOUT * 2).contains(&start.elapsed()));
    assert!(matches!(running.await.unwrap(), Err(client::Error::Failed(_))), "an answer at its own deadline");
}

#[tokio::test(start_paused = true)]
async fn a_request_ends_with_its_client() {
    let server = serve().await;
    for _ in 0..CONNECTIONS_MAX {
        let mut slow = UnixStream::connect(&server.path).await.unwrap();
        slow.write_all(b"{\"command\":\"wait\",\"timeout_ms\":58000}\n").await.unwrap();
        tokio::task::yield_now().await;
    }
    let mut late = Client::connect(&server.path).await.unwrap();
    assert!(late.own().await.is_ok(), "nobody waits any more");
    let waiting = raw(&server, b"{\"command\":\"wait\",\"timeout_ms\":3000}\n").await;
    assert!(waiting.contains("no result after 5 s"), "who only says no more is answered: {waiting}");
}

#[tokio::test]
async fn a_full_server_closes_the_idlest_for_a_new_one() {
    let server = serve().await;
    let mut idle = Vec::new();
    for _ in 0..CONNECTIONS_MAX {
        let mut client = Client::connect(&server.path).await.unwrap();
        client.own().await.unwrap();
        idle.push(client);
    }
    idle[0].own().await.unwrap();
    let mut late = Client::connect(&server.path).await.unwrap();
    assert!(late.own().await.is_ok());
    assert!(idle[1].own().await.is_err(), "the one that asked nothing for longest made room");
    assert!(idle[0].own().await.is_ok(), "not the one that connected first");
    assert!(idle[2].own().await.is_ok(), "and no other");
}

/// Chance would drop every second one.
#[tokio::test]
async fn a_request_that_comes_with_the_close_is_answered() {
    let origin = PeerCredentials { uid: 0, gid: 0, pid: None };
    for round in 0..16 {
        let shared = server::Shared::new(Arc::new(Fake));
        let (mut client, stream) = UnixStream::pair().unwrap();
        let (mut stream, mut line) = (BufReader::new(stream), Vec::new());
        let mut reading = Box::pin(shared.next_line(&mut stream, &mut line, origin));
        assert!(poll_immediate(&mut reading).await.is_none(), "it idles");
        client.write_all(b"{}\n").await.unwrap();
        shared.close_idlest(|_| true);
        // The runtime learns of the bytes.
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert!(reading.await.unwrap(), "request {round}");
    }
}

#[tokio::test]
async fn a_second_server_is_refused_and_a_stale_socket_replaced() {
    let server = serve().await;
    assert!(matches!(Listener::bind(&server.path).await, Err(BindError::InUse { .. })));
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&server.path), 0o660);
    assert_eq!(mode(server.path.parent().unwrap()), 0o750);
    server.task.abort();
    assert!(server.task.await.unwrap_err().is_cancelled());
    assert!(!server.path.exists(), "a clean end leaves no file");

    drop(UnixListener::bind(&server.path).unwrap());
    assert!(server.path.exists(), "a killed daemon leaves one");
    let listener = Listener::bind(&server.path).await.unwrap();

    std::fs::remove_file(&server.path).unwrap();
    std::fs::write(&server.path, "precious").unwrap();
    drop(listener);
    assert!(matches!(Listener::bind(&server.path).await, Err(BindError::NotASocket { .. })));
    assert_eq!(std::fs::read_to_string(&server.path).unwrap(), "precious", "only an own file is removed");
}

#[tokio::test]
async fn nobody_there_is_told_apart() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("none.sock");
    assert!(matches!(Client::connect(&path).await, Err(client::Error::NoDaemon { .. })));
    drop(UnixListener::bind(&path).unwrap());
    assert!(matches!(Client::connect(&path).await, Err(client::Error::NoDaemon { .. })));
}

#[tokio::test]
async fn a_full_queue_is_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("full.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(1).unwrap()).unwrap();
    let mut crowd = Vec::new();
    while let Ok(one) = UnixStream::connect(&path).await {
        crowd.push(one);
    }
    let mut client = tokio::spawn(async move { Client::connect(&path).await });
    let waits = tokio::time::timeout(Duration::from_millis(100), &mut client).await.is_err();
    assert!(waits, "not told that nobody is there");
    listener.accept().unwrap();
    assert!(client.await.unwrap().is_ok());
}

#[test]
fn only_root_and_the_owner_change_anything() {
    let who = |uid| PeerCredentials { uid, gid: 0, pid: None };
    assert!(who(0).may_change(990));
    assert!(who(990).may_change(990));
    assert!(!who(991).may_change(990));
    let peer = node_id(1);
    let changes = [
        Request::Up,
        Request::Down,
        Request::PeersAdd { node_id: peer, endpoint: endpoint() },
        Request::PeersRemove { node_id: peer },
        Request::FirewallAdd(FirewallMatch::default()),
        Request::FirewallRemove { index: 1 },
    ];
    assert!(changes.iter().all(Request::changes));
    let target = Target::Node(peer);
    let reads = [
        Request::Own,
        Request::Status,
        Request::Peers,
        Request::Ping { target, timeout_ms: 1, seq: 1, seek_direct: true },
        Request::DhtLookup { target },
        Request::DhtStatus,
        Request::Probe { target },
        Request::Netcheck,
        Request::Trace { target },
        Request::FirewallList,
        Request::FirewallTrace,
        Request::Wait { timeout_ms: 0 },
    ];
    assert!(!reads.iter().any(Request::changes));
    let at = Target::At(peer, endpoint());
    let places = [
        Request::Ping { target: at, timeout_ms: 1, seq: 1, seek_direct: false },
        Request::Probe { target: at },
        Request::Trace { target: at },
    ];
    assert!(places.iter().all(Request::names_place));
    assert!(!changes.iter().chain(&reads).any(Request::names_place));
    for request in changes.iter().chain(&reads).chain(&places) {
        let json = serde_json::to_string(request).unwrap();
        assert_eq!(&serde_json::from_str::<Request>(&json).unwrap(), request, "{json}");
    }
}

#[test]
fn targets_have_four_forms() {
    let id = node_id(1);
    let check = |text: String, expected: Target| {
        assert_eq!(text.parse::<Target>().unwrap(), expected, "{text}");
        assert_eq!(expected.to_string().parse::<Target>().unwrap(), expected);
    };
    check(id.to_string(), Target::Node(id));
    check(format!("{id}.azora"), Target::Node(id));
    check(id.address().to_string(), Target::Address(id.address()));
    check(format!("{id}@192.0.2.7:5747"), Target::At(id, endpoint()));
    check(format!("{id}@[2001:db8::1]:1"), Target::At(id, "[2001:db8::1]:1".parse().unwrap()));
    let refused = |text: &str| text.parse::<Target>().unwrap_err();
    for (outside, endpoint) in [("2001:db8::1", "[2001:db8::1]:PORT"), ("10.0.0.1", "10.0.0.1:PORT")] {
        let error = refused(outside);
        assert!(matches!(error, ParseTargetError::OutsideMesh(_)));
        let said = error.to_string();
        assert!(said.contains("`azora ip`") && said.ends_with(&format!("NODEID@{endpoint}")), "{said}");
    }
    assert!(matches!(refused("laptop"), ParseTargetError::NodeId { .. }));
    assert!(matches!(refused(&format!("{id}@host:1")), ParseTargetError::Endpoint(_)));
    assert!(matches!(refused(""), ParseTargetError::NodeId { .. }));
}

#[test]
fn ping_outcomes_have_the_documented_json() {
    let reply = PingReply {
        seq: 1,
        node_id: node_id(1),
        rtt_ms: 0.4,
        path: PathKind::Direct,
        endpoint: Some(endpoint()),
        tcp: false,
        why_relayed: None,
        via: Vec::new(),
        no_data: false,
    };
    let expected = format!(
        "{{\"seq\":1,\"node_id\":\"{}\",\"rtt_ms\":0.4,\"path\":\"direct\",\"endpoint\":\"192.0.2.7:5747\"}}",
        node_id(1)
    );
    let outcome = PingOutcome::Reply(reply);
    assert_eq!(serde_json::to_string(&outcome).unwrap(), expected);
    assert_eq!(serde_json::from_str::<PingOutcome>(&expected).unwrap(), outcome);
    let lost = PingOutcome::Lost(PingLoss { seq: 2, lost: "no record found".into(), fix: None });
    let json = serde_json::to_string(&lost).unwrap();
    assert_eq!(json, "{\"seq\":2,\"lost\":\"no record found\"}");
    assert_eq!(serde_json::from_str::<PingOutcome>(&json).unwrap(), lost);
}

async fn http(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut back = String::new();
    let _ = stream.read_to_string(&mut back).await;
    back
}

#[tokio::test]
async fn metrics_are_served_at_one_path() {
    let listener = metrics::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(metrics::serve(listener, Arc::new(|| Box::pin(async { "azora_peers 3\n".to_string() }))));
    let end = "HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let good = http(address, &format!("GET /metrics {end}")).await;
    assert!(good.starts_with("HTTP/1.1 200 OK\r\n"), "{good}");
    assert!(good.contains("content-type: text/plain; version=0.0.4"), "{good}");
    assert!(good.ends_with("\r\n\r\nazora_peers 3\n"), "{good}");
    for head in ["GET /", "GET /metrics/", "POST /metrics", "GET /status", "DELETE /metrics"] {
        let back = http(address, &format!("{head} {end}")).await;
        assert!(back.starts_with("HTTP/1.1 404 "), "{head} gave {back}");
    }
    let long = format!("GET /metrics HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(metrics::METRICS_HEAD_BYTES_MAX));
    assert!(!http(address, &long).await.contains("200 OK"));
    assert!(metrics::bind(address).await.unwrap_err().to_string().contains("--metrics"));
}

#[tokio::test(start_paused = true)]
async fn slow_metrics_clients_are_closed() {
    let listener = metrics::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(metrics::serve(listener, Arc::new(|| Box::pin(async { String::new() }))));
    let start = tokio::time::Instant::now();
    let back = http(address, "GET /metr").await;
    assert!(!back.contains("200"), "{back}");
    assert!(start.elapsed() < metrics::METRICS_HEAD_TIMEOUT + Duration::from_secs(1));
}

#[test]
fn hints_name_the_socket_where_a_command_asks_the_daemon() {
    let check = |text: &str, expected: &str| assert_eq!(with_socket(text, Path::new("/s")), expected);
    check("azora peers", "azora --socket /s peers");
    check(
        "`azora up`, azora peers, azora probe X",
        "`azora --socket /s up`, azora --socket /s peers, azora --socket /s probe X",
    );
    for kept in [
        "azora id there",
        "azora key generate",
        "azora config init FILE",
        "(journalctl -u azora) and",
        "azora ",
    ] {
        check(kept, kept);
    }
}
