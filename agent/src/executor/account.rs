//! Whom a job runs as.

use nix::unistd::{User, geteuid, getgrouplist};

use crate::watchdog::{
    process::{self, c_string},
    wire::NotStarted,
};

/// A user of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// For USER and LOGNAME.
    pub name: String,
    /// For HOME.
    pub home: String,
    /// What the process gets.
    pub ids: process::User,
}

/// Whom jobs may run as.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Accounts {
    /// Whom jobs run as that name nobody; absent: as the agent, whatever that is. Then a bound would hold nobody back who is
    /// root already, and there is none.
    pub by_default: Option<String>,
    /// Whom else jobs may name where there is such a user.
    pub allowed: Vec<String>,
}

impl Accounts {
    /// The user that a job names, else the one that jobs run as by default; `None`: the agent's own. Looks into the machine's
    /// databases. Blocking.
    ///
    /// # Errors
    /// The user is not known here, or not one of these, or the agent cannot start a process as that.
    pub fn of(&self, named: &str) -> Result<Option<Account>, NotStarted> {
        let account = of(named, self.by_default.as_deref())?;
        let Some(by_default) = &self.by_default else { return Ok(account) };
        // Names may be aliases: whom they stand for counts.
        let wanted = account.as_ref().map_or_else(|| geteuid().as_raw(), |account| account.ids.uid);
        let listed = self.allowed.iter().chain([by_default]).filter_map(|name| User::from_name(name).ok().flatten());
        if named.is_empty() || listed.into_iter().any(|user| user.uid.as_raw() == wanted) {
            return Ok(account);
        }
        let names = self.names().join(", ");
        Err(NotStarted::not_permitted(format!("user {named}: on this worker jobs run as {names} only")))
    }

    /// All of them; none where any may be named.
    #[must_use]
    pub fn names(&self) -> Vec<&str> {
        let Some(by_default) = &self.by_default else { return Vec::new() };
        [by_default].into_iter().chain(&self.allowed).map(String::as_str).collect()
    }

    /// Refuses what could only fail later.
    ///
    /// # Errors
    /// The first user that is not known here, or that this agent cannot start a process as, with the flag that names it.
    pub fn check(&self) -> Result<(), (&'static str, NotStarted)> {
        of("", self.by_default.as_deref()).map_err(|why| ("--job-user", why))?;
        self.allowed.iter().try_for_each(|name| of(name, None).map(drop)).map_err(|why| ("--allow-user", why))
    }
}

fn of(named: &str, by_default: Option<&str>) -> Result<Option<Account>, NotStarted> {
    let name = Some(named).filter(|named| !named.is_empty()).or(by_default);
    let Some(name) = name else { return Ok(None) };
    let user = match User::from_name(name) {
        Ok(Some(user)) => user,
        Ok(None) => return Err(NotStarted::not_permitted(format!("user {name}: not known on this machine"))),
        Err(error) => return Err(NotStarted::other(format!("user {name}: {error}"))),
    };
    let own = geteuid();
    if user.uid == own {
        return Ok(None);
    }
    if !own.is_root() {
        return Err(NotStarted::not_permitted(format!("user {name}: this agent does not run as root")));
    }
    let failed = |error: &std::io::Error| NotStarted::other(format!("groups of user {name}: {error}"));
    let login = c_string(name).map_err(|error| failed(&error))?;
    let groups = getgrouplist(&login, user.gid).map_err(|error| failed(&error.into()))?;
    let groups = groups.into_iter().map(nix::unistd::Gid::as_raw).collect();
    let ids = process::User { uid: user.uid.as_raw(), gid: user.gid.as_raw(), groups };
    Ok(Some(Account { name: name.to_owned(), home: user.dir.to_string_lossy().into_owned(), ids }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watchdog::wire::Obstacle;

    #[test]
    fn the_job_decides_before_the_agent_and_nobody_unknown_runs() {
        assert_eq!(of("", None), Ok(None));
        let unknown = of("no-user-of-that-name", Some("root")).unwrap_err();
        assert_eq!(unknown.obstacle, Obstacle::NotPermitted);
        assert!(of("", Some("no-user-of-that-name")).is_err());
        if !geteuid().is_root() {
            assert_eq!(of("root", None).unwrap_err().obstacle, Obstacle::NotPermitted);
            return eprintln!("skipped: needs root");
        }
        assert_eq!(of("root", Some("nobody")), Ok(None), "its own user");
        let nobody = of("", Some("nobody")).unwrap().unwrap();
        assert_eq!((nobody.name.as_str(), nobody.ids.uid), ("nobody", 65_534));
        assert!(nobody.ids.groups.contains(&nobody.ids.gid) && !nobody.ids.groups.contains(&0), "{nobody:?}");
        assert_eq!(of("nobody", None).unwrap(), Some(nobody));
    }

    #[test]
    fn where_there_is_a_user_for_jobs_they_run_as_no_other_that_is_not_listed() {
        if !geteuid().is_root() {
            return eprintln!("skipped: needs root");
        }
        let bound = |allowed: &[&str]| Accounts {
            by_default: Some("nobody".to_owned()),
            allowed: allowed.iter().map(|&name| name.to_owned()).collect(),
        };
        let refused = bound(&["daemon"]).of("root").unwrap_err();
        assert_eq!(refused.obstacle, Obstacle::NotPermitted);
        assert_eq!(refused.message, "user root: on this worker jobs run as nobody, daemon only");
        assert_eq!(bound(&["daemon"]).of("daemon").unwrap().unwrap().name, "daemon");
        assert_eq!(bound(&[]).of("nobody").unwrap(), bound(&[]).of("").unwrap());
        assert_eq!(bound(&["root"]).of("root"), Ok(None), "its own user");
        assert_eq!(Accounts::default().of("root"), Ok(None), "as jobs that name nobody");
        assert_eq!(bound(&["no-user-of-that-name"]).check().unwrap_err().0, "--allow-user");
    }
}
