//! The command line: one binary for operators and users; noun, verb.
//!
//! `commands/<noun>/<verb>.rs` holds a command's arguments and its `run` together. What they share is here: the global
//! options, the connection ([`client`]), who one is ([`identity`]), results ([`output`]) and how it all ends ([`exit`]).

pub mod client;
pub mod client_file;
pub mod commands;
pub mod exit;
pub mod identity;
pub mod known_servers;
pub mod output;
pub mod usage;

use std::{
    ffi::{OsStr, OsString},
    path::PathBuf,
    time::Duration,
};

use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser};

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

impl Cli {
    /// Reads flags and environment; ends the process where they are wrong.
    #[must_use]
    pub fn read() -> Self {
        let command = without_empty_variables(Self::command(), is_empty);
        let read = command
            .try_get_matches_from(with_negative_values(std::env::args_os()))
            .and_then(|matches| Self::from_arg_matches(&matches));
        read.unwrap_or_else(|error| match usage::failure(&error) {
            Some(failure) => {
                failure.tell(wanted_format(std::env::args_os().map(|arg| arg.to_string_lossy().into_owned())));
                std::process::exit(failure.exit.into())
            }
            None => error.exit(),
        })
    }
}

/// The words as they are meant: clap takes the value in `--cpu -1` for a flag that it does not know.
fn with_negative_values(args: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let negative = |arg: &OsStr| matches!(arg.as_encoded_bytes(), [b'-', b'0'..=b'9' | b'.', ..]);
    let flag = |arg: &OsString| arg.as_encoded_bytes().starts_with(b"--") && !arg.as_encoded_bytes().contains(&b'=');
    let mut words: Vec<OsString> = Vec::new();
    let mut is_command = false;
    for arg in args {
        is_command |= arg == "--";
        match words.last_mut().filter(|last| !is_command && negative(&arg) && flag(last)) {
            Some(flag) => {
                flag.push("=");
                flag.push(arg);
            }
            None => words.push(arg),
        }
    }
    words
}

/// How results were asked for in a command line that cannot be read otherwise: the last such flag before `--`.
fn wanted_format(args: impl Iterator<Item = String>) -> Format {
    let args: Vec<_> = args.take_while(|arg| arg != "--").collect();
    let after = |flag: &str| {
        args.iter().rposition(|arg| arg == flag).and_then(|at| args.get(at + 1).map(|value| (at, value.clone())))
    };
    let joined = |flag: &str| {
        let value = |arg: &'_ String| arg.strip_prefix(flag).filter(|value| !value.is_empty()).map(str::to_owned);
        args.iter().enumerate().rev().find_map(|(at, arg)| Some((at, value(arg)?)))
    };
    let last = [after("--output"), after("-o"), joined("--output="), joined("-o")]
        .into_iter()
        .flatten()
        .max_by_key(|(at, _)| *at);
    if last.is_some_and(|(_, format)| format == "json") { Format::Json } else { Format::Table }
}

/// A command line for which an empty variable is one that is not set.
fn without_empty_variables(command: clap::Command, is_empty: fn(&OsStr) -> bool) -> clap::Command {
    let command = command.mut_args(|arg| {
        if arg.get_env().is_some_and(is_empty) { arg.env(clap::builder::Resettable::Reset) } else { arg }
    });
    command.mut_subcommands(|sub| without_empty_variables(sub, is_empty))
}

fn is_empty(variable: &OsStr) -> bool {
    std::env::var_os(variable).is_some_and(|value| value.is_empty())
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
    fn an_empty_variable_is_not_set() {
        let variables = |command: &clap::Command| command.get_arguments().filter(|arg| arg.get_env().is_some()).count();
        let command = without_empty_variables(Cli::command(), |name| name != "HODEI_IDENTITY");
        assert_eq!(variables(&Cli::command()), 2);
        assert_eq!(variables(&command), 1);
        assert!(Cli::command().get_subcommands().any(|sub| variables(sub) > 0));
        assert!(command.get_subcommands().all(|sub| variables(sub) == 0));
    }

    #[test]
    fn a_negative_value_is_a_value() {
        let words = |line: &str| with_negative_values(line.split(' ').map(OsString::from));
        assert_eq!(words("x --cpu -1 --b -.5s -- c --cpu -1"), ["x", "--cpu=-1", "--b=-.5s", "--", "c", "--cpu", "-1"]);
        for unchanged in ["x --a=b -1", "x y -1", "x --a -b -1", "x --a - b"] {
            assert_eq!(words(unchanged), unchanged.split(' ').collect::<Vec<_>>(), "{unchanged}");
        }
    }

    #[test]
    fn the_format_of_errors_is_found_in_what_cannot_be_read() {
        let wanted = |line: &str| wanted_format(line.split(' ').map(str::to_owned));
        for json in ["x --output json --frob", "x -o json", "x --output=json", "x -ojson", "x -o quiet --output json"] {
            assert_eq!(wanted(json), Format::Json, "{json}");
        }
        for text in ["x", "x --output", "x --output json -o table", "x -- --output json"] {
            assert_eq!(wanted(text), Format::Table, "{text}");
        }
    }

    #[test]
    fn the_command_tree_is_consistent() {
        Cli::command().debug_assert();
    }
}
