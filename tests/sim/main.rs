//! Many nodes on virtual time and an underlay in memory, all from one seed.
//!
//! A failing run prints the seed and the command that replays it. The machines run the real node, data path and
//! cryptography; only clock, network and kernel are simulated.

mod attacker;
mod behind;
mod carried;
mod diagnosis;
mod faults;
mod first_packets;
mod handshakes;
mod host;
mod hostile;
mod idle;
mod links;
mod loss;
mod mesh;
mod model;
mod moves;
mod mtu;
mod nat;
mod network;
mod offers;
mod packet;
mod pair;
mod portmap;
mod refusals;
mod relays;
mod routes;
mod sessions;
mod sites;
mod spray;
mod traffic;
mod weather;
mod world;
