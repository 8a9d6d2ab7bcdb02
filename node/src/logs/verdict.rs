//! When a subscriber is done with an attempt's log: a decision over plain data.

use std::time::Duration;

use hodei_state::{
    State,
    ids::NodeId,
    job::{Attempt, AttemptEnd, EndedBy},
    registry::WorkerState,
};
use tokio::time::Instant;

use super::tally::Tally;
use crate::convert::to_proto;

/// How long what is known to be lacking is waited for: long enough for an agent to come to another gateway.
const PATIENCE: Duration = Duration::from_secs(10);
/// The same for who does not follow.
const PATIENCE_ONCE: Duration = Duration::from_secs(3);
/// From an attempt's end on, how long its agent may take to deliver what nobody else has: its gateway's disk may be full.
const DELIVERY_MS: u64 = 60_000;

/// What a subscriber knows when it has sent all that its file holds.
pub struct Situation<'a> {
    /// How the attempt ended, if it has.
    pub end: Option<&'a AttemptEnd>,
    /// What the file adds up to; nothing: there is none.
    pub tally: Tally,
    /// See [`super::source::Feed`]; of holders that were asked after the end, if it was lost.
    pub settled: bool,
    /// See [`super::source::Feed`].
    pub missing: &'a [NodeId],
    /// See [`is_gone`].
    pub gone: bool,
    /// This node cannot keep what holders send, so that nothing more is seen here.
    pub broken: bool,
    /// Whether to wait for what comes.
    pub follow: bool,
    /// Nothing has come for as long as a subscriber waits for what is known to be lacking.
    pub patience_over: bool,
}

/// How long nothing has come of what is known to be lacking.
///
/// Until the attempt's end is known nothing is known to be lacking, however long its job is silent: the end may be heard of
/// before the last lines come. The exception is a node that cannot keep what others send.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    bound: Duration,
    since: Instant,
    has_ended: bool,
    /// Nothing has come since this node first could not keep something.
    is_broken: bool,
}

impl Patience {
    /// Begins to wait.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self { bound: PATIENCE, since: now, has_ended: false, is_broken: false }
    }

    /// Waits for so long from now on: who follows, for an agent that is still [awaited](is_awaited) longer than for others.
    pub fn allow(&mut self, follow: bool, awaited: bool) {
        self.bound = match (follow, awaited) {
            (true, true) => Duration::from_millis(DELIVERY_MS),
            (true, false) => PATIENCE,
            (false, _) => PATIENCE_ONCE,
        };
    }

    /// Something came.
    pub fn came(&mut self, now: Instant) {
        (self.since, self.is_broken) = (now, false);
    }

    /// The attempt has ended. Only the first time counts.
    pub fn ended(&mut self, now: Instant) {
        if !self.has_ended {
            (self.since, self.has_ended) = (now, true);
        }
    }

    /// This node cannot keep what comes. Until something comes only the first time counts, and none after the end.
    pub fn broke(&mut self, now: Instant) {
        if !self.has_ended && !self.is_broken {
            (self.since, self.is_broken) = (now, true);
        }
    }

    /// When it is over, if nothing comes.
    #[must_use]
    pub fn until(&self) -> Instant {
        self.since + self.bound
    }

    /// Whether it is.
    #[must_use]
    pub fn is_over(&self, now: Instant) -> bool {
        now >= self.until()
    }
}

/// Whether an attempt has ended lately, and no member is said to have what is lacking of its log: its agent may still have it,
/// unless it is removed. It may be on its way to another gateway.
#[must_use]
pub fn may_come(state: &State, attempt: &Attempt, missing: &[NodeId]) -> bool {
    let lately = |end: &AttemptEnd| end.log.is_some() && state.stamp() < end.at.plus(DELIVERY_MS);
    let is_there = state.worker(attempt.worker).is_some_and(|worker| worker.state != WorkerState::Terminated);
    !missing.iter().any(|holder| state.is_member(*holder)) && is_there && attempt.end.as_ref().is_some_and(lately)
}

/// Whether an agent must still have what is lacking of an attempt's log: it [may come](may_come), and its stream stands.
#[must_use]
pub fn is_awaited(state: &State, attempt: &Attempt, missing: &[NodeId]) -> bool {
    let gateway = state.worker(attempt.worker).and_then(|worker| worker.gateway);
    may_come(state, attempt, missing) && gateway.is_some_and(|gateway| state.is_member(gateway))
}

/// Whether what is lacking of an attempt's log has left the cluster: all holders were asked, those that do not answer are no
/// members any more, and the last one, which has all of it, is one of them.
#[must_use]
pub fn is_gone(state: &State, attempt: &Attempt, asked_all: bool, missing: &[NodeId]) -> bool {
    let segments = state.segments(attempt.id.job, attempt.id.attempt);
    let last = segments.last().and_then(|segment| segment.holders.last()).map(|holder| state.heir(*holder));
    let left = missing.iter().all(|holder| !state.is_member(*holder));
    asked_all && left && last.is_some_and(|last| missing.contains(&last))
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Everything was sent; the figures are right or, if not, wrong for good.
    End {
        /// Whether the log is whole.
        complete: bool,
        /// Who holds what could not be read.
        missing: Vec<NodeId>,
        /// These have left the cluster. So many entries at its end are lost with them, if it is known how many there were.
        gone: Option<u64>,
    },
    /// The attempt goes on, and the subscriber does not want to wait for it.
    Stop {
        /// Who holds what could not be read.
        missing: Vec<NodeId>,
    },
    /// More will come. `impatient`: what is lacking is known, so the wait has an end.
    Wait {
        /// Whether patience counts.
        impatient: bool,
    },
}

/// See the module.
#[must_use]
pub fn verdict(now: &Situation<'_>) -> Verdict {
    let end = |complete: bool| Verdict::End { complete, missing: Vec::new(), gone: None };
    // Where everything that holders have was read, none of them is missing.
    let give_up = |lacking: u64| {
        let gone = now.gone.then_some(lacking);
        Verdict::End { complete: false, missing: now.missing.to_vec(), gone }
    };
    match now.end {
        Some(AttemptEnd { log: Some(figures), .. }) => {
            let figures = to_proto::log_end(figures);
            if now.tally.last_sequence >= figures.last_sequence {
                end(now.tally.is(&figures))
            } else if now.patience_over {
                give_up(figures.last_sequence - now.tally.last_sequence)
            } else {
                Verdict::Wait { impatient: true }
            }
        }
        // Never started: there is no log, and nothing of it is lacking.
        Some(AttemptEnd { by: EndedBy::Declined, .. }) => end(true),
        // Lost: what its holders have is all there may ever be, though late lines may still come.
        Some(_) if now.settled || now.patience_over => give_up(0),
        None if now.follow && !now.broken => Verdict::Wait { impatient: false },
        None if now.settled || now.patience_over => Verdict::Stop { missing: now.missing.to_vec() },
        Some(_) | None => Verdict::Wait { impatient: true },
    }
}

#[cfg(test)]
mod tests {
    use hodei_state::{
        ids::Millis,
        job::{LogEnd, Next, Reason},
    };

    use super::*;

    fn ended(last_sequence: Option<u64>) -> AttemptEnd {
        AttemptEnd {
            at: Millis(1),
            by: if last_sequence.is_some() { EndedBy::Result } else { EndedBy::Expiry },
            reason: Reason::Exited { code: 0 },
            next: Next::End,
            log: last_sequence.map(|last_sequence| LogEnd {
                last_sequence,
                lines: last_sequence,
                ..Default::default()
            }),
        }
    }

    fn tally(last_sequence: u64, lines: u64) -> Tally {
        Tally { last_sequence, lines, ..Tally::default() }
    }

    #[test]
    fn patience_begins_with_the_end_and_anew_with_whatever_comes() {
        let begun = Instant::now();
        let at = |seconds| begun + Duration::from_secs(seconds);
        let mut patience = Patience::new(begun);
        assert!(!patience.is_over(at(9)) && patience.is_over(at(10)));
        patience.came(at(5));
        // The job was silent for a minute.
        patience.ended(at(60));
        assert!(!patience.is_over(at(69)) && patience.is_over(at(70)));
        patience.came(at(65));
        patience.ended(at(70));
        assert_eq!(patience.until(), at(75));
        for (follow, awaited, until) in [(true, true, 125), (true, false, 75), (false, true, 68), (false, false, 68)] {
            patience.allow(follow, awaited);
            assert_eq!(patience.until(), at(until), "follow {follow}, awaited {awaited}");
        }
    }

    #[test]
    fn patience_with_a_node_that_cannot_keep_what_comes_begins_when_that_shows() {
        let begun = Instant::now();
        let at = |seconds| begun + Duration::from_secs(seconds);
        let mut patience = Patience::new(begun);
        patience.broke(at(60));
        patience.broke(at(65));
        assert_eq!(patience.until(), at(70));
        patience.came(at(66));
        patience.broke(at(67));
        assert_eq!(patience.until(), at(77));
        patience.ended(at(70));
        patience.broke(at(71));
        assert_eq!(patience.until(), at(80));
    }

    #[test]
    fn every_situation_has_its_verdict() {
        let whole = |complete| Verdict::End { complete, missing: vec![], gone: None };
        let lacks = |node| Verdict::End { complete: false, missing: vec![node], gone: None };
        let lost_with = |node, lost| Verdict::End { complete: false, missing: vec![node], gone: Some(lost) };
        let wait = |impatient| Verdict::Wait { impatient };
        let (result, lost, none) = (Some(ended(Some(5))), Some(ended(None)), None);
        let cases = [
            // end, last sequence, lines, settled, missing (9: it has left the cluster), follow, patience over
            (&result, 5, 5, true, vec![], true, false, whole(true)),
            (&result, 5, 4, true, vec![], true, false, whole(false)),
            (&result, 3, 3, true, vec![], true, false, wait(true)),
            (&result, 3, 3, true, vec![], false, false, wait(true)),
            (&result, 3, 3, false, vec![2], true, false, wait(true)),
            (&result, 3, 3, false, vec![2], true, true, lacks(2)),
            (&result, 3, 3, true, vec![], true, true, whole(false)),
            (&result, 3, 3, false, vec![9], true, false, wait(true)),
            (&result, 3, 3, false, vec![9], true, true, lost_with(9, 2)),
            (&result, 5, 5, false, vec![9], true, true, whole(true)),
            (&lost, 3, 3, true, vec![], true, false, whole(false)),
            (&lost, 3, 3, false, vec![], true, false, wait(true)),
            (&lost, 3, 3, false, vec![1], true, true, lacks(1)),
            (&lost, 3, 3, false, vec![9], true, true, lost_with(9, 0)),
            (&none, 3, 3, true, vec![], true, false, wait(false)),
            (&none, 3, 3, false, vec![1], true, true, wait(false)),
            (&none, 3, 3, true, vec![], false, false, Verdict::Stop { missing: vec![] }),
            (&none, 3, 3, false, vec![], false, false, wait(true)),
            (&none, 3, 3, false, vec![1], false, true, Verdict::Stop { missing: vec![1] }),
        ];
        for (at, (end, last, lines, settled, missing, follow, patience_over, expected)) in cases.into_iter().enumerate()
        {
            let now = Situation {
                end: end.as_ref(),
                tally: tally(last, lines),
                settled,
                missing: &missing,
                gone: missing == [9],
                broken: false,
                follow,
                patience_over,
            };
            assert_eq!(verdict(&now), expected, "case {at}");
        }
        for (patience_over, expected) in [(false, wait(true)), (true, Verdict::Stop { missing: vec![] })] {
            let (tally, settled, missing) = (tally(3, 3), false, [].as_slice());
            let running = Situation {
                end: None,
                tally,
                settled,
                missing,
                gone: false,
                broken: true,
                follow: true,
                patience_over,
            };
            assert_eq!(verdict(&running), expected, "a node that cannot keep what comes of a running attempt");
        }
    }
}
