//! Maps in which no key may be given twice: of two values one would be lost without a word.

use std::{collections::BTreeMap, fmt};

use serde::{Deserializer, de};

/// What is said of the second.
pub(super) const DUPLICATE: &str = "duplicate key";

/// Reads texts by name.
pub(super) fn map<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, String>, D::Error> {
    deserializer.deserialize_map(Map)
}

struct Map;

impl<'de> de::Visitor<'de> for Map {
    type Value = BTreeMap<String, String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map")
    }

    fn visit_map<A: de::MapAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
        let mut map = BTreeMap::new();
        while let Some(key) = access.next_key::<String>()? {
            if map.contains_key(&key) {
                match access.next_value_seed(Refused)? {}
            }
            let value = access.next_value()?;
            map.insert(key, value);
        }
        Ok(map)
    }
}

/// Fails in the value's place, so that the error has the key in its path.
struct Refused;

impl<'de> de::DeserializeSeed<'de> for Refused {
    type Value = std::convert::Infallible;

    fn deserialize<D: Deserializer<'de>>(self, _: D) -> Result<Self::Value, D::Error> {
        Err(de::Error::custom(DUPLICATE))
    }
}
