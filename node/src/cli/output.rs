//! What commands print: every result can be shown as a table, as JSON and as bare ids.

use std::{
    io::{self, Write},
    os::fd::AsFd as _,
    time::Duration,
};

use clap::ValueEnum;
use comfy_table::{Table, presets};
use hodei_proto::v1::{Identity, Role};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::Value;
use tokio::time::sleep;

use super::exit::Failure;

/// Between looks whether somebody reads the output.
const LOOK: Duration = Duration::from_millis(500);

/// How results are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs: stable and documented.
    Json,
    /// The bare value: an id, a token.
    Quiet,
}

/// A result that can be printed in each [`Format`].
pub trait Output {
    /// For people: a table ([`table`]) or a few lines, without a final newline.
    fn table(&self) -> String;
    /// For programs.
    fn json(&self) -> Value;
    /// The bare values, one a line, without a final newline; empty: nothing is printed.
    fn quiet(&self) -> String;
}

/// Prints a result to standard output.
///
/// # Errors
/// When standard output cannot be written. A reader that went away (`| head`) is no error.
pub fn print(format: Format, output: &impl Output) -> Result<(), Failure> {
    let text = match format {
        Format::Table => output.table(),
        Format::Json => format!("{:#}", output.json()),
        Format::Quiet => output.quiet(),
    };
    if text.is_empty() { Ok(()) } else { line(&text) }
}

/// Prints one line to standard output and flushes it.
///
/// # Errors
/// As for [`print()`].
pub fn line(text: &str) -> Result<(), Failure> {
    line_to_reader(text).map(drop)
}

/// The same, for who has more lines to come: returns whether there is still somebody who reads them.
///
/// # Errors
/// As for [`print()`].
pub fn line_to_reader(text: &str) -> Result<bool, Failure> {
    let mut out = io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Failure::other(format!("cannot write to standard output: {error}"))),
    }
}

/// Waits until nobody reads standard output any more: a pipe whose other end is closed. Files have always a reader.
pub async fn reader_gone() {
    loop {
        let out = io::stdout();
        let mut asked = [PollFd::new(out.as_fd(), PollFlags::empty())];
        let gone = poll(&mut asked, PollTimeout::ZERO).is_ok()
            && asked[0].revents().is_some_and(|events| events.contains(PollFlags::POLLERR));
        if gone {
            return;
        }
        sleep(LOOK).await;
    }
}

/// Tells a person something that is no result: one line on standard error.
pub fn note(text: impl std::fmt::Display) {
    // There is nobody left to tell when standard error is gone.
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// A table without lines: a header and rows.
#[must_use]
pub fn table<const N: usize>(header: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(header);
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

/// The last eight digits of an id, as tables show it.
#[must_use]
pub fn short(id: &str) -> String {
    let from = id.len().saturating_sub(8);
    id.get(from..).unwrap_or(id).to_owned()
}

/// The spelling of a role.
#[must_use]
pub fn role(role: Role) -> &'static str {
    match role {
        Role::Node => "node",
        Role::Agent => "agent",
        Role::User => "user",
        Role::Admin => "admin",
        Role::Unspecified => "unknown",
    }
}

/// A party as `role/id`.
#[must_use]
pub fn party(who: &Identity) -> String {
    format!("{}/{}", role(who.role()), who.id)
}

/// Unix milliseconds as RFC 3339 in UTC; 0 is absent (null).
#[must_use]
pub fn time(ms: i64) -> Value {
    time_text(ms).map_or(Value::Null, Value::String)
}

/// Unix milliseconds as RFC 3339 in UTC; 0 is absent.
#[must_use]
pub fn time_text(ms: i64) -> Option<String> {
    if ms == 0 {
        return None;
    }
    let at = time::OffsetDateTime::from_unix_timestamp_nanos(i128::from(ms) * 1_000_000).ok()?;
    at.format(&time::format_description::well_known::Rfc3339).ok()
}

/// Milliseconds as people write a time: `1h 30m`.
#[must_use]
pub fn span_text(ms: u64) -> String {
    humantime::format_duration(Duration::from_millis(ms)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_have_no_lines_and_no_trailing_blanks() {
        let text = table(["ID", "STATE"], [["1".into(), "voter".into()], ["22".into(), "x".into()]]);
        assert_eq!(text, "ID  STATE\n1   voter\n22  x");
    }

    #[test]
    fn times_are_rfc_3339() {
        assert_eq!(time(0), Value::Null);
        assert_eq!(time(1_700_000_000_123), Value::String("2023-11-14T22:13:20.123Z".into()));
    }
}
