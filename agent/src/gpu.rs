//! The GPUs of this machine, and what jobs are told of them.
//!
//! The leader counts GPUs; which ones an attempt gets is decided here, when it is taken in ([`crate::roster`]): such as no
//! other live attempt has. Its intent says which, so that the next agent process knows it too.
//!
//! **What a job sees.** Variables that CUDA, and what is built on it, keep to: `CUDA_VISIBLE_DEVICES` (HIP reads it as well)
//! and `NVIDIA_VISIBLE_DEVICES`. A job that asked for none is shown none. Nothing keeps a job from taking these variables
//! away: the devices themselves are not guarded.

use std::{collections::BTreeSet, env, fs, path::Path};

/// As many as the cluster takes.
const MOST: u32 = 1_024;
/// What says to this process, as to jobs, which GPUs are its own.
const VISIBLE: &str = "CUDA_VISIBLE_DEVICES";

/// Which GPUs are for jobs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Those that are found.
    Auto,
    /// These, by the names that CUDA has for them.
    These(Vec<String>),
}

/// `auto`, how many, or which.
pub fn parse(text: &str) -> Result<Choice, String> {
    let expected = || format!("expected auto, how many (at most {MOST}), or which: 0,1 or GPU-…; a single one: 1,");
    if text == "auto" {
        return Ok(Choice::Auto);
    }
    if let Ok(count) = text.parse::<u32>() {
        return if count <= MOST { Ok(Choice::These(first(count as usize))) } else { Err(expected()) };
    }
    let list = text.strip_suffix(',').unwrap_or(text);
    let ids: Vec<String> = list.split(',').map(|id| id.trim().to_owned()).collect();
    let distinct: BTreeSet<_> = ids.iter().collect();
    let fine = ids.iter().all(|id| is_id(id)) && distinct.len() == ids.len() && ids.len() <= MOST as usize;
    if fine { Ok(Choice::These(ids)) } else { Err(expected()) }
}

impl Choice {
    /// The names of the GPUs that jobs get. Blocking.
    #[must_use]
    pub fn resolve(&self) -> Vec<String> {
        match self {
            Self::These(ids) => ids.clone(),
            Self::Auto => detect(Path::new("/"), env::var(VISIBLE).ok().as_deref()),
        }
    }
}

/// What a job finds in its environment: the GPUs that it `has`, and no others.
#[must_use]
pub fn environment(has: &[String]) -> Vec<(String, String)> {
    let ids = has.join(",");
    let nvidia = if has.is_empty() { "void".to_owned() } else { ids.clone() };
    let variables = [
        (VISIBLE, ids),
        ("NVIDIA_VISIBLE_DEVICES", nvidia),
        // Numbers are as nvidia-smi counts, not by speed.
        ("CUDA_DEVICE_ORDER", "PCI_BUS_ID".to_owned()),
    ];
    variables.map(|(name, value)| (name.to_owned(), value)).into()
}

/// NVIDIA's. `visible`: what this process was left of them.
fn detect(root: &Path, visible: Option<&str>) -> Vec<String> {
    if let Some(visible) = visible {
        // As CUDA does it: whatever it cannot be ends the list.
        let mut seen = BTreeSet::new();
        let ids = visible.split(',').map(str::trim).take_while(|id| is_id(id) && seen.insert(*id));
        return ids.map(str::to_owned).collect();
    }
    let names = |dir: &str| {
        let entries = fs::read_dir(root.join(dir)).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect::<Vec<_>>()
    };
    // In a container there are nodes for those only that it may use; CUDA counts them from zero.
    let number = |name: &String| name.strip_prefix("nvidia").is_some_and(|number| number.parse::<u32>().is_ok());
    let count = names("dev").iter().filter(|name| number(name)).count();
    let known = names("proc/driver/nvidia/gpus").len();
    if count == 0 && known > 0 {
        tracing::warn!(known, "the driver knows GPUs, but there is no /dev/nvidia0 yet: name them with --gpus");
    }
    first(count)
}

fn first(count: usize) -> Vec<String> {
    (0..count).map(|id| id.to_string()).collect()
}

/// A number, or the identity of a GPU or of a part of one.
fn is_id(text: &str) -> bool {
    let named = text.starts_with("GPU-") || text.starts_with("MIG-");
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'/';
    (named && text.len() <= 100 && text.bytes().all(plain))
        || text.parse::<u32>().is_ok_and(|id| id.to_string() == text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn these(ids: &[&str]) -> Choice {
        Choice::These(ids.iter().map(|id| (*id).to_owned()).collect())
    }

    #[test]
    fn it_is_said_how_many_or_which() {
        for (text, expected) in [
            ("auto", Choice::Auto),
            ("0", these(&[])),
            ("3", these(&["0", "1", "2"])),
            ("3,", these(&["3"])),
            ("1, 3", these(&["1", "3"])),
            ("GPU-5a2b", these(&["GPU-5a2b"])),
            ("MIG-GPU-5a2b/1/0,0", these(&["MIG-GPU-5a2b/1/0", "0"])),
        ] {
            assert_eq!(parse(text).unwrap(), expected, "{text}");
        }
        for text in ["", ",", "-1", "1025", "a", "0,0", "0,,1", "01,2", "+1,2", "GPU-a b", "0;1", "GPU-\u{e9}"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_has_a_node_is_counted_and_what_this_process_was_left_is_not_exceeded() {
        let root = tempfile::tempdir().unwrap();
        assert!(detect(root.path(), None).is_empty());
        fs::create_dir_all(root.path().join("proc/driver/nvidia/gpus/0000:65:00.0")).unwrap();
        fs::create_dir(root.path().join("dev")).unwrap();
        assert!(detect(root.path(), None).is_empty(), "not to be used by anybody");
        for name in ["nvidia1", "nvidia3", "nvidiactl", "nvidia-uvm", "null"] {
            fs::write(root.path().join("dev").join(name), "").unwrap();
        }
        assert_eq!(detect(root.path(), None), ["0", "1"]);
        assert_eq!(detect(root.path(), Some("3,1,-1,0")), ["3", "1"]);
        assert_eq!(detect(root.path(), Some("GPU-a, 2")), ["GPU-a", "2"]);
        assert!(detect(root.path(), Some("")).is_empty());
    }

    #[test]
    fn a_job_is_shown_what_it_has_and_nothing_else() {
        let shown = |has: &[&str]| -> Vec<String> {
            let has: Vec<_> = has.iter().map(|id| (*id).to_owned()).collect();
            environment(&has).into_iter().map(|(_, value)| value).collect()
        };
        assert_eq!(shown(&["1", "3"]), ["1,3", "1,3", "PCI_BUS_ID"]);
        assert_eq!(shown(&[]), ["", "void", "PCI_BUS_ID"]);
    }
}
