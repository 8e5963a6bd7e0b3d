//! The real daemon on real devices: every test builds its machines as Linux namespaces on one bridge.
//!
//! Needs root, `/dev/net/tun` and the tools that [`lab`] names; a machine without them fails the tests, loudly.
//! Tests that measure run alone ([`lab::Lab::alone`]), the others beside each other. `AZORA_TEST_LONG=1` takes the long figures of each test.

#![expect(clippy::unwrap_used, reason = "a step of the lab that fails is a failed test")]
#![expect(clippy::disallowed_methods, reason = "these tests measure real time and read AZORA_TEST_LONG")]
#![expect(clippy::print_stdout, reason = "the figures are part of the result")]

mod bench;
mod crowd;
mod diagnosis;
mod failover;
mod flood;
mod guard;
mod hopping;
mod hostile;
mod idle;
mod inputs;
mod interface;
mod lab;
mod lifecycle;
mod line;
mod machine;
mod mtu;
mod nat;
mod outages;
mod places;
mod policy;
mod portmap;
mod programs;
mod reach;
mod regions;
mod relays;
mod rungs;
mod secrets;
mod spray;
mod strangers;
mod streams;
mod weather;
mod wire;
mod workers;
