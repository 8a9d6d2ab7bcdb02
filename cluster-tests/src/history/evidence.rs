//! Histories as checkers want them: lines in the order of time, answers with their questions.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt::Display,
    fs,
    io::{self, BufRead as _, BufReader},
    path::{Path, PathBuf},
};

use super::{
    note::{Note, Run, Seal},
    operation::{Failure, Reply, Request},
    record::{Body, Record},
};

/// A whole history.
#[derive(Debug, Default)]
pub struct Evidence {
    lines: Vec<Line>,
    ops: Vec<Pair>,
    run: Run,
    /// Names of the files that lines came from; empty for one alone.
    files: Vec<String>,
}

#[derive(Debug)]
struct Line {
    file: usize,
    number: usize,
    record: Record,
}

/// Where a record is among all, in the order of time.
pub type At = usize;

#[derive(Clone, Copy, Debug)]
struct Pair {
    invoked: At,
    returned: Option<At>,
}

/// An operation with its answer.
#[derive(Clone, Copy, Debug)]
pub struct Op<'a> {
    /// What it is about.
    pub key: &'a str,
    /// What was asked.
    pub request: &'a Request,
    /// How it ended.
    pub outcome: Outcome<'a>,
    /// The question's record.
    pub invoked: At,
    /// The answer's record, if there is one.
    pub returned: Option<At>,
    /// When it was asked.
    pub from_ns: u64,
    /// When it was answered, if it was.
    pub to_ns: Option<u64>,
    /// The node that was asked.
    pub node: Option<u64>,
    /// The position in the log that the answer names.
    pub position: Option<(u64, u64)>,
}

/// How an operation ended.
#[derive(Clone, Copy, Debug)]
pub enum Outcome<'a> {
    /// It took effect before it was answered.
    Ok(&'a Reply),
    /// It never takes any.
    Fail(&'a Failure),
    /// Nobody knows: it may take effect at any time after it was asked. No answer at all is the same.
    Info,
}

impl<'a> Op<'a> {
    /// The answer, if it took effect.
    #[must_use]
    pub fn reply(&self) -> Option<&'a Reply> {
        match self.outcome {
            Outcome::Ok(reply) => Some(reply),
            Outcome::Fail(_) | Outcome::Info => None,
        }
    }

    /// Whether it certainly took no effect.
    #[must_use]
    pub fn failed(&self) -> bool {
        matches!(self.outcome, Outcome::Fail(_))
    }

    /// Whether it was answered before `other` was asked.
    #[must_use]
    pub fn precedes(&self, other: &Op<'_>) -> bool {
        self.to_ns.is_some_and(|to| to < other.from_ns)
    }
}

/// Why something is no history.
#[derive(Debug)]
pub struct Malformed(pub String);

impl Display for Malformed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Malformed {}

impl Evidence {
    /// What was recorded in memory.
    ///
    /// # Errors
    /// If answers do not belong to questions.
    pub fn of(records: Vec<Record>) -> Result<Self, Malformed> {
        let lines = records.into_iter().zip(1..);
        let lines = lines.map(|(record, number)| Line { file: 0, number, record });
        Self::sorted(lines.collect(), Vec::new())
    }

    /// What is in one file, or in all files of a folder whose names end in `.jsonl`.
    ///
    /// # Errors
    /// If there is nothing, it cannot be read, a line is no record, or it is not what its seal says.
    pub fn read(path: &Path) -> Result<Self, Malformed> {
        let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let paths = parts(path)?;
        let (mut lines, mut counts) = (Vec::new(), BTreeMap::new());
        for (file, path) in paths.iter().enumerate() {
            let of_file = read_file(path, file)?;
            counts.insert(name(path), of_file.len());
            lines.extend(of_file);
        }
        let files = if paths.len() == 1 { Vec::new() } else { paths.iter().map(|path| name(path)).collect() };
        let evidence = Self::sorted(lines, files)?;
        evidence.is_whole(&counts).map_err(|why| Malformed(format!("{}: {why}", path.display())))?;
        Ok(evidence)
    }

    /// A run says what belongs to it: nothing of that may be missing, and nothing else be there.
    fn is_whole(&self, counts: &BTreeMap<String, usize>) -> Result<(), String> {
        let mut seals: Vec<(At, &Seal)> = Vec::new();
        for (at, note) in self.notes() {
            if let Note::Seal(seal) = note {
                seals.push((at, seal));
            }
        }
        let files = match *seals.as_slice() {
            [] if self.run.sealed => return Err("the history has no seal: its end is missing".to_owned()),
            [] => return Ok(()),
            [(_, seal)] => &seal.files,
            [_, (second, _), ..] => return Err(format!("{}: a second seal", self.line(second))),
        };
        let names: BTreeSet<&String> = files.keys().chain(counts.keys()).collect();
        match names.into_iter().find(|&name| files.get(name) != counts.get(name)) {
            None => Ok(()),
            Some(name) => Err(match (files.get(name), counts.get(name)) {
                (Some(sealed), Some(found)) => {
                    format!("{name} has {found} records, and had {sealed} when it was sealed")
                }
                (Some(_), None) => format!("{name} is missing"),
                _ => format!("{name} does not belong to this run"),
            }),
        }
    }

    fn sorted(mut lines: Vec<Line>, files: Vec<String>) -> Result<Self, Malformed> {
        // Stable: what was written at the same instant stays in the order in which it was written.
        lines.sort_by_key(|line| line.record.t_ns);
        let mut evidence = Self { lines, ops: Vec::new(), run: Run::default(), files };
        evidence.ops = evidence.pair()?;
        let is_run = |(at, note): (At, &Note)| matches!(note, Note::Run(_)).then_some(at);
        let runs: Vec<At> = evidence.notes().filter_map(is_run).collect();
        if let Some(second) = runs.get(1) {
            return Err(Malformed(format!("{}: a second run", evidence.line(*second))));
        }
        if let Some(Body::Note(Note::Run(run))) = runs.first().map(|at| &evidence.record(*at).body) {
            evidence.run = run.clone();
        }
        Ok(evidence)
    }

    /// Finds each answer's question: the open one of its process.
    fn pair(&self) -> Result<Vec<Pair>, Malformed> {
        let mut pairs: Vec<Pair> = Vec::new();
        let mut open: HashMap<u32, usize> = HashMap::new();
        for (at, Line { record, .. }) in self.lines.iter().enumerate() {
            let f = match &record.body {
                Body::Note(_) => continue,
                Body::Invoke(request) => {
                    if let Some(other) = open.insert(record.proc, pairs.len()) {
                        let other = self.line(pairs[other].invoked);
                        let text = format!("{}: process {} has {other} open", self.line(at), record.proc);
                        return Err(Malformed(text));
                    }
                    pairs.push(Pair { invoked: at, returned: None });
                    debug_assert!(!request.name().is_empty());
                    continue;
                }
                Body::Ok(reply) => reply.name(),
                Body::Fail(failure) | Body::Info(failure) => failure.f.as_str(),
            };
            let asked = open.remove(&record.proc).map(|pair| (pair, &self.lines[pairs[pair].invoked].record));
            match asked {
                Some((pair, Record { key, body: Body::Invoke(request), .. }))
                    if *key == record.key && request.name() == f =>
                {
                    pairs[pair].returned = Some(at);
                }
                _ => {
                    let text = format!("answers {f} {:?} of process {}, which is not open", record.key, record.proc);
                    return Err(Malformed(format!("{}: {text}", self.line(at))));
                }
            }
        }
        Ok(pairs)
    }

    /// What this run is; all defaults where it does not say.
    #[must_use]
    pub fn run(&self) -> &Run {
        &self.run
    }

    /// All records in the order of time.
    #[must_use = "nothing else is done"]
    pub fn records(&self) -> impl DoubleEndedIterator<Item = (At, &Record)> {
        self.lines.iter().map(|line| &line.record).enumerate()
    }

    /// A record.
    #[must_use]
    pub fn record(&self, at: At) -> &Record {
        &self.lines[at].record
    }

    /// All notes in the order of time.
    #[must_use = "nothing else is done"]
    pub fn notes(&self) -> impl DoubleEndedIterator<Item = (At, &Note)> {
        self.records().filter_map(|(at, record)| match &record.body {
            Body::Note(note) => Some((at, note)),
            _ => None,
        })
    }

    /// All operations in the order in which they were asked.
    #[must_use = "nothing else is done"]
    pub fn ops(&self) -> impl Iterator<Item = Op<'_>> {
        self.ops.iter().map(|pair| {
            let asked = self.record(pair.invoked);
            let answer = pair.returned.map(|at| self.record(at));
            let Body::Invoke(request) = &asked.body else { unreachable!("pairs begin with a question") };
            let outcome = match answer.map(|answer| &answer.body) {
                Some(Body::Ok(reply)) => Outcome::Ok(reply),
                Some(Body::Fail(failure)) => Outcome::Fail(failure),
                _ => Outcome::Info,
            };
            Op {
                key: &asked.key,
                request,
                outcome,
                invoked: pair.invoked,
                returned: pair.returned,
                from_ns: asked.t_ns,
                to_ns: answer.map(|answer| answer.t_ns),
                node: answer.and_then(|answer| answer.node).or(asked.node),
                position: answer.and_then(|answer| Some((answer.term?, answer.index?))),
            }
        })
    }

    /// Where a record stands, for people.
    #[must_use]
    pub fn line(&self, at: At) -> String {
        let Line { file, number, .. } = self.lines[at];
        self.files.get(file).map_or_else(|| format!("line {number}"), |name| format!("{name}:{number}"))
    }

    /// How many records there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lines.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }
}

/// The files of a history, in the order of their names.
fn parts(path: &Path) -> Result<Vec<PathBuf>, Malformed> {
    let failed = |e: io::Error| Malformed(format!("{}: {e}", path.display()));
    if !fs::metadata(path).map_err(failed)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let entries: Vec<_> = fs::read_dir(path).and_then(Iterator::collect).map_err(failed)?;
    let mut paths: Vec<PathBuf> = entries.iter().map(fs::DirEntry::path).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "jsonl"));
    paths.sort();
    if paths.is_empty() {
        return Err(Malformed(format!("{}: no file in it ends in .jsonl", path.display())));
    }
    Ok(paths)
}

fn read_file(path: &Path, file: usize) -> Result<Vec<Line>, Malformed> {
    let failed = |e: io::Error| Malformed(format!("{}: {e}", path.display()));
    let reader = BufReader::new(fs::File::open(path).map_err(failed)?);
    let mut lines = Vec::new();
    for (text, number) in reader.lines().zip(1..) {
        let record = serde_json::from_str(&text.map_err(failed)?);
        let record = record.map_err(|e| Malformed(format!("{}:{number}: {e}", path.display())))?;
        lines.push(Line { file, number, record });
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evidence(text: &str) -> Result<Evidence, String> {
        let records = text.lines().map(|line| serde_json::from_str(line).unwrap());
        Evidence::of(records.collect()).map_err(|e| e.to_string())
    }

    #[test]
    fn answers_find_their_questions_whatever_lies_between() {
        let evidence = evidence(
            r#"{"t_ns":1,"proc":1,"type":"invoke","f":"cancel","key":"a"}
{"t_ns":2,"proc":2,"type":"invoke","f":"get","key":"a","val":{},"node":2}
{"t_ns":4,"proc":2,"type":"ok","f":"get","key":"a","val":{"state":"Pending"},"term":1,"index":9}
{"t_ns":3,"proc":1,"type":"info","f":"cancel","key":"a"}
{"t_ns":5,"proc":1,"type":"invoke","f":"cancel","key":"b"}"#,
        )
        .unwrap();
        let ops: Vec<_> = evidence.ops().collect();
        assert_eq!(
            ops.iter().map(|op| (op.from_ns, op.to_ns)).collect::<Vec<_>>(),
            [(1, Some(3)), (2, Some(4)), (5, None)]
        );
        assert_eq!((ops[1].node, ops[1].position), (Some(2), Some((1, 9))));
        assert!(matches!(ops[0].outcome, Outcome::Info) && matches!(ops[2].outcome, Outcome::Info));
        assert!(ops[0].precedes(&ops[2]) && !ops[0].precedes(&ops[1]));
        assert_eq!(evidence.line(ops[1].returned.unwrap()), "line 3");
    }

    #[test]
    fn answers_without_a_question_are_no_history() {
        let invoke = r#"{"t_ns":1,"type":"invoke","f":"cancel","key":"a"}"#;
        let cases = [
            (r#"{"t_ns":1,"type":"ok","f":"revoke","key":"a"}"#.to_owned(), "line 1: answers revoke \"a\""),
            (format!("{invoke}\n{}", r#"{"t_ns":1,"type":"fail","f":"cancel","key":"b"}"#), "line 2: answers cancel"),
            (format!("{invoke}\n{invoke}"), "line 2: process 0 has line 1 open"),
        ];
        for (text, why) in cases {
            let error = evidence(&text).unwrap_err();
            assert!(error.starts_with(why), "{error}");
        }
    }

    #[test]
    fn a_sealed_history_is_whole_or_none() {
        let run = r#"{"t_ns":1,"type":"note","f":"run","val":{"sealed":true}}"#;
        let seal = r#"{"t_ns":9,"type":"note","f":"seal","val":{"files":{"history.jsonl":3,"w.jsonl":1}}}"#;
        let beat = r#"{"t_ns":5,"type":"note","f":"witness","key":"j","val":{"mark":"beat","attempt":1,"fence":1}}"#;
        let other = r#"{"t_ns":4,"type":"note","f":"cluster","val":{"nodes":[1]}}"#;
        let (whole, w) = ([run, other, seal], ("w.jsonl", &[beat][..]));
        type File<'a> = (&'a str, &'a [&'a str]);
        let cases: [(&[&str], &[File<'_>], &str); 7] = [
            (&whole, &[w], ""),
            (&[run, other], &[w], "no seal: its end is missing"),
            (&[run, seal], &[w], "history.jsonl has 2 records, and had 3 when"),
            (&[run, other, seal, other], &[w], "history.jsonl has 4 records"),
            (&[run, seal, seal], &[w], "a second seal"),
            (&whole, &[], "w.jsonl is missing"),
            (&whole, &[w, ("x.jsonl", &[beat])], "x.jsonl does not belong"),
        ];
        for (history, witnesses, why) in cases {
            let folder = tempfile::tempdir().unwrap();
            for (name, lines) in witnesses.iter().copied().chain([("history.jsonl", history)]) {
                fs::write(folder.path().join(name), lines.join("\n")).unwrap();
            }
            let said = Evidence::read(folder.path()).map_or_else(|e| e.to_string(), |_| String::new());
            assert!(said.contains(why) && said.is_empty() == why.is_empty(), "{why}: {said}");
        }
    }
}
