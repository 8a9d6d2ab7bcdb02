//! S6: a token lets in as many parties as it has uses; the same nonce with the same key succeeds again as the same party;
//! nobody is let in once the token is void or too old, and no two tokens make one party; a wrong clock makes none too old.
//! S17: a token that certainly was not made lets nobody in, and what certainly failed neither uses a token up nor makes it
//! void.

use std::collections::{BTreeMap, BTreeSet};

use super::{Judge, timeline};
use crate::history::{Enroll, Enrolled, Evidence, Fault, Note, Op, Outcome, Reply, Request};

/// Answers of a node that can decide nothing, at the time or any more.
const NOT_NOW: [&str; 2] = ["no_quorum", "not_ready"];

/// How far what leaders take for the time may lag while no clock is wrong: they ask each other as they begin.
const LAG_NS: u64 = 1_000_000_000;

/// How long it may have stood still while one went back: longer than any outage.
const STOOD_NS: u64 = 60_000_000_000;

/// What became of a token.
#[derive(Default)]
struct Token<'a> {
    uses: Option<u32>,
    ttl_ns: Option<u64>,
    revoked: Option<Op<'a>>,
    /// Whether it was made, and made void, as far as anybody knows.
    made: Vec<Op<'a>>,
    revocations: Vec<Op<'a>>,
    enrolments: Vec<(Op<'a>, &'a Enroll)>,
}

/// See the module.
pub(super) fn check(evidence: &Evidence, judge: &mut Judge<'_>) {
    let mut tokens: BTreeMap<&str, Token<'_>> = BTreeMap::new();
    for op in evidence.ops() {
        match op.request {
            Request::CreateToken(created) => {
                let token = tokens.entry(op.key).or_default();
                token.uses = Some(created.uses);
                token.ttl_ns = created.ttl_ms.map(|millis| millis.saturating_mul(1_000_000));
                token.made.push(op);
            }
            Request::RevokeToken => {
                let token = tokens.entry(op.key).or_default();
                token.revocations.push(op);
                token.revoked = token.revoked.or(op.reply().map(|_| op));
            }
            Request::Enroll(enroll) => tokens.entry(op.key).or_default().enrolments.push((op, enroll)),
            _ => {}
        }
    }
    let clocks = Clocks::of(evidence);
    for (id, token) in &tokens {
        judge.judged(token.enrolments.len());
        parties(judge, id, token);
        failures(judge, id, token, &clocks);
        for (op, enroll) in &token.enrolments {
            repetition(judge, id, token, op, enroll);
            too_old(judge, (id, token), op, enroll, &clocks);
        }
    }
    let let_in = tokens.values().flat_map(|token| &token.enrolments).filter(|(op, _)| let_in(op).is_some()).count();
    let raced = tokens.values().filter(|token| is_race(&token.enrolments)).count();
    let across = raced_across_cuts(evidence);
    judge.remark(format!(
        "let in: {let_in}, tokens that several parties wanted at once: {raced}, on both sides of a cut: {across}"
    ));
    if let_in == 0 {
        judge.lacks("S6", "nobody was let in");
    }
    if raced == 0 {
        judge.lacks("S6", "no two parties wanted one token at once");
    }
    one_token_each(judge, &tokens);
    voided_by_nobody(evidence, judge, &tokens);
}

/// Wall clocks of nodes. A new leader takes the larger of the last stamp and the lower median of a majority's clocks.
struct Clocks {
    /// When the first one went back. From then on time may stand still between two leaders, and catch up later.
    back_ns: u64,
    /// When so many were wrong at once that time may have leapt: from, to.
    leaps: Vec<(u64, u64)>,
}

impl Clocks {
    fn of(evidence: &Evidence) -> Self {
        let faults = timeline::faults(evidence).0;
        let jumps: Vec<_> = faults.iter().filter(|stretch| stretch.fault.kind.starts_with("clock")).collect();
        let back = jumps.iter().filter(|jump| !jump.fault.kind.ends_with("_ahead")).map(|jump| jump.from_ns).min();
        // A fault is told of shortly before or after it happens.
        let end = |jump: &timeline::Stretch<'_>| jump.to_ns.map_or(u64::MAX, |to_ns| to_ns.saturating_add(LAG_NS));
        let leap = |at_ns: u64| {
            let there = || jumps.iter().filter(move |jump| jump.from_ns <= at_ns && at_ns < end(jump));
            let wrong: BTreeSet<u64> = there().flat_map(|jump| jump.fault.nodes.iter().copied()).collect();
            let majority = timeline::members_at(evidence, at_ns).unwrap_or_default().len() / 2 + 1;
            let to_ns = there().map(|jump| end(jump)).max().unwrap_or(u64::MAX);
            (wrong.len() >= majority - (majority - 1) / 2).then_some((at_ns.saturating_sub(LAG_NS), to_ns))
        };
        Self {
            back_ns: back.map_or(u64::MAX, |at_ns| at_ns.saturating_sub(LAG_NS)),
            leaps: jumps.iter().filter_map(|jump| leap(jump.from_ns)).collect(),
        }
    }

    /// Whether time may have leapt between two moments.
    fn leapt(&self, from_ns: u64, to_ns: u64) -> bool {
        self.leaps.iter().any(|(from, to)| *from <= to_ns && from_ns <= *to)
    }
}

/// Nobody new is let in by a token that is too old.
fn too_old(judge: &mut Judge<'_>, (id, token): (&str, &Token<'_>), op: &Op<'_>, asked: &Enroll, clocks: &Clocks) {
    let made_ns = token.made.iter().filter(|made| made.reply().is_some()).filter_map(|made| made.to_ns).min();
    let (Some(made_ns), Some(ttl_ns), Some(to_ns), Some(_)) = (made_ns, token.ttl_ns, op.to_ns, let_in(op)) else {
        return;
    };
    let over_ns = made_ns.saturating_add(ttl_ns).saturating_add(LAG_NS);
    let mut same = token.enrolments.iter().filter(|(_, other)| other.nonce == asked.nonce);
    // One whose answer was lost may have been let in before.
    let is_again =
        same.any(|(other, as_who)| other.from_ns < over_ns && !other.failed() && as_who.public_key == asked.public_key);
    if op.from_ns >= over_ns && !is_again && to_ns < clocks.back_ns {
        let text = format!("token {id} let somebody in who asked when it was too old");
        judge.invalid(format!("{}: {text}", at(judge, op)));
    }
}

/// Whether one party asked before another one was answered.
fn is_race(enrolments: &[(Op<'_>, &Enroll)]) -> bool {
    pairs(enrolments).next().is_some()
}

/// Parties that asked at the same time.
fn pairs<'a, 'b>(enrolments: &'b [(Op<'a>, &'a Enroll)]) -> impl Iterator<Item = [&'b Op<'a>; 2]> {
    enrolments.iter().enumerate().flat_map(|(i, (one, by))| {
        let meets = |two: &Op<'_>| one.to_ns.is_none_or(|to| two.from_ns < to);
        let others = enrolments[i + 1..].iter().filter(move |(two, other)| by.nonce != other.nonce && meets(two));
        others.map(move |(two, _)| [one, two])
    })
}

/// Tokens that parties wanted at once at nodes on both sides of a cut.
pub fn raced_across_cuts(evidence: &Evidence) -> usize {
    // Where it is the others that are acted upon, they are dead.
    let is_cut = |fault: &Fault| fault.minority.iter().all(|node| fault.nodes.contains(node));
    let cuts: Vec<_> = timeline::faults(evidence).0.into_iter().filter(|cut| is_cut(cut.fault)).collect();
    let mut tokens: BTreeMap<&str, Vec<(Op<'_>, &Enroll)>> = BTreeMap::new();
    for op in evidence.ops() {
        if let Request::Enroll(enroll) = op.request {
            tokens.entry(op.key).or_default().push((op, enroll));
        }
    }
    let parted = |cut: &timeline::Stretch<'_>, pair: &[&Op<'_>; 2]| {
        let during = |op: &&Op<'_>| cut.from_ns <= op.from_ns && cut.to_ns.is_none_or(|to_ns| op.from_ns < to_ns);
        let [one, other] = pair.map(|op| op.node.is_some_and(|node| cut.fault.minority.contains(&node)));
        one != other && pair.iter().all(during)
    };
    let is_parted =
        |enrolments: &[(Op<'_>, &Enroll)]| pairs(enrolments).any(|pair| cuts.iter().any(|cut| parted(cut, &pair)));
    tokens.values().filter(|enrolments| is_parted(enrolments)).count()
}

/// No two tokens let in the same party.
fn one_token_each(judge: &mut Judge<'_>, tokens: &BTreeMap<&str, Token<'_>>) {
    let mut of: BTreeMap<&str, (&str, String)> = BTreeMap::new();
    for (id, token) in tokens {
        for (op, _) in &token.enrolments {
            let Some(Enrolled { identity }) = let_in(op) else { continue };
            let line = at(judge, op);
            let (other, before) = of.entry(identity).or_insert_with(|| (id, line.clone()));
            if other != id {
                let text = format!("{before}, {line}: tokens {other} and {id} made one party {identity}");
                judge.invalid(text);
            }
        }
    }
}

/// Every token that was told to be void may have been made so by somebody.
fn voided_by_nobody(evidence: &Evidence, judge: &mut Judge<'_>, tokens: &BTreeMap<&str, Token<'_>>) {
    let by_us = tokens.values().filter(|token| !token.revocations.is_empty()).count();
    let may_be = tokens.values().filter(|token| token.revocations.iter().any(|op| !op.failed())).count();
    let told: BTreeSet<_> = evidence
        .notes()
        .filter_map(|(_, note)| match note {
            Note::Event(event) if event.kind == "token_revoked" => Some(event.at),
            _ => None,
        })
        .collect();
    if by_us > may_be && told.len() > may_be {
        let text = format!("{} tokens were told to be void, and all but {may_be} revocations failed", told.len());
        judge.invalid(text);
    }
}

/// What certainly failed has no effect on a token.
fn failures(judge: &mut Judge<'_>, id: &str, token: &Token<'_>, clocks: &Clocks) {
    let made_ns = token.made.iter().map(|made| made.from_ns).min().unwrap_or_default();
    let ages_ns = token.ttl_ns.map_or(u64::MAX, |ttl| made_ns.saturating_add(ttl).saturating_sub(LAG_NS));
    // Time that stood still catches up by as much as it had stood.
    let is_brief = token.ttl_ns.is_some_and(|ttl| ttl < STOOD_NS);
    let never_made = token.made.first().filter(|_| token.made.iter().all(Op::failed));
    for (op, _) in &token.enrolments {
        if let (Some(made), Some(_)) = (never_made, let_in(op)) {
            let lines = (at(judge, made), at(judge, op));
            judge.invalid(format!("{}, {}: token {id} was not made, and let somebody in", lines.0, lines.1));
        }
        let refused = matches!(op.outcome, Outcome::Fail(failure) if failure.code == "token_refused");
        let before = |other: &Op<'_>| !other.failed() && Some(other.from_ns) < op.to_ns;
        let is_known = token.made.iter().any(|made| made.reply().is_some() && made.precedes(op));
        let is_fresh =
            op.to_ns.is_some_and(|to| to < ages_ns && !clocks.leapt(made_ns, to) && (!is_brief || to < clocks.back_ns));
        if !refused || !is_known || !is_fresh || token.revocations.iter().any(before) {
            continue;
        }
        let users = token.enrolments.iter().filter(|(other, _)| before(other));
        let used: BTreeSet<_> = users.map(|(_, asked)| &asked.nonce).collect();
        let uses = token.uses.unwrap_or(1) as usize;
        if used.len() < uses {
            let text = format!("token {id} of {uses} uses refused somebody, and {} at most had used it", used.len());
            judge.invalid(format!("{}: {text}", at(judge, op)));
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
            && !token.enrolments.iter().any(|(other, asked)| {
                asked.nonce == enroll.nonce && !other.failed() && Some(other.from_ns) < revoked.to_ns
            })
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
        Outcome::Fail(failure) if !NOT_NOW.contains(&&*failure.code) && other.public_key == enroll.public_key => {
            judge.invalid(format!("{lines}: token {id} refused nonce {}, which it had let in", enroll.nonce));
        }
        _ => {}
    }
}
