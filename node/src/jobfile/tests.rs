use super::*;

const TOML: &str = r#"
name = "nightly"
timeout = "1h30m"
priority = 5
lost_after = "30s"

[command.shell]
cmd = "bash"
args = ["-c", "echo hi"]

[env]
A = "1"

[resources]
cpu_cores = 0.5
memory_mb = "2GiB"
storage_mb = 10

[retry]
failure = 2
exit_codes = [75]
"#;

const JSON: &str = r#"{
  "name": "nightly", "timeout": "1h30m", "priority": 5, "lost_after": "30s",
  "command": {"shell": {"cmd": "bash", "args": ["-c", "echo hi"]}},
  "env": {"A": "1"},
  "resources": {"cpu_cores": 0.5, "memory_mb": "2GiB", "storage_mb": 10},
  "retry": {"failure": 2, "exit_codes": [75]}
}"#;

const YAML: &str = r#"
# A comment.
name: nightly
timeout: 1h30m
priority: 5
lost_after: "30s"
command:
  shell: {cmd: bash, args: [-c, echo hi]}
env:
  A: '1'
resources:
  cpu_cores: 0.5
  memory_mb: 2GiB
  storage_mb: 10
retry:
  failure: 2
  exit_codes:
    - 75
"#;

#[test]
fn all_formats_say_the_same() {
    let toml = parse(TOML).unwrap();
    assert_eq!(toml, parse(JSON).unwrap());
    assert_eq!(toml, parse(YAML).unwrap());
    assert_eq!(toml, parse(&format!("---\n{YAML}...\n")).unwrap());
    let spec = toml.into_spec();
    assert_eq!(spec.timeout_ms, 5_400_000);
    assert_eq!(spec.lost_after_ms, 30_000);
    let resources = spec.resources.unwrap();
    assert_eq!((resources.cpu_millis, resources.memory_mb, resources.storage_mb), (500, 2048, 10));
    assert_eq!(spec.retry.unwrap().failure, Some(2));
}

/// Whatever is wrong, the message begins with the path of the field.
#[test]
fn what_is_wrong_is_named_by_its_path() {
    let cases = [
        (r#"{"nam": "x"}"#, "nam", "unknown field"),
        (r#"{"resources": {"cpus": 1}}"#, "resources.cpus", "unknown field"),
        ("[resources]\ncpus = 1", "resources.cpus", "unknown field"),
        (r#"{"resources": {"cpu_cores": "two"}}"#, "resources.cpu_cores", "expected a number of cores"),
        ("[resources]\ncpu_cores = -1", "resources.cpu_cores", "expected a number of cores"),
        (r#"{"resources": {"memory_mb": -5}}"#, "resources.memory_mb", "expected a whole number of MiB"),
        (r#"{"timeout": 5}"#, "timeout", "expected a duration"),
        (r#"{"timeout": "5"}"#, "timeout", "expected a duration"),
        ("priority = \"high\"", "priority", "expected a whole number from -2,147,483,648 to"),
        ("priority = 3000000000", "priority", "expected a whole number from -2,147,483,648 to"),
        (r#"{"resources": {"gpu": "one"}}"#, "resources.gpu", "expected a whole number from 0 to"),
        (r#"{"resources": 2}"#, "resources", "expected a table such as {cpu_cores = 2}"),
        (r#"{"secrets": ["a"]}"#, "secrets[0]", "expected a table with name and env"),
        (r#"{"secrets": "a"}"#, "secrets", "expected a list"),
        (r#"{"array": 7}"#, "array", "expected a table with count"),
        (r#"{"constraints": ["a=b"]}"#, "constraints[0]", "expected a table with attribute, operator and value"),
        (r#"{"preemptible": "yes"}"#, "preemptible", "expected true or false"),
        (r#"{"retry": {"max_attempts": 0}}"#, "retry.max_attempts", "expected more than zero"),
        (
            r#"{"secrets": [{"name": "a", "env": ""}]}"#,
            "secrets[0].env",
            "without one, the secret comes on standard input",
        ),
        (r#"{"command": {"shell": {}}}"#, "command.shell.cmd", "missing field"),
        (r#"{"command": {"shel": {"cmd": "x"}}}"#, "command.shel", "expected `shell` or `script`"),
        (r#"{"command": {}}"#, "command", "expected shell or script"),
        ("[command]", "command", "expected shell or script"),
        (r#"{"command": "x"}"#, "command", "expected shell or script"),
        (
            r#"{"command": {"shell": {"cmd": "x"}, "script": {"content": "x"}}}"#,
            "command",
            "expected one of shell and script, not both",
        ),
        (r#"{"env": {"A": "1", "B": "", "A": "1"}}"#, "env.A", "duplicate key"),
        (r#"{"labels": {"a": "1", "a": "2"}}"#, "labels.a", "duplicate key"),
        (r#"{"name": "a", "name": "b"}"#, "name", "duplicate key"),
        (r#"{"resources": {"gpu": 0, "gpu": 1}}"#, "resources.gpu", "duplicate key"),
        (r#"{"command": {"shell": {"cmd": "x", "args": ["a", 1]}}}"#, "command.shell.args[1]", "expected a string"),
        ("[resources]\ncpu_cores = 0", "resources.cpu_cores", "expected more than zero"),
        (r#"{"timeout": "0s"}"#, "timeout", "expected more than zero"),
        (r#"{"name": ""}"#, "name", "expected 1 to 128 bytes"),
        ("idempotency_key = ''", "idempotency_key", "expected 1 to 128 bytes"),
        ("user = ''", "user", "expected a user's name"),
        ("working_directory = ''", "working_directory", "expected a directory"),
        ("[env]\nA = 1", "env.A", "expected a string"),
        (r#"{"output_policy": "keep"}"#, "output_policy", "expected `block` or `drop`"),
        (r#"{"retry": {"exit_codes": ["x"]}}"#, "retry.exit_codes[0]", "expected a whole number"),
    ];
    for (text, path, expected) in cases {
        for text in in_all_formats(text) {
            match parse(&text) {
                Err(BadJobFile::Field { field, problem }) => {
                    assert_eq!(field, path, "{text}: {problem}");
                    assert!(problem.contains(expected), "{text}: {problem}");
                }
                other => panic!("{text}: {other:?}"),
            }
        }
    }
}

/// The same document in the other formats, but for duplicate keys, which only its own can express.
fn in_all_formats(text: &str) -> Vec<String> {
    let mut texts = vec![text.to_owned()];
    if text.starts_with('{') {
        // Flow style is what JSON looks like in YAML, duplicate keys included.
        texts.push(format!("---\n{text}"));
    }
    let value: serde_json::Value = match serde_json::from_str(text).or_else(|_| toml::from_str(text)) {
        Ok(value) => value,
        Err(error) => panic!("{text}: {error}"),
    };
    if !has_duplicates(text, &value) {
        texts.extend([value.to_string(), format!("---\n{value}"), toml::to_string(&value).unwrap()]);
    }
    texts
}

fn has_duplicates(text: &str, value: &serde_json::Value) -> bool {
    text.starts_with('{') && text.matches('"').count() > value.to_string().matches('"').count()
}

#[test]
fn text_in_neither_format_is_a_syntax_error() {
    for text in ["{", "name = ", "{} {}", "just words", "name: [", "a: b: c", "a: *b", "--- {}\n--- {}"] {
        assert!(matches!(parse(text), Err(BadJobFile::Syntax(_))), "{text}: {:?}", parse(text));
    }
}

#[test]
fn a_syntax_error_is_one_line_with_its_place() {
    for (text, expected) in [
        ("[env]\nA = \"1\"\nA = \"2\"", "duplicate key at line 3 column 1"),
        ("name = \"a\"\nnäme", "at line 2 column"),
        ("{\"name\": }", "at line 1 column 10"),
        ("name: x\n  env: y", "at line 2 column"),
    ] {
        let message = parse(text).unwrap_err().to_string();
        assert!(message.contains(expected) && !message.contains('\n'), "{text}: {message}");
    }
}

#[test]
fn json_that_is_no_object_is_no_job() {
    for text in ["- a\n- b", "--- x", "---", " [{\"name\": \"x\"}]", "[ {", "[]", "[1, 2]", "\"x\"", "null", "7"] {
        assert_eq!(parse(text).unwrap_err().to_string(), "expected one job: an object", "{text}");
    }
    parse("[[constraints]]\nattribute = \"a\"\noperator = \"=\"\nvalue = \"b\"").unwrap();
}

#[test]
fn yaml_is_told_by_its_first_line() {
    for text in [
        "name: x",
        "# c\n\nname: 'a = b'",
        "\"name\": x",
        "--- {name: x}",
        "\u{feff}name: x",
        "%YAML 1.2\n---\nname: x",
    ] {
        let file = parse(text).unwrap_or_else(|bad| panic!("{text}: {bad}"));
        assert!(file.name.is_some(), "{text}");
    }
    for text in ["name = \"a: b\"", "\"name\" = 'x'", "# c: d\nname = 'x'", "[env]\nA = 'b: c'"] {
        parse(text).unwrap_or_else(|bad| panic!("{text}: {bad}"));
    }
    let script = "command:\n  script:\n    content: |\n      make\n      make test\n";
    let Some(Command::Script(script)) = parse(script).unwrap().command else { panic!("no script") };
    assert_eq!(script.content, "make\nmake test\n");
}
