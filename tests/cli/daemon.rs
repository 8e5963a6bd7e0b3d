//! The control socket against what is no client.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use crate::fake::{Fake, OWN, node_id};

/// Sends bytes and returns everything that comes back.
fn send(fake: &Fake, bytes: &[u8]) -> String {
    let mut stream = UnixStream::connect(&fake.socket).unwrap();
    // The server may close before it has read everything.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let mut back = String::new();
    let _ = stream.read_to_string(&mut back);
    back
}

#[test]
fn http_to_the_control_socket_gets_nothing() {
    let fake = Fake::healthy();
    for request in [
        "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 17\r\n\r\n{\"command\":\"up\"}\n",
        "GET / HTTP/1.1\r\nUpgrade: websocket\r\nOrigin: http://evil.example\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        assert_eq!(send(&fake, request.as_bytes()), "", "{request}");
    }
    assert!(fake.asked().is_empty());
    assert!(send(&fake, b"{\"command\":\"own\"}\n").contains(&node_id(OWN).to_string()));
}

/// The limit on open files falls while the server runs: it pauses, recovers, and answers all along on what it has.
#[test]
fn the_server_survives_the_loss_of_descriptors() {
    let fake = Fake::healthy();
    let clients: Vec<_> = (0..200).map(|_| UnixStream::connect(&fake.socket)).collect();
    assert!(send(&fake, b"{\"command\":\"own\"}\n").contains("\"ok\""), "beside 200 idle connections");
    drop(clients);
    assert!(fake.azora(&["id"]).exits(0).err.is_empty());
}
