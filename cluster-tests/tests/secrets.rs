//! Secrets reach the jobs that name them, and are seen nowhere else.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use cluster_tests::{Cluster, wait};
use serde_json::Value;

/// Values that stand nowhere by chance.
const PASSWORD: &str = "correct-horse-battery-7f3a91";
const KEY: &str = "-----BEGIN SECRET-----\nq8w7e6r5t4y3u2i1\n\"quoted\" o0p9a8s7d6f5\n-----END SECRET-----\n";
/// What is looked for: these, and the lines of them that are like no others.
const NEEDLES: [&str; 3] = [PASSWORD, "q8w7e6r5t4y3u2i1", "o0p9a8s7d6f5"];

/// Says what it was given without saying it.
const DIGESTS: &str = "sha256sum <&0; printf %s \"$PASSWORD\" | sha256sum; env | grep -c ^PASSWORD=";

fn sha256(text: &str) -> String {
    let mut child =
        Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("coreutils are there");
    child.stdin.take().expect("it was piped").write_all(text.as_bytes()).expect("it reads");
    let output = child.wait_with_output().expect("a child can be waited for");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn files(dir: &Path, found: &mut Vec<PathBuf>) {
    // What goes while it is looked at is gone.
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => files(&entry.path(), found),
            Ok(kind) if kind.is_file() => found.push(entry.path()),
            _ => {}
        }
    }
}

fn contains(bytes: &[u8], needle: &str) -> bool {
    memchr::memmem::find(bytes, needle.as_bytes()).is_some()
}

/// No file of the cluster (data directories, homes, everything that its processes have said) holds a value, and no
/// process but those with `may` in their environment shows one.
fn assert_nowhere(cluster: &Cluster, may: &str) {
    let mut all = Vec::new();
    files(cluster.dir(), &mut all);
    assert!(all.iter().any(|path| path.ends_with("pki/secrets.key")), "the right directory is looked at");
    for path in all {
        let bytes = fs::read(&path).unwrap_or_default();
        for needle in NEEDLES {
            assert!(!contains(&bytes, needle), "{needle} is in {}", path.display());
        }
    }
    for process in fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.path()) {
        for name in ["cmdline", "environ"] {
            let bytes = fs::read(process.join(name)).unwrap_or_default();
            let own = name == "environ" && !may.is_empty() && contains(&bytes, may);
            let seen = NEEDLES.iter().find(|needle| contains(&bytes, needle));
            assert!(own || seen.is_none(), "{seen:?} is in {}", process.join(name).display());
        }
    }
}

async fn put(cluster: &Cluster, name: &str, value: &str) -> String {
    let cli = cluster.cli();
    let args = ["secret", "put", name, "--output", "quiet"];
    cli.run_with_input(&args, Some(value)).await.expect(0).text()
}

#[tokio::test]
async fn a_job_gets_its_secrets_and_nobody_else_sees_them() {
    let mut cluster = Cluster::start(3).await;
    // The gateway is not the founder: it has the key from joining.
    let agent = cluster.agent(&[2], &[]).await;
    assert_eq!(put(&cluster, "password", PASSWORD).await, "1");
    assert_eq!(put(&cluster, "deploy/key", KEY).await, "1");

    let release = cluster.dir().join("release");
    let script = format!(
        "{DIGESTS}; echo \"it is $PASSWORD!\"; echo {PASSWORD_PARTS}; while [ ! -e {} ]; do echo \"$PASSWORD\"; \
         echo \"$PASSWORD\" >&2; sleep 0.05; done; echo end; printf 'no newline %s' \"$PASSWORD\"",
        release.display()
    );
    let secrets = ["--secret", "password=PASSWORD", "--secret", "deploy/key"];
    let job = cluster.submit(&secrets, &["bash", "-c", &script]).await;
    let cli = cluster.cli();
    wait::until_true("the job writes", Duration::from_secs(20), || async {
        cli.run(&["job", "logs", &job]).await.text().contains("it is")
    })
    .await;
    let variable = format!("HODEI_JOB_ID={job}");
    assert_nowhere(&cluster, &variable);

    // A successor of the agent goes on masking, although nobody tells it the secrets again.
    cluster.agents[agent].kill();
    cluster.agents[agent].start();
    let worker = cluster.agents[agent].worker.clone();
    cluster.wait_worker(&worker, |row| row["state"] == "Busy" && !row["gateway"].is_null()).await;
    let lines = async || cli.run(&["job", "logs", &job]).await.stdout.len();
    let before = lines().await;
    wait::until_true("the log goes on", Duration::from_secs(20), async || lines().await > before + 1_000).await;
    assert_nowhere(&cluster, &variable);
    // Whatever its watchdog leaves on disk when there is no agent is masked too.
    cluster.agents[agent].kill();
    fs::write(&release, "").unwrap();
    wait::until_true("its watchdog goes", Duration::from_secs(20), || async { cluster.watchdogs().is_empty() }).await;
    assert_nowhere(&cluster, "");
    cluster.agents[agent].start();
    let job = cluster.wait_state(&job, "Succeeded").await;

    let id = job["id"].as_str().unwrap();
    let log = cli.run(&["job", "logs", id]).await.expect(0);
    let text = log.text();
    let given = serde_json::json!({ "deploy/key": KEY }).to_string() + "\n";
    let mut expected = sha256(&given) + &sha256(PASSWORD);
    expected.push_str("1\n");
    expected.push_str(&format!("it is {}!\n", "*".repeat(PASSWORD.len())));
    assert!(text.starts_with(&expected), "expected\n{expected}\nnot\n{text}");
    assert!(text.ends_with(&format!("end\nno newline {}", "*".repeat(PASSWORD.len()))), "{text}");
    assert!(NEEDLES.iter().all(|needle| !contains(&log.stdout, needle) && !log.stderr.contains(needle)));
    assert!(job.to_string().contains("deploy/key") && !job.to_string().contains(PASSWORD), "{job}");

    // Who was given what is known, to administrators.
    let uses = cli.json(&["secret", "uses"]).await;
    let uses: Vec<_> = uses.as_array().unwrap().iter().map(|used| (&used["name"], &used["version"])).collect();
    assert_eq!(uses, [(&"deploy/key".into(), &1.into()), (&"password".into(), &1.into())]);
    let events = cli.ok(&["events", "--kind", "secret", "--output", "json"]).await;
    let events: Vec<Value> = events.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let told: Vec<_> = events.iter().map(|event| (&event["secret"], &event["version"], &event["attempt"])).collect();
    assert_eq!(told, [(&"deploy/key".into(), &1.into(), &1.into()), (&"password".into(), &1.into(), &1.into())]);
    assert!(events.iter().all(|event| event["job_id"] == id && event["worker_id"] == worker.as_str()), "{events:?}");
    // Everything is on disk now, whatever was in memory only.
    for node in &mut cluster.nodes {
        node.stop().await;
    }
    assert_nowhere(&cluster, "");
}

/// What a script may say of it without having it.
const PASSWORD_PARTS: &str = "correct-horse";

#[tokio::test]
async fn a_secret_that_is_not_there_is_said() {
    let mut cluster = Cluster::one().await;
    cluster.agent(&[0], &["--capacity", "1"]).await;
    let cli = cluster.cli();
    let unknown = cli.run(&["job", "submit", "--secret", "token", "--", "true"]).await.expect(2);
    assert!(unknown.stderr.contains("secrets[0].name: expected the name of a secret"), "{}", unknown.stderr);

    put(&cluster, "token", PASSWORD).await;
    assert_eq!(put(&cluster, "token", "another value").await, "2");
    let release = cluster.dir().join("release");
    let wait = format!("while [ ! -e {} ]; do sleep 0.05; done", release.display());
    let first = cluster.submit(&[], &["bash", "-c", &wait]).await;
    cluster.wait_state(&first, "Running").await;
    let waiting = cluster.submit(&["--secret", "token"], &["cat"]).await;
    let given = cluster.submit(&[], &["cat"]).await;
    assert_eq!(cli.ok(&["secret", "list", "--output", "quiet"]).await, "token");
    cli.ok(&["secret", "remove", "token"]).await;
    fs::write(&release, "").unwrap();
    let job = cluster.wait_state(&waiting, "Failed").await;
    assert_eq!(
        (&job["reason"]["kind"], &job["reason"]["cause"]),
        (&"could_not_start".into(), &"no_secret".into()),
        "{job}"
    );
    cli.run(&["job", "wait", &waiting]).await.expect(126);
    let again = cli.run(&["job", "retry", &waiting]).await.expect(2);
    assert!(again.stderr.contains("there is none named \"token\""), "{}", again.stderr);
    // Without secrets nothing is read.
    cluster.wait_state(&given, "Succeeded").await;
    cli.run(&["secret", "remove", "token"]).await.expect(1);
}

#[tokio::test]
async fn only_administrators_have_secrets_and_bad_input_is_refused() {
    let cluster = Cluster::one().await;
    let cli = cluster.cli();
    let user = cluster_tests::Cli::nobody(&cluster.dir().join("user"));
    let (address, token) = (cluster.nodes[0].address.to_string(), cluster.token("user").await);
    user.run(&["enroll", &address, "--token", &token]).await.expect(0);
    for args in [&["secret", "put", "x"][..], &["secret", "list"], &["secret", "remove", "x"], &["secret", "uses"]] {
        user.run_with_input(args, Some("value")).await.expect(77);
    }

    let longest = "x".repeat(64 * 1024);
    assert_eq!(put(&cluster, "longest", &longest).await, "1");
    let longer = format!("{longest}x");
    for (name, value, why) in [
        ("", "value", "expected 1 to 128 letters"),
        ("a b", "value", "expected 1 to 128 letters"),
        ("x", "", "1 byte to 64 KiB"),
        ("x", "a\0b", "1 byte to 64 KiB"),
        ("x", longer.as_str(), "1 byte to 64 KiB"),
    ] {
        let output = cli.run_with_input(&["secret", "put", name], Some(value)).await.expect(2);
        assert!(output.stderr.contains(why), "{}", output.stderr);
    }
    cli.run(&["secret", "put", "x", "-f", "/no/such/file"]).await.expect(2);
    let binary = cluster.dir().join("binary");
    fs::write(&binary, [0xff, 0xfe, 0x80]).unwrap();
    let output = cli.run(&["secret", "put", "x", "-f", binary.to_str().unwrap()]).await.expect(2);
    assert!(output.stderr.contains("UTF-8"), "{}", output.stderr);
    let listed: Value = cli.json(&["secret", "list"]).await;
    assert_eq!(listed.as_array().unwrap().len(), 1, "{listed}");
}
