//! The core's tests as transcripts: a comment, commands, their full outcome. `tests/scripts/README.md` lists the
//! commands. Regenerate with `UPDATE_GOLDENFILES=1 cargo test -p hodei-state --test transcripts` and review the diff.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod transcript;

use std::{fs, panic, path::Path};

/// Every script in `tests/scripts`, each on a state of its own.
#[test]
#[allow(clippy::disallowed_methods)]
fn transcripts() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts");
    let mut scripts: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    scripts.retain(|path| path.extension().is_none());
    scripts.sort();
    assert!(scripts.len() >= 30, "only {} scripts", scripts.len());
    let failed: Vec<_> = scripts
        .iter()
        .filter(|script| {
            let run = || goldenscript::run(&mut transcript::Runner::default(), script);
            !matches!(panic::catch_unwind(run), Ok(Ok(())))
        })
        .collect();
    for script in &failed {
        let error = panic::catch_unwind(|| goldenscript::run(&mut transcript::Runner::default(), script));
        eprintln!("{}: {error:?}", script.display());
    }
    assert!(failed.is_empty(), "{} of {} transcripts differ", failed.len(), scripts.len());
}
