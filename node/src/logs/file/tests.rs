use hodei_state::ids::JobId;
use proptest::prelude::*;

use super::{super::entries::tests::lines, *};

const KEY: LogKey = LogKey { job: JobId(7), attempt: 1 };

fn open(path: &Path) -> LogFile {
    LogFile::open(path, KEY, Kind::Copy).unwrap()
}

fn append(file: &LogFile, batch: LogBatch) -> bool {
    file.append(batch, 0, &mut Vec::new())
}

fn all(file: &LogFile) -> Vec<LogBatch> {
    let (mut offset, mut batches) = (0, Vec::new());
    while offset < file.progress().len {
        let (more, next) = file.read(offset, 64).unwrap();
        batches.extend(more);
        offset = next;
    }
    batches
}

#[test]
fn what_is_written_is_read_and_survives() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("job/1.1.log");
    let batches = vec![lines(1, &["a\n", "b\n"]), lines(3, &["c\n"]), entries::gap(4, 9, 5), lines(9, &["d\n"])];
    let file = open(&path);
    for batch in &batches {
        assert!(append(&file, batch.clone()));
    }
    assert_eq!(file.progress().durable, 0);
    file.sync();
    assert_eq!(file.progress().durable, 9);
    assert_eq!(all(&file), batches);
    let before = file.progress();
    drop(file);
    let file = open(&path);
    assert_eq!(file.progress(), before);
    assert_eq!(all(&file), batches);
}

#[test]
fn what_could_not_be_synced_is_not_there_any_more() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let file = open(&path);
    append(&file, lines(1, &["a\n"]));
    file.sync();
    append(&file, lines(2, &["b\n"]));
    file.give_up();
    assert!(file.progress().failed && !append(&file, lines(3, &["c\n"])), "nothing more comes to it");
    file.sync();
    assert_eq!(file.progress().durable, 1, "what was cut off is not promised by a later sync");
    assert_eq!(all(&open(&path)), [lines(1, &["a\n"])]);

    let empty = dir.path().join("empty");
    let file = open(&empty);
    append(&file, lines(1, &["a\n"]));
    file.give_up();
    assert_eq!(all(&open(&empty)), []);
}

#[test]
fn a_sequence_is_found_without_reading_what_is_before() {
    let dir = tempfile::tempdir().unwrap();
    let file = open(&dir.path().join("log"));
    for at in 0..10 {
        append(&file, lines(at * 2 + 1, &["x\n", "y\n"]));
    }
    for sequence in 1..=20 {
        let (batches, _) = file.read(file.seek(0, sequence).unwrap(), 1).unwrap();
        let first = &batches[0];
        assert!(first.first_sequence <= sequence && sequence <= entries::last_sequence(first), "{sequence}");
    }
    assert_eq!(file.seek(0, 21).unwrap(), file.progress().len);
}

#[test]
fn duplicates_and_holes_write_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let file = open(&dir.path().join("log"));
    assert!(append(&file, lines(1, &["a\n", "b\n"])));
    assert!(!append(&file, lines(1, &["a\n", "b\n"])));
    assert!(!append(&file, lines(4, &["d\n"])));
    assert!(append(&file, lines(2, &["b\n", "c\n"])));
    assert_eq!(file.progress().tally.lines, 3);
}

#[test]
fn another_log_is_not_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    drop(open(&path));
    assert!(LogFile::open(&path, LogKey { attempt: 2, ..KEY }, Kind::Copy).is_err());
}

#[test]
fn a_cache_file_goes_with_its_last_reader() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    drop(LogFile::open(&path, KEY, Kind::Cache).unwrap());
    assert!(!path.exists());
}

/// A frame larger than what is read at once is read all the same, by readers and by recovery.
#[test]
fn large_frames_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let file = open(&path);
    let long = "z".repeat(900_000);
    let batches: Vec<_> = (1..=5).map(|sequence| lines(sequence, &[&long])).collect();
    for batch in &batches {
        append(&file, batch.clone());
    }
    assert_eq!(all(&file), batches);
    let before = file.progress();
    drop(file);
    assert_eq!(open(&path).progress().tally, before.tally);
}

proptest! {
    /// Cut or damaged anywhere, a file keeps a prefix of what was written, and goes on from there.
    #[test]
    fn a_torn_or_damaged_tail_is_cut(at in 0usize..400, flip in any::<bool>()) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let batches: Vec<_> = (0..8).map(|at| lines(at * 2 + 1, &["one\n", "another\n"])).collect();
        let file = open(&path);
        for batch in &batches {
            append(&file, batch.clone());
        }
        drop(file);
        let mut bytes = std::fs::read(&path).unwrap();
        let at = FILE_HEADER as usize + at % (bytes.len() - FILE_HEADER as usize);
        if flip {
            bytes[at] ^= 0x40;
        } else {
            bytes.truncate(at);
        }
        std::fs::write(&path, &bytes).unwrap();

        let file = open(&path);
        let kept = all(&file);
        prop_assert!(kept.len() < batches.len());
        prop_assert_eq!(&kept[..], &batches[..kept.len()]);
        for batch in &batches {
            append(&file, batch.clone());
        }
        prop_assert_eq!(all(&file), batches);
    }
}
