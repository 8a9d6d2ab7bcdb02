//! Reads the text of a job file: which format it is in, and what is wrong with it.
//!
//! JSON begins with `{`. TOML and YAML are told apart by the first line that says something: `[table]` or `key = value`
//! against `---`, `- item` or `key: value`. The decision does not depend on the rest of the text, so that an error is
//! always told in the words of the format that was meant.

use serde::de;

use super::{BadJobFile, JobFile, unique, yaml};
use crate::bad_toml;

const NEITHER: &str = "expected a job file in TOML, YAML or JSON";

/// What a text is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Json,
    Toml,
    Yaml,
}

/// Reads a job file in any format.
///
/// # Errors
/// [`BadJobFile`] with the path of the first field that is wrong.
pub fn parse(text: &str) -> Result<JobFile, BadJobFile> {
    // Editors on Windows begin a file with it.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let one = || BadJobFile::Syntax("expected one job: an object".to_owned());
    let file = match format(text) {
        Some(Format::Json) if text.trim_start().starts_with('{') => parse_json(text)?,
        Some(Format::Json) => return Err(one()),
        Some(Format::Toml) => parse_toml(text)?,
        Some(Format::Yaml) => {
            let value = yaml::parse(text)?;
            if !value.is_object() {
                return Err(one());
            }
            serde_path_to_error::deserialize(value).map_err(|error| {
                let problem = error.inner().to_string();
                bad(&error.path().to_string(), &problem, false, &problem)
            })?
        }
        None => return Err(BadJobFile::Syntax(NEITHER.to_owned())),
    };
    file.check()?;
    Ok(file)
}

fn format(text: &str) -> Option<Format> {
    if text.trim_start().starts_with('{') || is_json(text) {
        return Some(Format::Json);
    }
    let line = text.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with('#'));
    let Some(line) = line else {
        // Nothing at all is a job without a command, which is what will be missing.
        return Some(Format::Toml);
    };
    if line.starts_with('[') {
        return Some(Format::Toml);
    }
    if line.starts_with("---") || line.starts_with('%') || line == "-" || line.starts_with("- ") {
        return Some(Format::Yaml);
    }
    // Behind the key, which may be quoted.
    let quote = line.chars().next().filter(|first| ['"', '\''].contains(first));
    let key = quote.and_then(|quote| line[1..].find(quote)).map_or(0, |end| end + 2);
    let rest = &line[key..];
    match rest.find(['=', ':']).map(|at| &rest[at..]) {
        Some(rest) if rest.starts_with('=') => Some(Format::Toml),
        Some(rest) if rest == ":" || rest.starts_with(": ") => Some(Format::Yaml),
        _ => None,
    }
}

/// Whether a text that does not begin an object is JSON all the same. An array and a table of TOML begin alike, but the
/// elements of an array of objects do not.
fn is_json(text: &str) -> bool {
    let objects = text.trim_start().strip_prefix('[').is_some_and(|rest| rest.trim_start().starts_with('{'));
    objects || serde_json::from_str::<de::IgnoredAny>(text).is_ok()
}

fn parse_json(text: &str) -> Result<JobFile, BadJobFile> {
    let mut json = serde_json::Deserializer::from_str(text);
    let file = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let at = format!(" at line {} column {}", error.inner().line(), error.inner().column());
        let syntax = !error.inner().is_data();
        let problem = error.inner().to_string();
        bad(&error.path().to_string(), problem.strip_suffix(&at).unwrap_or(&problem), syntax, &problem)
    })?;
    json.end().map_err(|error| BadJobFile::Syntax(format!("expected one JSON object: {error}")))?;
    Ok(file)
}

fn parse_toml(text: &str) -> Result<JobFile, BadJobFile> {
    let document = toml::Deserializer::parse(text).map_err(|error| BadJobFile::Syntax(bad_toml::tell(text, &error)))?;
    serde_path_to_error::deserialize(document).map_err(|error| {
        let problem = error.inner().message().to_owned();
        bad(&error.path().to_string(), &problem, false, &problem)
    })
}

/// An error with its path; the path of an unknown field is completed by the field's name where the format leaves it out.
fn bad(path: &str, problem: &str, syntax: bool, whole: &str) -> BadJobFile {
    if syntax {
        return BadJobFile::Syntax(whole.to_owned());
    }
    let problem = &in_words(problem);
    let mut field = if path == "." { String::new() } else { path.to_owned() };
    let named = |what: &str| problem.strip_prefix(what)?.strip_prefix(" field `")?.split('`').next();
    let mut problem = problem.as_str();
    if let Some(name) = named("unknown")
        && field.rsplit('.').next() != Some(name)
    {
        field = join(&field, name);
    }
    if let Some(name) = named("missing") {
        field = join(&field, name);
    }
    if let Some(name) = named("duplicate") {
        field = join(&field, name);
        problem = unique::DUPLICATE;
    }
    if field.is_empty() {
        field = "job".to_owned();
    }
    BadJobFile::Field { field, problem: problem.to_owned() }
}

/// What is expected, in the words of job files and not of this program.
fn in_words(problem: &str) -> String {
    const WORDS: [(&str, &str); 4] = [
        ("expected i32", "expected a whole number from -2,147,483,648 to 2,147,483,647"),
        ("expected u32", "expected a whole number from 0 to 4,294,967,295"),
        ("expected a sequence", "expected a list"),
        ("expected a boolean", "expected true or false"),
    ];
    let word = WORDS.into_iter().find_map(|(own, word)| Some(problem.strip_suffix(own)?.to_owned() + word));
    word.unwrap_or_else(|| problem.to_owned())
}

pub(super) fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}
