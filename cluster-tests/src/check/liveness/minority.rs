//! L7: a node without a majority says so in time, and serves nothing for which it would need one.

use super::{SECOND, Scene};
use crate::{
    check::{Judge, sights, timeline::Stretch},
    history::{Body, Effect, Op, Outcome, Request},
};

/// What a client may take beyond its deadline to see that it is over.
const SLACK: u64 = SECOND / 2;
/// What was unplugged is found out by: TCP repeats itself ever more rarely.
const FINDS_OUT: u64 = 10 * SECOND;
/// A node that has just been cut off may have had its majority's answer before, and one that is back has it before anybody
/// notes that it is.
const EDGE: u64 = SECOND;

/// See the module.
pub(super) fn check(scene: &Scene<'_>, judge: &mut Judge<'_>) {
    let within = scene.evidence.run().deadline_ms * 1_000_000;
    let cut_off = scene.faults.iter().filter(|stretch| !stretch.fault.minority.is_empty());
    for stretch in cut_off {
        let to_ns = stretch.to_ns.unwrap_or(u64::MAX);
        let mut any = false;
        let asked = |op: &Op<'_>| {
            let there = op.node.is_some_and(|node| stretch.fault.minority.contains(&node));
            let has_deadline = !matches!(op.request, Request::Result(_));
            there
                && has_deadline
                && !is_starting(scene, op)
                && stretch.from_ns < op.from_ns
                && op.from_ns.saturating_add(within + SLACK) < to_ns
        };
        served(scene, stretch, judge);
        for op in scene.evidence.ops().filter(asked) {
            any = true;
            judge.judged(1);
            let line = judge.line(op.returned.unwrap_or(op.invoked));
            let took = op.to_ns.map(|to| to - op.from_ns);
            if took.is_none_or(|took| took > within + SLACK) {
                judge.invalid(format!(
                    "L7: {line}: {} on a node without a majority was not answered in time",
                    op.request.name()
                ));
            } else if !is_clear(scene, &op) && !was_unplugged(scene, &op) {
                judge.invalid(format!(
                    "L7: {line}: {} on a node without a majority got no clear error",
                    op.request.name()
                ));
            }
        }
        if !any && to_ns.saturating_sub(stretch.from_ns) > 2 * (within + SLACK) {
            judge.unknown(format!("L7: {}: nobody asked a node without a majority", judge.line(stretch.at)));
        }
    }
}

fn served(scene: &Scene<'_>, cut_off: &Stretch<'_>, judge: &mut Judge<'_>) {
    let until = cut_off.to_ns.unwrap_or(u64::MAX);
    let within = |op: &Op<'_>| {
        cut_off.from_ns + EDGE < op.from_ns && op.to_ns.is_some_and(|to_ns| to_ns.saturating_add(EDGE) < until)
    };
    let there = |op: &Op<'_>| op.node.is_some_and(|node| cut_off.fault.minority.contains(&node));
    // What agents and removed parties call may be answered by what the node knows itself.
    let needs = |op: &Op<'_>| {
        sights::is_linearizable(op.request) && !matches!(op.request, Request::Call(_) | Request::Result(_))
    };
    for op in scene.evidence.ops().filter(|op| op.reply().is_some() && there(op) && within(op) && needs(op)) {
        let line = judge.line(op.returned.unwrap_or(op.invoked));
        judge.invalid(format!("L7: {line}: {} was served by a node without a majority", op.request.name()));
    }
}

/// Whether the node that was asked had not said anything yet since it was started: nobody listens there.
fn is_starting(scene: &Scene<'_>, op: &Op<'_>) -> bool {
    let of_node = || scene.polls.iter().filter(|polled| Some(polled.node) == op.node);
    let next = of_node().find(|polled| polled.t_ns >= op.from_ns);
    next.is_some_and(|next| !of_node().any(|other| other.t_ns < op.from_ns && other.poll.start == next.poll.start))
}

/// Whether the connection over which it was asked may have been broken before, so that the node never heard of it.
fn was_unplugged(scene: &Scene<'_>, op: &Op<'_>) -> bool {
    let breaks = |stretch: &&Stretch<'_>| {
        stretch.fault.effect == Effect::Unplugged && op.node.is_some_and(|node| stretch.fault.nodes.contains(&node))
    };
    let found_out = |stretch: Stretch<'_>| stretch.to_ns.map_or(u64::MAX, |to| to.saturating_add(FINDS_OUT));
    scene.faults.iter().filter(breaks).any(|stretch| stretch.from_ns < op.from_ns && op.from_ns < found_out(*stretch))
}

/// An error of the product's own, which are in lower case; what transports say by themselves is not clear. An answer that
/// is no error is for [`served`] to judge.
fn is_clear(scene: &Scene<'_>, op: &Op<'_>) -> bool {
    if matches!(op.outcome, Outcome::Ok(_)) {
        return true;
    }
    let answer = op.returned.map(|at| &scene.evidence.record(at).body);
    let Some(Body::Fail(failure) | Body::Info(failure)) = answer else { return false };
    !failure.message.is_empty() && !failure.code.is_empty() && !failure.code.contains(|c: char| c.is_ascii_uppercase())
}
