//! Starts an attempt. Blocking, and in the order that a crash at any point can be cleaned up after: control groups, its
//! watchdog (which makes nothing yet), intent on disk, private directory, process.

use std::{
    collections::BTreeMap,
    env,
    ffi::CString,
    fs, io,
    os::{fd::OwnedFd, unix::fs::chown},
    path::{Path, PathBuf},
    time::Duration,
};

use hodei_proto::v1::{JobSpec, OutputPolicy, command::Kind};

use super::{
    account::{Account, Accounts},
    cgroup::{Cgroup, CgroupRoot},
    intent::{Intent, ProcessMark, Terms},
    limits::Limiter,
    lookup, script,
    secrets::Secrets,
};
use crate::{
    clock::Boot,
    data_dir::AttemptDirs,
    gpu,
    key::AttemptKey,
    log::capture::WhenFull,
    watchdog::{
        guard::{FORK, Guarded, Program, Started},
        launch::Launch,
        process::{Image, c_string},
        wire::NotStarted,
    },
};

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Between SIGTERM and SIGKILL where the job does not say.
const GRACE_PERIOD: Duration = Duration::from_secs(10);

/// What a process is made of.
pub struct Plan {
    /// Which attempt.
    pub key: AttemptKey,
    /// What it runs.
    pub spec: JobSpec,
    /// What it is given.
    pub secrets: Secrets,
    /// Its directories.
    pub dirs: AttemptDirs,
    /// This process' session.
    pub session: String,
    /// The worker's id.
    pub worker_id: String,
    /// Where control groups may be made.
    pub cgroups: Option<CgroupRoot>,
    /// Where what it uses can be bounded.
    pub limiter: Limiter,
    /// Its lease.
    pub lost_after: Duration,
    /// Whom jobs may run as.
    pub accounts: Accounts,
    /// Its own; absent where no job gets any.
    pub gpus: Option<Vec<String>>,
    /// What is started as its watchdog.
    pub watchdog: Program,
}

/// What there is of an attempt before its process.
pub struct Prepared {
    /// On disk.
    pub intent: Intent,
    watchdog: Started,
    cgroup: Option<Cgroup>,
    limits: Vec<Cgroup>,
}

impl Prepared {
    /// There is to be no process.
    pub fn dismiss(self) {
        self.watchdog.dismiss();
    }
}

impl Plan {
    /// Starts the watchdog and writes the intent; from here on the attempt leaves a trace. The lease is checked afterwards,
    /// by the caller.
    pub fn prepare(&self) -> io::Result<Prepared> {
        crate::disk::make_dir(&self.dirs.record, 0o700)?;
        let name = format!("{}-{}", self.dirs.name(), self.key.fence);
        let cgroup = self.cgroups.as_ref().and_then(|root| match root.create(&name) {
            Ok(cgroup) => Some(cgroup),
            Err(error) => {
                tracing::warn!(attempt = %self.key, %error, "no control group for this attempt");
                None
            }
        });
        let limits = self.bounds(&name, cgroup.as_ref());
        let watchdog = {
            let _no_script_is_written = FORK.lock();
            Started::start(&self.watchdog.0, &self.dirs.record, &self.dirs.name())?
        };
        // While it becomes ready.
        crate::failpoint!("agent::before-intent");
        let intent = Intent::new(self.key, &self.session, self.terms(), cgroup.as_ref(), &limits)
            .having(self.gpus.as_deref().unwrap_or_default());
        let written = intent.write(&self.dirs.record);
        crate::failpoint!("agent::after-intent");
        match written {
            Ok(()) => Ok(Prepared { intent, watchdog, cgroup, limits }),
            Err(error) => {
                watchdog.dismiss();
                Err(error)
            }
        }
    }

    /// Bounds what the job uses, where that can be done. Where it cannot, the scheduler's reckoning is all there is.
    fn bounds(&self, name: &str, cgroup: Option<&Cgroup>) -> Vec<Cgroup> {
        let Some(wanted) = &self.spec.resources else { return Vec::new() };
        self.limiter.apply(name, cgroup, wanted).unwrap_or_else(|error| {
            tracing::warn!(attempt = %self.key, %error, "what this attempt uses is not bounded");
            Vec::new()
        })
    }

    /// Has the watchdog make the process, which may run until `deadline`.
    pub fn launch(&self, prepared: Prepared, deadline: Boot) -> Result<Guarded, NotStarted> {
        let (image, stdin, masked) = match self.ready() {
            Ok(ready) => ready,
            Err(why) => {
                prepared.watchdog.dismiss();
                return Err(why);
            }
        };
        let ms = |value: u64| (value > 0).then(|| Duration::from_millis(value));
        let has_group = prepared.cgroup.is_some();
        let dir = |group: Cgroup| group.dir().to_owned();
        let launch = Launch {
            image,
            cgroup: prepared.cgroup.map(dir),
            limits: prepared.limits.into_iter().map(dir).collect(),
            deadline,
            timeout: ms(self.spec.timeout_ms),
            grace: ms(self.spec.grace_period_ms).unwrap_or(GRACE_PERIOD),
            masked,
        };
        crate::failpoint!("agent::before-spawn");
        let guarded = prepared.watchdog.launch(&launch, stdin.as_ref())?;
        crate::failpoint!("agent::after-spawn");
        if !has_group && let Err(error) = ProcessMark::of(guarded.pid).and_then(|mark| mark.write(&self.dirs.record)) {
            tracing::warn!(attempt = %self.key, %error, "cannot record the process");
        }
        Ok(guarded)
    }

    /// What of the job this process has to know while it runs.
    #[must_use]
    pub fn terms(&self) -> Terms {
        let drop = self.spec.output_policy() == OutputPolicy::Drop;
        Terms { lost_after: self.lost_after, when_full: if drop { WhenFull::Drop } else { WhenFull::Block } }
    }

    /// Everything that the process needs on disk, and what it is made from.
    fn ready(&self) -> Result<(Image, Option<OwnedFd>, Vec<CString>), NotStarted> {
        self.secrets.check(&self.spec)?;
        let user = self.accounts.of(&self.spec.user)?;
        self.private_dir(user.as_ref()).map_err(|error| NotStarted::io("private directory", &error))?;
        Ok((self.image(user.as_ref())?, self.secrets.stdin()?, self.secrets.masked()?))
    }

    fn private_dir(&self, user: Option<&Account>) -> io::Result<()> {
        crate::disk::make_dir(&self.dirs.private, 0o700)?;
        match user {
            Some(user) => chown(&self.dirs.private, Some(user.ids.uid), Some(user.ids.gid)),
            None => Ok(()),
        }
    }

    fn image(&self, user: Option<&Account>) -> Result<Image, NotStarted> {
        let dir = self.working_directory()?;
        let env = self.environment(user);
        let kind = self.spec.command.as_ref().and_then(|command| command.kind.as_ref());
        let (program, arguments) = match kind {
            Some(Kind::Shell(shell)) if !shell.cmd.is_empty() => {
                let path = env.get("PATH").map_or("", String::as_str);
                let program = lookup::program(&shell.cmd, path, &dir, user.map(|account| &account.ids))?;
                (program, [&shell.cmd].into_iter().chain(&shell.args).map(c_string).collect())
            }
            Some(Kind::Script(script)) => {
                let program = self.script(script, user)?;
                let name = c_string(&program);
                (program, [name].into_iter().collect())
            }
            _ => return Err(NotStarted::other("the job names no command")),
        };
        let image = |arguments: io::Result<Vec<CString>>| {
            Ok(Image {
                program: c_string(program)?,
                arguments: arguments?,
                environment: env
                    .iter()
                    .map(|(name, value)| c_string(format!("{name}={value}")))
                    .collect::<io::Result<_>>()?,
                directory: c_string(dir)?,
                user: user.map(|user| user.ids.clone()),
            })
        };
        image(arguments).map_err(|error| NotStarted::io("exec", &error))
    }

    fn script(&self, script: &hodei_proto::v1::Script, user: Option<&Account>) -> Result<PathBuf, NotStarted> {
        let _nothing_is_forked = FORK.lock();
        let written = script::write(&self.dirs.private, script).and_then(|path| {
            user.map_or(Ok(()), |user| chown(&path, Some(user.ids.uid), Some(user.ids.gid)))?;
            Ok(path)
        });
        written.map_err(|error| NotStarted::io("script", &error))
    }

    /// Checked here, since exec cannot tell a missing directory from a missing program.
    fn working_directory(&self) -> Result<PathBuf, NotStarted> {
        let named = self.spec.working_directory.as_str();
        if named.is_empty() {
            return Ok(self.dirs.private.clone());
        }
        let dir = Path::new(named);
        let not_there = |why: &str| NotStarted::no_directory(format!("working directory {named}: {why}"));
        match fs::metadata(dir) {
            Ok(meta) if meta.is_dir() && dir.is_absolute() => Ok(dir.to_owned()),
            Ok(_) if dir.is_absolute() => Err(not_there("not a directory")),
            Ok(_) => Err(not_there("not an absolute path")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(not_there("not there")),
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => Err(not_there("not a directory")),
            Err(error) => Err(NotStarted::io(&format!("working directory {named}"), &error)),
        }
    }

    /// A clean one: nothing of the agent's own but PATH, HOME and LANG, and for another user what that user has. What Hodei
    /// sets, a job cannot override.
    fn environment(&self, user: Option<&Account>) -> BTreeMap<String, String> {
        let inherited = |name: &str, default: &str| {
            (name.to_owned(), env::var(name).ok().filter(|value| !value.is_empty()).unwrap_or(default.to_owned()))
        };
        let private = self.dirs.private.to_string_lossy();
        let mut env = BTreeMap::from([
            inherited("PATH", DEFAULT_PATH),
            inherited("HOME", &private),
            inherited("LANG", "C.UTF-8"),
        ]);
        if let Some(user) = user {
            let own = [("HOME", &user.home), ("USER", &user.name), ("LOGNAME", &user.name)];
            env.extend(own.map(|(name, value)| (name.to_owned(), value.clone())));
        }
        env.extend(self.spec.env.iter().map(|(name, value)| (name.clone(), value.clone())));
        env.extend(self.secrets.environment());
        env.extend(self.gpus.iter().flat_map(|has| gpu::environment(has)));
        env.extend([
            ("HODEI_JOB_ID".to_owned(), self.key.job.to_string()),
            ("HODEI_ATTEMPT".to_owned(), self.key.attempt.to_string()),
            ("HODEI_FENCE".to_owned(), self.key.fence.to_string()),
            ("HODEI_WORKER_ID".to_owned(), self.worker_id.clone()),
        ]);
        env
    }
}
