//! Processes that die where a test wants them to: the binaries with failpoints, and what tells them.
//!
//! A process looks into its file of orders whenever it passes a site, and writes down where it ends. The sites are those
//! that `failpoint!` names in the sources of the product.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

/// The orders of one process, and the list of where any process ended.
#[derive(Clone, Debug)]
pub struct Failpoints {
    orders: PathBuf,
    ended: PathBuf,
}

impl Failpoints {
    /// Of the process `name`. All in `dir` share the list.
    #[must_use]
    pub fn of(dir: &Path, name: &str) -> Self {
        Self { orders: dir.join(format!("{name}.failpoints")), ended: dir.join("failpoints-ended") }
    }

    /// What the process has to have in its environment. Its logs are small: snapshots and new segments come every few seconds.
    /// What this process has been told of failpoints holds there as well.
    #[must_use]
    pub fn environment(&self) -> [(&'static str, String); 3] {
        let told = env::var("FAILPOINTS").map(|told| format!("{told};")).unwrap_or_default();
        [
            ("FAILPOINTS", format!("{told}tune::small-logs=return")),
            ("FAILPOINTS_FILE", self.orders.display().to_string()),
            ("FAILPOINTS_ENDED", self.ended.display().to_string()),
        ]
    }

    /// Has the process end at a site once it has passed it so many times from now on.
    ///
    /// # Panics
    /// If the file cannot be written.
    pub fn arm(&self, site: &str, passages: u32) {
        let skip = if passages == 0 { String::new() } else { format!("{passages}*off->") };
        self.order(&format!("{site}={skip}return\n"));
    }

    /// Has it pass this site again.
    ///
    /// # Panics
    /// If the file cannot be written.
    pub fn disarm(&self, site: &str) {
        self.order(&format!("{site}=off\n"));
    }

    /// In one step: the process may read it at any time.
    fn order(&self, text: &str) {
        let new = self.orders.with_extension("new");
        fs::write(&new, text).expect("an order can be written");
        fs::rename(&new, &self.orders).expect("an order can be given");
    }

    /// How many processes have ended at a site so far, or are about to.
    #[must_use]
    pub fn ended_at(&self, site: &str) -> usize {
        let ended = fs::read_to_string(&self.ended).unwrap_or_default();
        ended.lines().filter(|line| line.split_once(' ').is_some_and(|(at, _)| at == site)).count()
    }
}
