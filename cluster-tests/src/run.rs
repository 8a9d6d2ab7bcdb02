//! A run: a cluster on hosts and disks of its own, clients that keep it busy, faults by a plan, and a verdict.
//!
//! 1. [`World::new`] makes nodes and agents; clients begin; three seconds to warm up.
//! 2. The plan's faults begin and are healed at their times. What dies is started again, as an init system would.
//! 3. All is healed. Within the bounds of what must happen after that, clients look at every node, and then begin nothing
//!    new. Jobs end, readers read what they still lack, and what is left on the machine is counted.
//! 4. Plan, history and witnesses are a folder that [`check`] judges, now and whenever it is read again.

pub mod field;
pub mod world;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use futures::future::join_all;
use hodei_proto::v1::Job;
use rand::{SeedableRng as _, rngs::SmallRng};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep, sleep_until, timeout},
};
use uuid::Uuid;

use self::{
    field::{Field, Pace, Seat},
    world::{DRIVER, World},
};
use crate::{
    check::{self, Reports},
    history::{Body, Evidence, Note, Record, Run, now_ns},
    nemesis::{self, Active},
    schedule::{Plan, Step},
    workload::{events, identities, jobs, keys, late, polls, tokens, witnessed},
};

const WARM_UP: Duration = Duration::from_secs(3);
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
    let mut world = World::new(plan).await;
    let field = world.field.clone();
    field.history().note(DRIVER, "", Note::Run(describe(plan)));
    let clients = Clients::start(&world, plan);
    sleep(WARM_UP).await;
    drive(&mut world, &plan.steps).await;
    settle(&mut world, clients).await;
    let folder = write(&world, plan, keep);
    let evidence = Evidence::read(&folder).unwrap_or_else(|e| panic!("what was written is a history: {e}"));
    let reports = check::check_all(&evidence);
    if reports.verdict() != check::Verdict::Valid && keep.is_none() {
        world.keep();
    }
    Judged { evidence, reports, folder }
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
        ..Run::default()
    }
}

/// What keeps a cluster busy.
struct Clients {
    polls: Vec<JoinHandle<()>>,
    events: Vec<JoinHandle<()>>,
    submitters: Vec<JoinHandle<()>>,
    witnessed: JoinHandle<Vec<String>>,
    identities: JoinHandle<Vec<identities::Agent>>,
    late: JoinHandle<()>,
}

impl Clients {
    fn start(world: &World, plan: &Plan) -> Self {
        let field = &world.field;
        Self {
            polls: (0..plan.nodes).map(|index| tokio::spawn(polls::poll(field.clone(), index))).collect(),
            events: (STREAMS.into_iter().enumerate())
                .map(|(index, pace)| tokio::spawn(events::follow(field.clone(), index, pace, &[])))
                .chain([tokio::spawn(events::follow(field.clone(), STREAMS.len(), Pace::Steady, events::SOME))])
                .collect(),
            submitters: (0..SUBMITTERS)
                .map(|_| tokio::spawn(jobs::submit(field.clone())))
                .chain([tokio::spawn(tokens::race(field.clone())), tokio::spawn(keys::race(field.clone()))])
                .collect(),
            witnessed: tokio::spawn(witnessed::submit(field.clone())),
            identities: tokio::spawn(identities::come_and_go(field.clone())),
            late: tokio::spawn(late::report(field.clone())),
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
            if was_alone {
                // Somebody may go on under another id, which the next fault has to know.
                world.whole().await;
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
async fn settle(world: &mut World, clients: Clients) {
    let field = world.field.clone();
    let healed = Instant::now();
    field.look_anew();
    let calm = tokio::spawn({
        let field = field.clone();
        async move {
            sleep_until(healed + AFTER).await;
            field.quieten();
        }
    });
    world.whole().await;
    join_all(field.seats().into_iter().map(|seat| fresh(&field, seat, healed + SETTLED))).await;
    joined(calm).await;
    // For polls to find them alike, nothing more is asked before.
    until(healed + SETTLED, || field.is_alike()).await;
    for client in clients.submitters {
        joined(client).await;
    }
    let (auditor, _) = field.process();
    let found = ended(world, &field, auditor).await;
    let witnessed = joined_within(witnessed::READERS_END + CLIENTS_END, clients.witnessed).await;
    joined_within(late::ROUND, clients.late).await;
    let mut removed = joined(clients.identities).await;
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
    world.inventory(&found.keys().map(String::as_str).collect(), live.collect());
    field.end();
    for client in clients.polls.into_iter().chain(clients.events) {
        joined(client).await;
    }
}

/// Waits for something, but no longer than that.
async fn until(by: Instant, holds: impl Fn() -> bool) {
    while Instant::now() < by && !holds() {
        sleep(TICK).await;
    }
}

async fn joined<T>(client: JoinHandle<T>) -> T {
    joined_within(CLIENTS_END, client).await
}

async fn joined_within<T>(patience: Duration, client: JoinHandle<T>) -> T {
    match timeout(patience, client).await {
        Ok(Ok(end)) => end,
        Ok(Err(panicked)) => panic!("a client panicked: {panicked}"),
        Err(_) => panic!("a client did not end"),
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
        let _ = jobs::list(field, auditor, seat).await;
        // The newest first: those ran when faults were about.
        let over = witnessed.iter().rev().filter_map(|id| found.get(id)).filter(|job| is_over(job));
        for job in over.take(LOGS) {
            witnessed::read_at(field, seat, &job.id, job.attempt).await;
        }
    }
}

/// Puts everything that tells of the run into one folder.
fn write(world: &World, plan: &Plan, keep: Option<&Path>) -> PathBuf {
    let folder = keep.map_or_else(|| world.dir().join("run"), Path::to_path_buf);
    fs::create_dir_all(&folder).expect("the folder of the run can be made");
    world.field.history().write(&folder.join("history.jsonl")).expect("the history can be written");
    let plan = serde_json::to_vec_pretty(plan).expect("a plan is JSON");
    fs::write(folder.join("plan.json"), plan).expect("the plan can be written");
    for entry in fs::read_dir(world.field.dir()).expect("there are marks").filter_map(Result::ok) {
        let path = entry.path();
        if path.extension().is_some_and(|extension| extension == "jsonl") {
            fs::copy(&path, folder.join(entry.file_name())).expect("marks can be copied");
        }
    }
    folder
}
