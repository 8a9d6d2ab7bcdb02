//! Makes the process of an attempt. Blocking, and in the order that a crash at any point can be cleaned up after:
//! control group, intent on disk, private directory, process, its pid on disk.

use std::{
    collections::BTreeMap,
    env,
    ffi::CString,
    fs, io,
    os::{fd::OwnedFd, unix::fs::chown},
    path::{Path, PathBuf},
    sync::Arc,
};

use hodei_proto::v1::{JobSpec, command::Kind};
use nix::unistd::User;
use parking_lot::Mutex;

use super::{
    NotStarted,
    cgroup::CgroupRoot,
    intent::{Intent, ProcessMark},
    lookup,
    process::{Image, Process, c_string},
    script,
    tree::Tree,
};
use crate::{data_dir::AttemptDirs, key::AttemptKey};

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A child forked while a script is still open for writing would keep it open until its own exec, and executing the
/// script would fail with "text file busy". So no script is written while a process is being made.
static FORK: Mutex<()> = Mutex::new(());

/// What a process is made of.
pub struct Plan {
    /// Which attempt.
    pub key: AttemptKey,
    /// What it runs.
    pub spec: JobSpec,
    /// Its directories.
    pub dirs: AttemptDirs,
    /// This process' session.
    pub session: String,
    /// The worker's id.
    pub worker_id: String,
    /// Where control groups may be made.
    pub cgroups: Option<CgroupRoot>,
}

/// A process that runs.
pub struct Launched {
    /// Not yet reaped.
    pub process: Process,
    /// The same as a tree.
    pub tree: Arc<Tree>,
    /// The read end of its standard output.
    pub stdout: OwnedFd,
    /// The read end of its standard error.
    pub stderr: OwnedFd,
}

impl Plan {
    /// Writes the intent; from here on the attempt leaves a trace. The lease is checked afterwards, by the caller.
    pub fn prepare(&self) -> io::Result<Intent> {
        crate::disk::make_dir(&self.dirs.record, 0o700)?;
        let name = format!("{}-{}", self.dirs.name(), self.key.fence);
        let cgroup = self.cgroups.as_ref().and_then(|root| match root.create(&name) {
            Ok(cgroup) => Some(cgroup),
            Err(error) => {
                tracing::warn!(attempt = %self.key, %error, "no control group for this attempt");
                None
            }
        });
        let intent = Intent::new(self.key, &self.session, cgroup.as_ref());
        intent.write(&self.dirs.record)?;
        Ok(intent)
    }

    /// Makes the process.
    pub fn launch(&self, intent: &Intent) -> Result<Launched, NotStarted> {
        if !self.spec.secrets.is_empty() {
            return Err(NotStarted::other("this agent has no support for secrets"));
        }
        let user = self.user()?;
        self.private_dir(user.as_ref()).map_err(|error| NotStarted::io("private directory", &error))?;
        let image = self.image(user.as_ref())?;
        let cgroup = intent.cgroup();
        let (process, stdout, stderr) = {
            let _no_script_is_written = FORK.lock();
            image.spawn(cgroup.as_ref()).map_err(|error| NotStarted::io("exec", &error))?
        };
        let tree = Arc::new(Tree::new(process.id(), cgroup));
        if let Err(error) = ProcessMark::of(process.id()).and_then(|mark| mark.write(&self.dirs.record)) {
            // Without the mark a successor could not find it; better no job than one that nobody can end.
            tree.kill();
            let _ = tree.reap(&process);
            return Err(NotStarted::io("cannot record the process", &error));
        }
        Ok(Launched { process, tree, stdout, stderr })
    }

    fn user(&self) -> Result<Option<User>, NotStarted> {
        let name = self.spec.user.as_str();
        if name.is_empty() {
            return Ok(None);
        }
        match User::from_name(name) {
            Ok(Some(user)) => Ok(Some(user)),
            Ok(None) => Err(NotStarted::other(format!("user {name} is not known on this machine"))),
            Err(error) => Err(NotStarted::other(format!("user {name}: {error}"))),
        }
    }

    fn private_dir(&self, user: Option<&User>) -> io::Result<()> {
        crate::disk::make_dir(&self.dirs.private, 0o700)?;
        match user {
            Some(user) => chown(&self.dirs.private, Some(user.uid.as_raw()), Some(user.gid.as_raw())),
            None => Ok(()),
        }
    }

    fn image(&self, user: Option<&User>) -> Result<Image, NotStarted> {
        let dir = self.working_directory()?;
        let env = self.environment(user);
        let kind = self.spec.command.as_ref().and_then(|command| command.kind.as_ref());
        let (program, arguments) = match kind {
            Some(Kind::Shell(shell)) if !shell.cmd.is_empty() => {
                let path = env.get("PATH").map_or("", String::as_str);
                let program = lookup::program(&shell.cmd, path, &dir)?;
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
                user: user.map(|user| (user.uid.as_raw(), user.gid.as_raw())),
            })
        };
        image(arguments).map_err(|error| NotStarted::io("exec", &error))
    }

    fn script(&self, script: &hodei_proto::v1::Script, user: Option<&User>) -> Result<PathBuf, NotStarted> {
        let _nothing_is_forked = FORK.lock();
        let written = script::write(&self.dirs.private, script).and_then(|path| {
            user.map_or(Ok(()), |user| chown(&path, Some(user.uid.as_raw()), Some(user.gid.as_raw())))?;
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
        match fs::metadata(dir) {
            Ok(meta) if meta.is_dir() && dir.is_absolute() => Ok(dir.to_owned()),
            Ok(_) => Err(NotStarted::other(format!("working directory {named}: not an absolute path of a directory"))),
            Err(error) => Err(NotStarted::other(format!("working directory {named}: {error}"))),
        }
    }

    /// A clean one: nothing of the agent's own but PATH, HOME and LANG. What Hodei sets, a job cannot override.
    fn environment(&self, user: Option<&User>) -> BTreeMap<String, String> {
        let inherited = |name: &str, default: &str| {
            (name.to_owned(), env::var(name).ok().filter(|value| !value.is_empty()).unwrap_or(default.to_owned()))
        };
        let private = self.dirs.private.to_string_lossy();
        let home = match user {
            Some(user) => ("HOME".to_owned(), user.dir.to_string_lossy().into_owned()),
            None => inherited("HOME", &private),
        };
        let mut env = BTreeMap::from([inherited("PATH", DEFAULT_PATH), home, inherited("LANG", "C.UTF-8")]);
        env.extend(self.spec.env.iter().map(|(name, value)| (name.clone(), value.clone())));
        env.extend([
            ("HODEI_JOB_ID".to_owned(), self.key.job.to_string()),
            ("HODEI_ATTEMPT".to_owned(), self.key.attempt.to_string()),
            ("HODEI_FENCE".to_owned(), self.key.fence.to_string()),
            ("HODEI_WORKER_ID".to_owned(), self.worker_id.clone()),
        ]);
        env
    }
}
