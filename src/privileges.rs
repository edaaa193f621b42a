//! Changing to the user that the daemon runs as, once it has opened what only root may open.

use std::ffi::CString;

use anyhow::{Context, Result, bail};
use nix::unistd::{self, Gid, Group, Uid, User};

/// The user and groups to change to.
#[derive(Debug, PartialEq, Eq)]
struct Account {
    uid: Uid,
    gid: Gid,
    /// All groups of the process.
    groups: Vec<Gid>,
}

/// Makes the process run as another user, irrevocably, in all of its threads. It is in `group` alone, or without one in
/// all groups of the user. Both are names or numbers.
pub(crate) fn become_user(user: &str, group: Option<&str>) -> Result<()> {
    let account = Account::find(user, group)?;
    if account.is_current() {
        return Ok(());
    }
    if !unistd::geteuid().is_root() {
        bail!("daemon.user: only root can change to '{user}'");
    }
    account.assume().with_context(|| format!("daemon.user: cannot change to '{user}'"))
}

/// Returns the user and group that [`become_user`] would change to, if the process is root and there is a user to change to.
pub(crate) fn owner(user: Option<&str>, group: Option<&str>) -> Result<Option<(u32, u32)>> {
    let Some(user) = user.filter(|_| unistd::geteuid().is_root()) else { return Ok(None) };
    let account = Account::find(user, group)?;
    Ok(Some((account.uid.as_raw(), account.gid.as_raw())))
}

impl Account {
    fn find(user: &str, group: Option<&str>) -> Result<Self> {
        let number = user.parse().map(Uid::from_raw).ok();
        let known = match number {
            Some(uid) => User::from_uid(uid),
            None => User::from_name(user),
        };
        let known = known.with_context(|| format!("daemon.user: cannot look up '{user}'"))?;
        let group = group.map(find_group).transpose()?;
        let Some(uid) = known.as_ref().map(|known| known.uid).or(number) else {
            bail!("daemon.user: there is no user '{user}'");
        };
        match (group, known) {
            (Some(gid), _) => Ok(Self { uid, gid, groups: vec![gid] }),
            (None, Some(User { name, gid, .. })) => {
                let name = CString::new(name).context("daemon.user")?;
                let groups = unistd::getgrouplist(&name, gid);
                let groups = groups.with_context(|| format!("daemon.user: cannot look up the groups of '{user}'"))?;
                Ok(Self { uid, gid, groups })
            }
            (None, None) => bail!("daemon.user: this host has no user {user}, so daemon.group must be set, too"),
        }
    }

    fn is_current(&self) -> bool {
        (unistd::getuid(), unistd::geteuid(), unistd::getegid()) == (self.uid, self.uid, self.gid)
            && !self.uid.is_root()
    }

    fn assume(&self) -> Result<()> {
        unistd::setgroups(&self.groups).context("cannot set the groups")?;
        unistd::setresgid(self.gid, self.gid, self.gid).context("cannot set the group")?;
        unistd::setresuid(self.uid, self.uid, self.uid).context("cannot set the user")?;
        if !self.uid.is_root() && unistd::setuid(Uid::from_raw(0)).is_ok() {
            bail!("the process could change back to root");
        }
        Ok(())
    }
}

fn find_group(group: &str) -> Result<Gid> {
    if let Ok(number) = group.parse() {
        return Ok(Gid::from_raw(number));
    }
    let found = Group::from_name(group).with_context(|| format!("daemon.group: cannot look up '{group}'"))?;
    found.map(|group| group.gid).with_context(|| format!("daemon.group: there is no group '{group}'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_and_groups_are_names_or_numbers() {
        let root = Account::find("root", None).unwrap();
        assert_eq!((root.uid.as_raw(), root.gid.as_raw()), (0, 0));
        let named = Account::find("0", Some("root")).unwrap();
        assert_eq!((named.uid, named.groups), (root.uid, vec![root.gid]));
        let unknown = Account::find("54321", Some("54322")).unwrap();
        assert_eq!((unknown.uid.as_raw(), unknown.gid.as_raw()), (54321, 54322));
        for (user, group, wanted) in [
            ("no such user", None, "no user 'no such user'"),
            ("54321", None, "daemon.group must be set"),
            ("root", Some("no such group"), "no group 'no such group'"),
        ] {
            let error = Account::find(user, group).unwrap_err();
            assert!(format!("{error:#}").contains(wanted), "{error:#}");
        }
    }
}
