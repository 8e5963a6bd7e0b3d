//! What only shows when values meet.

use std::net::SocketAddr;

use super::value::Bootstrap;
use super::{ALLOW_MAX, BOOTSTRAP_MAX, Config, LISTEN_MAX, RELAY_PEERS_MAX, STREAM_PORTS_MAX};

/// Values that are right alone and wrong together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Conflict {
    /// Nothing to listen on.
    #[error("net.listen is empty: a node needs at least one UDP address")]
    NoListen,
    /// More values than the limit.
    #[error("{key} has {count} values, at most {max} are allowed")]
    TooMany {
        /// The key.
        key: &'static str,
        /// Values given.
        count: usize,
        /// The limit.
        max: usize,
    },
    /// One listen address twice.
    #[error("net.listen names {0} twice")]
    ListenTwice(SocketAddr),
    /// One address for streams twice.
    #[error("net.stream_listen names {0} twice")]
    StreamTwice(SocketAddr),
    /// A certificate without its key, or the other way round.
    #[error("net.stream_cert and net.stream_key belong together: one of them is missing")]
    HalfCertificate,
    /// The secret in two places.
    #[error("net.secret and net.secret_file are both given: one of them is enough")]
    SecretTwice,
    /// One bootstrap entry twice.
    #[error("net.bootstrap names {0} twice")]
    BootstrapTwice(Box<Bootstrap>),
    /// One endpoint for two nodes.
    #[error("net.bootstrap names two different nodes at {0}")]
    TwoNodes(SocketAddr),
    /// One rule twice.
    #[error("policy.allow has the rule `{0}` twice")]
    RuleTwice(String),
}

/// Checks a merged configuration.
pub(super) fn check(config: &Config) -> Result<(), Conflict> {
    let (listen, bootstrap, allow) = (&config.net.listen, &config.net.bootstrap, &config.policy.allow);
    if listen.is_empty() {
        return Err(Conflict::NoListen);
    }
    for (key, count, max) in [
        ("net.listen", listen.len(), LISTEN_MAX),
        ("net.bootstrap", bootstrap.len(), BOOTSTRAP_MAX),
        ("policy.allow", allow.len(), ALLOW_MAX),
        ("net.stream_listen", config.net.stream_listen.len(), LISTEN_MAX),
        ("net.stream_ports", config.net.stream_ports.len(), STREAM_PORTS_MAX),
        ("relay.peers", config.relay.peers.len(), RELAY_PEERS_MAX),
    ] {
        if count > max {
            return Err(Conflict::TooMany { key, count, max });
        }
    }
    let fixed: Vec<_> = listen.iter().filter(|address| address.port() != 0).collect();
    if let Some(twice) = repeated(&fixed) {
        return Err(Conflict::ListenTwice(**twice));
    }
    let net = &config.net;
    let fixed: Vec<_> = net.stream_listen.iter().filter(|address| address.port() != 0).collect();
    if let Some(twice) = repeated(&fixed) {
        return Err(Conflict::StreamTwice(**twice));
    }
    if net.stream_cert.is_some() != net.stream_key.is_some() {
        return Err(Conflict::HalfCertificate);
    }
    if net.secret.is_some() && net.secret_file.is_some() {
        return Err(Conflict::SecretTwice);
    }
    if let Some(twice) = repeated(bootstrap) {
        return Err(Conflict::BootstrapTwice(Box::new(*twice)));
    }
    let endpoints: Vec<_> = bootstrap.iter().map(|entry| entry.endpoint).collect();
    if let Some(shared) = repeated(&endpoints) {
        return Err(Conflict::TwoNodes(*shared));
    }
    match repeated(allow) {
        Some(rule) => Err(Conflict::RuleTwice(rule.to_string())),
        None => Ok(()),
    }
}

/// The first value that occurs a second time. Lists are at most [`BOOTSTRAP_MAX`] long.
fn repeated<T: PartialEq>(values: &[T]) -> Option<&T> {
    values.iter().enumerate().find(|(i, value)| values[..*i].contains(value)).map(|(_, value)| value)
}
