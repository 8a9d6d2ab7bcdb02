//! Harnesses that are wrong on purpose: what they break has to be found.

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// Disks say that they synced, and did not.
    LyingDisk,
    /// After a crash, a host finds its disk as its first crash left it, and nobody compares that with its promises.
    OldDisk,
    /// What one node receives differs now and then from what was sent.
    Noise,
    /// As [`Broken::Noise`], and nobody looks into the logs.
    NoiseUnseen,
}

impl Broken {
    pub const ALL: [Self; 4] = [Self::LyingDisk, Self::OldDisk, Self::Noise, Self::NoiseUnseen];

    pub fn is_noise(self) -> bool {
        matches!(self, Self::Noise | Self::NoiseUnseen)
    }

    /// What its violation must speak of, one of these.
    pub fn found_as(self) -> &'static [&'static str] {
        match self {
            // Or the log itself refuses to open.
            Self::LyingDisk => &["durability: ", "HODEI-STORAGE-011", "HODEI-STORAGE-012", "HODEI-STORAGE-013"],
            Self::OldDisk => &["leader completeness: ", "election safety: ", "committed: ", "acknowledged job"],
            Self::Noise => &["log matching: "],
            Self::NoiseUnseen => &["state: "],
        }
    }

    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|broken| format!("{broken:?}") == name)
    }
}

/// The body of a submission has a run of ones: one of them becomes something else.
pub fn distort(bytes: &mut [u8]) {
    if let Some(at) = bytes.windows(9).position(|window| window == [1; 9]) {
        bytes[at + 4] = 2;
    }
}
