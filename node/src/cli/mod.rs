//! The command line: one binary for operators and users; noun, verb.
//!
//! `commands/<noun>/<verb>.rs` holds a command's arguments and its `run` together. What they share is here: the global
//! options, the connection ([`client`]), who one is ([`identity`]), results ([`output`]) and how it all ends ([`exit`]).

pub mod client;
pub mod commands;
pub mod exit;
pub mod identity;
pub mod output;

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser};

use self::output::Format;

/// Hodei runs jobs on a fleet of machines, with one binary and no other server.
#[derive(Debug, Parser)]
#[command(
    name = "hodei-node",
    version,
    propagate_version = true,
    disable_help_subcommand = true,
    args_override_self = true
)]
#[command(
    after_help = "Try it:\n  hodei-node dev                             a whole cluster on this machine, until Ctrl-C\n  hodei-node job run -- echo hello           in another terminal"
)]
pub struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: commands::Command,
}

/// Options of every command.
#[derive(Clone, Debug, Args)]
pub struct Global {
    /// Nodes to ask, HOST:PORT, separated by commas
    #[arg(
        long,
        global = true,
        env = "HODEI_SERVER",
        value_delimiter = ',',
        value_name = "A[,A]",
        help_heading = "Global options"
    )]
    pub server: Vec<String>,
    /// Directory with ca.pem, cert.pem and key.pem
    #[arg(long, global = true, env = "HODEI_IDENTITY", value_name = "DIR", help_heading = "Global options")]
    pub identity: Option<PathBuf>,
    /// How results are printed
    #[arg(
        long,
        short,
        global = true,
        value_enum,
        default_value_t,
        value_name = "FORMAT",
        help_heading = "Global options"
    )]
    pub output: Format,
    /// For one request, over all servers
    #[arg(long, global = true, default_value = "10s", value_parser = duration, value_name = "TIME", help_heading = "Global options")]
    pub request_timeout: Duration,
}

/// A duration as `500ms`, `4s`, `1h30m`; not zero.
///
/// # Errors
/// The text that clap shows.
pub fn duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        _ => Err("expected a duration such as 500ms, 4s or 1h30m".into()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_last_of_two_flags_counts_and_lists_grow() {
        let cli = Cli::try_parse_from(["hodei-node", "--output", "json", "cluster", "status", "--output", "quiet"]);
        assert_eq!(cli.unwrap().global.output, Format::Quiet);
        let twice = ["hodei-node", "run", "--listen", "a:1", "--listen", "b:1", "--peer", "c:1", "--peer", "d:1,e:1"];
        let text = format!("{:?}", Cli::try_parse_from(twice).unwrap().command);
        assert!(text.contains("b:1") && !text.contains("a:1"), "{text}");
        assert!(["c:1", "d:1", "e:1"].iter().all(|peer| text.contains(peer)), "{text}");
    }

    #[test]
    fn the_command_tree_is_consistent() {
        Cli::command().debug_assert();
    }
}
