//! AuraMesh: a peer-to-peer network on UDP and nothing central.
//!
//! One daemon, `azora-meshing-daemon`, makes the interface `azora0`, whose IPv6 address is derived from the node's
//! key, finds other keys through a Kademlia DHT and carries IP between them, encrypted end to end.
//!
//! # The map
//!
//! A module names only modules of a strictly lower rank; `tests/layers.rs` holds the table.
//!
//! ```text
//! proto/         the protocol core: bytes and values in, bytes and events out; always compiled
//!   timer/     0   monotonic and wall time as arguments, a queue of deadlines
//!   limit/     1   token buckets
//!   identity/  0   key pairs, NodeId, position, the mesh address derived from a NodeId
//!   wire/      1   every packet format, one file each: layout table, parse, emit
//!   session/   2   Noise handshake, transport keys, counters, replay window, cookies, ratchet
//!   path/      2   where a peer can be reached and by which way best, guessed ports, how long datagrams may be
//!   relay/     2   whose packets we carry between other nodes, and how many
//!   route/     2   searches for a way through several relays, ours and those that we pass on
//!   policy/    2   which inner packets may enter, and the flows that we started
//!   dht/       2   Kademlia: k-buckets, lookups, records and their expiry
//!   datapath/  3   packets to trains of datagrams and back, over a read-only snapshot of sessions, routes and rules
//!   portmap/   3   a port of the router's that leads to us: PCP, NAT-PMP
//!   node/      4   composes session, path, relay, route, policy and dht; publishes snapshots
//! tun/         5   the network interface: device and its queues, address, route, guard
//! udp/         5   sockets towards the underlay
//! host/        5   this machine: clock, entropy, privileges, priority, processor, router, changes of links and addresses
//! store/       5   what survives a restart: the identity and the known contacts
//! engine/      6   threads, queues and wake-ups that drive datapath and node; the `Handle`
//! stream/      7   WebSocket over TCP, where no UDP gets through
//! config/      9   configuration file and defaults
//! control/     9   local API: message types, server, client
//! daemon/      10  composition root: builds everything from the configuration, owns start and shutdown
//! bin/azora/, bin/azora-meshing-daemon/   programs of their own on top of the library
//! ```
//!
//! # Invariants
//!
//! 1. `proto` never reads a clock, entropy, environment, file or socket, and never waits. `node` drives its machines,
//!    `daemon` drives `portmap`.
//! 2. `datapath` does not allocate per packet, hold a contended lock, or log.
//! 3. `wire` has no behaviour. Parsing any bytes never panics.
//! 4. File types stay in `config`, API types in `control`; core types are not serializable.
//! 5. Every queue, table and retry has a limit: a named constant with its unit.
//! 6. Nothing that does not authenticate is ever answered. Who knows our ID can get a cookie reply, never longer than
//!    what it sent.

pub mod proto;

#[cfg(feature = "daemon")]
pub mod config;
#[cfg(feature = "daemon")]
pub mod control;
#[cfg(feature = "daemon")]
pub mod daemon;
#[cfg(feature = "daemon")]
pub mod engine;
#[cfg(feature = "daemon")]
pub mod host;
#[cfg(feature = "daemon")]
pub mod store;
#[cfg(feature = "daemon")]
pub mod stream;
#[cfg(feature = "daemon")]
pub mod tun;
#[cfg(feature = "daemon")]
pub mod udp;
