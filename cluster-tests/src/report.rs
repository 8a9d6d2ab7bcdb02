//! What many runs came to: a page of figures, and a picture of throughput and faults over time.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs, io,
    path::Path,
};

use crate::{
    check::{Report, Reports, Verdict, timeline, token},
    history::{Evidence, Mark, MarkKind, Note, Outcome, Reply, Request},
    nemesis::{self, Class},
};

const SECOND: u64 = 1_000_000_000;
/// After a fault is healed its consequences still count as its own.
const AFTERMATH: u64 = 5 * SECOND;

/// What is kept of a run.
#[derive(Debug)]
pub struct Summary {
    seed: u64,
    valid: bool,
    /// The checkers that did not find it valid.
    bad: Vec<&'static str>,
    /// How often what must hold did not.
    violations: usize,
    /// How often a job was lost, or was there that should not be.
    lost: usize,
    /// Of what must hold and happen, that of which there was something to judge.
    promises: BTreeSet<&'static str>,
    ended: [usize; 3],
    jobs: usize,
    /// Witnessed attempts after the first of their job: what S3 has to tell from it.
    further: usize,
    leader_changes: usize,
    /// Tokens that parties wanted at once on both sides of a cut.
    raced: usize,
    faults: Vec<Span>,
    /// Accepted writes in each second.
    writes: Vec<u32>,
}

#[derive(Debug)]
struct Span {
    kind: String,
    /// Seconds after the first record.
    from: f64,
    to: f64,
    /// The longest time without an accepted write, in milliseconds.
    pause_ms: u64,
    /// From the end of the fault to the next one; absent: none came, or the fault has no end.
    back_ms: Option<u64>,
    /// Of how many nodes.
    nodes: usize,
}

impl Summary {
    /// Of a run that left nothing to be judged.
    #[must_use]
    pub fn without_evidence(seed: u64, why: &'static str) -> Self {
        Self {
            seed,
            valid: false,
            bad: vec![why],
            violations: 0,
            lost: 0,
            promises: BTreeSet::new(),
            ended: [0; 3],
            jobs: 0,
            further: 0,
            leader_changes: 0,
            raced: 0,
            faults: Vec::new(),
            writes: Vec::new(),
        }
    }

    /// Whether everything held.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        self.valid
    }

    /// Of a run that was judged.
    #[must_use]
    pub fn of(evidence: &Evidence, reports: &Reports) -> Self {
        let start = evidence.records().next().map_or(0, |(_, record)| record.t_ns);
        let end = evidence.records().next_back().map_or(0, |(_, record)| record.t_ns);
        let mut ended = [0; 3];
        for op in evidence.ops() {
            let which = match op.outcome {
                Outcome::Ok(_) => 0,
                Outcome::Fail(_) => 1,
                Outcome::Info => 2,
            };
            ended[which] += 1;
        }
        let mut acks: Vec<u64> = Vec::new();
        // Some are submitted again, which makes no further job.
        let mut jobs = BTreeSet::new();
        for op in evidence.ops() {
            if let (Request::Submit(_), Some(Reply::Submit(done)), Some(to_ns)) = (op.request, op.reply(), op.to_ns) {
                acks.push(to_ns);
                jobs.insert(done.job.as_str());
            }
        }
        acks.sort_unstable();
        let mut writes = vec![0; usize::try_from((end - start) / SECOND + 1).unwrap_or(0)];
        for at in &acks {
            if let Some(second) = usize::try_from((at - start) / SECOND).ok().and_then(|at| writes.get_mut(at)) {
                *second += 1;
            }
        }
        let seconds = |t_ns: u64| (t_ns.saturating_sub(start)) as f64 / SECOND as f64;
        let span = |stretch: &timeline::Stretch<'_>| {
            let to = stretch.to_ns.unwrap_or(end);
            let pause_ms = pause(&acks, stretch.from_ns, (to + AFTERMATH).min(end)) / 1_000_000;
            let healed = stretch.to_ns.and_then(|to| acks.get(acks.partition_point(|at| *at < to)).map(|at| at - to));
            let back_ms = healed.map(|ns| ns / 1_000_000);
            let (from, to) = (seconds(stretch.from_ns), seconds(to));
            Span {
                kind: stretch.fault.done().to_owned(),
                from,
                to,
                pause_ms,
                back_ms,
                nodes: stretch.fault.nodes.len(),
            }
        };
        let leaders = timeline::leaders(evidence);
        let bad = |report: &&Report| report.verdict() != Verdict::Valid;
        let violations = |reports: &mut dyn Iterator<Item = &Report>| {
            reports.flat_map(|report| &report.findings).filter(|found| found.verdict == Verdict::Invalid).count()
        };
        let of_safety = |report: &&Report| report.holds.starts_with('S');
        Self {
            seed: evidence.run().seed,
            valid: reports.verdict() == Verdict::Valid,
            bad: reports.0.iter().filter(bad).map(|report| report.name).collect(),
            violations: violations(&mut reports.0.iter().filter(of_safety)),
            lost: violations(&mut reports.0.iter().filter(|report| report.name == "set")),
            promises: reports.0.iter().flat_map(|report| report.promises.clone()).collect(),
            ended,
            jobs: jobs.len(),
            further: evidence.notes().filter(|(_, note)| is_further(note)).count(),
            leader_changes: leaders.windows(2).filter(|pair| pair[0].2 != pair[1].2).count(),
            raced: token::raced_across_cuts(evidence),
            faults: timeline::faults(evidence).0.iter().filter(|stretch| !stretch.missed).map(span).collect(),
            writes,
        }
    }
}

fn is_further(note: &Note) -> bool {
    matches!(note, Note::Witness(Mark { mark: MarkKind::Start, attempt: 2.., .. }))
}

/// The kinds of fault that there were.
#[must_use]
pub fn kinds(summaries: &[Summary]) -> BTreeSet<&str> {
    summaries.iter().flat_map(|run| &run.faults).map(|span| span.kind.as_str()).collect()
}

/// What runs came to, in lines for `scripts/bars.sh`.
#[must_use]
pub fn bars(summaries: &[Summary]) -> Vec<String> {
    let class = |name: &str| nemesis::kinds().find(|kind| kind.name == name).map(|kind| kind.class);
    let sum = |of: fn(&Summary) -> usize| summaries.iter().map(of).sum::<usize>();
    let cuts = summaries.iter().flat_map(|run| &run.faults).filter(|span| span.kind.starts_with("power_"));
    let of_kinds = kinds(summaries).into_iter().map(|kind| match class(kind) {
        Some(Class::Points) => format!("bar: failpoints: {kind}"),
        _ => format!("bar: kinds of fault: {kind}"),
    });
    let counts = [
        ("runs under faults", summaries.len()),
        ("green runs in a row", streak(summaries)),
        ("runs that were not valid", sum(|run| usize::from(!run.valid))),
        ("jobs under faults", sum(|run| run.jobs)),
        ("further attempts witnessed", sum(|run| run.further)),
        ("tokens raced across a cut", sum(|run| run.raced)),
        ("power cuts", cuts.map(|span| span.nodes).sum()),
        ("violations of S1-S17", sum(|run| run.violations)),
        ("acknowledged writes lost", sum(|run| run.lost)),
    ];
    let promises: BTreeSet<&str> = summaries.iter().flat_map(|run| run.promises.iter().copied()).collect();
    let promises =
        promises.into_iter().filter(|name| *name != "run").map(|name| format!("bar: promises judged: {name}"));
    of_kinds.chain(promises).chain(counts.map(|(what, count)| format!("bar: {what}: {count}"))).collect()
}

/// The most runs one after the other that were all valid.
fn streak(summaries: &[Summary]) -> usize {
    summaries.split(|run| !run.valid).map(<[Summary]>::len).max().unwrap_or(0)
}

/// The longest time between two of these moments within a stretch.
fn pause(acks: &[u64], from: u64, to: u64) -> u64 {
    let first = acks.partition_point(|at| *at < from);
    let last = acks.partition_point(|at| *at <= to);
    let moments = [from].into_iter().chain(acks[first..last].iter().copied()).chain([to]);
    moments.clone().zip(moments.skip(1)).map(|(before, after)| after - before).max().unwrap_or(0)
}

/// Writes `report.md` and `timeline.svg`.
///
/// # Errors
/// Those of the files.
pub fn write(to: &Path, summaries: &[Summary]) -> io::Result<()> {
    fs::create_dir_all(to)?;
    fs::write(to.join("report.md"), page(summaries))?;
    fs::write(to.join("timeline.svg"), picture(summaries))
}

fn page(summaries: &[Summary]) -> String {
    let sum = |of: fn(&Summary) -> usize| summaries.iter().map(of).sum::<usize>();
    let mut page = format!(
        "# Soak\n\n{} runs, {} not valid; {} violations. {} operations ended well, {} certainly failed, {} are of unknown outcome; {} jobs \
         accepted; {} changes of leader.\n\n",
        summaries.len(),
        sum(|run| usize::from(!run.valid)),
        sum(|run| run.violations),
        sum(|run| run.ended[0]),
        sum(|run| run.ended[1]),
        sum(|run| run.ended[2]),
        sum(|run| run.jobs),
        sum(|run| run.leader_changes),
    );
    for run in summaries.iter().filter(|run| !run.valid) {
        let _ = writeln!(page, "- seed {}: {}", run.seed, run.bad.join(", "));
    }
    let mut kinds: BTreeMap<&str, [Vec<u64>; 2]> = BTreeMap::new();
    for span in summaries.iter().flat_map(|run| &run.faults) {
        let [pauses, backs] = kinds.entry(&span.kind).or_default();
        pauses.push(span.pause_ms);
        backs.extend(span.back_ms);
    }
    let count: usize = kinds.values().map(|[pauses, _]| pauses.len()).sum();
    let _ = write!(
        page,
        "\n{count} faults of {} kinds. Beside each, the longest time without an accepted write from its beginning to five \
         seconds after its end, and the time from its end to the next accepted write; other faults at the same time may have \
         caused either.\n\n| fault | times | without, median ms | longest ms | back, median ms | longest ms |\n\
         | --- | ---: | ---: | ---: | ---: | ---: |\n",
        kinds.len(),
    );
    let row = |mut times: Vec<u64>| {
        times.sort_unstable();
        let [median, longest] =
            [times.get(times.len() / 2), times.last()].map(|ms| ms.map_or("-".to_owned(), u64::to_string));
        format!("{median} | {longest}")
    };
    for (kind, [pauses, backs]) in kinds {
        let _ = writeln!(page, "| {kind} | {} | {} | {} |", pauses.len(), row(pauses), row(backs));
    }
    page.push_str("\n![accepted writes and faults over time](timeline.svg)\n");
    page
}

/// Of the picture, in pixels, for the longest run; and of each run.
const WIDTH: f64 = 1600.0;
const ROW: f64 = 90.0;

/// Each run is a row: accepted writes per second above, faults as bars below.
fn picture(summaries: &[Summary]) -> String {
    let longest = summaries.iter().map(|run| run.writes.len()).max().unwrap_or(1).max(1);
    let most = summaries.iter().flat_map(|run| &run.writes).copied().max().unwrap_or(1).max(1);
    let scale = WIDTH / longest as f64;
    let height = ROW * summaries.len() as f64 + 10.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" font-family=\"sans-serif\" \
         font-size=\"9\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    for (row, run) in summaries.iter().enumerate() {
        let top = row as f64 * ROW + 10.0;
        let base = top + 50.0;
        let colour = if run.valid { "#336699" } else { "#cc0000" };
        let point = |(second, writes): (usize, &u32)| {
            format!("{:.1},{:.1}", second as f64 * scale, base - f64::from(*writes) / f64::from(most) * 45.0)
        };
        let line: Vec<String> = run.writes.iter().enumerate().map(point).collect();
        let _ = writeln!(svg, "<polyline fill=\"none\" stroke=\"{colour}\" points=\"{}\"/>", line.join(" "));
        let verdict = if run.valid { String::new() } else { format!(": {}", run.bad.join(", ")) };
        let _ =
            writeln!(svg, "<text x=\"2\" y=\"{:.1}\" fill=\"{colour}\">seed {}{verdict}</text>", top + 6.0, run.seed);
        for (number, span) in run.faults.iter().enumerate() {
            let (x, y) = (span.from * scale, base + 4.0 + (number % 3) as f64 * 10.0);
            let width = ((span.to - span.from) * scale).max(1.0);
            let _ = writeln!(
                svg,
                "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"9\" fill=\"#eebb66\"/>\
                 <text x=\"{x:.1}\" y=\"{:.1}\">{}</text>",
                y + 8.0,
                span.kind
            );
        }
    }
    svg.push_str("</svg>\n");
    svg
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_pause_counts_from_the_beginning_and_to_the_end() {
        let acks = [5, 10, 40, 45, 100];
        assert_eq!(pause(&acks, 8, 47), 30);
        assert_eq!(pause(&acks, 12, 47), 28);
        assert_eq!(pause(&acks, 41, 90), 45);
        assert_eq!(pause(&[], 3, 9), 6);
    }

    #[test]
    fn a_page_and_a_picture_name_every_kind_and_every_bad_seed() {
        let span =
            |kind: &str| Span { kind: kind.to_owned(), from: 1.0, to: 2.5, pause_ms: 700, back_ms: Some(90), nodes: 2 };
        let run = |seed, valid| Summary {
            seed,
            valid,
            bad: if valid { Vec::new() } else { vec!["set"] },
            violations: usize::from(!valid),
            lost: 0,
            promises: BTreeSet::from(["S1", "L8"]),
            ended: [10, 2, 1],
            jobs: 7,
            further: 1,
            leader_changes: 1,
            raced: 1,
            faults: vec![span("kill_leader"), span("halves"), span("power_all"), span("vote::after-save")],
            writes: vec![3, 0, 4],
        };
        let runs = [run(1, true), run(2, false)];
        let (page, picture) = (page(&runs), picture(&runs));
        assert!(page.contains("2 runs, 1 not valid; 1 violations. 20 operations ended well"), "{page}");
        assert!(page.contains("- seed 2: set") && page.contains("| kill_leader | 2 | 700 | 700 | 90 | 90 |"), "{page}");
        assert!(picture.contains("seed 2: set") && picture.matches("halves").count() == 2, "{picture}");
        let bars = bars(&runs);
        let lost = || Summary::without_evidence(3, "run");
        assert_eq!(
            [streak(&[]), streak(&[lost()]), streak(&[run(1, true), run(2, true), lost(), run(4, true)])],
            [0, 0, 2]
        );
        let wanted = [
            "green runs in a row: 1",
            "kinds of fault: halves",
            "failpoints: vote::after-save",
            "promises judged: L8",
            "power cuts: 4",
            "violations of S1-S17: 1",
        ];
        assert!(wanted.iter().all(|bar| bars.contains(&format!("bar: {bar}"))), "{bars:?}");
    }
}
