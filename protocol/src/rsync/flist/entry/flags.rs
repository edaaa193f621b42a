//! The flags of an entry. The meaning of some depends on the version and on the entry's type.

pub(super) const TOP_DIR: u32 = 0x0001;
pub(super) const SAME_MODE: u32 = 0x0002;
pub(super) const MORE_FLAGS: u32 = 0x0004;
pub(super) const SAME_DEVICE_NUMBER_27: u32 = 0x0004;
pub(super) const SAME_UID: u32 = 0x0008;
pub(super) const SAME_GID: u32 = 0x0010;
pub(super) const SAME_NAME: u32 = 0x0020;
pub(super) const LONG_NAME: u32 = 0x0040;
pub(super) const SAME_TIME: u32 = 0x0080;
pub(super) const SAME_MAJOR: u32 = 0x0100;
pub(super) const NO_CONTENTS: u32 = 0x0100;
pub(super) const LINKED: u32 = 0x0200;
pub(super) const SAME_DEVICE_28: u32 = 0x0400;
pub(super) const USER_NAME: u32 = 0x0400;
pub(super) const SHORT_MINOR_28: u32 = 0x0800;
pub(super) const GROUP_NAME: u32 = 0x0800;
pub(super) const FIRST_LINK: u32 = 0x1000;
pub(super) const NSEC: u32 = 0x2000;
pub(super) const SAME_ATIME: u32 = 0x4000;
/// The flags that mark the end of a list with an I/O error, in byte form.
pub(super) const END_WITH_ERROR: u32 = 0x1000 | MORE_FLAGS;
