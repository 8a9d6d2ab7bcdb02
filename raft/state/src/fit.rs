//! Whether a worker suits a job, beside capacity. Only the planner asks: `apply` does not check constraints, so that
//! they may grow without a new feature level.

use crate::{
    registry::Worker,
    spec::{Constraint, JobSpec},
};

/// Whether all constraints of the spec hold of the worker.
pub(crate) fn suits(spec: &JobSpec, worker: &Worker) -> bool {
    let architecture = spec.resources.architecture.as_ref().is_none_or(|wanted| *wanted == worker.architecture);
    let constraints = spec.extras.as_deref().map_or(&[][..], |extras| &extras.constraints);
    architecture && constraints.iter().all(|constraint| holds(constraint, worker))
}

/// Whether the constraint is one that [`suits`] understands.
pub(crate) fn is_supported(constraint: &Constraint) -> bool {
    let attribute = constraint.attribute.as_str();
    let known = matches!(attribute, "architecture" | "kernel" | "provider" | "hostname")
        || attribute.strip_prefix("label.").is_some_and(|key| !key.is_empty());
    known && matches!(constraint.operator.as_str(), "=" | "!=" | "in")
}

/// A constraint that is not understood holds of no worker: the job waits rather than run in the wrong place.
fn holds(constraint: &Constraint, worker: &Worker) -> bool {
    if !is_supported(constraint) {
        return false;
    }
    let actual = match constraint.attribute.as_str() {
        "architecture" => Some(worker.architecture.as_str()),
        "kernel" => Some(worker.kernel.as_str()),
        "hostname" => Some(worker.hostname.as_str()),
        "provider" => worker.provider.as_deref(),
        label => label.strip_prefix("label.").and_then(|key| worker.labels.get(key)).map(String::as_str),
    };
    match constraint.operator.as_str() {
        "=" => actual == Some(&constraint.value),
        "!=" => actual != Some(&constraint.value),
        _ => constraint.value.split(',').any(|value| actual == Some(value.trim())),
    }
}
