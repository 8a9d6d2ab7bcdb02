//! The state of the queue, from the core to the wire.

use hodei_proto::v1;
use hodei_raft::View;
use hodei_state::{
    Now, State,
    backlog::{Backlog, ClassStatus, WorkerCounts},
    explain::Blocker,
};

use super::{explanation, to_proto};

/// Classes that are told of.
const MAX_CLASSES: usize = 100;

/// The answer.
#[must_use]
pub fn response(view: &View, backlog: &Backlog, now: Now) -> v1::GetQueueStatusResponse {
    let View { state, position } = view;
    let Backlog { counts, priorities, oldest, blocked, classes, left_off, capacity, used, workers, heard } = backlog;
    let WorkerCounts { ready, draining, set_aside, absent } = *workers;
    let (unjudged_classes, unjudged_jobs) = *left_off;
    let untold = classes.len().saturating_sub(MAX_CLASSES) as u64;
    v1::GetQueueStatusResponse {
        pending: counts.pending,
        scheduled: counts.scheduled,
        running: counts.running,
        position: Some(to_proto::position(position.term, position.index)),
        as_of_ms: to_proto::ms(now.stamp),
        oldest_submitted_at_ms: to_proto::optional_ms(*oldest),
        priorities: priorities.iter().map(|&(priority, jobs)| v1::PriorityCount { priority, jobs }).collect(),
        blocked: blocked.iter().map(|(blocker, jobs)| self::blocked(*blocker, *jobs)).collect(),
        classes: classes.iter().take(MAX_CLASSES).map(|class| self::class(state, class)).collect(),
        classes_left_off: untold.saturating_add(unjudged_classes),
        jobs_not_judged: unjudged_jobs,
        capacity: Some(to_proto::capacity(capacity)),
        used: Some(to_proto::capacity(used)),
        workers: Some(v1::WorkerCounts { ready, draining, set_aside, absent }),
        heard: *heard,
    }
}

fn blocked(blocker: Option<Blocker>, jobs: u64) -> v1::BlockedCount {
    let until = match blocker {
        Some(Blocker::Backoff { until } | Blocker::SetAside { until }) => Some(until),
        _ => None,
    };
    let blocker = blocker.map(explanation::blocker).unwrap_or_default().to_owned();
    v1::BlockedCount { blocker, jobs, until_ms: to_proto::optional_ms(until) }
}

fn class(state: &State, class: &ClassStatus) -> v1::QueueClass {
    let ClassStatus { jobs, priorities: (highest_priority, lowest_priority), .. } = *class;
    let (start, at) = explanation::start(class.start);
    let name = |blocker: Option<Blocker>| blocker.map(explanation::blocker).unwrap_or_default().to_owned();
    v1::QueueClass {
        jobs,
        highest_priority,
        lowest_priority,
        resources: Some(to_proto::resources(&class.resources)),
        constraints: class.constraints.iter().map(to_proto::constraint).collect(),
        first_job_id: class.first.to_string(),
        first_name: state.spec(class.first).and_then(|spec| spec.name).unwrap_or_default(),
        first_submitted_at_ms: to_proto::ms(class.first_submitted_at),
        blocker: name(class.blocker),
        others_blocker: name(class.others),
        behind: class.behind,
        start: start.to_owned(),
        start_at_ms: to_proto::optional_ms(at),
    }
}
