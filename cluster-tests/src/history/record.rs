//! One line of a history: its types, and how it stands in a file.
//!
//! A line is a JSON object `{t_ns, proc, type, f, key, val, node, term, index}`. `type` and `f` together say what `val`
//! holds; what is not known is left out. Fields that nobody knows are refused, so that a misspelt one is not lost.

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::{
    note::Note,
    operation::{Failure, Reply, Request},
};

/// One line of a history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "Raw", try_from = "Raw")]
pub struct Record {
    /// Nanoseconds of this machine's `CLOCK_MONOTONIC`, which all processes on it share.
    pub t_ns: u64,
    /// Who asked, or saw: a client, a stream, a poller. Has at most one operation open at a time.
    pub proc: u32,
    /// What it is about: a job's id for most.
    pub key: String,
    /// What was asked, answered or seen.
    pub body: Body,
    /// The node that was asked, or that it was seen at.
    pub node: Option<u64>,
    /// The position in the log that the answer names: the term of the entry …
    pub term: Option<u64>,
    /// … and its index.
    pub index: Option<u64>,
}

/// What a line says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// It was sent.
    Invoke(Request),
    /// It took effect.
    Ok(Reply),
    /// It certainly took none.
    Fail(Failure),
    /// It may have taken effect, or may yet.
    Info(Failure),
    /// Something was seen or done that is no operation on the cluster.
    Note(Note),
}

impl Record {
    /// A line without node and position.
    #[must_use]
    pub fn new(t_ns: u64, proc: u32, key: &str, body: Body) -> Self {
        Self { t_ns, proc, key: key.to_owned(), body, node: None, term: None, index: None }
    }
}

/// The line as it is written.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    t_ns: u64,
    #[serde(default)]
    proc: u32,
    #[serde(rename = "type")]
    kind: Kind,
    f: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    key: String,
    #[serde(default, skip_serializing_if = "Value::is_null")]
    val: Value,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    node: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    term: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    index: Option<u64>,
}

/// How an operation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// See [`Body::Invoke`].
    Invoke,
    /// See [`Body::Ok`].
    Ok,
    /// See [`Body::Fail`].
    Fail,
    /// See [`Body::Info`].
    Info,
    /// See [`Body::Note`].
    Note,
}

impl From<Record> for Raw {
    fn from(record: Record) -> Self {
        let (kind, f, val) = match record.body {
            Body::Invoke(request) => tagged(Kind::Invoke, &request),
            Body::Ok(reply) => tagged(Kind::Ok, &reply),
            Body::Fail(failure) => failed(Kind::Fail, failure),
            Body::Info(failure) => failed(Kind::Info, failure),
            Body::Note(note) => tagged(Kind::Note, &note),
        };
        let Record { t_ns, proc, key, node, term, index, .. } = record;
        Self { t_ns, proc, kind, f, key, val, node, term, index }
    }
}

/// `{"f": …, "val": …}` taken apart.
fn tagged(kind: Kind, body: &impl Serialize) -> (Kind, String, Value) {
    let mut value = serde_json::to_value(body).expect("a body is plain data");
    let f = value["f"].as_str().expect("a body has a function").to_owned();
    (kind, f, value["val"].take())
}

fn failed(kind: Kind, failure: Failure) -> (Kind, String, Value) {
    let Failure { f, code, message } = failure;
    (kind, f, serde_json::json!({ "code": code, "message": message }))
}

impl TryFrom<Raw> for Record {
    type Error = serde_json::Error;

    fn try_from(raw: Raw) -> Result<Self, Self::Error> {
        let Raw { t_ns, proc, kind, f, key, val, node, term, index } = raw;
        let body = match kind {
            Kind::Invoke => Body::Invoke(untagged(f, val)?),
            Kind::Ok => Body::Ok(untagged(f, val)?),
            Kind::Fail => Body::Fail(failure(f, val)?),
            Kind::Info => Body::Info(failure(f, val)?),
            Kind::Note => Body::Note(untagged(f, val)?),
        };
        Ok(Self { t_ns, proc, key, body, node, term, index })
    }
}

#[allow(clippy::needless_pass_by_value, reason = "it is moved into the JSON object")]
fn untagged<T: DeserializeOwned>(f: String, val: Value) -> Result<T, serde_json::Error> {
    // Variants without content have no `val` at all.
    let tagged = if val.is_null() { serde_json::json!({ "f": f }) } else { serde_json::json!({ "f": f, "val": val }) };
    serde_json::from_value(tagged)
}

fn failure(f: String, val: Value) -> Result<Failure, serde_json::Error> {
    #[derive(Default, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Why {
        code: String,
        message: String,
    }
    let why: Why = if val.is_null() { Why::default() } else { serde_json::from_value(val)? };
    Ok(Failure { f, code: why.code, message: why.message })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Record, String> {
        serde_json::from_str(line).map_err(|e| e.to_string())
    }

    #[test]
    fn lines_come_back_as_they_were_written() {
        for line in [
            r#"{"t_ns":1,"proc":2,"type":"invoke","f":"submit","key":"j","val":{"payload":"p"},"node":3}"#,
            r#"{"t_ns":1,"proc":2,"type":"ok","f":"submit","key":"j","val":{"job":"j"},"node":3,"term":1,"index":7}"#,
            r#"{"t_ns":1,"proc":2,"type":"info","f":"submit","key":"j","val":{"code":"c","message":"m"}}"#,
            r#"{"t_ns":1,"proc":2,"type":"invoke","f":"cancel","key":"j"}"#,
            r#"{"t_ns":1,"proc":2,"type":"note","f":"cluster","val":{"nodes":[1,2,3]}}"#,
        ] {
            assert_eq!(serde_json::to_string(&read(line).unwrap()).unwrap(), line);
        }
    }

    #[test]
    fn what_nobody_knows_is_refused() {
        for (line, why) in [
            (r#"{"t_ns":1,"type":"note","f":"cluster","val":{"nodes":[1]},"nod":3}"#, "unknown field `nod`"),
            (r#"{"t_ns":1,"type":"note","f":"cluster","val":{"nodes":[1],"more":1}}"#, "unknown field `more`"),
            (r#"{"t_ns":1,"type":"note","f":"clustr","val":{"nodes":[1]}}"#, "unknown variant `clustr`"),
            (r#"{"t_ns":1,"type":"invoke","f":"cluster","val":{"nodes":[1]}}"#, "unknown variant `cluster`"),
            (r#"{"t_ns":-1,"type":"invoke","f":"cancel"}"#, "invalid value"),
            (r#"{"t_ns":1,"type":"okay","f":"cancel"}"#, "unknown variant `okay`"),
        ] {
            let error = read(line).unwrap_err();
            assert!(error.contains(why), "{line}: {error}");
        }
    }
}
