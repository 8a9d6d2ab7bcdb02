//! Short names for ids, both ways: `j1` is a job, `w1` a worker, `s1` a session, `t1` a token, `u1` a user, `a1` an
//! administrator, `v1` a version of a secret, `n1` a node.

use std::error::Error;

use hodei_state::{
    ids::{Caller, JobId, SecretId, SessionId, TokenId, UserId, WorkerId},
    registry::SessionRef,
};

const PREFIXES: [(char, u128); 7] = [
    ('j', 0x0199_a1b2_0001_7000_8000_0000_0000_0000),
    ('w', 0x0199_a1b2_0002_7000_8000_0000_0000_0000),
    ('s', 0x0199_a1b2_0003_7000_8000_0000_0000_0000),
    ('t', 0x0199_a1b2_0004_7000_8000_0000_0000_0000),
    ('u', 0x0199_a1b2_0005_7000_8000_0000_0000_0000),
    ('a', 0x0199_a1b2_0006_7000_8000_0000_0000_0000),
    ('v', 0x0199_a1b2_0007_7000_8000_0000_0000_0000),
];

/// The number of a name: `j12` → 12.
fn number(name: &str, kind: char) -> Result<u64, Box<dyn Error>> {
    let digits = name.strip_prefix(kind).ok_or_else(|| format!("expected a name such as {kind}1, not {name}"))?;
    Ok(u64::from_str_radix(digits, 16)?)
}

/// The id of a name. Numbers are hexadecimal, so that they show in suffixes.
pub(super) fn id(name: &str, kind: char) -> Result<u128, Box<dyn Error>> {
    let prefix = PREFIXES.iter().find(|(of, _)| *of == kind).ok_or("no such kind of id")?.1;
    Ok(prefix | u128::from(number(name, kind)?))
}

pub(super) fn job(name: &str) -> Result<JobId, Box<dyn Error>> {
    id(name, 'j').map(JobId)
}

pub(super) fn worker(name: &str) -> Result<WorkerId, Box<dyn Error>> {
    id(name, 'w').map(WorkerId)
}

pub(super) fn session(name: &str) -> Result<SessionId, Box<dyn Error>> {
    id(name, 's').map(SessionId)
}

pub(super) fn token(name: &str) -> Result<TokenId, Box<dyn Error>> {
    id(name, 't').map(TokenId)
}

pub(super) fn secret(name: &str) -> Result<SecretId, Box<dyn Error>> {
    id(name, 'v').map(SecretId)
}

pub(super) fn node(name: &str) -> Result<u64, Box<dyn Error>> {
    number(name, 'n')
}

pub(super) fn caller(name: &str) -> Result<Caller, Box<dyn Error>> {
    match name.chars().next() {
        Some('n') => node(name).map(Caller::Node),
        Some('w') => worker(name).map(Caller::Agent),
        Some('u') => id(name, 'u').map(|id| Caller::User(UserId(id))),
        Some('a') => id(name, 'a').map(|id| Caller::Admin(UserId(id))),
        _ => Err(format!("{name} is no caller").into()),
    }
}

/// `w1/s1`.
pub(super) fn session_ref(name: &str) -> Result<SessionRef, Box<dyn Error>> {
    let (of, within) = name.split_once('/').ok_or("expected WORKER/SESSION")?;
    Ok(SessionRef { worker: worker(of)?, session: session(within)? })
}

/// Puts names in place of ids. A UUID is 36 characters; ours have a known beginning.
pub(super) fn shorten(text: &str) -> String {
    let mut shown = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("0199a1b2-000") {
        let (before, from) = rest.split_at(at);
        shown.push_str(before);
        let uuid = &from[..36];
        let kind = PREFIXES[usize::from(from.as_bytes()[12] - b'1')].0;
        let number = u64::from_str_radix(&uuid.replace('-', "")[17..], 16).expect("hex digits");
        shown.push_str(&format!("{kind}{number:x}"));
        rest = &from[36..];
    }
    shown + rest
}
