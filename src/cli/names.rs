//! Users and groups of this machine, by name.

pub(super) fn user(name: &[u8]) -> Option<u32> {
    nix::unistd::User::from_name(std::str::from_utf8(name).ok()?).ok()?.map(|user| user.uid.as_raw())
}

pub(super) fn group(name: &[u8]) -> Option<u32> {
    nix::unistd::Group::from_name(std::str::from_utf8(name).ok()?).ok()?.map(|group| group.gid.as_raw())
}
