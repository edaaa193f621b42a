//! Tells whether an open file is still in a mounted file system.

use std::fs;
use std::os::fd::AsFd;

use rustix::fs::{AtFlags, StatxFlags};

/// The mounts that this process can reach.
const MOUNTS: &str = "/proc/self/mountinfo";

/// Returns whether the file system of an open file was unmounted. With a lazy unmount (`umount -l`), the
/// kernel detaches a file system that is in use, and releases it when its last file is closed. `false` if the
/// kernel does not tell.
pub(crate) fn is_unmounted(file: impl AsFd) -> bool {
    mount_id(file).is_some_and(|id| fs::read_to_string(MOUNTS).is_ok_and(|mounts| !names(&mounts, id)))
}

/// Returns the number of the file's mount. No other mount gets the number while the file is open.
fn mount_id(file: impl AsFd) -> Option<u64> {
    let statx = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID).ok()?;
    (statx.stx_mask & StatxFlags::MNT_ID.bits() != 0).then_some(statx.stx_mnt_id)
}

fn names(mounts: &str, id: u64) -> bool {
    mounts.lines().any(|line| line.split(' ').next().is_some_and(|number| number.parse() == Ok(id)))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::OwnedFd;

    use rustix::fs::CWD;
    use rustix::mount::{OpenTreeFlags, open_tree};

    use super::*;

    #[test]
    fn the_root_of_this_process_is_mounted() {
        assert!(mount_id(File::open("/").unwrap()).is_none_or(|id| names(&fs::read_to_string(MOUNTS).unwrap(), id)));
        assert!(!is_unmounted(File::open("/").unwrap()));
    }

    #[test]
    fn a_detached_mount_counts_as_unmounted() {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        // Only root may do this.
        let Ok(detached): Result<OwnedFd, _> = open_tree(CWD, "/proc", flags) else { return };
        assert!(is_unmounted(detached));
    }

    #[test]
    fn a_mount_number_must_match_completely() {
        let mounts = "27 1 254:0 / / rw - ext4 /dev/vda rw\n271 27 0:5 / /dev rw - devtmpfs none rw\n";
        assert!(names(mounts, 27) && names(mounts, 271));
        assert!(!names(mounts, 2) && !names(mounts, 254));
    }
}
