//! YAML 1.2 as the tree that JSON has, so that a job file in either format is read by the same definition.
//!
//! Scalars are resolved by the core schema: `true` is a boolean and `yes` a text. Anchors and aliases work, within a
//! bound; merge keys and tags of one's own do not exist.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Tag};
use serde_json::{Map, Number, Value};

use super::{BadJobFile, read::join, unique::DUPLICATE};

/// A job file has no use for more, and what recurses stays off the end of the stack.
const DEEPEST: usize = 64;
/// Values in all, each alias counted as what it stands for: a few lines of aliases could stand for billions.
const MOST: usize = 1_000_000;

/// Reads the one document of a text.
///
/// # Errors
/// What is wrong with it and where; the path of a key that is given twice.
pub(super) fn parse(text: &str) -> Result<Value, BadJobFile> {
    let mut reader = Reader { events: Parser::new_from_str(text), anchors: HashMap::new(), values: 0 };
    let mut document = None;
    loop {
        match reader.next()? {
            Event::DocumentStart(_) if document.is_none() => {
                let event = reader.next()?;
                document = Some(reader.value(event, "", 0)?.0);
            }
            Event::DocumentStart(_) => return Err(BadJobFile::Syntax("expected one job: one document".to_owned())),
            Event::StreamEnd => break,
            _ => {}
        }
    }
    Ok(document.unwrap_or(Value::Null))
}

struct Reader<'a> {
    events: Parser<'a, saphyr_parser::StrInput<'a>>,
    /// What an anchor stands for, and of how many values that is made.
    anchors: HashMap<usize, (Value, usize)>,
    values: usize,
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Result<Event<'a>, BadJobFile> {
        match self.events.next_event() {
            Some(Ok((event, _))) => Ok(event),
            Some(Err(error)) => Err(syntax(&error)),
            None => Ok(Event::StreamEnd),
        }
    }

    /// A value that begins with `event`, and of how many it is made.
    fn value(&mut self, event: Event<'a>, path: &str, depth: usize) -> Result<(Value, usize), BadJobFile> {
        let before = self.values;
        self.count(1)?;
        if depth > DEEPEST {
            return Err(BadJobFile::Syntax(format!("{path}: expected at most {DEEPEST} levels")));
        }
        let (anchor, value) = match event {
            Event::Scalar(text, style, anchor, tag) => (anchor, scalar(&text, style, tag.as_deref(), path)?),
            Event::SequenceStart(anchor, tag) => {
                container(tag.as_deref(), "seq", path)?;
                (anchor, self.sequence(path, depth)?)
            }
            Event::MappingStart(anchor, tag) => {
                container(tag.as_deref(), "map", path)?;
                (anchor, self.mapping(path, depth)?)
            }
            Event::Alias(anchor) => {
                // An alias inside of what it stands for is not known yet.
                let known = self.anchors.get(&anchor).cloned();
                let (value, size) = known.ok_or_else(|| BadJobFile::Syntax(format!("{path}: unknown alias")))?;
                self.count(size)?;
                (0, value)
            }
            _ => return Err(BadJobFile::Syntax(format!("{path}: expected a value"))),
        };
        let size = self.values - before;
        if anchor > 0 {
            self.anchors.insert(anchor, (value.clone(), size));
        }
        Ok((value, size))
    }

    fn count(&mut self, values: usize) -> Result<(), BadJobFile> {
        self.values += values;
        if self.values > MOST { Err(BadJobFile::Syntax("too many values".to_owned())) } else { Ok(()) }
    }

    fn sequence(&mut self, path: &str, depth: usize) -> Result<Value, BadJobFile> {
        let mut values = Vec::new();
        loop {
            match self.next()? {
                Event::SequenceEnd => return Ok(Value::Array(values)),
                event => {
                    let at = format!("{path}[{}]", values.len());
                    values.push(self.value(event, &at, depth + 1)?.0);
                }
            }
        }
    }

    fn mapping(&mut self, path: &str, depth: usize) -> Result<Value, BadJobFile> {
        let mut map = Map::new();
        loop {
            let key = match self.next()? {
                Event::MappingEnd => return Ok(Value::Object(map)),
                Event::Scalar(text, ..) => text.into_owned(),
                _ => {
                    let field = if path.is_empty() { "job" } else { path }.to_owned();
                    return Err(BadJobFile::Field { field, problem: "expected texts as keys".to_owned() });
                }
            };
            let at = join(path, &key);
            if map.contains_key(&key) {
                return Err(BadJobFile::Field { field: at, problem: DUPLICATE.to_owned() });
            }
            let event = self.next()?;
            let (value, _) = self.value(event, &at, depth + 1)?;
            map.insert(key, value);
        }
    }
}

/// What is wrong and where, in one line.
fn syntax(error: &ScanError) -> BadJobFile {
    let at = error.marker();
    let info = error.info().lines().collect::<Vec<_>>().join(", ");
    BadJobFile::Syntax(format!("{info} at line {} column {}", at.line(), at.col() + 1))
}

fn container(tag: Option<&Tag>, own: &str, path: &str) -> Result<(), BadJobFile> {
    match tag {
        Some(tag) if !(tag.is_yaml_core_schema() && tag.suffix == own) => Err(unknown_tag(tag, path)),
        _ => Ok(()),
    }
}

fn unknown_tag(tag: &Tag, path: &str) -> BadJobFile {
    let field = if path.is_empty() { "job" } else { path }.to_owned();
    BadJobFile::Field { field, problem: format!("expected a value without the tag {}{}", tag.handle, tag.suffix) }
}

fn scalar(text: &str, style: ScalarStyle, tag: Option<&Tag>, path: &str) -> Result<Value, BadJobFile> {
    let text_itself = || Value::String(text.to_owned());
    match tag {
        None if style == ScalarStyle::Plain => Ok(plain(text).unwrap_or_else(text_itself)),
        None => Ok(text_itself()),
        // `!` alone: not resolved.
        Some(tag) if tag.handle.is_empty() && tag.suffix == "!" => Ok(text_itself()),
        Some(tag) if tag.is_yaml_core_schema() => match tag.suffix.as_str() {
            "str" => Ok(text_itself()),
            "null" | "bool" | "int" | "float" => Ok(plain(text).unwrap_or_else(text_itself)),
            _ => Err(unknown_tag(tag, path)),
        },
        Some(tag) => Err(unknown_tag(tag, path)),
    }
}

/// The core schema (YAML 1.2.2, 10.3.2); `None`: a text. What is no number in JSON, such as `.inf`, stays a text.
fn plain(text: &str) -> Option<Value> {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Some(Value::Null),
        "true" | "True" | "TRUE" => return Some(Value::Bool(true)),
        "false" | "False" | "FALSE" => return Some(Value::Bool(false)),
        _ => {}
    }
    let based = |digits: Option<&str>, base| {
        let digits = digits.filter(|digits| !digits.starts_with(['+', '-']))?;
        u64::from_str_radix(digits, base).ok().map(Value::from)
    };
    if let Some(number) = based(text.strip_prefix("0x"), 16).or_else(|| based(text.strip_prefix("0o"), 8)) {
        return Some(number);
    }
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let digits = unsigned.trim_start_matches(|c: char| c.is_ascii_digit());
    if digits.is_empty() && !unsigned.is_empty() {
        let whole = text.strip_prefix('+').unwrap_or(text);
        let number = whole.parse::<u64>().map(Number::from).or_else(|_| whole.parse::<i64>().map(Number::from));
        return number.ok().or_else(|| Number::from_f64(whole.parse().ok()?)).map(Value::Number);
    }
    // A float begins with a digit, or with a point and a digit; Rust would also take `inf` and `infinity`.
    let begins = unsigned.strip_prefix('.').unwrap_or(unsigned).starts_with(|c: char| c.is_ascii_digit());
    if !begins {
        return None;
    }
    Number::from_f64(text.parse().ok()?).map(Value::Number)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn scalars_are_those_of_the_core_schema() {
        for (text, value) in [
            ("1", json!(1)),
            ("-7", json!(-7)),
            ("+7", json!(7)),
            ("0x1F", json!(31)),
            ("0o17", json!(15)),
            ("010", json!(10)),
            ("0.5", json!(0.5)),
            (".5", json!(0.5)),
            ("1e3", json!(1000.0)),
            ("true", json!(true)),
            ("yes", json!("yes")),
            ("inf", json!("inf")),
            ("1h30m", json!("1h30m")),
            ("1.2.3", json!("1.2.3")),
            ("'1'", json!("1")),
            ("!!str 1", json!("1")),
            ("~", json!(null)),
            ("", json!(null)),
            ("18446744073709551615", json!(u64::MAX)),
        ] {
            assert_eq!(parse(&format!("a: {text}\n")).unwrap(), json!({ "a": value }), "{text}");
        }
    }

    #[test]
    fn aliases_stand_for_values_within_a_bound() {
        let text = "a: &x [1, {b: 2}]\nc: *x\n";
        assert_eq!(parse(text).unwrap(), json!({"a": [1, {"b": 2}], "c": [1, {"b": 2}]}));
        let mut laughs = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for at in 1..20 {
            let of = format!("*a{}, ", at - 1).repeat(10);
            laughs.push_str(&format!("a{at}: &a{at} [{of}]\n"));
        }
        assert_eq!(parse(&laughs), Err(BadJobFile::Syntax("too many values".to_owned())));
        assert!(parse("a: &x [*x]").is_err(), "within itself");
        let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
        assert!(parse(&deep).is_err());
    }
}
