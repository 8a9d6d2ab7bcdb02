//! A job as a sequential object. The scheduler moves it on by itself, so that what is known of it is the set of all that it
//! may have come to: an answer is right if it fits one of them.

use std::fmt::{self, Display};

use super::search::Model;
use crate::{
    check::life::{self, View},
    history::JobState::{self, Cancelled, Failed, Pending, Running, Scheduled, Succeeded, Timeout},
};

/// What is done with a job, with the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It was submitted.
    Submit {
        /// Whether it was there before, as the answer says.
        existing: bool,
    },
    /// It was named as the job of a key: it was there.
    Known,
    /// It was read; nothing: it was not there.
    Read(Option<Status>),
    /// A cancel was accepted, with the state after it, or nobody knows whether it was.
    Cancel(Option<JobState>),
}

/// A state and the newest attempt's number.
pub type Status = View;

impl Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Submit { existing: false } => f.write_str("submitted as new"),
            Self::Submit { existing: true } => f.write_str("submitted"),
            Self::Known => f.write_str("named"),
            Self::Read(None) => f.write_str("read as absent"),
            Self::Read(Some(status)) => write!(f, "read as {status}"),
            Self::Cancel(Some(state)) => write!(f, "cancelled as {state:?}"),
            Self::Cancel(None) => f.write_str("perhaps cancelled"),
        }
    }
}

const STATES: [JobState; 7] = [Pending, Scheduled, Running, Succeeded, Failed, Cancelled, Timeout];
/// The greatest number of an attempt that is told apart: what was read must lie below.
pub const MAX_ATTEMPT: u32 = 8;
/// A bit for each state, attempt and whether a cancel was accepted, and one for no job at all.
const ABSENT: usize = STATES.len() * (MAX_ATTEMPT as usize + 1) * 2;

/// A set of those.
pub type Set = u128;

/// The model.
#[derive(Clone, Debug)]
pub struct Life {
    /// What each can come to without any client.
    reach: Vec<Set>,
}

/// A job that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Job {
    view: View,
    cancel: bool,
}

impl Job {
    fn bit(self) -> usize {
        (self.view.attempt as usize * STATES.len() + self.view.state as usize) * 2 + usize::from(self.cancel)
    }

    fn of(bit: usize) -> Self {
        let (place, cancel) = (bit / 2, bit % 2 == 1);
        let attempt = u32::try_from(place / STATES.len()).unwrap_or(MAX_ATTEMPT);
        Self { view: View { state: STATES[place % STATES.len()], attempt }, cancel }
    }

    /// What the cluster may do next by itself. A cancelled job runs its attempt to the end, and that is Cancelled.
    fn may_become(self, next: Self) -> bool {
        let permitted = match (self.cancel, next.view.state) {
            (false, state) => state != Cancelled,
            (true, state) => self.view.state != Pending && matches!(state, Running | Cancelled),
        };
        self.cancel == next.cancel && permitted && life::follows(self.view, next.view)
    }

    /// What an accepted cancel makes of it; nothing: it is refused.
    fn cancelled(self) -> Option<Self> {
        let state = match self.view.state {
            Pending => Cancelled,
            state @ (Scheduled | Running | Cancelled) => state,
            Succeeded | Failed | Timeout => return None,
        };
        Some(Self { view: View { state, ..self.view }, cancel: true })
    }
}

fn jobs(set: Set) -> impl Iterator<Item = Job> {
    (0..ABSENT).filter(move |bit| set & 1 << bit != 0).map(Job::of)
}

impl Default for Life {
    fn default() -> Self {
        let mut reach: Vec<Set> = (0..ABSENT)
            .map(|from| {
                let next = (0..ABSENT).filter(|&to| Job::of(from).may_become(Job::of(to)));
                next.fold(1 << from, |set, to| set | 1 << to)
            })
            .collect();
        // No life has more steps than there are bits.
        loop {
            let further =
                |set: Set| (0..ABSENT).filter(|bit| set & 1 << bit != 0).fold(set, |all, bit| all | reach[bit]);
            let next: Vec<Set> = reach.iter().copied().map(further).collect();
            if next == reach {
                return Self { reach };
            }
            reach = next;
        }
    }
}

impl Model for Life {
    type State = Set;
    type Op = Action;

    fn first(&self) -> Set {
        1 << ABSENT
    }

    fn step(&self, state: &Set, action: &Action) -> Option<Set> {
        let absent = *state & 1 << ABSENT;
        let there = *state & !(1 << ABSENT);
        let new = Job { view: View { state: Pending, attempt: 0 }, cancel: false };
        let made = if absent == 0 { 0 } else { 1 << new.bit() };
        let after = match *action {
            // One that found itself there already may have been sent twice on the way.
            Action::Submit { existing: true } => made | there,
            Action::Submit { existing: false } => made,
            Action::Known => there,
            Action::Read(None) => absent,
            Action::Read(Some(view)) => [false, true].iter().fold(0, |set, &cancel| {
                set | there & if view.attempt < MAX_ATTEMPT { 1 << (Job { view, cancel }).bit() } else { 0 }
            }),
            Action::Cancel(answer) => jobs(there)
                .filter_map(Job::cancelled)
                .filter(|job| answer.is_none_or(|state| state == job.view.state))
                .fold(0, |set, job| set | 1 << job.bit()),
        };
        let closed = jobs(after).fold(after, |set, job| set | self.reach[job.bit()]);
        (closed != 0).then_some(closed)
    }
}
