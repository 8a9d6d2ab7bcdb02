//! Real processes under faults.
