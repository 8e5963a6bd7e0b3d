//! The control socket against what is no client.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::fake::{Fake, OWN, node_id};
use crate::run::plain;

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

#[test]
fn idle_connections_do_not_keep_others_out() {
    let fake = Fake::healthy();
    let clients: Vec<_> = (0..200).map(|_| UnixStream::connect(&fake.socket).unwrap()).collect();
    assert!(send(&fake, b"{\"command\":\"own\"}\n").contains("\"ok\""), "beside 200 idle connections");
    drop(clients);
    fake.azora(&["id"]).exits(0);
}

/// With no descriptor left (`prlimit --nofile=64`) the server closes the connection idle for longest, and answers.
/// Runs in a process of its own, because the limit is one of the whole process.
#[test]
fn without_descriptors_the_socket_still_answers() {
    let limited = "ulimit -n 64; exec \"$0\" --exact daemon::few_descriptors --ignored --nocapture";
    let program = std::env::current_exe().unwrap();
    let ran: crate::run::Ran = plain("/bin/sh").args(["-c", limited]).arg(program).output().unwrap().into();
    let out = ran.exits(0).out;
    assert!(out.contains("1 passed"), "{out}");
}

#[test]
#[ignore = "started by without_descriptors_the_socket_still_answers, with few descriptors"]
fn few_descriptors() {
    let fake = Fake::healthy();
    let clients: Vec<_> = (0..10).map(|_| UnixStream::connect(&fake.socket).unwrap()).collect();
    assert!(send(&fake, b"{\"command\":\"own\"}\n").contains("\"ok\""), "all are accepted");
    let mut taken = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        taken.push(file);
        assert!(taken.len() < 64, "the limit is not in force");
    }
    taken.pop();
    let mut late = UnixStream::connect(&fake.socket).unwrap();
    late.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    late.write_all(b"{\"command\":\"own\"}\n").unwrap();
    late.shutdown(std::net::Shutdown::Write).unwrap();
    let mut back = String::new();
    late.read_to_string(&mut back).expect("an answer before the idle ones time out");
    assert!(back.contains("\"ok\""), "{back}");
    drop((clients, taken));
}
