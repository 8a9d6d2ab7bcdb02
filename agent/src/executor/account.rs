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

/// The user that a job names, else the one that jobs run as by default; `None`: the agent's own. Looks into the machine's
/// databases. Blocking.
pub fn of(named: &str, by_default: Option<&str>) -> Result<Option<Account>, NotStarted> {
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
}
