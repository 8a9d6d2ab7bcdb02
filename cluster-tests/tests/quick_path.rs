//! The shortest way through the product, as a new user takes it.

use std::{fs, time::Duration};

use cluster_tests::{Cli, Cluster, Proc, cli, wait};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

const SOON: Duration = Duration::from_secs(30);

#[tokio::test]
async fn dev_in_one_terminal_and_job_run_in_another() {
    let dir = tempfile::tempdir().unwrap();
    let mut dev = Proc::spawn("dev", cli::clean("hodei-node", dir.path()).arg("dev"), dir.path());
    dev.ready(SOON).await;

    // No server, no identity, no environment: the second terminal needs nothing.
    let user = Cli::nobody(dir.path());
    // Everybody on the machine can read arguments.
    let arguments = arguments_of_children(&dev);
    assert_eq!(arguments.len(), 4, "three nodes and an agent: {arguments:?}");
    assert!(arguments.iter().all(|line| !line.contains("hodei1.")), "{arguments:?}");
    let gate = dir.path().join("gate");
    let script = format!("echo 1; echo 2; while [ ! -e {} ]; do sleep 0.02; done; echo 3; exit 7", gate.display());
    let mut run = user.spawn("run", &["job", "run", "--", "bash", "-c", &script]);
    // The lines come while the job runs: it cannot end before the gate opens.
    wait::until_true("the first lines arrive", SOON, || async { run.stdout() == b"1\n2\n" }).await;
    assert!(!run.is_gone());
    fs::write(&gate, "").unwrap();
    let status = run.exit(SOON).await;
    assert_eq!((cli::exit_code(status), run.stdout_text().as_str()), (7, "1\n2\n3\n"));

    if nix::unistd::geteuid().is_root() {
        let whose = user.run(&["job", "run", "--user", "nobody", "--", "id", "-un"]).await;
        assert_eq!(whose.expect(0).text(), "nobody");
    } else {
        eprintln!("skipped: a job as another user needs root");
    }

    // Of three nodes one may die.
    kill(children(&dev)[0], Signal::SIGKILL).unwrap();
    wait::until_true("it says so", SOON, || async { dev.stderr_text().contains("The others go on.") }).await;
    user.run(&["job", "run", "--", "true"]).await.expect(0);

    // Ctrl-C ends it and takes away what it put into the user's home.
    dev.signal(Signal::SIGINT);
    assert!(dev.exit(SOON).await.success(), "{}", dev.stderr_text());
    user.run(&["job", "list"]).await.expect(2);
}

fn arguments_of_children(process: &Proc) -> Vec<String> {
    let of = |child| fs::read_to_string(format!("/proc/{child}/cmdline")).expect("a child has arguments");
    children(process).into_iter().map(of).collect()
}

/// In the order in which they were started: nodes, then agents.
fn children(process: &Proc) -> Vec<Pid> {
    let pid = process.pid();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).expect("its children are known");
    children.split_whitespace().map(|pid| Pid::from_raw(pid.parse().expect("a process id"))).collect()
}

#[tokio::test]
async fn dev_takes_over_from_one_that_was_killed_but_not_from_one_that_lives() {
    let dir = tempfile::tempdir().unwrap();
    // One that is killed leaves its directory behind: inside the test's own.
    let start = |name| {
        let mut dev = cli::clean("hodei-node", dir.path());
        Proc::spawn(name, dev.args(["dev", "--nodes", "1"]).env("TMPDIR", dir.path()), dir.path())
    };
    let user = Cli::nobody(dir.path());
    let default = dir.path().join("home/.config/hodei/client.toml");
    let mut killed = start("killed");
    killed.ready(SOON).await;
    let first = fs::read_to_string(&default).unwrap();
    let mut other = start("other");
    other.ready(SOON).await;
    assert_eq!(fs::read_to_string(&default).unwrap(), first);
    other.signal(Signal::SIGINT);
    other.exit(SOON).await;

    killed.signal(Signal::SIGKILL);
    killed.exit(SOON).await;
    let left = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path());
    let left: Vec<_> = left.filter(|path| path.join("dev.lock").exists()).collect();
    assert_eq!(left.len(), 1);
    let lock = fs::File::open(left[0].join("dev.lock")).unwrap();
    wait::until_true("its processes are gone, too", SOON, || async { lock.try_lock().is_ok() }).await;
    lock.unlock().unwrap();
    let mut next = start("next");
    next.ready(SOON).await;
    assert_ne!(fs::read_to_string(&default).unwrap(), first);
    assert!(!left[0].exists(), "what it left is taken away");
    user.run(&["job", "list"]).await.expect(0);
    // Without its only node there is nothing to go on with.
    kill(children(&next)[0], Signal::SIGKILL).unwrap();
    assert_eq!(cli::exit_code(next.exit(SOON).await), 1, "{}", next.stderr_text());
}

#[tokio::test]
async fn job_run_ends_as_the_job_does() {
    let mut cluster = Cluster::start(3).await;
    cluster.agent(&[1], &[]).await;
    let cli = cluster.cli();
    let not_executable = cluster.dir().join("plain.txt");
    fs::write(&not_executable, "no program").unwrap();

    let cases: [(&[&str], i32); 6] = [
        (&["true"], 0),
        (&["bash", "-c", "exit 7"], 7),
        (&["bash", "-c", "kill -KILL $$"], 137),
        (&["bash", "-c", "kill -TERM $$"], 143),
        (&["no-such-command-anywhere"], 127),
        (&[not_executable.to_str().unwrap()], 126),
    ];
    for (command, code) in cases {
        let output = cli.run(&[&["job", "run", "--"], command].concat()).await;
        assert_eq!(output.code, code, "{command:?}: {}", output.stderr);
        assert!(output.stdout.is_empty(), "{command:?} printed {:?}", output.text());
    }

    // What cannot show the output leaves the job alone, and says so.
    let mut run = cli.command(&["job", "run", "--name", "shown", "--", "sh", "-c", "echo; sleep 1000"]);
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = tokio::task::spawn_blocking(move || run.stdout(full).output().unwrap()).await.unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && said.contains("goes on") && said.contains("cannot write"), "{said}");
    cluster.wait_state("shown", "Running").await;
}

#[tokio::test]
async fn a_job_runs_in_a_clean_environment() {
    let mut cluster = Cluster::one().await;
    cluster.agent(&[0], &[]).await;
    let output = cluster.cli().run(&["job", "run", "--env", "COLOUR=red", "--", "env"]).await.expect(0);
    let mut names: Vec<_> = output.text().lines().filter_map(|l| Some(l.split_once('=')?.0.to_owned())).collect();
    names.sort();
    let expected =
        ["COLOUR", "HODEI_ATTEMPT", "HODEI_FENCE", "HODEI_JOB_ID", "HODEI_WORKER_ID", "HOME", "LANG", "PATH"];
    assert_eq!(names, expected);
    assert!(output.text().contains("COLOUR=red") && output.text().contains("HODEI_ATTEMPT=1"));
}
