//! Flags and environment.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    net::{Ipv6Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use clap::{CommandFactory as _, FromArgMatches as _, Parser};

use crate::{executor::account::Accounts, gpu, usage};

/// The port of a server that is named without one.
const PORT: u16 = 50051;

/// Runs jobs for a Hodei cluster.
///
/// The first start needs a token (`hodei-node token create --role agent`); later ones use the certificate in the data
/// directory. SIGTERM drains: no new jobs, running ones may finish.
///
/// Example: hodei-agent --server 10.0.0.1,10.0.0.2 --token hodei1.agent.… --label zone=a
#[derive(Clone, Debug, Parser)]
#[command(version, verbatim_doc_comment)]
pub struct Config {
    /// Nodes, comma-separated: host or host:port
    #[arg(long, env = "HODEI_SERVER", value_delimiter = ',', value_parser = server, default_value = "127.0.0.1:50051")]
    pub server: Vec<String>,
    /// Enrolment token, needed once
    #[arg(long, env = "HODEI_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// The id to ask for when enrolling (a UUID); default: chosen by the cluster
    #[arg(long, env = "HODEI_WORKER_ID")]
    pub worker_id: Option<uuid::Uuid>,
    /// Where the agent keeps its identity and its jobs
    #[arg(long, env = "HODEI_DATA_DIR", default_value_os_t = default_data_dir())]
    pub data_dir: PathBuf,
    /// Jobs at once; default: the number of cores
    #[arg(long, env = "HODEI_CAPACITY", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub capacity: Option<u32>,
    /// GPUs for jobs: auto (NVIDIA's), how many, or which: 0,1 or GPU-…; a single one: 1,
    #[arg(long, env = "HODEI_GPUS", value_parser = gpu::parse, default_value = "auto", value_name = "GPUS")]
    pub gpus: gpu::Choice,
    /// A label, key=value; may be repeated
    #[arg(long = "label", value_parser = label, value_name = "K=V")]
    pub labels: Vec<(String, String)>,
    /// Whom jobs run as that name no user; default: as the agent
    #[arg(long, env = "HODEI_JOB_USER", value_name = "NAME")]
    pub job_user: Option<String>,
    /// Another user that jobs may name, root included; may be repeated. Without --job-user, any may be named
    #[arg(
        long = "allow-user",
        env = "HODEI_ALLOW_USER",
        value_delimiter = ',',
        value_name = "NAME",
        requires = "job_user"
    )]
    pub allow_users: Vec<String>,
    /// The control group below which jobs get theirs, for example /system.slice/hodei-jobs.service; default: the agent's
    #[arg(long, env = "HODEI_CGROUP", value_parser = cgroup, value_name = "PATH")]
    pub cgroup: Option<String>,
    /// How long running jobs may go on after SIGTERM
    #[arg(long, value_parser = humantime::parse_duration, default_value = "10s")]
    pub drain_timeout: Duration,
}

impl Config {
    /// Reads flags and environment; ends the process where they are wrong.
    #[must_use]
    pub fn read() -> Self {
        let command = without_empty_variables(Self::command(), is_empty);
        let read = command.try_get_matches().and_then(|matches| Self::from_arg_matches(&matches));
        read.unwrap_or_else(|error| usage::exit(&error))
    }

    /// The servers, each with a port; those that were left empty are none.
    #[must_use]
    pub fn servers(&self) -> Vec<String> {
        self.server.iter().filter(|server| !server.is_empty()).cloned().collect()
    }

    /// The labels; a later one wins.
    #[must_use]
    pub fn labels(&self) -> BTreeMap<String, String> {
        self.labels.iter().cloned().collect()
    }

    /// Whom jobs may run as.
    #[must_use]
    pub fn accounts(&self) -> Accounts {
        Accounts { by_default: self.job_user.clone(), allowed: self.allow_users.clone() }
    }

    /// Jobs at once.
    #[must_use]
    pub fn capacity(&self) -> u32 {
        self.capacity.unwrap_or_else(cores)
    }
}

/// A command line for which an empty variable is one that is not set.
fn without_empty_variables(command: clap::Command, is_empty: fn(&OsStr) -> bool) -> clap::Command {
    command.mut_args(
        |arg| {
            if arg.get_env().is_some_and(is_empty) { arg.env(clap::builder::Resettable::Reset) } else { arg }
        },
    )
}

fn is_empty(variable: &OsStr) -> bool {
    std::env::var_os(variable).is_some_and(|value| value.is_empty())
}

/// Cores that this process may use.
#[must_use]
pub fn cores() -> u32 {
    std::thread::available_parallelism().ok().and_then(|cores| u32::try_from(cores.get()).ok()).unwrap_or(1)
}

fn default_data_dir() -> PathBuf {
    match std::env::var_os("HOME") {
        Some(home) if !nix::unistd::geteuid().is_root() => PathBuf::from(home).join(".local/share/hodei-agent"),
        _ => PathBuf::from("/var/lib/hodei-agent"),
    }
}

/// A server with its port; nothing where nothing is named.
fn server(text: &str) -> Result<String, String> {
    let text = text.trim();
    if text.is_empty() || text.parse::<SocketAddr>().is_ok_and(|address| address.port() > 0) {
        return Ok(text.to_owned());
    }
    let inside = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    if inside.parse::<Ipv6Addr>().is_ok() {
        return Ok(format!("[{inside}]:{PORT}"));
    }
    let (host, port) = text.split_once(':').unwrap_or((text, ""));
    let named = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    let host_is_one = (1..=253).contains(&host.len()) && host.bytes().all(named);
    match port.parse::<u16>() {
        _ if !host_is_one => {}
        Ok(port) if port > 0 => return Ok(format!("{host}:{port}")),
        Err(_) if text == host => return Ok(format!("{host}:{PORT}")),
        _ => {}
    }
    Err("expected host, host:port or [IPv6]:port, with a port from 1 to 65535 and without a scheme".to_owned())
}

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("expected key=value".to_owned()),
    }
}

fn cgroup(text: &str) -> Result<String, String> {
    let is_plain = |path: &str| path.split('/').all(|part| !["", ".", ".."].contains(&part));
    if text.strip_prefix('/').is_some_and(is_plain) {
        return Ok(text.to_owned());
    }
    Err("expected a path from the top of the hierarchy of control groups, such as /a/b".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_get_a_port() {
        for (given, expected) in [
            ("a", "a:50051"),
            ("a:1", "a:1"),
            ("::1", "[::1]:50051"),
            ("[::1]", "[::1]:50051"),
            ("[::1]:7", "[::1]:7"),
            ("10.0.0.1", "10.0.0.1:50051"),
            (" node_1.example-a.org:80 ", "node_1.example-a.org:80"),
            ("", ""),
        ] {
            assert_eq!(server(given).unwrap(), expected);
        }
        let wrong = [
            "bad::addr",
            "a:",
            "a:0",
            "a:65536",
            "a:b",
            ":1",
            "http://a:1",
            "a b",
            "[::1",
            "[::1]:x",
            "a:1:2",
            "\u{fc}",
        ];
        for given in wrong {
            assert!(server(given).is_err(), "{given}");
        }
    }

    #[test]
    fn an_empty_variable_is_not_set() {
        let command = without_empty_variables(Config::command(), |name| name != "HODEI_TOKEN");
        let variables: Vec<_> = command.get_arguments().filter_map(clap::Arg::get_env).collect();
        assert_eq!(variables, ["HODEI_TOKEN"]);
    }

    #[test]
    fn bad_usage_is_refused() {
        for wrong in [
            &["--capacity", "0"][..],
            &["--label", "x"],
            &["--worker-id", "7"],
            &["--drain-timeout", "soon"],
            &["--cgroup", "a"],
            &["--cgroup", "/../x"],
            &["--allow-user", "root"],
        ] {
            assert!(Config::try_parse_from([&["hodei-agent"], wrong].concat()).is_err(), "{wrong:?}");
        }
        let config = Config::try_parse_from(["hodei-agent", "--server", "a,b:2", "--label", "k=v=w"]).unwrap();
        assert_eq!(config.servers(), ["a:50051", "b:2"]);
        assert_eq!(config.labels()["k"], "v=w");
    }
}
