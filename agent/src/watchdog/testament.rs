//! The end of a job as its watchdog leaves it on disk, for an agent that is not there to hear of it.

use std::{fs, io, path::Path};

use serde::{Deserialize, Serialize};

use super::{
    output::Output,
    wire::{End, NotStarted},
};
use crate::{disk, log::progress::Progress};

const NAME: &str = "ended";

/// What became of an attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fallen {
    /// It ran, and nothing of it is left.
    Ended(End),
    /// It never ran and never will.
    NotStarted(NotStarted),
}

/// The file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Testament {
    /// How it ended.
    pub fallen: Fallen,
    /// How far the spool goes; what follows is what [`super::output::left`] gives. Absent where an agent had the output
    /// when the job ended, and both were killed before it had taken all in.
    pub progress: Option<Progress>,
}

impl Testament {
    /// While an agent takes the end in: in case that both are killed meanwhile. Against the loss of the machine there is
    /// [`Testament::sync`].
    pub fn note(dir: &Path, fallen: &Fallen) -> io::Result<()> {
        let text = serde_json::to_vec(&Self { fallen: fallen.clone(), progress: None }).map_err(io::Error::other)?;
        disk::write_for_now(&dir.join(NAME), &text)
    }

    /// Makes the note durable: the agent takes its time.
    pub fn sync(dir: &Path) -> io::Result<()> {
        fs::File::open(dir.join(NAME))?.sync_all()?;
        disk::sync_dir(dir)
    }

    /// Writes it durably, with the output that no agent has taken.
    pub fn leave(dir: &Path, fallen: &Fallen, output: Option<&Output>) -> io::Result<()> {
        let progress = output.map(|output| output.leave(dir)).transpose()?.unwrap_or_default();
        let text = serde_json::to_vec(&Self { fallen: fallen.clone(), progress: Some(progress) });
        disk::write_durably(&dir.join(NAME), &text.map_err(io::Error::other)?)
    }

    /// What a watchdog has left; `None` where it has left nothing.
    ///
    /// # Errors
    /// Of kind `InvalidData` where it is damaged.
    pub fn read(dir: &Path) -> io::Result<Option<Self>> {
        disk::read_json(&dir.join(NAME))
    }
}
