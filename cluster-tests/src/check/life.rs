//! The life of a job: which state can follow which, at once and in the course of time.

use crate::history::JobState::{self, Cancelled, Failed, Pending, Running, Scheduled};

/// A job's state and its newest attempt's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct View {
    /// Which state.
    pub state: JobState,
    /// 0 before the first.
    pub attempt: u32,
}

impl std::fmt::Display for View {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} in attempt {}", self.state, self.attempt)
    }
}

impl View {
    /// How far it is along its life: later states compare greater. Different terminal states are equally far.
    pub fn progress(self) -> (u32, u8) {
        let rank = match (self.state, self.attempt) {
            (Scheduled, _) => 0,
            (Running, _) => 1,
            (Pending, _) => 2,
            _ => 3,
        };
        (self.attempt, rank)
    }

    /// Whether it can exist at all.
    pub fn is_possible(self) -> bool {
        self.attempt > 0 || matches!(self.state, Pending | Cancelled | Failed)
    }
}

/// Whether a job that stood at `from` can stand at `to` later, or still.
pub fn reachable(from: View, to: View) -> bool {
    if from == to {
        return true;
    }
    if from.state.is_terminal() || !to.is_possible() {
        return false;
    }
    match from.attempt.cmp(&to.attempt) {
        std::cmp::Ordering::Greater => false,
        std::cmp::Ordering::Less => true,
        // Waiting for its first or next attempt, it can only be cancelled or not be provisioned for.
        std::cmp::Ordering::Equal if from.state == Pending => matches!(to.state, Cancelled | Failed),
        std::cmp::Ordering::Equal => from.progress() < to.progress(),
    }
}

/// Whether `to` can be the very next thing that is told of a job that stood at `from`. A process may end before its start
/// was told, so that Scheduled is followed by anything.
pub fn follows(from: View, to: View) -> bool {
    match (from.state, to.state) {
        (Pending, Scheduled) => to.attempt == from.attempt + 1,
        (Pending, Cancelled | Failed) => to.attempt == from.attempt,
        (Scheduled, _) => to.attempt == from.attempt && to.state != Scheduled,
        (Running, _) => to.attempt == from.attempt && !matches!(to.state, Scheduled | Running),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use JobState::Succeeded;

    const STATES: [JobState; 7] = [Pending, Scheduled, Running, Succeeded, Failed, Cancelled, JobState::Timeout];

    #[test]
    fn what_is_reachable_is_a_chain_of_what_follows() {
        let views: Vec<_> = (0..4).flat_map(|attempt| STATES.map(|state| View { state, attempt })).collect();
        let views: Vec<_> = views.into_iter().filter(|view| view.is_possible()).collect();
        for &from in &views {
            let mut reached = vec![from];
            let mut next = 0;
            while next < reached.len() {
                let here = reached[next];
                reached.extend(
                    views.iter().filter(|to| follows(here, **to) && !reached.contains(to)).copied().collect::<Vec<_>>(),
                );
                next += 1;
            }
            for &to in &views {
                assert_eq!(reachable(from, to), reached.contains(&to), "{from} to {to}");
            }
        }
    }
}
