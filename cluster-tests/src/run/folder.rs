//! What is kept of a run: plan, history, witnesses, and what processes said, in one folder.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use crate::{
    history::{History, Note, Seal},
    schedule::Plan,
};

use super::world::DRIVER;

/// Where the history is.
const HISTORY: &str = "history.jsonl";
/// Where the plan is.
const PLAN: &str = "plan.json";
/// What files of the history, and those of what processes said, end with.
const PART: &str = "jsonl";
const SAID: &str = "err";

/// Puts everything that tells of the run into one folder, in place of what an earlier run has left there; `marks` is where
/// witnesses write, `said` where the standard error of processes goes. The history is sealed.
///
/// # Errors
/// Those of the files.
pub fn write(folder: &Path, plan: &Plan, history: &History, [marks, said]: [&Path; 2]) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let old = [parts(folder, PART)?, parts(folder, SAID)?].concat();
    for old in old.into_iter().chain([folder.join(PLAN)]) {
        match fs::remove_file(old) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    fs::write(folder.join(PLAN), serde_json::to_vec_pretty(plan)?)?;
    let mut files = BTreeMap::new();
    for from in parts(said, SAID)? {
        let name = from.file_name().expect("a file has a name");
        fs::copy(&from, folder.join(name))?;
    }
    for from in parts(marks, PART)? {
        let Some(name) = from.file_name() else { continue };
        let mut lines = fs::read(&from)?;
        // Somebody may still write: what has no end yet is no line.
        lines.truncate(lines.iter().rposition(|&byte| byte == b'\n').map_or(0, |last| last + 1));
        fs::write(folder.join(name), &lines)?;
        files.insert(name.to_string_lossy().into_owned(), lines.iter().filter(|&&byte| byte == b'\n').count());
    }
    history.seal(|records| {
        files.insert(HISTORY.to_owned(), records + 1);
        (DRIVER, Note::Seal(Seal { files }))
    });
    history.write(&folder.join(HISTORY))
}

fn parts(folder: &Path, extension: &str) -> io::Result<Vec<PathBuf>> {
    let paths = fs::read_dir(folder)?.map(|entry| entry.map(|entry| entry.path()));
    let is_part = |path: &PathBuf| path.extension().is_some_and(|its| its == extension);
    paths.filter(|path| path.as_ref().map_or(true, is_part)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{Evidence, Run};

    #[test]
    fn a_folder_tells_of_one_run_only() {
        let (dir, plan) = (tempfile::tempdir().unwrap(), Plan::of("none", 1, 3, &[], 1));
        let [folder, marks] = ["folder", "marks"].map(|name| dir.path().join(name));
        fs::write(dir.path().join("node1.1.err"), "ready\n").unwrap();
        fs::create_dir(&marks).unwrap();
        let beat = r#"{"t_ns":1,"type":"note","f":"witness","key":"j","val":{"mark":"beat","attempt":1,"fence":1}}"#;
        for job in ["a", "b"] {
            let file = marks.join(format!("{job}.jsonl"));
            fs::write(&file, format!("{beat}\n{beat}\n{{\"t_ns\":")).unwrap();
            let history = History::default();
            history.note(DRIVER, "", Note::Run(Run { sealed: true, ..Run::default() }));
            write(&folder, &plan, &history, [&marks, dir.path()]).unwrap();
            let records = Evidence::read(&folder).unwrap().len();
            assert_eq!(records, 4, "the run, two marks, the seal");
            fs::remove_file(file).unwrap();
        }
        assert!(!folder.join("a.jsonl").exists() && folder.join("b.jsonl").exists());
        assert!(folder.join("node1.1.err").exists());
        // What is written late is not in the history, and nothing of it is lost unseen.
        fs::remove_file(folder.join("b.jsonl")).unwrap();
        assert!(Evidence::read(&folder).is_err());
    }
}
