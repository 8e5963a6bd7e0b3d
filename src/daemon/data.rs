//! How packets are carried: from what the configuration asks for to what is in force.

use std::sync::Arc;

use crate::config::{self, Cipher, TunOffload};
use crate::control::message::DataStatus;
use crate::engine::Rungs;
use crate::host::cpu;
use crate::proto::session;
use crate::proto::wire::envelope::NetworkSecret;
use crate::proto::wire::handshake::{CAPABILITY_FRAMES, Suite};
use crate::tun::Offloads;

/// The most that the interface is asked for.
pub(super) const fn offloads(asked: TunOffload) -> Offloads {
    match asked {
        TunOffload::Auto => Offloads::TcpUdp,
        TunOffload::Tcp => Offloads::Tcp,
        TunOffload::None => Offloads::None,
    }
}

/// What handshakes bring: every two configurations have a cipher in common.
pub(super) fn session(asked: &config::Data, network: NetworkSecret) -> session::Config {
    let mut config = session::Config::new(cpu::has_aes(), network);
    let (aes, chacha) = (Suite::Aes256Gcm, Suite::ChaCha20Poly1305);
    match asked.cipher {
        Cipher::Auto => {}
        Cipher::Aes256Gcm => (config.suites, config.preferred) = (aes.bit() | chacha.bit(), aes),
        Cipher::ChaCha20Poly1305 => (config.suites, config.preferred) = (chacha.bit(), chacha),
    }
    if !asked.superframes {
        config.capabilities &= !CAPABILITY_FRAMES;
    }
    config
}

/// What is in force.
pub(super) struct Data {
    rungs: Arc<Rungs>,
    superframes: bool,
    ciphers: Vec<&'static str>,
}

impl Data {
    pub(super) fn new(session: &session::Config, rungs: Arc<Rungs>) -> Self {
        let others = [Suite::Aes256Gcm, Suite::ChaCha20Poly1305]
            .into_iter()
            .filter(|suite| *suite != session.preferred && session.suites & suite.bit() != 0);
        let ciphers = std::iter::once(session.preferred).chain(others).map(Suite::name).collect();
        Self { rungs, superframes: session.capabilities & CAPABILITY_FRAMES != 0, ciphers }
    }

    pub(super) fn status(&self) -> DataStatus {
        DataStatus {
            tun_offload: self.rungs.interface().name().into(),
            tun_refused: self.rungs.refused(),
            udp_offload: if self.rungs.has_trains() { "trains" } else { "none" }.into(),
            superframes: self.superframes,
            ciphers: self.ciphers.iter().copied().map(String::from).collect(),
        }
    }

    pub(super) fn log(&self) {
        let DataStatus { tun_offload, udp_offload, superframes, ciphers, .. } = self.status();
        tracing::info!(%tun_offload, %udp_offload, superframes, ciphers = ciphers.join(","), "data path");
    }
}
