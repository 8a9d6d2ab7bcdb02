//! Scalars of a job file that may be written as a text with a unit.

use std::fmt;

use serde::{Deserialize, Deserializer, de};

use super::units;

/// Milliseconds; written as a text such as `1h30m`. A bare number is refused, because its unit would be a guess.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Duration(pub u64);

/// MiB; written as a whole number of MiB or a text such as `2GiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

/// Thousandths of a core; written as a decimal number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cores(pub u64);

impl<'de> Deserialize<'de> for Duration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(DurationVisitor)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SizeVisitor)
    }
}

impl<'de> Deserialize<'de> for Cores {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(CoresVisitor)
    }
}

struct DurationVisitor;

impl de::Visitor<'_> for DurationVisitor {
    type Value = Duration;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(units::DURATION)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Duration, E> {
        units::duration_ms(text).map(Duration).map_err(|_| E::invalid_value(de::Unexpected::Str(text), &self))
    }
}

struct SizeVisitor;

impl de::Visitor<'_> for SizeVisitor {
    type Value = Size;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a whole number of MiB or {}", units::SIZE)
    }

    fn visit_u64<E: de::Error>(self, mb: u64) -> Result<Size, E> {
        Ok(Size(mb))
    }

    fn visit_i64<E: de::Error>(self, mb: i64) -> Result<Size, E> {
        u64::try_from(mb).map(Size).map_err(|_| E::invalid_value(de::Unexpected::Signed(mb), &self))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Size, E> {
        units::size_mb(text).map(Size).map_err(|_| E::invalid_value(de::Unexpected::Str(text), &self))
    }
}

struct CoresVisitor;

impl de::Visitor<'_> for CoresVisitor {
    type Value = Cores;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(units::CORES)
    }

    fn visit_u64<E: de::Error>(self, cores: u64) -> Result<Cores, E> {
        let unexpected = de::Unexpected::Unsigned(cores);
        cores.checked_mul(1_000).map(Cores).ok_or_else(|| E::invalid_value(unexpected, &self))
    }

    fn visit_i64<E: de::Error>(self, cores: i64) -> Result<Cores, E> {
        let whole = u64::try_from(cores).map_err(|_| E::invalid_value(de::Unexpected::Signed(cores), &self))?;
        self.visit_u64(whole)
    }

    /// The shortest decimal that reads back as the same float is what was written, up to 15 digits.
    fn visit_f64<E: de::Error>(self, cores: f64) -> Result<Cores, E> {
        let unexpected = de::Unexpected::Float(cores);
        units::cores_millis(&cores.to_string()).map(Cores).map_err(|_| E::invalid_value(unexpected, &self))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Cores, E> {
        units::cores_millis(text).map(Cores).map_err(|_| E::invalid_value(de::Unexpected::Str(text), &self))
    }
}
