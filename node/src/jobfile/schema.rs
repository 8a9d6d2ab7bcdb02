//! The JSON Schema of job files, made of the definitions that the parser reads by, so that editors and other programs
//! know what it accepts. `docs/job-schema.json` is what [`text`] gives; a test sees to that.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, generate::SchemaSettings, json_schema};
use serde_json::Value;

use super::{Command, Cores, Duration, JobFile, Kinds, Size};

/// The schema of a job file (JSON Schema, draft 2020-12), with a final newline.
#[must_use]
pub fn text() -> String {
    let schema = SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<JobFile>();
    let mut schema = Value::from(schema);
    sort(&mut schema);
    format!("{schema:#}\n")
}

/// Whatever order maps have in this build, the text has one.
fn sort(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.sort_keys();
            map.values_mut().for_each(sort);
        }
        Value::Array(values) => values.iter_mut().for_each(sort),
        _ => {}
    }
}

impl JsonSchema for Command {
    fn schema_name() -> Cow<'static, str> {
        "Command".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let mut schema = Kinds::json_schema(generator);
        schema.insert("description".into(), "What is executed: either shell or script".into());
        schema.insert("minProperties".into(), 1.into());
        schema.insert("maxProperties".into(), 1.into());
        schema
    }
}

impl JsonSchema for Duration {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "A duration such as 500ms, 4s, 1h30m or 7d",
            "pattern": r"^(?=\d)(\d+d)?(\d+h)?(\d+m(?!s))?(\d+s)?(\d+ms)?$",
        })
    }
}

impl JsonSchema for Size {
    fn schema_name() -> Cow<'static, str> {
        "Size".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": ["integer", "string"],
            "description": "A whole number of MiB, or a size such as 512M or 2GiB",
            "minimum": 1,
            "pattern": r"^\d+(B|[KkMmGgTt]|[KMGT]iB?|[KkMGT]B)?$",
        })
    }
}

impl JsonSchema for Cores {
    fn schema_name() -> Cow<'static, str> {
        "Cores".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": ["number", "string"],
            "description": "A number of cores such as 2 or 0.5, in steps of 0.001",
            "exclusiveMinimum": 0,
            "pattern": r"^\d+(\.\d+)?$",
        })
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::Path};

    use super::*;
    use crate::jobfile::{BadJobFile, parse};

    /// What the parser accepts at a path, in its own words: what it expected instead of a field that does not exist.
    fn accepted(path: &[Step]) -> BTreeSet<String> {
        let mut document = serde_json::json!({ "no such field": 0 });
        for step in path.iter().rev() {
            document = match step {
                Step::Field(name) => serde_json::json!({ *name: document }),
                Step::Item => serde_json::json!([document]),
            };
        }
        let Err(BadJobFile::Field { problem, .. }) = parse(&document.to_string()) else {
            panic!("{document} is accepted");
        };
        let (_, expected) = problem.split_once("expected ").unwrap_or_else(|| panic!("{document}: {problem}"));
        expected.split('`').skip(1).step_by(2).map(str::to_owned).collect()
    }

    #[derive(Clone, Debug)]
    enum Step<'a> {
        Field(&'a str),
        Item,
    }

    /// Compares an object of the schema with what the parser accepts there, and then what lies below it. The number of
    /// objects compared.
    fn compare<'a>(root: &'a Value, schema: &'a Value, path: &[Step<'a>]) -> usize {
        let schema = resolve(root, schema);
        if let Some(items) = schema.get("items") {
            return compare(root, items, &[path, &[Step::Item]].concat());
        }
        let Some(properties) = schema.get("properties").and_then(Value::as_object) else { return 0 };
        let named: BTreeSet<_> = properties.keys().cloned().collect();
        assert_eq!(named, accepted(path), "at {path:?}");
        assert_eq!(schema["additionalProperties"], false, "at {path:?}");
        let below =
            properties.iter().map(|(name, schema)| compare(root, schema, &[path, &[Step::Field(name)]].concat()));
        1 + below.sum::<usize>()
    }

    /// Follows references, and takes the first of what may also be null.
    fn resolve<'a>(root: &'a Value, schema: &'a Value) -> &'a Value {
        if let Some(path) = schema.get("$ref").and_then(Value::as_str) {
            return resolve(root, root.pointer(path.trim_start_matches('#')).unwrap());
        }
        match schema.get("anyOf").and_then(|any| any.get(0)) {
            Some(first) => resolve(root, first),
            None => schema,
        }
    }

    #[test]
    fn schema_and_parser_know_the_same_fields() {
        let schema: Value = serde_json::from_str(&text()).unwrap();
        // The job, its command in both kinds, resources, retry, constraints, preferences, array, secrets at least.
        assert!(compare(&schema, &schema, &[]) >= 10);
    }

    #[test]
    fn the_published_schema_is_this_one() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/job-schema.json");
        if std::env::var_os("UPDATE_GOLDENFILES").is_some() {
            fs::write(&path, text()).unwrap();
        }
        assert_eq!(fs::read_to_string(&path).unwrap_or_default(), text(), "update it: UPDATE_GOLDENFILES=1 cargo test");
    }
}
