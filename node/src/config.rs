//! Configuration of a node: defaults < file (TOML) < `HODEI_*` environment < flags.

use std::{
    env, fmt, fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, ToSocketAddrs as _, UdpSocket},
    path::{Path, PathBuf},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

use crate::{bad_toml::tell, cli::exit::Failure};

/// Flags (and their environment variables) of `init`, `join` and `run`.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct NodeArgs {
    /// Where the node keeps everything [default: /var/lib/hodei, for others than root ~/.local/share/hodei]
    #[arg(long, env = "HODEI_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Address and port for peers, agents and clients [default: 0.0.0.0:50051]
    #[arg(long, env = "HODEI_LISTEN", value_name = "A")]
    pub listen: Option<String>,
    /// Where others reach this node [default: what it listens on; for 0.0.0.0 the default route's address]
    #[arg(long, env = "HODEI_ADVERTISE", value_name = "A")]
    pub advertise: Option<String>,
    /// Address and port for HTTP, or off [default: the same host, port 8080]
    #[arg(long, env = "HODEI_HTTP", value_name = "A|off")]
    pub http: Option<Http>,
    /// Configuration file (TOML)
    #[arg(long, env = "HODEI_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print the resulting configuration and stop
    #[arg(long)]
    pub dump_config: bool,
}

/// Where HTTP is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Http {
    /// Nowhere.
    Off,
    /// Address and port.
    On(String),
}

impl FromStr for Http {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Self::Off),
            address => address_and_port(address).map(|()| Self::On(address.to_owned())),
        }
    }
}

impl fmt::Display for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::On(address) => f.write_str(address),
        }
    }
}

/// The file: everything is optional, nothing unknown is allowed.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    data_dir: Option<PathBuf>,
    listen: Option<String>,
    advertise: Option<String>,
    http: Option<String>,
    peers: Option<Vec<String>>,
    #[serde(default)]
    raft: RaftFile,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RaftFile {
    heartbeat_ms: Option<u64>,
    election_min_ms: Option<u64>,
    election_max_ms: Option<u64>,
}

/// What a node runs with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Config {
    /// Where the node keeps everything.
    pub data_dir: PathBuf,
    /// Address and port for peers, agents and clients.
    pub listen: String,
    /// Where others reach this node; absent: what it listens on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advertise: Option<String>,
    /// Where HTTP is served.
    #[serde(serialize_with = "as_text")]
    pub http: Http,
    /// Seeds, for a node whose peers all moved.
    pub peers: Vec<String>,
    /// Times of the consensus.
    pub raft: Raft,
}

/// Times of the consensus, in milliseconds. The defaults are for one LAN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Raft {
    /// Between a leader's heartbeats.
    pub heartbeat_ms: u64,
    /// Shortest time without one after which a follower stands for election.
    pub election_min_ms: u64,
    /// Longest.
    pub election_max_ms: u64,
}

impl Default for Raft {
    fn default() -> Self {
        Self { heartbeat_ms: 100, election_min_ms: 300, election_max_ms: 600 }
    }
}

fn as_text<S: serde::Serializer>(value: &impl fmt::Display, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

impl Config {
    /// Puts the sources together. `peers` are the seeds of `run --peer`.
    ///
    /// # Errors
    /// Bad input, with the place where it stands.
    pub fn load(args: &NodeArgs, peers: &[String]) -> Result<Self, Failure> {
        let file = args.config.as_deref().map(read).transpose()?.unwrap_or_default();
        let config = Self::merge(args, peers, file).map_err(Failure::bad_input)?;
        config.check().map_err(Failure::bad_input)?;
        Ok(config)
    }

    fn merge(args: &NodeArgs, peers: &[String], file: File) -> Result<Self, String> {
        let listen = args.listen.clone().or(file.listen).unwrap_or_else(|| "0.0.0.0:50051".into());
        let http = match (&args.http, file.http) {
            (Some(http), _) => http.clone(),
            (None, Some(text)) => text.parse().map_err(|error| format!("http: {error}"))?,
            (None, None) => Http::On(format!("{}:8080", host(&listen))),
        };
        let defaults = Raft::default();
        Ok(Self {
            data_dir: args.data_dir.clone().or(file.data_dir).unwrap_or_else(default_data_dir),
            listen,
            advertise: args.advertise.clone().or(file.advertise),
            http,
            peers: if peers.is_empty() { file.peers.unwrap_or_default() } else { peers.to_vec() },
            raft: Raft {
                heartbeat_ms: file.raft.heartbeat_ms.unwrap_or(defaults.heartbeat_ms),
                election_min_ms: file.raft.election_min_ms.unwrap_or(defaults.election_min_ms),
                election_max_ms: file.raft.election_max_ms.unwrap_or(defaults.election_max_ms),
            },
        })
    }

    fn check(&self) -> Result<(), String> {
        address_and_port(&self.listen).map_err(|error| format!("listen: {error}"))?;
        if let Some(advertise) = &self.advertise {
            address_and_port(advertise).map_err(|error| format!("advertise: {error}"))?;
            if port(advertise) == Some(0) || unspecified(advertise) {
                return Err(format!("advertise: {advertise:?}: expected an address that others can connect to"));
            }
        }
        for peer in &self.peers {
            address_and_port(peer).map_err(|error| format!("peer: {error}"))?;
        }
        let Raft { heartbeat_ms, election_min_ms, election_max_ms } = self.raft;
        if heartbeat_ms == 0 || election_min_ms <= heartbeat_ms || election_max_ms <= election_min_ms {
            return Err("raft: expected 0 < heartbeat_ms < election_min_ms < election_max_ms".into());
        }
        Ok(())
    }

    /// The result as TOML.
    ///
    /// # Errors
    /// Where a path is no text.
    pub fn dump(&self) -> Result<String, Failure> {
        toml::to_string(self).map_err(|error| Failure::other(error.to_string()))
    }

    /// Binds the address for peers, agents and clients.
    ///
    /// # Errors
    /// Bad input: the port is in use, or not this machine's.
    pub fn bind(&self) -> Result<TcpListener, Failure> {
        bind("listen", &self.listen)
    }

    /// Where others reach this node, once it listens on `bound`.
    #[must_use]
    pub fn advertised(&self, bound: SocketAddr) -> String {
        match &self.advertise {
            Some(address) => address.clone(),
            None if bound.ip().is_unspecified() => SocketAddr::new(default_route(), bound.port()).to_string(),
            // A name stays a name.
            None => format!("{}:{}", host(&self.listen), bound.port()),
        }
    }
}

/// Binds a listening socket.
///
/// # Errors
/// Bad input, in one line.
pub fn bind(what: &str, address: &str) -> Result<TcpListener, Failure> {
    let fail = |error: io::Error| {
        let why = match error.kind() {
            io::ErrorKind::AddrInUse => "the port is in use".to_owned(),
            _ => error.to_string(),
        };
        Failure::bad_input(format!("cannot listen on {address} (--{what}): {why}"))
    };
    let listener = TcpListener::bind(address).map_err(fail)?;
    listener.set_nonblocking(true).map_err(fail)?;
    Ok(listener)
}

fn read(path: &Path) -> Result<File, Failure> {
    let at = path.display();
    let text = fs::read_to_string(path).map_err(|error| Failure::bad_input(format!("cannot read {at}: {error}")))?;
    let deserializer = toml::Deserializer::parse(&text)
        .map_err(|error| Failure::bad_input(format!("{at}: {}", tell(&text, &error))))?;
    serde_path_to_error::deserialize(deserializer).map_err(|error| {
        let (place, why) = (error.path().to_string(), tell(&text, error.inner()));
        Failure::bad_input(if place == "." { format!("{at}: {why}") } else { format!("{at}: {place}: {why}") })
    })
}

fn default_data_dir() -> PathBuf {
    if nix::unistd::geteuid().is_root() {
        return "/var/lib/hodei".into();
    }
    let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("XDG_DATA_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/share")))
        .map_or_else(|| "/var/lib/hodei".into(), |base| base.join("hodei"))
}

/// Checks the form `host:port`.
fn address_and_port(text: &str) -> Result<(), String> {
    let bad = || format!("{text:?}: expected ADDRESS:PORT, for example 10.0.0.1:50051");
    port(text).ok_or_else(bad)?;
    let host = host(text);
    let bracketed = host.starts_with('[') && host.ends_with(']');
    if host.is_empty() || (host.contains(':') && !bracketed) || text.parse::<http::uri::Authority>().is_err() {
        return Err(bad());
    }
    Ok(())
}

fn port(address: &str) -> Option<u16> {
    address.rsplit_once(':')?.1.parse().ok()
}

fn host(address: &str) -> &str {
    address.rsplit_once(':').map_or(address, |(host, _)| host)
}

fn unspecified(address: &str) -> bool {
    address.to_socket_addrs().is_ok_and(|mut found| found.any(|address| address.ip().is_unspecified()))
}

/// The address of the default route: what the kernel would send from. Connecting a datagram socket sends nothing.
fn default_route() -> IpAddr {
    let probe = || {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        // TEST-NET-1: nobody's address, so it is the default route that answers for it.
        socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9))?;
        socket.local_addr()
    };
    probe().map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |address| address.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args() -> NodeArgs {
        NodeArgs { data_dir: Some("/d".into()), ..NodeArgs::default() }
    }

    fn from_file(text: &str, args: NodeArgs) -> Result<Config, Failure> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        Config::load(&NodeArgs { config: Some(file.path().to_owned()), ..args }, &[])
    }

    #[test]
    fn flags_go_before_the_file_and_the_file_before_defaults() {
        let text = "listen = \"127.0.0.2:5\"\nadvertise = \"n2:5\"\n[raft]\nheartbeat_ms = 50";
        let config = from_file(text, NodeArgs { listen: Some("127.0.0.3:7".into()), ..args() }).unwrap();
        assert_eq!(config.listen, "127.0.0.3:7");
        assert_eq!(config.advertise.as_deref(), Some("n2:5"));
        assert_eq!(config.http, Http::On("127.0.0.3:8080".into()), "the host follows --listen");
        assert_eq!(config.raft, Raft { heartbeat_ms: 50, ..Raft::default() });
        assert_eq!(Config::load(&args(), &[]).unwrap().listen, "0.0.0.0:50051");
    }

    #[test]
    fn what_is_dumped_can_be_loaded() {
        let config = from_file("peers = [\"a:1\"]\nhttp = \"off\"", args()).unwrap();
        assert_eq!(from_file(&config.dump().unwrap(), NodeArgs::default()).unwrap(), config);
    }

    #[test]
    fn bad_input_names_its_place() {
        for (text, place) in [
            ("lissten = \"a:1\"", "lissten"),
            ("# 1\n# 2\nlisten = 7", "line 3 column 10"),
            ("# 1\nlisten = [", "line 2 column"),
            ("[raft]\nheartbeat_ms = \"x\"", "raft.heartbeat_ms"),
            ("[raft]\nheartbeat_ms = 900", "raft"),
            ("listen = \"nowhere\"", "listen"),
            ("advertise = \"0.0.0.0:1\"", "advertise"),
            ("http = \"on\"", "http"),
            ("peers = [\":1\"]", "peer"),
        ] {
            let failure = from_file(text, args()).unwrap_err();
            assert_eq!(failure.exit, 2);
            assert!(failure.message.contains(place), "{failure}");
        }
    }

    #[test]
    fn a_port_in_use_is_one_clear_line() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let failure = bind("listen", &taken.local_addr().unwrap().to_string()).unwrap_err();
        assert_eq!(failure.exit, 2);
        assert!(failure.message.ends_with("(--listen): the port is in use"), "{failure}");
    }

    #[test]
    fn what_others_are_told() {
        let bound: SocketAddr = "127.0.0.1:7000".parse().unwrap();
        let told = |listen: &str, advertise: Option<&str>| {
            let args = NodeArgs { listen: Some(listen.into()), advertise: advertise.map(Into::into), ..args() };
            Config::load(&args, &[]).unwrap().advertised(bound)
        };
        assert_eq!(told("localhost:0", None), "localhost:7000");
        assert_eq!(told("127.0.0.1:0", Some("n1.example:99")), "n1.example:99");
    }
}
