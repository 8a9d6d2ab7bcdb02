//! A run: a cluster on hosts and disks of its own, clients that keep it busy, faults by a plan, and a verdict.
//!
//! 1. [`World::new`] makes nodes and agents; clients begin; three seconds to warm up.
//! 2. The plan's faults begin and are healed at their times. What dies is started again, as an init system would.
//! 3. All is healed. Within the bounds of what must happen after that, clients look at every node, and then begin nothing
//!    new. Jobs end, readers read what they still lack, and what is left on the machine is counted.
//! 4. Plan, history and witnesses are a folder that [`check`] judges, now and whenever it is read again.
//!
//! Where a node does not come back, a client does not end, or anything panics, that is recorded, and the folder is written
//! and judged all the same.

mod clock;
pub mod field;
mod folder;
mod inventory;
mod ready;
mod task;
pub mod world;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use futures::future::join_all;
use hodei_proto::v1::Job;
use rand::{SeedableRng as _, rngs::SmallRng};
use tokio::time::{Instant, sleep, sleep_until};
use uuid::Uuid;

use self::{
    field::{Field, Pace, Seat},
    task::Task,
    world::{DRIVER, World},
};
pub use self::{ready::ready, task::caught};
use crate::{
    check::{self, Reports, residue},
    history::{Body, Evidence, Note, Record, Run, now_ns},
    nemesis::{self, Active},
    schedule::{Plan, Step},
    workload::{events, identities, jobs, keys, late, polls, tokens, waits, witnessed},
};

const WARM_UP: Duration = Duration::from_secs(3);
/// By when somebody must have been seen to be busy.
const BUSY_BY: Duration = Duration::from_secs(10);
/// How often the driver looks whether something is to be done.
const TICK: Duration = Duration::from_millis(50);
/// How long a fault waits for somebody to act upon.
const PATIENCE: Duration = Duration::from_secs(30);
/// After faults are healed: how long clients go on as before.
const AFTER: Duration = Duration::from_secs(2);
/// For a fresh write and read on each node, and states that are alike.
const SETTLED: Duration = Duration::from_secs(10);
/// For all jobs to end once nothing new is begun.
const JOBS_END: Duration = Duration::from_secs(45);
/// How often a node is asked which jobs there are, until it says so.
const LISTS: u32 = 3;
/// For each client to end.
const CLIENTS_END: Duration = Duration::from_secs(20);
/// How often each node is looked at when nothing goes on any more.
const LOOKS: u32 = 5;
/// Clients that submit.
const SUBMITTERS: usize = 3;
/// Who follow all events.
const STREAMS: [Pace; 3] = [Pace::Steady, Pace::Steady, Pace::Slow];
/// How many logs are read once more on each node.
const LOGS: usize = 10;

/// Runs a plan. The folder of the run is kept where `keep` says, or beside the temporary files if it is not valid.
///
/// # Panics
/// If there is no root, or the cluster does not come up.
pub async fn run(plan: &Plan, keep: Option<&Path>) -> Judged {
    run_in(World::new(plan).await, plan, keep).await
}

/// The same in a cluster that is up.
///
/// # Panics
/// If the folder cannot be written, or a checker does not cope with it. What there is of it is kept then.
pub async fn run_in(mut world: World, plan: &Plan, keep: Option<&Path>) -> Judged {
    let field = world.field.clone();
    field.history().note(DRIVER, "", Note::Run(describe(plan)));
    if let Err(words) = caught(go(&mut world, plan)).await {
        field.violation(format!("the run panicked: {words}"));
    }
    world.last_look();
    // Whoever a panic left without an owner ends, too.
    field.quieten();
    field.end();
    world.keep(true);
    let folder = keep.map_or_else(|| world.dir().join("run"), Path::to_path_buf);
    folder::write(&folder, plan, field.history(), [field.dir(), world.cluster.dir()])
        .expect("the folder of the run can be written");
    let evidence = Evidence::read(&folder).unwrap_or_else(|e| panic!("what was written is a history: {e}"));
    let reports = check::check_all(&evidence);
    world.keep(reports.verdict() != check::Verdict::Valid && keep.is_none());
    Judged { evidence, reports, folder }
}

async fn go(world: &mut World, plan: &Plan) {
    let clients = Clients::start(world, plan);
    warm_up(world).await;
    drive(world, &plan.steps).await;
    settle(world, plan, clients).await;
}

/// Until everybody is busy, and an inventory sees that. One that never does is told by its absence.
async fn warm_up(world: &World) {
    let begun = Instant::now();
    let mut is_seen = false;
    while begun.elapsed() < WARM_UP || !is_seen && begun.elapsed() < BUSY_BY {
        is_seen = is_seen || world.busy_inventory();
        sleep(TICK).await;
    }
}

/// A run that is over.
#[derive(Debug)]
pub struct Judged {
    /// What happened.
    pub evidence: Evidence,
    /// What checkers say of it.
    pub reports: Reports,
    /// Where it is, if it was to be kept, or is not valid.
    pub folder: PathBuf,
}

impl Judged {
    /// Whether everything held.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        self.reports.verdict() == check::Verdict::Valid
    }
}

fn describe(plan: &Plan) -> Run {
    let mut least_faults: Vec<String> = plan.steps.iter().map(|step| step.kind.clone()).collect();
    least_faults.sort();
    least_faults.dedup();
    Run {
        scenario: plan.scenario.clone(),
        seed: plan.seed,
        promises: plan.promises().map(str::to_owned).collect(),
        deadline_ms: u64::try_from(field::DEADLINE.as_millis()).unwrap_or(u64::MAX),
        least_operations: plan.least_operations(),
        least_faults,
        hits_leader: plan.hits_leader(),
        changes_leader: plan.changes_leader(),
        inventories: residue::OF_EACH.map(str::to_owned).to_vec(),
        sealed: true,
        ..Run::default()
    }
}

/// What keeps a cluster busy.
struct Clients {
    polls: Vec<Task<()>>,
    events: Vec<Task<()>>,
    submitters: Vec<Task<()>>,
    witnessed: Task<Vec<String>>,
    identities: Task<Vec<identities::Agent>>,
    late: Task<()>,
    waiter: Task<()>,
}

impl Clients {
    fn start(world: &World, plan: &Plan) -> Self {
        let field = &world.field;
        Self {
            polls: (0..plan.nodes)
                .map(|index| Task::spawn(format!("poll {index}"), polls::poll(field.clone(), index)))
                .collect(),
            events: (STREAMS.into_iter().map(|pace| (pace, [].as_slice())).chain([(Pace::Steady, events::SOME)]))
                .enumerate()
                .map(|(index, (pace, kinds))| {
                    let who = format!("reader {index} of events");
                    Task::spawn(who, events::follow(field.clone(), index, pace, kinds))
                })
                .collect(),
            submitters: (0..SUBMITTERS)
                .map(|index| Task::spawn(format!("submitter {index}"), jobs::submit(field.clone())))
                .chain([
                    Task::spawn("the race for tokens", tokens::race(field.clone())),
                    Task::spawn("the race for tokens across cuts", tokens::race_across_cuts(field.clone())),
                    Task::spawn("the race for keys", keys::race(field.clone())),
                ])
                .collect(),
            witnessed: Task::spawn("the submitter of witnessed jobs", witnessed::submit(field.clone())),
            identities: Task::spawn("the client that removes agents", identities::come_and_go(field.clone())),
            late: Task::spawn("the one who reports too late", late::report(field.clone())),
            waiter: Task::spawn("the one who waits for jobs", waits::for_ends(field.clone())),
        }
    }
}

/// Has faults begin and end at their times. One that has nobody to act upon yet waits for other faults to end.
async fn drive(world: &mut World, steps: &[Step]) {
    let begun = Instant::now();
    let mut active: Vec<(Instant, String, Active)> = Vec::new();
    let mut busy_until = begun;
    let mut waiting: Vec<(usize, &Step)> = steps.iter().enumerate().collect();
    while !waiting.is_empty() || !active.is_empty() {
        let now = Instant::now();
        if !active.is_empty() {
            busy_until = now;
        }
        let is_over =
            |(until, _, fault): &mut (Instant, String, Active)| *until <= now || fault.has_struck() == Some(true);
        let over: Vec<_> = active.extract_if(.., is_over).collect();
        for (_, key, fault) in over {
            let was_alone = fault.is_alone();
            end(world, &key, fault);
            // Somebody may go on under another id, which the next fault has to know. Where somebody does not, the rest of the
            // plan makes no sense.
            if was_alone && !world.whole().await {
                waiting.clear();
            }
        }
        waiting.retain(|(number, step)| {
            let at = begun + Duration::from_millis(step.at_ms);
            if now < at {
                return true;
            }
            // It may take a while, in which nobody else is heard either.
            let begun_ns = now_ns();
            let Some(fault) = begin(world, step, active.is_empty()) else {
                return now < at.max(busy_until) + PATIENCE;
            };
            let key = number.to_string();
            let note = Body::Note(Note::Fault(fault.begun()));
            world.field.history().extend([Record::new(begun_ns, DRIVER, &key, note)]);
            active.push((now + Duration::from_millis(step.for_ms), key, fault));
            false
        });
        world.supervise();
        sleep(TICK).await;
    }
}

fn begin(world: &mut World, step: &Step, quiet: bool) -> Option<Active> {
    let kind = nemesis::kinds().find(|kind| kind.name == step.kind).filter(|kind| quiet || !kind.alone)?;
    nemesis::begin(world, kind, &mut SmallRng::seed_from_u64(step.seed))
}

fn end(world: &mut World, key: &str, fault: Active) {
    let ended = fault.ended();
    nemesis::heal(world, fault);
    world.supervise();
    world.field.history().note(DRIVER, key, Note::Fault(ended));
}

/// Nothing is done to it any more: it comes to rest, and everything is looked at.
async fn settle(world: &mut World, plan: &Plan, clients: Clients) {
    let field = world.field.clone();
    let healed = Instant::now();
    field.look_anew();
    let calm = async {
        sleep_until(healed + AFTER).await;
        field.quieten();
    };
    let back = async {
        // Who does not come back is asked as well: all that is seen of it is evidence.
        let _ = world.whole().await;
        join_all(field.seats().into_iter().map(|seat| fresh(&field, seat, healed + SETTLED))).await;
    };
    tokio::join!(calm, back);
    // For polls to find them alike, nothing more is asked before.
    until(healed + SETTLED, || field.is_alike()).await;
    for client in clients.submitters {
        client.joined(&field, CLIENTS_END).await;
    }
    let (auditor, _) = field.process();
    let found = ended(world, &field, auditor).await;
    let witnessed = clients.witnessed.joined(&field, witnessed::READERS_END + CLIENTS_END).await.unwrap_or_default();
    clients.late.joined(&field, late::ROUNDS_END).await;
    clients.waiter.joined(&field, CLIENTS_END).await;
    let mut removed = clients.identities.joined(&field, CLIENTS_END).await.unwrap_or_default();
    // Until then nobody need have all logs at hand again.
    sleep_until(healed + SETTLED).await;
    audit(&field, auditor, &found, &witnessed).await;
    identities::try_again(&field, auditor, &mut removed).await;
    for (id, identity) in &world.removed {
        identities::try_as_node(&field, auditor, *id, identity).await;
    }
    // Nothing goes on any more, which is to be seen, too.
    field.look_anew();
    until(Instant::now() + SETTLED, || field.is_seen(LOOKS) && field.is_told(STREAMS.len())).await;
    let live = found.values().filter(|job| !is_over(job)).map(|job| format!("{}/{}", job.id, job.attempt));
    if plan.small_logs {
        world.snapshots();
    }
    world.inventory(&found.keys().map(String::as_str).collect(), live.collect());
    field.end();
    for client in clients.polls.into_iter().chain(clients.events) {
        client.joined(&field, CLIENTS_END).await;
    }
}

/// Waits for something, but no longer than that.
async fn until(by: Instant, holds: impl Fn() -> bool) {
    while Instant::now() < by && !holds() {
        sleep(TICK).await;
    }
}

fn is_over(job: &Job) -> bool {
    jobs::state(job.state).is_some_and(crate::history::JobState::is_terminal)
}

/// A job that is submitted and read at a node, again until it works.
async fn fresh(field: &Field, seat: Seat, by: Instant) {
    let (proc, _) = field.process();
    while Instant::now() < by {
        let id = Uuid::now_v7().to_string();
        let accepted = jobs::queue(field, proc, seat, &id, None, jobs::nothing(), ("true", Some(0))).await;
        if accepted.is_ok() && jobs::get(field, proc, seat, &id, false).await.is_ok() {
            return;
        }
        sleep(Duration::from_millis(100)).await;
    }
}

/// Waits until every job has ended, or it has taken too long; gives all of them.
async fn ended(world: &World, field: &Field, proc: u32) -> BTreeMap<String, Job> {
    let by = Instant::now() + JOBS_END;
    let mut seen = BTreeMap::new();
    loop {
        for seat in field.seats() {
            let Ok((jobs, _)) = jobs::pages(&world.cluster.client_at(seat.address)).await else { continue };
            for job in jobs {
                // Noted when it is first seen to be over, as somebody would who waits for it.
                if is_over(&job) && !seen.get(&job.id).is_some_and(is_over) {
                    let _ = jobs::get(field, proc, seat, &job.id, false).await;
                }
                seen.insert(job.id.clone(), job);
            }
            break;
        }
        if seen.values().all(is_over) && !seen.is_empty() || Instant::now() > by {
            return seen;
        }
        sleep(Duration::from_millis(100)).await;
    }
}

/// Every node says which jobs there are, and some logs are read at every node.
async fn audit(field: &Field, auditor: u32, found: &BTreeMap<String, Job>, witnessed: &[String]) {
    for seat in field.seats() {
        for _ in 0..LISTS {
            if jobs::list(field, auditor, seat).await.is_ok() {
                break;
            }
        }
        // The newest first: those ran when faults were about; and before them those that ran more than once.
        let over = || witnessed.iter().rev().filter_map(|id| found.get(id)).filter(|job| is_over(job));
        let (again, once) = (over().filter(|job| job.attempt > 1), over().filter(|job| job.attempt <= 1));
        for job in again.chain(once).take(LOGS) {
            witnessed::read_at(field, seat, &job.id, job.attempt).await;
        }
    }
}
