//! Jobs with an outside witness, each followed by a reader of its log who goes on elsewhere when a node fails it.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use hodei_proto::v1::{JobSelector, JobSpec, LogBatch, LogEvent, Resources, SubscribeLogsRequest, log_event::Kind};
use rand::{Rng as _, SeedableRng as _, rngs::SmallRng};
use tokio::{
    task::{self, JoinSet},
    time::{Instant, sleep, timeout, timeout_at},
};
use tonic::{Status, Streaming};
use uuid::Uuid;

use super::jobs;
use crate::{
    binaries,
    check::logs::seeded::{Fold, Lines, Sent},
    client::{GAP, shell},
    history::{Body, Capacity, LogEnd, LogFrom, LogRead, Note, Record, Submit, WITNESS},
    run::field::{Field, Pace, Seat},
};

/// Between two jobs.
const PAUSE: Duration = Duration::from_millis(1_200);
/// Before a reader goes on elsewhere.
const AGAIN: Duration = Duration::from_millis(200);
/// A reader whose node says nothing for so long goes on elsewhere.
const SILENCE: Duration = Duration::from_secs(3);
/// Who reads a log once is told what is missing after three seconds, in which a node waits for those that may have it.
const SILENCE_ONCE: Duration = Duration::from_secs(8);
/// How long such a job runs, in milliseconds: mostly; and one in [`LONG`], so that its readers see leaders change.
const RUNS: [std::ops::Range<u64>; 2] = [300..5_000, 8_000..18_000];
const LONG: u32 = 4;
/// One job in so many is cancelled, and each until the first cancel is acknowledged: a run that stands still for most of its
/// time is to have one, too. After so many milliseconds at most, and how often that is tried.
const CANCELLED: u32 = 5;
const CANCEL_WITHIN: u64 = 2_000;
const CANCELS: u32 = 3;
/// One job in so many needs two fifths of what a worker has, beside its slot, so that other things than slots run out.
const NEEDY: u32 = 4;
/// One job in so many is a child of a shell, whom nobody's death kills by itself.
const CHILDREN: u32 = 2;
/// One job in so many prints nothing, so that it goes on while nobody takes what it would print; and how many lines others
/// print at each beat.
const SILENT: u32 = 4;
const LINES: u64 = 3;
/// One log in so many has a slow reader, too.
const SLOW: u32 = 3;
/// How long readers may go on once nothing new is begun: longer than jobs may.
pub const READERS_END: Duration = Duration::from_secs(70);
/// How long a log may take to be read whole from one node, and how often that is tried.
const WHOLE: Duration = Duration::from_secs(20);
const TRIES: u32 = 3;

/// Submits one after the other and has each followed; gives the jobs that were accepted. Ends when all readers have, or
/// have been given up, which is told.
///
/// # Panics
/// If a reader does.
pub async fn submit(field: Field) -> Vec<String> {
    let (proc, mut rng) = field.process();
    let program = binaries::locate("witness").display().to_string();
    let mut accepted = Vec::new();
    let mut readers = JoinSet::new();
    let mut of: HashMap<task::Id, String> = HashMap::new();
    while !field.is_quiet() {
        let id = Uuid::now_v7().to_string();
        let runs = RUNS[usize::from(rng.random_ratio(1, LONG))].clone();
        let run_ms = rng.random_range(runs);
        let lines = if rng.random_ratio(1, SILENT) { 0 } else { LINES };
        let [run, lines] = [run_ms, lines].map(|number| number.to_string());
        let args = [&field.dir().display().to_string(), "--for-ms", &run, "--lines", &lines];
        let needs = needs(&field, &mut rng);
        let Capacity { cpu_millis, memory_mb, .. } = needs;
        let resources = Some(Resources { cpu_millis, memory_mb, ..Resources::default() });
        let command = if rng.random_ratio(1, CHILDREN) {
            shell("/bin/sh", &[&["-c", r#""$0" "$@" & wait $!"#, &program], &args[..]].concat())
        } else {
            shell(&program, &args)
        };
        let spec = JobSpec { resources, ..jobs::patient(command) };
        let (seat, payload) = (field.any(&mut rng), format!("{WITNESS}{run_ms}"));
        let asked = Submit { payload, run_ms: Some(run_ms), needs, ..Submit::default() };
        if jobs::queue_as(&field, proc, seat, &id, spec, asked).await.is_ok() {
            let slow = rng.random_ratio(1, SLOW).then_some(Pace::Slow);
            for pace in [Pace::Steady].into_iter().chain(slow) {
                of.insert(readers.spawn(read(field.clone(), id.clone(), pace)).id(), id.clone());
            }
            if rng.random_ratio(1, CANCELLED) || !field.has_cancelled() {
                readers.spawn(cancel(field.clone(), id.clone()));
            }
            accepted.push(id);
        }
        Field::pause(&mut rng, PAUSE).await;
    }
    let by = Instant::now() + READERS_END;
    while let Ok(Some(ended)) = timeout_at(by, readers.join_next_with_id()).await {
        let (reader, ()) = ended.unwrap_or_else(|panicked| panic!("a reader panicked: {panicked}"));
        of.remove(&reader);
    }
    for job in of.into_values() {
        let failure = Some("its reader does not end".to_owned());
        field.history().note(proc, &job, Note::LogRead(LogRead { attempt: 1, failure }));
    }
    accepted
}

fn needs(field: &Field, rng: &mut SmallRng) -> Capacity {
    let share = |all: u64| all * 2 / 5;
    let offered = field.offered();
    match (rng.random_ratio(1, NEEDY), rng.random()) {
        (false, _) => Capacity::default(),
        (true, false) => Capacity { cpu_millis: share(offered.cpu_millis), ..Capacity::default() },
        (true, true) => Capacity { memory_mb: share(offered.memory_mb), ..Capacity::default() },
    }
}

/// Cancels a job that waits, runs, or may just have ended.
async fn cancel(field: Field, job: String) {
    let (proc, mut rng) = field.process();
    sleep(Duration::from_millis(rng.random_range(0..CANCEL_WITHIN))).await;
    for _ in 0..CANCELS {
        if jobs::cancel(&field, proc, field.any(&mut rng), &job).await.is_ok() {
            field.cancelled();
            return;
        }
        Field::pause(&mut rng, AGAIN).await;
    }
}

/// Follows a job's log to the end of the job, on any node, and elsewhere from where it broke.
pub async fn read(field: Field, job: String, pace: Pace) {
    let (proc, mut rng) = field.process();
    let rests = SmallRng::from_rng(&mut rng);
    let mut reader = Reader { field: &field, proc, job, attempts: BTreeMap::new(), current: 1, pace, rests };
    let mut failed = None;
    // A job that nobody runs any more has no end to be waited for; what it has printed is read in the end.
    while !field.is_over() {
        let seat = field.elsewhere(failed, &mut rng);
        failed = seat.id;
        if reader.follow(seat, true).await.is_ok_and(|ended| ended) {
            return;
        }
        Field::pause(&mut rng, AGAIN).await;
    }
}

/// Reads each attempt's log whole from one node, and tells whether it could be read to its end.
pub async fn read_at(field: &Field, seat: Seat, job: &str, attempts: u32) {
    let (proc, rests) = field.process();
    let pace = Pace::Steady;
    let mut reader = Reader { field, proc, job: job.to_owned(), attempts: BTreeMap::new(), current: 1, pace, rests };
    for attempt in 1..=attempts {
        reader.current = attempt;
        let read = timeout(WHOLE, reader.whole(seat)).await;
        let failure = read.unwrap_or_else(|_| Err(Status::deadline_exceeded("it takes too long"))).err();
        let failure = failure.map(|status| format!("{:?}: {}", status.code(), status.message()));
        reader.note(seat, &Note::LogRead(LogRead { attempt, failure }));
    }
}

struct Reader<'a> {
    field: &'a Field,
    proc: u32,
    job: String,
    /// The next sequence of each attempt, and stretches that are not recorded yet.
    attempts: BTreeMap<u32, (u64, Fold)>,
    current: u32,
    pace: Pace,
    rests: SmallRng,
}

impl Reader<'_> {
    fn attempt(&mut self, number: u32) -> &mut (u64, Fold) {
        let lines = Lines { job: self.job.clone(), attempt: number };
        self.attempts.entry(number).or_insert_with(|| (1, Fold::new(lines)))
    }

    /// Reads to the end of the attempt, from where it broke if it does.
    async fn whole(&mut self, seat: Seat) -> Result<(), Status> {
        let mut failure = Status::unavailable("the stream broke off");
        for _ in 0..TRIES {
            match self.follow(seat, false).await {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(status) => failure = status,
            }
            sleep(AGAIN).await;
        }
        Err(failure)
    }

    /// Whether the stream came to the end of the job, or of the attempt that was asked for.
    async fn follow(&mut self, seat: Seat, follow: bool) -> Result<bool, Status> {
        let (attempt, proc) = (self.current, self.proc);
        let sequence = self.attempt(attempt).0;
        self.begin(seat, attempt, sequence);
        let job = Some(JobSelector { text: self.job.clone() });
        let request =
            SubscribeLogsRequest { job, attempt, follow, from_sequence: sequence, ..SubscribeLogsRequest::default() };
        let mut client = self.field.client(seat, proc).logs();
        let answer = timeout(SILENCE, client.subscribe_logs(request)).await;
        let stream = answer.map_err(|_| Status::deadline_exceeded("no answer"))??.into_inner();
        let ended = self.take(seat, stream, !follow).await;
        for number in self.attempts.keys().copied().collect::<Vec<_>>() {
            self.flush(seat, number);
        }
        ended
    }

    async fn take(&mut self, seat: Seat, mut stream: Streaming<LogEvent>, one: bool) -> Result<bool, Status> {
        // A log that is silent may only wait for its job; the stream is asked again all the same.
        loop {
            self.field.rest(&mut self.rests, self.pace).await;
            let silence = if one { SILENCE_ONCE } else { SILENCE };
            let Ok(event) = timeout(silence, stream.message()).await else { return Ok(false) };
            match event?.and_then(|event| event.kind) {
                Some(Kind::Batch(batch)) => self.batch(seat, &batch),
                Some(Kind::AttemptEnd(end)) => {
                    let number = end.attempt.as_ref().map_or(0, |attempt| attempt.attempt);
                    self.enter(seat, number);
                    self.flush(seat, number);
                    let missing = end.missing_holders.iter().filter_map(|id| id.parse().ok()).collect();
                    let lost = end.log.is_none();
                    let entries_lost = (end.gone && !lost).then_some(end.lost);
                    let (complete, gone) = (end.complete, end.gone);
                    let end = LogEnd { attempt: number, complete, lost, missing, gone, entries_lost };
                    self.note(seat, &Note::LogEnd(end));
                    self.current = number + 1;
                    if one {
                        return Ok(true);
                    }
                }
                Some(Kind::JobEnd(_)) => return Ok(true),
                Some(Kind::Notice(_)) => {}
                None => return Ok(false),
            }
        }
    }

    fn batch(&mut self, seat: Seat, batch: &LogBatch) {
        let number = batch.attempt.as_ref().map_or(0, |attempt| attempt.attempt);
        self.enter(seat, number);
        let mut parts = Vec::new();
        let (next, fold) = self.attempt(number);
        let mut at = 0;
        for (i, (&len, &kind)) in batch.lens.iter().zip(&batch.kinds).enumerate() {
            let bytes = batch.data.get(at..at + len as usize).unwrap_or_default();
            at += len as usize;
            let sequence = batch.first_sequence + i as u64;
            let sent = match kind {
                GAP => Sent::Gap(gap(bytes)),
                stream => Sent::Line(stream, bytes),
            };
            parts.extend(fold.push(sequence, &sent));
            *next = sequence + 1;
        }
        parts.into_iter().for_each(|part| self.note(seat, &Note::Log(part)));
        self.flush(seat, number);
    }

    /// A further attempt's log begins where it was not asked for by itself.
    fn enter(&mut self, seat: Seat, number: u32) {
        if number > self.current {
            self.current = number;
            self.begin(seat, number, 1);
        }
    }

    fn begin(&self, seat: Seat, attempt: u32, sequence: u64) {
        self.note(seat, &Note::LogFrom(LogFrom { attempt, sequence, slow: self.pace == Pace::Slow }));
    }

    fn flush(&mut self, seat: Seat, number: u32) {
        if let Some(part) = self.attempt(number).1.finish() {
            self.note(seat, &Note::Log(part));
        }
    }

    fn note(&self, seat: Seat, note: &Note) {
        let record =
            |t_ns| Record { node: seat.id, ..Record::new(t_ns, self.proc, &self.job, Body::Note(note.clone())) };
        self.field.history().push(record);
    }
}

/// How many lines a gap record stands for.
fn gap(bytes: &[u8]) -> u64 {
    bytes.try_into().map_or(0, u64::from_le_bytes)
}
