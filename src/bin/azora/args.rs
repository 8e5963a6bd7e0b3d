//! Every flag of `azora`, defined once: parser, help, man pages and completions follow from here.

use std::net::Ipv6Addr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use auramesh::config::{self, Bootstrap, InvalidValue, LogLevel, Protocol};
use auramesh::control::PING_TIMEOUT_MAX;
use auramesh::control::target::Target;
use auramesh::proto::identity::{NodeId, ParseNodeIdError};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};
use clap_complete::Shell;

/// Longest interval or wait in seconds: a day.
const SECONDS_MAX: f64 = 86_400.0;
/// Shortest time in seconds that a flag takes.
const SECONDS_MIN: f64 = 0.001;

/// Talk to the mesh node on this machine.
#[derive(Debug, Parser)]
#[command(name = "azora", version, arg_required_else_help = true, after_help = EXIT_CODES)]
pub(crate) struct Arguments {
    /// Socket of the daemon [default: node.socket of the configuration, else /run/azora/azora.sock]
    #[arg(long, global = true, env = "AZORA_SOCKET", value_name = "PATH", value_parser = config::socket_path)]
    #[arg(value_hint = ValueHint::FilePath)]
    pub(crate) socket: Option<PathBuf>,

    /// Configuration file [default: /etc/azora/azora.toml, which may be missing]
    #[arg(long, global = true, env = "AZORA_CONFIG", value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) config: Option<PathBuf>,

    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXIT_CODES: &str = "A TARGET is a node ID, a mesh address, NODEID.azora or NODEID@IP:PORT.\n\
    Exit codes: 0 ok, 1 failed, 2 wrong usage or configuration, 3 no daemon at the socket.";

/// For commands that only read.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Format {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Print this node's ID
    Id(Format),
    /// Print this node's mesh address
    Ip(Format),
    /// Print the address of a node ID (offline), or what the DHT knows about an address
    Inspect {
        /// A node ID or a mesh address
        #[arg(value_name = "NODEID|ADDRESS")]
        target: Target,
        #[command(flatten)]
        format: Format,
    },
    /// Make, show, save or restore this node's identity, without the daemon
    #[command(subcommand_required = true, arg_required_else_help = true)]
    Key {
        /// Directory of the identity [default: node.state_dir of the configuration, else /var/lib/azora]
        #[arg(long, global = true, env = "AZORA_STATE_DIR", value_name = "DIR", value_parser = config::state_dir)]
        #[arg(value_hint = ValueHint::DirPath)]
        state_dir: Option<PathBuf>,
        #[command(subcommand)]
        command: KeyCommand,
    },
    /// Bring the interface up
    Up,
    /// Take the interface down; the daemon keeps running
    Down,
    /// Show what the node does, what is wrong and what to do about it
    Status {
        /// Show every peer
        #[arg(long)]
        peers: bool,
        /// Show what was dropped since the start, and what each reason means
        #[arg(long)]
        drops: bool,
        /// Only print one line and exit 0 or 1
        #[arg(long, value_name = "WHAT", conflicts_with_all = ["peers", "drops", "json"])]
        check: Option<Check>,
        #[command(flatten)]
        format: Format,
    },
    /// Show peers, add or remove one
    ///
    /// STATE is known (its record or a place is known, nothing more), authenticated (there is a session: it holds its key), or
    /// flowing (and data went either way in the last 30 s).
    Peers {
        #[command(flatten)]
        format: Format,
        #[command(subcommand)]
        command: Option<PeersCommand>,
    },
    /// Ask another node for a sign of life: who answers, by which path, how fast
    Ping(PingArguments),
    /// Ask the DHT
    #[command(subcommand_required = true, arg_required_else_help = true)]
    Dht {
        #[command(subcommand)]
        command: DhtCommand,
    },
    /// Try to reach a node stage by stage and say where it fails
    Probe {
        /// Whom
        target: Target,
        #[command(flatten)]
        format: Format,
    },
    /// Ask contacts what network this machine is in: UDP, IPv4, IPv6, NAT, port mapping, relays, MTU
    Netcheck(Format),
    /// Show which nodes carry packets on their way to another one, and how fast each answers
    Trace {
        /// Whom
        target: Target,
        #[command(flatten)]
        format: Format,
    },
    /// Show or change what others may open to this node
    #[command(subcommand_required = true, arg_required_else_help = true)]
    Firewall {
        #[command(subcommand)]
        command: FirewallCommand,
    },
    /// Return when the node is ready: interface up, and peers known or none configured
    Wait {
        /// Give up after so many seconds
        #[arg(long, value_name = "S", default_value = "60", value_parser = seconds)]
        timeout: Duration,
        #[command(flatten)]
        format: Format,
    },
    /// Check, show or write the configuration file
    #[command(subcommand_required = true, arg_required_else_help = true)]
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Print completions for a shell
    Completions {
        /// Which
        shell: Shell,
    },
    /// Print what helps to find a fault, without secret keys, and with node IDs and addresses replaced
    Report {
        /// Keep addresses and node IDs as they are
        #[arg(long)]
        with_addresses: bool,
        #[command(flatten)]
        format: Format,
    },
    /// Write the man pages into a directory
    Man {
        /// Existing directory
        directory: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum KeyCommand {
    /// Make a new identity
    Generate(Force),
    /// Show the node ID and the address
    Show(Format),
    /// Print the secret identity, for a backup
    Export,
    /// Take an exported identity from a file or standard input
    Import {
        /// File with the line that `key export` printed; `-` is standard input
        #[arg(default_value = "-", value_hint = ValueHint::FilePath)]
        file: PathBuf,
        #[command(flatten)]
        force: Force,
    },
}

#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Force {
    /// Overwrite what is there
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Check {
    /// The daemon answers
    Live,
    /// The interface is up, and peers are known or none configured
    Ready,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PeersCommand {
    /// Add a peer until the daemon ends
    Add {
        /// Whom, and where
        #[arg(value_name = "NODEID@IP:PORT")]
        peer: Bootstrap,
    },
    /// Forget a peer and end its session; the other side may open a new one (the firewall keeps it out, not this)
    Remove {
        /// Whom
        #[arg(value_name = "NODEID", value_parser = node_id)]
        node_id: NodeId,
    },
}

#[derive(Debug, Args)]
pub(crate) struct PingArguments {
    /// Whom
    pub(crate) target: Target,
    /// How many to send [default: 5, with --until-direct 20]
    #[arg(short, long, value_name = "N", value_parser = count)]
    pub(crate) count: Option<u64>,
    /// Seconds between two
    #[arg(long, value_name = "S", default_value = "1", value_parser = seconds)]
    pub(crate) interval: Duration,
    /// Seconds to wait for each reply, at most 60
    #[arg(long, value_name = "S", default_value = "5", value_parser = ping_timeout)]
    pub(crate) timeout: Duration,
    /// Stop at the first reply over a direct path; exit 1 and say why when none comes
    #[arg(long)]
    pub(crate) until_direct: bool,
    #[command(flatten)]
    pub(crate) format: Format,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DhtCommand {
    /// Walk to a node's record and show who held it
    Lookup {
        /// Whom
        target: Target,
        #[command(flatten)]
        format: Format,
    },
    /// Show the routing table
    Status(Format),
}

#[derive(Debug, Subcommand)]
pub(crate) enum FirewallCommand {
    /// Show the rules and their numbers, which may change when the daemon restarts
    List(Format),
    /// Show what was refused lately, from whom, and what would let it in: the last eight ports of each peer
    Trace(Format),
    /// Let something in; the rule is kept over restarts, its number may change then
    Add {
        /// Direction
        #[arg(value_enum)]
        direction: Direction,
        /// What to do
        #[arg(value_enum)]
        action: Action,
        /// Only this protocol
        #[arg(short, long, value_name = "PROTOCOL", value_parser = words::<Protocol>(Protocol::WORDS))]
        protocol: Option<Protocol>,
        /// Only this port; needs -p tcp or -p udp
        #[arg(long, value_name = "N", value_parser = port)]
        port: Option<u16>,
        /// Only from this node
        #[arg(long, value_name = "NODEID", value_parser = node_id)]
        peer: Option<NodeId>,
    },
    /// Remove a rule for good; numbers may change at a restart, so look first: `azora firewall list`
    Remove {
        /// Number of the rule in the list
        #[arg(value_name = "N", value_parser = rule_number)]
        index: u32,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Direction {
    /// Flows that others open
    In,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Action {
    /// Let them through
    Allow,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Check a file: exit 0 when it can be used, 2 when not
    Check {
        /// The file [default: the one that the daemon would read]
        #[arg(value_hint = ValueHint::FilePath)]
        file: Option<PathBuf>,
    },
    /// Show every setting of a daemon started here, and where it comes from (flag, environment, file, default)
    Show(ShowArguments),
    /// Write the commented example
    Init {
        /// Where to [default: --config, else /etc/azora/azora.toml]
        #[arg(value_hint = ValueHint::FilePath)]
        file: Option<PathBuf>,
        #[command(flatten)]
        force: Force,
    },
}

/// What the daemon takes from the environment, too, beside the socket.
#[derive(Debug, Args)]
pub(crate) struct ShowArguments {
    #[arg(long, hide = true, env = "AZORA_STATE_DIR", value_name = "DIR", value_parser = config::state_dir)]
    pub(crate) state_dir: Option<PathBuf>,
    #[arg(long, hide = true, env = "AZORA_LOG", value_name = "LEVEL", value_parser = words::<LogLevel>(LogLevel::WORDS))]
    pub(crate) log: Option<LogLevel>,
    #[command(flatten)]
    pub(crate) format: Format,
}

fn seconds(text: &str) -> Result<Duration, String> {
    seconds_up_to(text, SECONDS_MAX)
}

fn ping_timeout(text: &str) -> Result<Duration, String> {
    seconds_up_to(text, PING_TIMEOUT_MAX.as_secs_f64())
}

fn seconds_up_to(text: &str, max: f64) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (SECONDS_MIN..=max).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err(format!("{SECONDS_MIN} to {max} seconds")),
    }
}

fn count(text: &str) -> Result<u64, &'static str> {
    text.parse().ok().filter(|count| *count > 0).ok_or("a whole number from 1")
}

fn rule_number(text: &str) -> Result<u32, &'static str> {
    text.parse().map_err(|_| "the number of a rule, as `azora firewall list` shows it")
}

fn port(text: &str) -> Result<u16, &'static str> {
    let port = text.parse().ok().filter(|port| *port > 0);
    port.ok_or("one port from 1 to 65535; there are no ranges: add a rule for each port")
}

/// A node ID. An address is taken for one easily, and its key cannot be computed from it.
fn node_id(text: &str) -> Result<NodeId, String> {
    if text.parse::<Ipv6Addr>().is_ok() {
        return Err(
            "this is an address; `azora peers` and `azora dht lookup ADDRESS` show the node ID".into()
        );
    }
    text.parse().map_err(|error: ParseNodeIdError| error.to_string())
}

/// One of the words, shown in help and completions.
fn words<T>(words: &'static [&'static str]) -> impl TypedValueParser<Value = T>
where
    T: FromStr<Err = InvalidValue> + Clone + Send + Sync + 'static,
{
    PossibleValuesParser::new(words).try_map(|word| word.parse())
}
