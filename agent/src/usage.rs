//! Bad usage, told in one or two lines, as the node's command line does.

use std::process;

use clap::error::ErrorKind;

/// Bad usage.
const BAD_USAGE: i32 = 2;

/// Says what is wrong and ends the process; `--help` and `--version` are not wrong.
pub fn exit(error: &clap::Error) -> ! {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        error.exit();
    }
    eprintln!("hodei-agent: {}", short(error));
    process::exit(BAD_USAGE);
}

/// What clap has to say, without what it repeats and guesses.
fn short(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let mut blocks = text.split("\n\n").map(|block| block.split_whitespace().collect::<Vec<_>>().join(" "));
    let what = blocks.next().unwrap_or_default();
    let what =
        what.strip_prefix("error: ").unwrap_or(&what).replace("invalid digit found in string", "expected a number");
    let usage = blocks.find_map(|block| block.strip_prefix("Usage: ").map(str::to_owned));
    match usage {
        Some(usage) => format!("{what}\nusage: {usage} (more with --help)"),
        None => format!("{what} (more with --help)"),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::config::Config;

    #[test]
    fn usage_errors_are_short_and_name_what_is_wrong() {
        for (words, first) in [
            (&["--capacity", "x"][..], "invalid value 'x' for '--capacity <CAPACITY>': expected a number"),
            (&["--frob"], "unexpected argument '--frob' found"),
            (&["--label", "x"], "invalid value 'x' for '--label <K=V>': expected key=value"),
            (&["--allow-user", "root"], "the following required arguments were not provided: --job-user <NAME>"),
        ] {
            let error = Config::try_parse_from([&["hodei-agent"], words].concat()).unwrap_err();
            let said = short(&error);
            assert!(said.starts_with(first) && said.lines().count() <= 2, "{said}");
        }
    }
}
