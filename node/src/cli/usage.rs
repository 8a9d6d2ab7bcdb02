//! Bad usage, told in one or two lines.

use std::ffi::OsString;

use clap::{
    CommandFactory as _,
    error::{ContextKind, ContextValue, ErrorKind},
};

use super::{Cli, exit::Failure};

/// What clap has to say, without what it repeats and guesses; `None` where it is no error (`--help`, `--version`).
#[must_use]
pub fn failure(error: &clap::Error) -> Option<Failure> {
    let asked_for_help = matches!(
        error.kind(),
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
    );
    if asked_for_help {
        return None;
    }
    let text = error.render().to_string();
    let mut blocks = text.split("\n\n");
    let what = one_line(blocks.next().unwrap_or_default());
    let what = what.strip_prefix("error: ").unwrap_or(&what).to_owned();
    let what = what.replace("invalid digit found in string", "expected a whole number");
    let not_utf8 = || not_utf8(std::env::args_os().skip(1), std::env::vars_os());
    let unreadable = (error.kind() == ErrorKind::InvalidUtf8).then(not_utf8).flatten();
    let mut lines = vec![unreadable.unwrap_or(what)];
    lines.extend(hint(error, &text));
    for block in blocks {
        let line = one_line(block);
        if let Some(usage) = line.strip_prefix("Usage: ") {
            lines.push(format!("usage: {usage} (more with --help)"));
        } else if line.starts_with("tip: ") && !line.contains("as a value, use") {
            lines.push(line);
        }
    }
    let failure = Failure::bad_input(lines.join("\n")).coded("usage");
    Some(match flag(error) {
        Some(flag) => failure.of(flag),
        None => failure,
    })
}

/// What somebody may have meant who does not know yet how things are called here.
fn hint(error: &clap::Error, text: &str) -> Option<String> {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(word)) => Some(word.as_str()),
        _ => None,
    };
    match error.kind() {
        ErrorKind::UnknownArgument if text.contains("-- <CMD>") => context(ContextKind::InvalidArg)
            .filter(|word| !word.starts_with('-'))
            .map(|word| format!("tip: the job's command goes after --, as in `-- {word}`")),
        ErrorKind::InvalidSubcommand => {
            let verb = context(ContextKind::InvalidSubcommand)?;
            let root = Cli::command();
            let nouns = root.get_subcommands().filter(|noun| noun.find_subcommand(verb).is_some());
            let found: Vec<_> = nouns.map(|noun| format!("`hodei-node {} {verb}`", noun.get_name())).collect();
            (!found.is_empty()).then(|| format!("tip: there is {}", found.join(", ")))
        }
        _ => None,
    }
}

/// The flag that has a bad value.
fn flag(error: &clap::Error) -> Option<&str> {
    let Some(ContextValue::String(argument)) = error.get(ContextKind::InvalidArg) else { return None };
    let flag = argument.split_whitespace().next().filter(|flag| flag.starts_with("--"));
    flag.filter(|_| matches!(error.kind(), ErrorKind::ValueValidation | ErrorKind::InvalidValue))
}

/// Which argument or variable is not UTF-8; clap does not say.
fn not_utf8(
    mut args: impl Iterator<Item = OsString>,
    mut variables: impl Iterator<Item = (OsString, OsString)>,
) -> Option<String> {
    let bad = |text: &OsString| text.to_str().is_none();
    let of_args = args.find(bad).map(|arg| format!("argument {arg:?}: expected UTF-8"));
    of_args.or_else(|| {
        let (name, value) =
            variables.find(|(name, value)| name.to_string_lossy().starts_with("HODEI_") && bad(value))?;
        Some(format!("variable {}={value:?}: expected UTF-8", name.to_string_lossy()))
    })
}

fn one_line(block: &str) -> String {
    block.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt as _;

    use clap::Parser as _;

    use super::*;
    use crate::cli::{exit::code, with_negative_values};

    fn failed(line: &str) -> Failure {
        let words = with_negative_values(line.split(' ').map(OsString::from));
        let error = Cli::try_parse_from(words).expect_err(line);
        let failure = failure(&error).expect("it is an error");
        assert_eq!(failure.exit, code::BAD_INPUT);
        failure
    }

    #[test]
    fn who_knows_another_order_of_words_is_told_ours() {
        for (line, tip) in [
            ("hodei-node job run echo hi", "tip: the job's command goes after --, as in `-- echo`"),
            ("hodei-node job submit --name x make", "tip: the job's command goes after --, as in `-- make`"),
            ("hodei-node status", "tip: there is `hodei-node cluster status`"),
            ("hodei-node remove", "tip: there is `hodei-node worker remove`, `hodei-node secret remove`"),
            ("hodei-node worker cancel", "tip: there is `hodei-node job cancel`"),
        ] {
            let said = failed(line).message;
            assert!(said.lines().any(|line| line.starts_with(tip)), "{line}: {said}");
        }
        for line in ["hodei-node job run --frob -- true", "hodei-node job get a b", "hodei-node frobnicate"] {
            assert!(!failed(line).message.contains("tip"), "{line}");
        }
    }

    #[test]
    fn what_is_not_utf8_is_named() {
        let bad = || OsString::from_vec(b"A=\xff".to_vec());
        let variables = || [("PATH".into(), bad()), ("HODEI_SERVER".into(), bad())].into_iter();
        let said = not_utf8(["job".into(), bad()].into_iter(), variables()).unwrap();
        assert_eq!(said, r#"argument "A=\xFF": expected UTF-8"#);
        let said = not_utf8(["job".into()].into_iter(), variables()).unwrap();
        assert_eq!(said, r#"variable HODEI_SERVER="A=\xFF": expected UTF-8"#);
    }

    #[test]
    fn usage_errors_are_short_and_name_what_is_wrong() {
        for (line, first) in [
            (
                "hodei-node job run --cpu -1 -- true",
                "invalid value '-1' for '--cpu <CORES>': expected a number of cores",
            ),
            (
                "hodei-node job run --timeout -1s -- true",
                "invalid value '-1s' for '--timeout <TIME>': expected a duration",
            ),
            ("hodei-node job run --memory -5M -- true", "invalid value '-5M' for '--memory <SIZE>': expected a size"),
            (
                "hodei-node --request-timeout -4s job list",
                "invalid value '-4s' for '--request-timeout <TIME>': expected a duration",
            ),
            ("hodei-node job run --timeout --gpu 1 -- true", "a value is required for '--timeout <TIME>'"),
            ("hodei-node job run --gpu -2 -- true", "invalid value '-2' for '--gpu <N>'"),
            ("hodei-node job run", "the following required arguments were not provided: <CMD>..."),
            ("hodei-node cluster remove x", "invalid value 'x' for '<ID>': expected a whole number"),
            ("hodei-node job frob", "unrecognized subcommand 'frob'"),
            ("hodei-node job get --stael x", "unexpected argument '--stael' found"),
        ] {
            let said = failed(line).message;
            assert!(said.starts_with(first), "{line}: {said}");
            assert!(said.lines().count() <= 3 && !said.contains("use '--"), "{line}: {said}");
        }
        assert!(failed("hodei-node job get --stael x").message.contains("'--stale'"));
        assert_eq!(failed("hodei-node job run --cpu -1 -- true").field.as_deref(), Some("--cpu"));
        assert_eq!(failed("hodei-node job list --output xml").field.as_deref(), Some("--output"));
        assert_eq!(failed("hodei-node job run").field, None);
        assert!(failure(&Cli::try_parse_from(["hodei-node", "--help"]).expect_err("help")).is_none());
    }
}
