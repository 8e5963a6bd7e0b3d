//! The composition root: builds everything from the configuration, and owns start and shutdown.
//!
//! ```text
//! start   state directory, identity ─► sockets ─► interface ─► guard ─► engine ─► streams ─► control socket, metrics
//! run     keeper     links, addresses, rule set changed ─► repair, tell the node
//!         discovery  announcements on the links
//!         portmap    a port of the router's ─► node
//!         hopping    UDP ports that change
//!         saver      contacts ─► state directory
//!         watch      what is wrong ─► log
//!         answers    requests of the control socket
//! stop    SIGTERM, SIGINT, or the interface is gone: goodbye to peers, and everything is taken away again
//! ```

mod answers;
mod data;
mod discovery;
mod firewall;
mod health;
mod hopping;
mod keeper;
mod metrics;
mod netcheck;
mod portmap;
mod probe;
mod saver;
mod status;
mod trace;
mod upnp;
mod watch;
mod why;
mod workers;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

use crate::config::{self, Config, DhtMode, UdpOffload};
use crate::control::{self, server};
use crate::engine::Engine;
use crate::host::{clock, cpu, entropy, priority, privileges};
use crate::proto::dht::Mode;
use crate::proto::identity::Identity;
use crate::proto::node;
use crate::proto::relay;
use crate::proto::session;
use crate::store::{self, StateDir};
use crate::stream::{self, CertificateFiles, Streams, Tls};
use crate::tun::guard::{self, Guard};
use crate::tun::redirect;
use crate::tun::{self, Interface, InterfaceConfig};
use crate::udp::{self, UdpSocket};

use answers::Answers;
use data::Data;
use discovery::Discovery;
use firewall::Firewall;
use keeper::Keeper;
use portmap::PortMapping;

/// Why the daemon did not start, or ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// State directory, identity or rules.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// A UDP socket.
    #[error(transparent)]
    Udp(#[from] udp::Error),
    /// The interface.
    #[error(transparent)]
    Tun(#[from] tun::Error),
    /// The guard.
    #[error(transparent)]
    Guard(#[from] guard::Error),
    /// The ports that hop.
    #[error(transparent)]
    Ports(#[from] redirect::Error),
    /// The control socket.
    #[error(transparent)]
    Control(#[from] server::BindError),
    /// The metrics listener.
    #[error(transparent)]
    Metrics(#[from] control::metrics::BindError),
    /// A listener for streams.
    #[error(transparent)]
    Stream(#[from] stream::BindError),
    /// The certificate for streams.
    #[error(transparent)]
    Tls(#[from] stream::TlsError),
    /// The rules that were saved cannot be read.
    #[error("{path}: rule {line} is not one: {cause} (correct or remove that line)")]
    Rules {
        /// The file.
        path: String,
        /// Number of the rule, from 1.
        line: usize,
        /// What is wrong.
        cause: String,
    },
    /// The interface was taken away while we ran.
    #[error("the interface {name} was deleted by somebody else: start the daemon again to make it anew")]
    InterfaceGone {
        /// Its name.
        name: String,
    },
    /// The system refused something basic.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// Nice value of the daemon against other sessions: its threads run before those of programs that work without a pause.
const NICE_SESSION: i32 = -10;

const fn system(what: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::System { what, source }
}

/// Runs the daemon until it is told to stop.
///
/// # Errors
/// Why it could not start, or had to end.
pub fn run(config: Config) -> Result<(), Error> {
    // Before the process is hardened, which takes its files in /proc away from it. Where it is refused, so is what the
    // threads of the data path ask for, and they say so.
    let _ = priority::set_session_nice(NICE_SESSION);
    privileges::harden().map_err(system("cannot protect the memory of this process"))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(system("cannot start the runtime"))?.block_on(Daemon::run(config))
}

/// Waits until a task panics: what it does would be missed from then on. Some end by themselves.
async fn panicked(tasks: &mut JoinSet<()>) -> Error {
    loop {
        match tasks.join_next().await {
            Some(Err(error)) if error.is_panic() => {
                return system("a task of the daemon has failed")(io::Error::other(error));
            }
            Some(_) => {}
            None => std::future::pending().await,
        }
    }
}

/// All that stands between start and stop.
struct Daemon {
    engine: Engine,
    keeper: Arc<Keeper>,
    state: Arc<StateDir>,
    mapping: Arc<PortMapping>,
    ports: Option<Arc<hopping::Ports>>,
    streams: Streams,
    tasks: JoinSet<()>,
}

impl Daemon {
    async fn run(config: Config) -> Result<(), Error> {
        let mut terminate = signal(SignalKind::terminate()).map_err(system("cannot handle signals"))?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(system("cannot handle signals"))?;
        let mut hangup = signal(SignalKind::hangup()).map_err(system("cannot handle signals"))?;
        // INVARIANT: not cut off half-way by a signal, which waits: the guard outlives whoever installed it.
        let (mut daemon, firewall) = Self::start(&config).await?;
        let mut config = config;
        let outcome = loop {
            tokio::select! {
                _ = terminate.recv() => break Ok(()),
                _ = interrupt.recv() => break Ok(()),
                _ = hangup.recv() => reload(&mut config, &firewall).await,
                error = daemon.engine.failure() => break Err(if tun::is_deleted(&error) {
                    Error::InterfaceGone { name: config.tun.name.clone() }
                } else {
                    system("the data path has stopped")(error)
                }),
                error = daemon.keeper.failure() => break Err(error),
                error = panicked(&mut daemon.tasks) => break Err(error),
            }
        };
        if let Err(error) = &outcome {
            tracing::error!(%error, "the daemon has to end");
        }
        daemon.stop().await;
        outcome
    }

    async fn start(config: &Config) -> Result<(Self, Arc<Firewall>), Error> {
        let state = Arc::new(StateDir::open(&config.node.state_dir)?);
        let identity = state.load_or_create_identity(entropy::seed)?;
        let (node_id, address) = (identity.node_id(), identity.address());
        let remembered = match state.load_contacts() {
            Ok(loaded) => loaded.contacts,
            Err(error) => {
                tracing::warn!(%error, "starting without the saved contacts");
                Vec::new()
            }
        };
        let firewall = Arc::new(Firewall::load(config, state.clone())?);
        let sockets = bind(&config.net.listen, config.data.udp_offload)?;
        let listen: Vec<_> = sockets.iter().map(UdpSocket::local_addr).collect();
        let listeners = stream::bind(&config.net.stream_listen)?;
        let taking: Vec<_> = listeners.iter().filter_map(|listener| listener.local_addr().ok()).collect();
        let tls = Tls::new(certificate(config).as_ref())?;
        let network = config.net.secret.as_ref().map(config::Secret::network).unwrap_or_default();
        let wanted = workers::wanted(config.data.workers, cpu::count());
        let metrics = match config.metrics.listen {
            Some(address) => Some(control::metrics::bind(address).await?),
            None => None,
        };
        let listener = server::Listener::bind(&config.node.socket).await?;
        let interface = InterfaceConfig {
            name: config.tun.name.clone(),
            mtu: config.tun.mtu,
            offloads: data::offloads(config.data.tun_offload),
            address,
            queues: wanted,
        };
        let mut interface = Interface::open(&interface).await?;
        let guard = match config.policy.lan_guard {
            true => match Guard::install(interface.name()).await {
                Ok(guard) => Some(guard),
                Err(error) => {
                    keeper::take_away(interface, None).await;
                    return Err(error.into());
                }
            },
            false => None,
        };
        let workers = workers::share(interface.devices(), sockets, wanted);
        interface.keep_queues(workers.len());
        let asked = data::session(&config.data, network.clone()).with_threads(workers.len() as u8);
        let mut node = node::Node::new(
            node_config(config, asked.clone(), identity, remembered, &firewall),
            clock::now(),
        );
        node.set_stream_ports(config.net.stream_ports.clone());
        node.set_hops(config.net.port_hopping);
        let ports = node.own_hopping();
        let (engine, wishes) = match Engine::start(node, &workers) {
            Ok(started) => started,
            Err(error) => {
                keeper::take_away(interface, guard).await;
                return Err(system("cannot start the data path")(error));
            }
        };
        let data = Data::new(&asked, engine.rungs());
        data.log();
        let handle = engine.handle();
        firewall.attach(handle.clone());
        let discovery = config.net.lan_discovery.then(|| Discovery::open(listen.clone())).flatten();
        let keeper = Keeper::new(interface, guard, handle.clone(), listen.clone(), taking.clone());
        let keeper = Arc::new(keeper);
        let setup = stream::Setup {
            listeners,
            handle: handle.clone(),
            wishes,
            network,
            udp: listen.clone(),
            tls_first: config.net.stream_tls,
            tls,
        };
        let streams = match Streams::start(setup) {
            Ok(streams) => streams,
            Err(error) => {
                engine.stop().await;
                if let Some(keeper) = Arc::into_inner(keeper) {
                    keeper.close().await;
                }
                return Err(system("cannot start the thread for streams")(error));
            }
        };
        let mut tasks = JoinSet::new();
        keeper.look_around().await;
        let (links, link_changes) = tokio::sync::watch::channel(());
        tasks.spawn(keeper.clone().run(links));
        let inside = listen.iter().find(|address| address.is_ipv4()).map(SocketAddr::port);
        let mapping = PortMapping::new(config.net.port_mapping, inside.is_some());
        if let Some(inside) = inside.filter(|_| config.net.port_mapping) {
            tasks.spawn(mapping.clone().run(handle.clone(), inside, link_changes.clone()));
        }
        if let Some(discovery) = discovery {
            tasks.spawn(discovery.run(handle.clone(), config.tun.name.clone(), link_changes));
        }
        let saver = saver::Saver::new(handle.clone(), state.clone());
        let port = listen.first().map_or(config::DEFAULT_PORT, SocketAddr::port);
        let addresses = listen.clone();
        let health = health::Facts::new(config, saver.failed(), keeper.clone(), firewall.clone(), port);
        tasks.spawn(saver.run());
        let answers = Arc::new(Answers::new(
            handle,
            keeper.clone(),
            firewall.clone(),
            health,
            data,
            (listen, taking, streams.counters()),
            mapping.clone(),
        ));
        let mut daemon = Self { engine, keeper, state, mapping, ports: None, streams, tasks };
        if !config.net.port_hopping {
            let interface = config.tun.name.clone();
            daemon.tasks.spawn(async move { hopping::Ports::forget(&interface).await });
        } else {
            match hopping::Ports::open(&config.tun.name, ports, &addresses).await {
                Ok(ports) => {
                    let ports = daemon.ports.insert(Arc::new(ports)).clone();
                    daemon.tasks.spawn(async move { ports.run().await });
                }
                Err(error) => {
                    drop(answers);
                    daemon.stop().await;
                    return Err(error.into());
                }
            }
        }
        if let Some(listener) = metrics {
            daemon.tasks.spawn(control::metrics::serve(listener, metrics::render(answers.clone())));
        }
        daemon.tasks.spawn(watch::run(answers.clone(), config.node.socket.clone()));
        daemon.tasks.spawn(server::serve(listener, answers));
        let workers = workers.len();
        tracing::info!(node = %node_id, %address, interface = %config.tun.name, workers, "ready");
        Ok((daemon, firewall))
    }

    /// Takes everything away that was set up, in the opposite order.
    async fn stop(mut self) {
        tracing::info!("stopping");
        self.tasks.shutdown().await;
        self.mapping.release().await;
        if let Some(ports) = &self.ports {
            ports.close().await;
        }
        saver::save(&self.engine.handle(), &self.state).await;
        self.engine.stop().await;
        // After the goodbyes, which go by streams, too.
        self.streams.stop().await;
        match Arc::into_inner(self.keeper) {
            Some(keeper) => keeper.close().await,
            None => tracing::error!("interface and guard stay behind: something still holds them"),
        }
    }
}

/// The owner's certificate for streams.
fn certificate(config: &Config) -> Option<CertificateFiles> {
    let net = &config.net;
    let (certificate, key) = net.stream_cert.clone().zip(net.stream_key.clone())?;
    Some(CertificateFiles { certificate, key })
}

fn bind(listen: &[SocketAddr], offload: UdpOffload) -> Result<Vec<UdpSocket>, Error> {
    let mut sockets = Vec::new();
    let mut chosen = None;
    for address in listen {
        let mut address = *address;
        // Port 0 is any free one, but the same for both families.
        if address.port() == 0 {
            address.set_port(chosen.unwrap_or(0));
        }
        match UdpSocket::bind(address) {
            Ok(socket) => {
                if offload == UdpOffload::None {
                    socket.renounce_trains().map_err(system("cannot switch UDP offloads off"))?;
                }
                chosen.get_or_insert(socket.local_addr().port());
                sockets.push(socket);
            }
            Err(error) if listen.len() > 1 && error.is_missing_family() => {
                tracing::warn!(%address, %error, "not listening there");
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(sockets)
}

fn node_config(
    config: &Config,
    session: session::Config,
    identity: Identity,
    remembered: Vec<crate::proto::wire::control::Contact>,
    firewall: &Firewall,
) -> node::Config {
    node::Config {
        identity,
        session,
        dht_mode: match config.dht.mode {
            DhtMode::Auto | DhtMode::Server => Mode::Server,
            DhtMode::Client => Mode::Client,
        },
        dht_auto: config.dht.mode == DhtMode::Auto,
        relay: relay::Config {
            strangers: config.relay.enabled,
            stranger_bits_per_s: u64::from(config.relay.limits.kbit_s) * 1000,
            own: config.relay.peers.iter().copied().collect(),
        },
        rules: firewall.rules(),
        mtu: usize::from(config.tun.mtu),
        bootstrap: config.net.bootstrap.iter().map(|b| (b.node_id, b.endpoint)).collect(),
        remembered,
        seed: entropy::seed(),
    }
}

/// SIGHUP: takes over what can change while running; says what cannot.
async fn reload(config: &mut Config, firewall: &Firewall) {
    let fresh = match config.reload() {
        Ok(fresh) => fresh,
        Err(error) => return tracing::error!(%error, "configuration not reloaded; the running one stays"),
    };
    firewall.configure(&fresh.policy).await;
    // The rest stays what the daemon runs with, so that the next reload tells of it again.
    (config.policy.inbound, config.policy.allow) = (fresh.policy.inbound, fresh.policy.allow.clone());
    let waiting = config.changed(&fresh);
    if !waiting.is_empty() {
        let keys = waiting.join(", ");
        tracing::warn!(keys, "changed, but takes effect only after a restart of the daemon");
    }
    tracing::info!("configuration reloaded");
}

#[cfg(test)]
mod tests;
