//! Constraints and preferences as a person types them: `label.zone=a`, `kernel >= 5.10`, `label.zone in a,b`,
//! `label.ssd exists`; a preference has its weight behind a colon: `label.zone=a:10`.

use std::{fmt, str::FromStr};

use super::{Constraint, Preference};

/// Longer ones first: `<=` begins with `<`.
const SYMBOLS: [&str; 6] = ["<=", ">=", "!=", "=", "<", ">"];
const WORDS: [&str; 4] = ["in", "not_in", "exists", "not_exists"];

/// A text is no constraint or preference.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected {0}")]
pub struct BadConstraint(&'static str);

const CONSTRAINT: &str = "ATTRIBUTE OPERATOR VALUE, such as label.zone=a, kernel>=5.10, 'label.zone in a,b' or \
                          'label.ssd exists' (operators: = != < <= > >= in not_in exists not_exists)";
const PREFERENCE: &str = "ATTRIBUTE OPERATOR VALUE:WEIGHT, such as label.zone=a:10, with a weight from -100 to 100";

impl FromStr for Constraint {
    type Err = BadConstraint;

    /// What the attribute and the value may be is checked with the rest of the job.
    fn from_str(text: &str) -> Result<Self, BadConstraint> {
        let bad = BadConstraint(CONSTRAINT);
        let end = text.find(|c: char| c.is_whitespace() || "=!<>".contains(c)).ok_or_else(|| bad.clone())?;
        let (attribute, rest) = text.split_at(end);
        let rest = rest.trim();
        let symbol = SYMBOLS.iter().find_map(|symbol| Some((*symbol, rest.strip_prefix(symbol)?)));
        let word = || {
            let (word, value) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
            WORDS.contains(&word).then_some((word, value))
        };
        let (operator, value) = symbol.or_else(word).ok_or_else(|| bad.clone())?;
        if attribute.is_empty() {
            return Err(bad);
        }
        let (attribute, operator, value) = (attribute.to_owned(), operator.to_owned(), value.trim().to_owned());
        Ok(Self { attribute, operator, value })
    }
}

impl FromStr for Preference {
    type Err = BadConstraint;

    fn from_str(text: &str) -> Result<Self, BadConstraint> {
        let bad = || BadConstraint(PREFERENCE);
        let (constraint, weight) = text.rsplit_once(':').ok_or_else(bad)?;
        let weight = weight.trim().parse().map_err(|_| bad())?;
        let Constraint { attribute, operator, value } = constraint.parse()?;
        Ok(Self { attribute, operator, value, weight })
    }
}

impl fmt::Display for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { attribute, operator, value } = self;
        if SYMBOLS.contains(&operator.as_str()) {
            return write!(f, "{attribute}{operator}{value}");
        }
        let gap = if value.is_empty() { "" } else { " " };
        write!(f, "{attribute} {operator}{gap}{value}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constraints_are_read_as_they_are_shown() {
        for (text, attribute, operator, value) in [
            ("label.zone=a", "label.zone", "=", "a"),
            ("label.zone!=a=b", "label.zone", "!=", "a=b"),
            ("kernel>=5.10", "kernel", ">=", "5.10"),
            ("kernel<6", "kernel", "<", "6"),
            ("label.zone in a,b", "label.zone", "in", "a,b"),
            ("label.zone not_in a b", "label.zone", "not_in", "a b"),
            ("label.ssd exists", "label.ssd", "exists", ""),
        ] {
            let constraint: Constraint = text.parse().unwrap();
            let parts = [&constraint.attribute, &constraint.operator, &constraint.value];
            assert_eq!(parts, [attribute, operator, value]);
            assert_eq!(constraint.to_string(), text);
        }
        assert_eq!(" kernel".trim().parse::<Constraint>(), Err(BadConstraint(CONSTRAINT)));
        assert_eq!("kernel > 5".parse::<Constraint>().unwrap().to_string(), "kernel>5");
        for text in ["", "a", "=a", "a b", "a ~ b", "a inb", "a exist"] {
            assert_eq!(text.parse::<Constraint>(), Err(BadConstraint(CONSTRAINT)), "{text}");
        }
    }

    #[test]
    fn a_preference_has_its_weight_at_the_end() {
        let preference: Preference = "label.addr=host:80:-5".parse().unwrap();
        assert_eq!((preference.value.as_str(), preference.weight), ("host:80", -5));
        let preference: Preference = "label.ssd exists:7".parse().unwrap();
        assert_eq!((preference.operator.as_str(), preference.weight), ("exists", 7));
        for text in ["label.zone=a", "label.zone=a:", "label.zone=a:x", "label.zone:5"] {
            assert!(text.parse::<Preference>().is_err(), "{text}");
        }
    }
}
