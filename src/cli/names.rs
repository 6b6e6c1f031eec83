//! Users and groups of this machine, by name and by number.

use crate::entry::escape;

pub(super) fn user(name: &[u8]) -> Option<u32> {
    nix::unistd::User::from_name(std::str::from_utf8(name).ok()?).ok()?.map(|user| user.uid.as_raw())
}

pub(super) fn group(name: &[u8]) -> Option<u32> {
    nix::unistd::Group::from_name(std::str::from_utf8(name).ok()?).ok()?.map(|group| group.gid.as_raw())
}

pub(super) fn of_user(uid: u32) -> Option<Vec<u8>> {
    nix::unistd::User::from_uid(uid.into()).ok()?.map(|user| user.name.into_bytes())
}

pub(super) fn of_group(gid: u32) -> Option<Vec<u8>> {
    nix::unistd::Group::from_gid(gid.into()).ok()?.map(|group| group.name.into_bytes())
}

/// A user, by name where there is one, and by number.
pub(super) fn owner(uid: u32) -> String {
    let name = of_user(uid).map_or(String::new(), |name| format!("{} ", escape(&name)));
    format!("{name}({uid})")
}
