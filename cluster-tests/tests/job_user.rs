//! Jobs run as other users, and read nothing of their agent.

use std::{fs, os::unix::fs::PermissionsExt as _};

use cluster_tests::Cluster;

/// Jobs of other users must be able to reach their directories.
fn open_up(cluster: &Cluster) -> bool {
    fs::set_permissions(cluster.dir(), fs::Permissions::from_mode(0o711)).unwrap_or_default();
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("skipped: needs root");
    }
    root
}

#[tokio::test]
async fn a_job_runs_as_the_user_that_it_names_with_that_users_environment() {
    let mut cluster = Cluster::one().await;
    if !open_up(&cluster) {
        return;
    }
    cluster.agent(&[0], &[]).await;
    let look = "id -un; id -Gn; echo $HOME $USER $LOGNAME; pwd >/dev/null && touch mine && stat -c %U . mine";
    let job = cluster.submit(&["--user", "nobody"], &["bash", "-c", look]).await;
    cluster.wait_state(&job, "Succeeded").await;
    let home = nix::unistd::User::from_name("nobody").unwrap().unwrap().dir;
    let expected = format!("nobody\nnogroup\n{} nobody nobody\nnobody\nnobody", home.display());
    assert_eq!(cluster.cli().ok(&["job", "logs", &job]).await, expected);
    assert_eq!(cluster.job(&job).await["spec"]["user"], "nobody");

    // The same from a job file, as a script.
    let file = cluster.dir().join("job.toml");
    fs::write(&file, "user = 'nobody'\n[command.script]\ncontent = 'id -un'\n").unwrap();
    let args = ["job", "submit", "-f", file.to_str().unwrap(), "--output", "quiet"];
    let job = cluster.cli().ok(&args).await;
    cluster.wait_state(&job, "Succeeded").await;
    assert_eq!(cluster.cli().ok(&["job", "logs", &job]).await, "nobody");
}

#[tokio::test]
async fn by_default_jobs_run_as_the_user_that_the_agent_is_told_and_cannot_read_its_files() {
    let mut cluster = Cluster::one().await;
    if !open_up(&cluster) {
        return;
    }
    let agent = cluster.agent(&[0], &["--job-user", "nobody"]).await;
    let data = cluster.agents[agent].data.clone();
    let look = format!(
        "id -un; ls {0} || echo no; ls {0}/attempts || echo no; ls {0}/pki || echo no; cat {0}/pki/* || echo no; \
         cat {0}/attempts/$HODEI_JOB_ID-1/* || echo no; cat /proc/$PPID/environ || echo no; kill -9 $PPID || echo no",
        data.display()
    );
    let job = cluster.submit(&[], &["bash", "-c", &look]).await;
    cluster.wait_state(&job, "Succeeded").await;
    let log = cluster.client(0).follow(&job).await.unwrap();
    let out = log.bytes(cluster_tests::client::STDOUT);
    assert_eq!(String::from_utf8_lossy(&out), format!("nobody\n{}", "no\n".repeat(7)));
    let job = cluster.submit(&["--user", "root"], &["id", "-un"]).await;
    let job = cluster.wait_state(&job, "Failed").await;
    assert_eq!(job["reason"]["cause"], "not_permitted", "{job}");
    assert_eq!(job["reason"]["message"], "user root: on this worker jobs run as nobody only");

    cluster.agents[agent].kill();
    let allows = ["--job-user", "nobody", "--allow-user", "root", "--label", "root=yes"];
    let other = cluster.agent(&[0], &allows).await;
    let other = cluster.agents[other].worker.clone();
    let labels = cluster.wait_worker(&other, |_| true).await["labels"].clone();
    assert_eq!(labels["hodei.users"], "nobody,root", "{labels}");
    let job = cluster.submit(&["--user", "root", "--constraint", "label.root=yes"], &["id", "-un"]).await;
    cluster.wait_state(&job, "Succeeded").await;
    assert_eq!(cluster.cli().ok(&["job", "logs", &job]).await, "root");
}

#[tokio::test]
async fn an_unknown_user_is_an_end_of_its_own_kind() {
    let mut cluster = Cluster::one().await;
    cluster.agent(&[0], &[]).await;
    let output = cluster.cli().run(&["job", "run", "--user", "nobody-of-that-name", "--", "true"]).await;
    assert_eq!(output.code, 126, "{}", output.stderr);
    let end = cluster.job("last").await;
    assert_eq!((&end["reason"]["kind"], &end["reason"]["cause"]), (&"could_not_start".into(), &"not_permitted".into()));
    assert!(end["reason"]["message"].as_str().unwrap().contains("nobody-of-that-name"), "{end}");
    // Nothing is submitted with a name that cannot be one.
    cluster.cli().run(&["job", "submit", "--user", "", "--", "true"]).await.expect(2);
    let long = "x".repeat(65);
    let output = cluster.cli().run(&["job", "submit", "--user", &long, "--", "true"]).await.expect(2);
    assert!(output.stderr.contains("user: expected 1 to 64 bytes"), "{}", output.stderr);
}
