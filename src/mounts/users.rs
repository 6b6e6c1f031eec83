//! Which processes use a mount: by open files and directories, as working or root directory, as their program, or by a
//! mapping. What proc(5) tells, to whoever may look at a process; nothing of the mount itself is asked for anything.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

/// How a process uses a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Use {
    /// A descriptor of something in it.
    Open,
    /// Its working directory is in it.
    WorkingDirectory,
    /// Its root directory is in it.
    Root,
    /// It runs a program that is in it.
    Program,
    /// It has a file of it in its memory.
    Mapping,
}

/// A process that uses a mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// What it is called: any bytes.
    pub name: OsString,
    /// How it uses it, and how often.
    pub uses: BTreeMap<Use, u64>,
}

/// What is looked for: all mounts of a device, or only the one of this number.
struct Sought {
    major: u32,
    minor: u32,
    id: Option<u64>,
}

/// Looks for processes that use any mount of a device, in whatever mount namespace, or only the mount of a number. Those
/// that we may not look at are passed over, and so are we ourselves.
///
/// A file system that does not answer, as a network disk that is away, may hold this up.
pub fn users(device: &str, id: Option<u64>) -> io::Result<Vec<Process>> {
    let numbers = device.split_once(':').and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
    let Some((major, minor)) = numbers else { return Ok(Vec::new()) };
    let sought = Sought { major, minor, id };
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        if pid == std::process::id() {
            continue;
        }
        let uses = sought.uses(&entry.path());
        if !uses.is_empty() {
            let mut name = std::fs::read(entry.path().join("comm")).unwrap_or_default();
            name.truncate(name.trim_ascii_end().len());
            found.push(Process { pid, name: OsString::from_vec(name), uses });
        }
    }
    found.sort_by_key(|process| process.pid);
    Ok(found)
}

impl Sought {
    fn uses(&self, process: &Path) -> BTreeMap<Use, u64> {
        let mut uses = BTreeMap::new();
        let descriptors = std::fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
        let open = descriptors.filter(|descriptor| self.is_at(&descriptor.path())).count() as u64;
        for (name, of) in [("cwd", Use::WorkingDirectory), ("root", Use::Root), ("exe", Use::Program)] {
            if self.is_at(&process.join(name)) {
                uses.insert(of, 1);
            }
        }
        let mapped = std::fs::read(process.join("maps")).map_or(0, |maps| self.mapped(&maps));
        // Its program is mapped in any case.
        for (of, count) in
            [(Use::Open, open), (Use::Mapping, if uses.contains_key(&Use::Program) { 0 } else { mapped })]
        {
            if count > 0 {
                uses.insert(of, count);
            }
        }
        uses
    }

    /// Whether a link in /proc leads to it. With no more asked for than this, nobody but the kernel answers, and it does so
    /// for other users' mounts too.
    fn is_at(&self, link: &Path) -> bool {
        let flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
        statx(CWD, link, flags, StatxFlags::empty()).is_ok_and(|found| {
            // Before Linux 5.8 it does not tell the number of the mount.
            let tells = found.stx_mask & StatxFlags::MNT_ID.bits() != 0;
            (found.stx_dev_major, found.stx_dev_minor) == (self.major, self.minor)
                && self.id.is_none_or(|id| !tells || found.stx_mnt_id == id)
        })
    }

    /// How many files of it are in the list of mappings. That has no numbers of mounts.
    fn mapped(&self, maps: &[u8]) -> u64 {
        let device = format!("{:02x}:{:02x}", self.major, self.minor);
        let mut inodes: Vec<&[u8]> = maps
            .split(|&b| b == b'\n')
            .filter_map(|line| {
                let mut fields = line.split(|&b| b == b' ').skip(3);
                (fields.next()? == device.as_bytes()).then(|| fields.next())?
            })
            .collect();
        inodes.sort_unstable();
        inodes.dedup();
        inodes.len() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_of_a_device() {
        let maps = b"7f0000000000-7f0000001000 r--s 00000000 00:2d 7                          /mnt/a b\n\
                     7f0000001000-7f0000002000 r--s 00001000 00:2d 7                          /mnt/a b\n\
                     7f0000002000-7f0000003000 r--s 00000000 00:2d 9                          /mnt/c\n\
                     7f0000003000-7f0000004000 rw-p 00000000 00:00 0 \n\
                     7f0000004000-7f0000005000 r-xp 00000000 08:01 7                          /usr/bin/a\n";
        let count = |major, minor| Sought { major, minor, id: None }.mapped(maps);
        assert_eq!((count(0, 0x2d), count(8, 1), count(0, 0x2e)), (2, 1, 0));
    }

    #[test]
    fn our_own_descriptors_are_passed_over_and_those_of_a_child_are_not() {
        use std::os::unix::fs::MetadataExt;
        use std::process::{Command, Stdio};
        let dir = tempfile::tempdir().unwrap();
        let dev = dir.path().metadata().unwrap().dev();
        let device = format!("{}:{}", rustix::fs::major(dev), rustix::fs::minor(dev));
        let file = std::fs::File::create(dir.path().join("file")).unwrap();
        let mut child = Command::new("cat")
            .current_dir(dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::from(file))
            .spawn()
            .unwrap();
        let users = users(&device, None).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(users.iter().all(|process| process.pid != std::process::id()));
        let cat = users.iter().find(|process| process.pid == child.id()).unwrap();
        assert_eq!(cat.uses.get(&Use::WorkingDirectory), Some(&1));
        assert!(cat.uses.get(&Use::Open).is_some_and(|open| *open >= 1), "{cat:?}");
    }
}
