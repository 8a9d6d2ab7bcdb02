//! What is seen and done beside the operations: faults, polls, streams, witnesses.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::operation::{Capacity, JobState, JobView};

/// Something that was seen or done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "f", content = "val", rename_all = "snake_case")]
pub enum Note {
    /// What this run is; once.
    Run(Run),
    /// Which nodes are to serve from now on.
    Cluster(Members),
    /// What a worker can take, from now on; the key is its id.
    Worker(Capacity),
    /// A fault begins, takes a step or is healed; the key tells faults of a run apart.
    Fault(Fault),
    /// A durable file of a stopped node was damaged; the key tells damages apart.
    Damage(Damage),
    /// What became of it; the same key.
    DamageEnd(DamageEnd),
    /// What a node says about itself; the record names the node.
    Poll(Poll),
    /// A message of a watch; the key is the job.
    Watched(JobView),
    /// A stream of events begins, or goes on elsewhere; the process is the stream.
    Subscribe(Subscribe),
    /// An event of a stream; the key is the job, where it is about one.
    Event(Event),
    /// The stream has looked at everything up to here.
    Through(Through),
    /// A line of a job's witness; the key is the job, the time is when it was written.
    Witness(Mark),
    /// A reader of a log begins an attempt's log, or goes on elsewhere; the key is the job, the process is the reader.
    LogFrom(LogFrom),
    /// What a reader of a log has got next.
    Log(LogPart),
    /// The end of an attempt's log was announced to a reader.
    LogEnd(LogEnd),
    /// A reader is done with an attempt's log, which it wanted whole from one node (`node`), or gave a log up.
    LogRead(LogRead),
    /// What was left on the machine when everything had settled.
    Inventory(Inventory),
    /// Something that had to happen and did not, as it was seen by whoever drives the run.
    Violation(Violation),
    /// The end of a run: what belongs to its history. Nothing is recorded after it.
    Seal(Seal),
}

/// See [`Note::Run`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Run {
    /// What made it.
    pub scenario: String,
    /// Where its random choices come from.
    pub seed: u64,
    /// Checkers that must find something to judge.
    pub requires: Vec<String>,
    /// What must hold, of which there must be something to judge, such as `S8`.
    pub promises: Vec<String>,
    /// How long a client waits for an answer.
    pub deadline_ms: u64,
    /// Operations that must end well at least.
    pub least_operations: usize,
    /// Kinds of fault that must occur.
    pub least_faults: Vec<String>,
    /// A fault must hit the leader.
    pub hits_leader: bool,
    /// The leader must change.
    pub changes_leader: bool,
    /// What inventories look for that every attempt has; none: processes and directories, as they once did.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub inventories: Vec<String>,
    /// The history ends with a [`Seal`]: without one it was cut off.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub sealed: bool,
}

/// See [`Note::Cluster`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Members {
    /// Ids.
    pub nodes: Vec<u64>,
}

/// See [`Note::Fault`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// Its kind, such as `isolate_leader`: what was planned.
    pub kind: String,
    /// The kind that was done in its place, since this machine cannot do what was planned.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub instead: String,
    /// Whether it begins or ends.
    pub phase: Phase,
    /// Nodes that it acts upon.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<u64>,
    /// Workers that it acts upon.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub workers: Vec<String>,
    /// Nodes that it cuts off from a majority.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub minority: Vec<u64>,
    /// What checkers must know about it.
    #[serde(default, skip_serializing_if = "Effect::is_other")]
    pub effect: Effect,
    /// Those it acts upon are not expected back: as long as it lasts the others must go on without them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub permanent: bool,
    /// It is over, and did not come to what it was for.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub missed: bool,
    /// It may lose what was acknowledged.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub may_lose: bool,
    /// For people and for replays: parameters as text.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

impl Fault {
    /// The kind that was done: what is counted.
    #[must_use]
    pub fn done(&self) -> &str {
        if self.instead.is_empty() { &self.kind } else { &self.instead }
    }
}

/// Where a fault stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// From now on. An instant is a `begin` and an `end` at once.
    Begin,
    /// It is healed.
    End,
}

/// What a fault does, as far as a checker judges by it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// Nothing that a checker must know.
    #[default]
    Other,
    /// Whole machines stand still, and the jobs on them (`workers`).
    Freeze,
    /// One node is cut off in one direction only.
    OneWay,
    /// Nodes are cut off from clients, too: connections break, and whoever has one finds that out by using it.
    Unplugged,
}

impl Effect {
    fn is_other(&self) -> bool {
        *self == Self::Other
    }
}

/// See [`Note::Damage`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Damage {
    /// Below the node's data directory.
    pub file: String,
    /// `flip`, `truncate`, `zero` or `stale`.
    pub how: String,
    /// Where in the file.
    #[serde(default)]
    pub offset: u64,
}

/// See [`Note::DamageEnd`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DamageEnd {
    /// As the driver saw it.
    pub class: DamageClass,
    /// How the node ended, where it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// The error code that it gave.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub code: String,
}

/// What became of a damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DamageClass {
    /// The node serves, and holds what the others hold.
    Repaired,
    /// The node runs and neither votes nor serves.
    Quarantined,
    /// The node ended by itself.
    Exited,
    /// The node serves, and nobody knows what.
    Silent,
}

/// See [`Note::Poll`]. What a node does not say is absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Poll {
    /// Grows with each start of the node's process.
    pub start: u64,
    /// Its current term.
    pub term: u64,
    /// Whom it takes for the leader.
    pub leader: Option<u64>,
    /// Last log id: term and index.
    pub last_log: Option<(u64, u64)>,
    /// Committed log id.
    pub committed: Option<(u64, u64)>,
    /// Applied index …
    pub applied: u64,
    /// … and its term.
    pub applied_term: Option<u64>,
    /// Of the state at the applied index.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub hash: String,
    /// Hashes are comparable at equal levels.
    pub feature_level: u32,
}

/// An event's place: log index, and 0, 1, 2 … within the entry.
pub type Place = (u64, u32);

/// See [`Note::Subscribe`]. Absent means: any.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Subscribe {
    /// Events after this place; absent: all there are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<Place>,
    /// Of this job only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job: Option<String>,
    /// Of this worker only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worker: Option<String>,
    /// Of these kinds only, or groups of them, such as `job`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kinds: Vec<String>,
}

/// See [`Note::Event`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Event {
    /// Where it stands in the log.
    pub at: Place,
    /// `job_submitted`, `worker_drained` …
    pub kind: String,
    /// Of the job.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub attempt: u32,
    /// Which worker it is about.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub worker: String,
    /// The state that the job ended in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<JobState>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero(value: &u32) -> bool {
    *value == 0
}

/// See [`Note::Through`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Through {
    /// Everything up to here.
    pub at: Place,
}

/// See [`Note::Witness`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mark {
    /// What happened.
    pub mark: MarkKind,
    /// 1, 2, 3 …
    pub attempt: u32,
    /// Its fence.
    pub fence: u64,
    /// Where it runs.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub worker: String,
    /// Lines printed before it was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lines: Option<u64>,
}

/// What a witness writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MarkKind {
    /// It has the lock.
    Start,
    /// It lives.
    Beat,
    /// It is done.
    End,
    /// Somebody else has the lock.
    Refused,
}

/// See [`Note::LogFrom`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogFrom {
    /// Of which attempt.
    pub attempt: u32,
    /// The sequence that was asked for.
    pub sequence: u64,
    /// Whether the reader rests on purpose: what it gets is judged, and not when.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub slow: bool,
}

/// See [`Note::Log`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogPart {
    /// Of which attempt.
    pub attempt: u32,
    /// The sequence of the first entry.
    pub sequence: u64,
    /// What it is.
    pub part: Part,
}

/// A stretch of a log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Part {
    /// Seeded lines whose checksums are right, one after the other.
    Lines {
        /// 1 stdout, 2 stderr.
        stream: u32,
        /// The number of the first of them, from 0 in each stream.
        first: u64,
        /// How many.
        count: u64,
    },
    /// A gap record.
    Gap {
        /// How many lines it stands for; 0: nobody knows.
        lost: u64,
    },
    /// An entry that is no seeded line of this attempt, or a damaged one.
    Damaged {
        /// What it is.
        text: String,
    },
}

/// See [`Note::LogEnd`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogEnd {
    /// Of which attempt.
    pub attempt: u32,
    /// Whether the reader was told that it has everything.
    pub complete: bool,
    /// The attempt was lost, so that nobody knows what it printed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub lost: bool,
    /// Nodes that hold what could not be read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<u64>,
    /// All of those have left the cluster, as the reader was told: it need not look again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub gone: bool,
    /// So many lines at its end are lost with them, as the reader was told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entries_lost: Option<u64>,
}

/// See [`Note::LogRead`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogRead {
    /// Of which attempt.
    pub attempt: u32,
    /// Why it could not be read to its end; absent: it could.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

/// See [`Note::Inventory`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Inventory {
    /// What was found.
    pub found: Vec<Found>,
    /// Attempts (`job/attempt`) that live, by the cluster's state.
    pub live: Vec<String>,
    /// It was taken while jobs ran: whatever was found may be there, and shows what inventories can see.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub busy: bool,
}

/// A container, process or control group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Found {
    /// `process`, `cgroup`, `container` …
    pub what: String,
    /// Its number or name.
    pub id: String,
    /// The attempt (`job/attempt`) that it was made for, where it says so.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub owner: String,
}

/// See [`Note::Violation`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Violation {
    /// What did not happen, or went wrong.
    pub what: String,
}

/// See [`Note::Seal`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seal {
    /// How many records there are in each file of the run, this one among them.
    pub files: BTreeMap<String, usize>,
}
