//! Whether a worker suits a job, beside capacity: constraints over what the worker is. Only the scheduler asks: `apply`
//! does not check constraints, so that they may grow without a new feature level.
//!
//! A constraint is an attribute, an operator and a value:
//!
//! | attribute | what it is |
//! | --- | --- |
//! | `label.<key>` | a label of the worker |
//! | `architecture`, `kernel`, `hostname`, `provider` | what its agent says of its machine |
//! | `region` | its label `region` |
//!
//! | operator | holds where the attribute |
//! | --- | --- |
//! | `=`, `!=` | is, or is not, the value; what is absent is not |
//! | `in`, `not_in` | is, or is not, one of the values, which commas separate |
//! | `exists`, `not_exists` | is there, or is not; the value is empty |
//! | `<`, `<=`, `>`, `>=` | is there, and so ordered ([`order`]) |
//!
//! Deliberately missing: regular expressions. What they are asked for in practice, `in` and the order of versions say,
//! and their cost would be paid for each pair of a job and a worker.

use std::cmp::Ordering;

use crate::{
    registry::Worker,
    spec::{Constraint, JobSpec, Preference},
    validate::{Invalid, check},
};

const ATTRIBUTES: &str = "label.<key>, architecture, kernel, hostname, provider or region";
const OPERATORS: &str = "=, !=, in, not_in, exists, not_exists, <, <=, > or >=";
/// A weight counts relative to those of the same job.
const MAX_WEIGHT: u32 = 100;

/// Whether architecture and all constraints of the spec hold of the worker.
pub(crate) fn suits(spec: &JobSpec, worker: &Worker) -> bool {
    suits_architecture(spec, worker) && constraints(spec).iter().all(|constraint| holds(constraint, worker))
}

pub(crate) fn suits_architecture(spec: &JobSpec, worker: &Worker) -> bool {
    spec.resources.architecture.as_ref().is_none_or(|wanted| *wanted == worker.architecture)
}

pub(crate) fn constraints(spec: &JobSpec) -> &[Constraint] {
    spec.extras.as_deref().map_or(&[], |extras| &extras.constraints)
}

pub(crate) fn preferences(spec: &JobSpec) -> &[Preference] {
    spec.extras.as_deref().map_or(&[], |extras| &extras.preferences)
}

/// How far the worker is what the job would like, in thousandths: the weights of the preferences that hold of it, by
/// the sum of all. Negative where it is rather what the job would not like.
pub(crate) fn affinity(preferences: &[Preference], worker: &Worker) -> i64 {
    let all: i64 = preferences.iter().map(|preference| i64::from(preference.weight.unsigned_abs())).sum();
    let held = preferences.iter().filter(|preference| holds(&preference.constraint, worker));
    let held: i64 = held.map(|preference| i64::from(preference.weight)).sum();
    if all == 0 { 0 } else { held * 1_000 / all }
}

/// Whether the constraint is one that [`holds`] understands.
///
/// # Errors
/// What is wrong with it; `field` is its path.
pub(crate) fn understood(constraint: &Constraint, field: &str) -> Result<(), Invalid> {
    let attribute = constraint.attribute.as_str();
    let known = matches!(attribute, "architecture" | "kernel" | "provider" | "hostname" | "region")
        || attribute.strip_prefix("label.").is_some_and(|key| !key.is_empty());
    check(known, &format!("{field}.attribute"), ATTRIBUTES)?;
    let value = format!("{field}.value");
    match constraint.operator.as_str() {
        "=" | "!=" => Ok(()),
        "in" | "not_in" => {
            let named = constraint.value.split(',').all(|one| !one.trim().is_empty());
            check(named, &value, "values separated by commas, none of them empty")
        }
        "exists" | "not_exists" => check(constraint.value.is_empty(), &value, "nothing with exists and not_exists"),
        "<" | "<=" | ">" | ">=" => check(is_ordered(&constraint.value), &value, "a number or a version, such as 5.10"),
        _ => check(false, &format!("{field}.operator"), OPERATORS),
    }
}

/// Whether the preference is one that [`affinity`] understands.
///
/// # Errors
/// What is wrong with it; `field` is its path.
pub(crate) fn understood_preference(preference: &Preference, field: &str) -> Result<(), Invalid> {
    understood(&preference.constraint, field)?;
    let weight = (1..=MAX_WEIGHT).contains(&preference.weight.unsigned_abs());
    check(weight, &format!("{field}.weight"), "-100 to 100, and not 0")
}

/// What the worker has of an attribute.
pub(crate) fn actual<'a>(attribute: &str, worker: &'a Worker) -> Option<&'a str> {
    match attribute {
        "architecture" => Some(&worker.architecture),
        "kernel" => Some(&worker.kernel),
        "hostname" => Some(&worker.hostname),
        "provider" => worker.provider.as_deref(),
        "region" => worker.labels.get("region").map(String::as_str),
        label => worker.labels.get(label.strip_prefix("label.")?).map(String::as_str),
    }
}

/// A constraint that is not understood holds of no worker: the job waits rather than run in the wrong place.
pub(crate) fn holds(constraint: &Constraint, worker: &Worker) -> bool {
    let Constraint { attribute, operator, value } = constraint;
    let actual = actual(attribute, worker);
    let listed = || value.split(',').any(|one| actual == Some(one.trim()));
    let ordered = || actual.filter(|actual| is_ordered(actual) && is_ordered(value)).map(|actual| order(actual, value));
    match operator.as_str() {
        "=" => actual == Some(value),
        "!=" => actual != Some(value),
        "in" => listed(),
        "not_in" => !listed(),
        "exists" => actual.is_some(),
        "not_exists" => actual.is_none(),
        "<" => ordered().is_some_and(Ordering::is_lt),
        "<=" => ordered().is_some_and(Ordering::is_le),
        ">" => ordered().is_some_and(Ordering::is_gt),
        ">=" => ordered().is_some_and(Ordering::is_ge),
        _ => false,
    }
}

/// Whether a text has a place among numbers and versions: it begins with a digit, perhaps after a minus.
fn is_ordered(text: &str) -> bool {
    text.strip_prefix('-').unwrap_or(text).starts_with(|first: char| first.is_ascii_digit())
}

/// Whole numbers by their value, everything else as a version: runs of digits by their value, what stands between them
/// as text, and what ends first is less. So `5.10` comes after `5.9`, and `6.1.0-18-amd64` after `6.1`.
fn order(a: &str, b: &str) -> Ordering {
    match (a.parse::<i64>(), b.parse::<i64>()) {
        (Ok(a), Ok(b)) => a.cmp(&b),
        _ => order_versions(a, b),
    }
}

fn order_versions(mut a: &str, mut b: &str) -> Ordering {
    while !a.is_empty() && !b.is_empty() {
        let (digits_a, digits_b) = (run(a, true), run(b, true));
        let (text_a, text_b) = (run(&a[digits_a.len()..], false), run(&b[digits_b.len()..], false));
        let ordering = order_digits(digits_a, digits_b).then_with(|| text_a.cmp(text_b));
        if ordering.is_ne() {
            return ordering;
        }
        a = &a[digits_a.len() + text_a.len()..];
        b = &b[digits_b.len() + text_b.len()..];
    }
    a.len().cmp(&b.len())
}

/// What a text begins with: digits, or what are none.
fn run(text: &str, digits: bool) -> &str {
    &text[..text.find(|c: char| c.is_ascii_digit() != digits).unwrap_or(text.len())]
}

/// Numbers of any length.
fn order_digits(a: &str, b: &str) -> Ordering {
    let (a, b) = (a.trim_start_matches('0'), b.trim_start_matches('0'));
    a.len().cmp(&b.len()).then_with(|| a.cmp(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_versions_are_ordered() {
        let rising = ["-3", "2", "9", "10", "5.4.9", "5.10", "5.10.0-8", "6", "6.1", "6.1.0-18-amd64"];
        for pair in [&rising[..4], &rising[4..]].iter().flat_map(|part| part.windows(2)) {
            assert_eq!(order(pair[0], pair[1]), Ordering::Less, "{pair:?}");
            assert_eq!(order(pair[1], pair[0]), Ordering::Greater, "{pair:?}");
        }
        let huge = "123456789012345678901234567890";
        assert_eq!(order(huge, &format!("{huge}1")), Ordering::Less);
        assert_eq!(order("1.02", "1.2"), Ordering::Equal);
        assert!(!is_ordered("amd64") && !is_ordered("") && !is_ordered("-") && is_ordered("5.10"));
    }
}
