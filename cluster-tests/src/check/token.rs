//! S6: a token lets in as many parties as it has uses; the same nonce with the same key succeeds again as the same party;
//! nobody is let in once the token is void.

use std::collections::{BTreeMap, BTreeSet};

use super::Judge;
use crate::history::{Enroll, Enrolled, Evidence, Op, Outcome, Reply, Request};

/// What became of a token.
#[derive(Default)]
struct Token<'a> {
    uses: Option<u32>,
    revoked: Option<Op<'a>>,
    enrolments: Vec<(Op<'a>, &'a Enroll)>,
}

/// See the module.
pub(super) fn check(evidence: &Evidence, judge: &mut Judge<'_>) {
    let mut tokens: BTreeMap<&str, Token<'_>> = BTreeMap::new();
    for op in evidence.ops() {
        match op.request {
            Request::CreateToken(created) => tokens.entry(op.key).or_default().uses = Some(created.uses),
            Request::RevokeToken if op.reply().is_some() => tokens.entry(op.key).or_default().revoked = Some(op),
            Request::Enroll(enroll) => tokens.entry(op.key).or_default().enrolments.push((op, enroll)),
            _ => {}
        }
    }
    for (id, token) in &tokens {
        judge.judged(token.enrolments.len());
        parties(judge, id, token);
        for (op, enroll) in &token.enrolments {
            repetition(judge, id, token, op, enroll);
        }
    }
}

fn at(judge: &Judge<'_>, op: &Op<'_>) -> String {
    judge.line(op.returned.unwrap_or(op.invoked))
}

fn let_in<'a>(op: &Op<'a>) -> Option<&'a Enrolled> {
    match op.reply() {
        Some(Reply::Enroll(enrolled)) => Some(enrolled),
        _ => None,
    }
}

fn parties(judge: &mut Judge<'_>, id: &str, token: &Token<'_>) {
    let mut identities: BTreeMap<&str, (&Op<'_>, &Enroll)> = BTreeMap::new();
    let mut parties = BTreeSet::new();
    for (op, enroll) in &token.enrolments {
        let Some(Enrolled { identity }) = let_in(op) else { continue };
        parties.insert((&enroll.nonce, &enroll.public_key));
        let (before, other) = *identities.entry(identity).or_insert((op, enroll));
        if (&other.nonce, &other.public_key) != (&enroll.nonce, &enroll.public_key) {
            let lines = (at(judge, before), at(judge, op));
            judge.invalid(format!("{}, {}: token {id} made two parties {identity}", lines.0, lines.1));
        }
    }
    let uses = token.uses.unwrap_or(1) as usize;
    if parties.len() > uses {
        let lines: Vec<_> = identities.values().map(|(op, _)| at(judge, op)).collect();
        judge.invalid(format!("{}: token {id} of {uses} uses let in {} parties", lines.join(", "), parties.len()));
    }
}

/// What came before this enrolment, or before it was asked, binds it.
fn repetition(judge: &mut Judge<'_>, id: &str, token: &Token<'_>, op: &Op<'_>, enroll: &Enroll) {
    let mut same = token.enrolments.iter().filter(|(_, other)| other.nonce == enroll.nonce);
    let Some((first, other)) = same.find(|(first, _)| let_in(first).is_some() && first.precedes(op)) else {
        if let (Some(revoked), Some(_)) = (&token.revoked, let_in(op))
            && revoked.precedes(op)
            // One whose answer was lost may have been let in before.
            && !token.enrolments.iter().any(|(other, asked)| asked.nonce == enroll.nonce && other.from_ns < op.from_ns)
        {
            let lines = (at(judge, revoked), at(judge, op));
            judge.invalid(format!("{}, {}: token {id} let somebody in after it was revoked", lines.0, lines.1));
        }
        return;
    };
    let lines = format!("{}, {}", at(judge, first), at(judge, op));
    let (Some(before), now) = (let_in(first), let_in(op)) else { return };
    match op.outcome {
        Outcome::Ok(_) if other.public_key != enroll.public_key => {
            judge.invalid(format!("{lines}: token {id} accepted nonce {} with another key", enroll.nonce));
        }
        Outcome::Ok(_) if now != Some(before) => {
            judge.invalid(format!("{lines}: token {id} and nonce {} made two parties", enroll.nonce));
        }
        Outcome::Fail(failure) if failure.code == "token_refused" && other.public_key == enroll.public_key => {
            judge.invalid(format!("{lines}: token {id} refused nonce {}, which it had let in", enroll.nonce));
        }
        _ => {}
    }
}
