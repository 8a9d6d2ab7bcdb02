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

#[test]
fn both_formats_say_the_same() {
    let toml = parse(TOML).unwrap();
    assert_eq!(toml, parse(JSON).unwrap());
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
        ("priority = \"high\"", "priority", "expected i32"),
        ("priority = 3000000000", "priority", "expected i32"),
        (r#"{"command": {"shell": {}}}"#, "command.shell.cmd", "missing field"),
        (r#"{"command": {"shel": {"cmd": "x"}}}"#, "command", "unknown variant"),
        (r#"{"command": {"shell": {"cmd": "x", "args": ["a", 1]}}}"#, "command.shell.args[1]", "expected a string"),
        ("[resources]\ncpu_cores = 0", "resources.cpu_cores", "expected more than zero"),
        (r#"{"timeout": "0s"}"#, "timeout", "expected more than zero"),
        ("[env]\nA = 1", "env.A", "expected a string"),
        (r#"{"output_policy": "keep"}"#, "output_policy", "expected `block` or `drop`"),
        (r#"{"retry": {"exit_codes": ["x"]}}"#, "retry.exit_codes[0]", "expected i32"),
    ];
    for (text, path, expected) in cases {
        match parse(text) {
            Err(BadJobFile::Field { field, problem }) => {
                assert_eq!(field, path, "{text}: {problem}");
                assert!(problem.contains(expected), "{text}: {problem}");
            }
            other => panic!("{text}: {other:?}"),
        }
    }
}

#[test]
fn text_in_neither_format_is_a_syntax_error() {
    for text in ["{", "name = ", "{} {}", "just words"] {
        assert!(matches!(parse(text), Err(BadJobFile::Syntax(_))), "{text}: {:?}", parse(text));
    }
}
