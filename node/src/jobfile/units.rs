//! Durations and sizes as people write them: `500ms`, `4s`, `1h30m`; `512M`, `2GiB`; cores as `0.5`.

use std::fmt;

/// Why a text is no such quantity; says what was expected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected {0}")]
pub struct BadUnit(pub &'static str);

/// What a duration must look like.
pub const DURATION: &str = "a duration such as 500ms, 4s, 1h30m or 7d";
/// What a size must look like.
pub const SIZE: &str = "a size such as 512M or 2GiB";
/// What a number of cores must look like.
pub const CORES: &str = "a number of cores such as 2 or 0.5, in steps of 0.001";

/// Milliseconds of `1h30m`. Units: ms, s, m, h, d; every number needs one; each unit at most once, in falling order.
///
/// # Errors
/// The text is no duration, or does not fit 64 bits of milliseconds.
pub fn duration_ms(text: &str) -> Result<u64, BadUnit> {
    const UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];
    let bad = BadUnit(DURATION);
    let mut rest = text.trim();
    let mut total = 0u64;
    let mut next_unit = 0;
    if rest.is_empty() {
        return Err(bad);
    }
    while !rest.is_empty() {
        let (number, after) = split_number(rest);
        let number: u64 = number.parse().map_err(|_| bad.clone())?;
        let (unit, after) = split_unit(after);
        let at = UNITS.iter().position(|(name, _)| *name == unit).ok_or_else(|| bad.clone())?;
        if at < next_unit {
            return Err(bad);
        }
        next_unit = at + 1;
        total = number.checked_mul(UNITS[at].1).and_then(|ms| total.checked_add(ms)).ok_or_else(|| bad.clone())?;
        rest = after;
    }
    Ok(total)
}

/// Mebibytes of `512M`, rounded up. K, M, G, T (also with `i` or `iB`) are powers of 1,024; KB, MB, GB, TB are powers
/// of 1,000, as their names say; `B` is bytes. A number without a unit could mean anything and is none, but for 0.
///
/// # Errors
/// The text is no size.
pub fn size_mb(text: &str) -> Result<u64, BadUnit> {
    const MIB: u64 = 1 << 20;
    let bad = BadUnit(SIZE);
    let (number, unit) = split_number(text.trim());
    let number: u64 = number.parse().map_err(|_| bad.clone())?;
    let factor: u64 = match unit {
        "" if number == 0 => 1,
        "B" => 1,
        "K" | "k" | "Ki" | "KiB" => 1 << 10,
        "M" | "m" | "Mi" | "MiB" => 1 << 20,
        "G" | "g" | "Gi" | "GiB" => 1 << 30,
        "T" | "t" | "Ti" | "TiB" => 1 << 40,
        "KB" | "kB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        _ => return Err(bad),
    };
    Ok(number.checked_mul(factor).ok_or(bad)?.div_ceil(MIB))
}

/// Thousandths of a core of `0.5`; decimal, so that no binary fraction ever rounds.
///
/// # Errors
/// The text is no decimal with at most three places.
pub fn cores_millis(text: &str) -> Result<u64, BadUnit> {
    let bad = BadUnit(CORES);
    let text = text.trim();
    let (whole, places) = text.split_once('.').unwrap_or((text, ""));
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    let places = places.trim_end_matches('0');
    if whole.is_empty() || !digits(whole) || !digits(places) || places.len() > 3 || text.ends_with('.') {
        return Err(bad);
    }
    let whole: u64 = whole.parse().map_err(|_| bad.clone())?;
    let places: u64 = format!("{places:0<3}").parse().map_err(|_| bad.clone())?;
    whole.checked_mul(1_000).and_then(|millis| millis.checked_add(places)).ok_or(bad)
}

/// A duration as [`duration_ms`] reads it.
pub struct DurationText(pub u64);

impl fmt::Display for DurationText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0;
        if rest == 0 {
            return f.write_str("0s");
        }
        for (unit, ms) in [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)] {
            if rest >= ms {
                write!(f, "{}{unit}", rest / ms)?;
                rest %= ms;
            }
        }
        Ok(())
    }
}

fn split_number(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

fn split_unit(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| c.is_ascii_digit()).unwrap_or(text.len()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations() {
        for (text, ms) in [("500ms", 500), ("4s", 4_000), ("1h30m", 5_400_000), ("7d", 604_800_000), ("0s", 0)] {
            assert_eq!(duration_ms(text), Ok(ms), "{text}");
        }
        for text in ["", "4", "s", "4x", "1m1h", "1s1s", "-1s", "1.5s", "1 s", "99999999999999999999d"] {
            assert_eq!(duration_ms(text), Err(BadUnit(DURATION)), "{text}");
        }
    }

    #[test]
    fn sizes() {
        for (text, mb) in [("512M", 512), ("2GiB", 2048), ("1B", 1), ("0", 0), ("1500KB", 2), ("1T", 1 << 20)] {
            assert_eq!(size_mb(text), Ok(mb), "{text}");
        }
        for text in ["", "M", "512", "1.5G", "-1M", "1Q", "99999999T"] {
            assert_eq!(size_mb(text), Err(BadUnit(SIZE)), "{text}");
        }
    }

    #[test]
    fn cores() {
        for (text, millis) in [("2", 2_000), ("0.5", 500), ("1.250", 1_250), ("0.001", 1), ("0", 0), ("2.0000", 2_000)]
        {
            assert_eq!(cores_millis(text), Ok(millis), "{text}");
        }
        for text in ["", ".5", "1.", "-1", "0.0001", "1e3", "x", "99999999999999999999"] {
            assert_eq!(cores_millis(text), Err(BadUnit(CORES)), "{text}");
        }
    }

    proptest! {
        #[test]
        fn durations_are_read_as_they_are_shown(ms in 0u64..u64::MAX / 2) {
            prop_assert_eq!(duration_ms(&DurationText(ms).to_string()), Ok(ms));
        }
    }
}
