//! Landlock: the paths and TCP ports that a process can still reach.

use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, RestrictionStatus,
    Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

use super::{Enforcement, Reach, SYSTEM};

/// The newest version of the interface that is used. Older kernels enforce what they know.
const NEWEST: ABI = ABI::V6;

/// Returns the version of the interface that this kernel has; 0 for none.
pub(crate) fn version() -> u32 {
    // SAFETY: this form of the call takes no pointer and only returns a number.
    let version = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0_usize, 1_u32) };
    u32::try_from(version).unwrap_or(0)
}

pub(super) fn restrict(reach: &Reach) -> Enforcement {
    match try_restrict(reach) {
        Ok(status) => match status.ruleset {
            RulesetStatus::FullyEnforced => Enforcement::Full,
            RulesetStatus::PartiallyEnforced => Enforcement::Partial,
            RulesetStatus::NotEnforced => Enforcement::Missing("this kernel has no Landlock".to_owned()),
        },
        Err(error) => Enforcement::Missing(error.to_string()),
    }
}

fn try_restrict(reach: &Reach) -> Result<RestrictionStatus, RulesetError> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let execute = read | AccessFs::Execute;
    let write = AccessFs::from_all(NEWEST) & !AccessFs::Execute;
    let mut network = BitFlags::EMPTY;
    if !reach.connects {
        network |= AccessNet::ConnectTcp;
    }
    if !reach.listens {
        network |= AccessNet::BindTcp;
    }
    let mut rules =
        Ruleset::default().set_compatibility(CompatLevel::BestEffort).handle_access(AccessFs::from_all(NEWEST))?;
    if !network.is_empty() {
        rules = rules.handle_access(network)?;
    }
    let rules = rules.scope(Scope::Signal)?.create()?;
    let system = SYSTEM.iter().map(Path::new).filter(|path| path.exists());
    let rules = add(rules, system, read)?;
    let rules = add(rules, [Path::new("/dev/null")], read | AccessFs::WriteFile)?;
    let rules = add(rules, reach.read.iter().map(PathBuf::as_path), read)?;
    let rules = add(rules, reach.execute.iter().map(PathBuf::as_path), execute)?;
    add(rules, reach.write.iter().map(PathBuf::as_path), write)?.restrict_self()
}

/// Allows `access` below each of the paths. A path that cannot be opened stays closed.
fn add<'a>(
    mut rules: RulesetCreated,
    paths: impl IntoIterator<Item = &'a Path>,
    access: BitFlags<AccessFs>,
) -> Result<RulesetCreated, RulesetError> {
    for path in paths {
        let Ok(opened) = PathFd::new(path) else { continue };
        // What is meant for directories alone cannot be allowed for a file.
        let access = if path.is_dir() { access } else { access & AccessFs::from_file(NEWEST) };
        rules = rules.add_rule(PathBeneath::new(opened, access))?;
    }
    Ok(rules)
}
