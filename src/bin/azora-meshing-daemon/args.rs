//! Every flag of `azora-meshing-daemon`, defined once: parser, help, man page and completions follow from here.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use auramesh::config::{
    self, Bootstrap, Cipher, DhtMode, Given, Inbound, InvalidValue, LogLevel, Overrides, TunOffload,
    UdpOffload,
};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::parser::ValueSource;
use clap::{ArgMatches, Parser, ValueHint};
use clap_complete::Shell;

/// Run a mesh node: an interface whose IPv6 address is derived from the node's key.
#[derive(Debug, Parser)]
#[command(name = "azora-meshing-daemon", version, after_help = AFTER_HELP)]
pub(crate) struct Arguments {
    /// Configuration file [default: /etc/azora/azora.toml, which may be missing]
    #[arg(long, env = "AZORA_CONFIG", value_name = "FILE", value_hint = ValueHint::FilePath)]
    config: Option<PathBuf>,

    /// Directory of identity and known peers [default: /var/lib/azora]
    #[arg(long, env = "AZORA_STATE_DIR", value_name = "DIR", value_parser = config::state_dir)]
    #[arg(value_hint = ValueHint::DirPath)]
    state_dir: Option<PathBuf>,

    /// Control socket [default: /run/azora/azora.sock]
    #[arg(long, env = "AZORA_SOCKET", value_name = "PATH", value_parser = config::socket_path)]
    #[arg(value_hint = ValueHint::FilePath)]
    socket: Option<PathBuf>,

    /// Network interface [default: azora0]
    #[arg(long, value_name = "NAME", value_parser = config::tun_name)]
    tun: Option<String>,

    /// UDP address to listen on, may be repeated; port 0 is any free one [default: [::]:5747 and 0.0.0.0:5747]
    #[arg(long, value_name = "IP:PORT", value_parser = config::listen_address)]
    listen: Vec<SocketAddr>,

    /// Node to start from, beside the saved ones and the LAN; may be repeated
    #[arg(long, value_name = "NODEID@IP:PORT")]
    bootstrap: Vec<Bootstrap>,

    /// Do not look for nodes on the local network
    #[arg(long)]
    no_lan_discovery: bool,

    /// TCP address to take nodes in that have no UDP, may be repeated; needs CAP_NET_BIND_SERVICE below 1024 [default: none]
    #[arg(long, value_name = "IP:PORT", value_parser = config::stream_address)]
    stream_listen: Vec<SocketAddr>,

    /// File with the secret of the network, 16 to 256 bytes that only this daemon's user may read [default: open network]
    #[arg(long, value_name = "FILE", value_parser = config::file_path, value_hint = ValueHint::FilePath)]
    secret_file: Option<PathBuf>,

    /// Serve the DHT, only use it, or decide by reachability [default: auto]
    #[arg(long, value_name = "MODE", value_parser = words::<DhtMode>(DhtMode::WORDS))]
    dht: Option<DhtMode>,

    /// Flows that others open; replies and ICMPv6 echo always pass [default: deny]
    #[arg(long, value_name = "POLICY", value_parser = words::<Inbound>(Inbound::WORDS))]
    inbound: Option<Inbound>,

    /// Work that the kernel leaves to the daemon and the other way round on the interface [default: auto]
    #[arg(long, value_name = "RUNG", value_parser = words::<TunOffload>(TunOffload::WORDS))]
    tun_offload: Option<TunOffload>,

    /// Trains of datagrams that the kernel cuts and joins [default: auto]
    #[arg(long, value_name = "RUNG", value_parser = words::<UdpOffload>(UdpOffload::WORDS))]
    udp_offload: Option<UdpOffload>,

    /// Send and take no superframes
    #[arg(long)]
    no_superframes: bool,

    /// Cipher of the sessions; peers that prefer different ones agree on chacha20-poly1305 [default: auto]
    #[arg(long, value_name = "CIPHER", value_parser = words::<Cipher>(Cipher::WORDS))]
    cipher: Option<Cipher>,

    /// Pairs of threads that carry packets, 1 to 8; 0 is one for every two cores [default: 0]
    #[arg(long, value_name = "N", value_parser = workers)]
    workers: Option<usize>,

    /// What is logged to stderr [default: info]
    #[arg(long, env = "AZORA_LOG", value_name = "LEVEL", value_parser = words::<LogLevel>(LogLevel::WORDS))]
    log: Option<LogLevel>,

    /// Serve Prometheus text over HTTP at this address [default: off]
    #[arg(long, value_name = "IP:PORT", value_parser = config::metrics_address)]
    metrics: Option<SocketAddr>,

    /// Check the configuration and exit: 0 when it can be used, 2 when not
    #[arg(long)]
    pub(crate) test: bool,

    /// Print the man page
    #[arg(long, hide = true)]
    pub(crate) man: bool,

    /// Print completions for a shell
    #[arg(long, hide = true, value_name = "SHELL")]
    pub(crate) completions: Option<Shell>,

    /// Set by systemd: device and inode of the journal's end of stderr
    #[arg(long, hide = true, env = "JOURNAL_STREAM")]
    pub(crate) journal_stream: Option<String>,
}

const AFTER_HELP: &str = "Flags win over the environment, the environment over the file; a list replaces the file's.\n\
    SIGTERM and SIGINT stop it cleanly, SIGHUP reads the configuration again.\n\
    Exit codes: 0 ok, 1 failed, 2 wrong usage or configuration.";

impl Arguments {
    /// What was given, and how. `matches` are those that the arguments were parsed from.
    pub(crate) fn overrides(&self, matches: &ArgMatches) -> Overrides {
        Overrides {
            file: given(matches, "config", self.config.clone()),
            state_dir: given(matches, "state_dir", self.state_dir.clone()),
            socket: given(matches, "socket", self.socket.clone()),
            log: given(matches, "log", self.log),
            tun_name: given(matches, "tun", self.tun.clone()),
            listen: given(matches, "listen", (!self.listen.is_empty()).then(|| self.listen.clone())),
            bootstrap: given(
                matches,
                "bootstrap",
                (!self.bootstrap.is_empty()).then(|| self.bootstrap.clone()),
            ),
            lan_discovery: self.no_lan_discovery.then_some(Given::flag(false)),
            stream_listen: given(
                matches,
                "stream_listen",
                (!self.stream_listen.is_empty()).then(|| self.stream_listen.clone()),
            ),
            secret_file: given(matches, "secret_file", self.secret_file.clone()),
            dht_mode: given(matches, "dht", self.dht),
            tun_offload: given(matches, "tun_offload", self.tun_offload),
            udp_offload: given(matches, "udp_offload", self.udp_offload),
            superframes: self.no_superframes.then_some(Given::flag(false)),
            cipher: given(matches, "cipher", self.cipher),
            workers: given(matches, "workers", self.workers),
            inbound: given(matches, "inbound", self.inbound),
            metrics: given(matches, "metrics", self.metrics),
        }
    }
}

fn given<T>(matches: &ArgMatches, name: &str, value: Option<T>) -> Option<Given<T>> {
    let from_environment = matches.value_source(name) == Some(ValueSource::EnvVariable);
    value.map(if from_environment { Given::environment } else { Given::flag })
}

fn workers(text: &str) -> Result<usize, Box<dyn std::error::Error + Send + Sync>> {
    Ok(config::workers(text.parse()?)?)
}

/// One of the words, shown in help and completions.
fn words<T>(words: &'static [&'static str]) -> impl TypedValueParser<Value = T>
where
    T: FromStr<Err = InvalidValue> + Clone + Send + Sync + 'static,
{
    PossibleValuesParser::new(words).try_map(|word| word.parse())
}
