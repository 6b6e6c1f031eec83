//! The mounts of restorefs that can be seen from here, from /proc/self/mountinfo (proc_pid_mountinfo(5)), and how one is
//! taken away.

mod detach;

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

pub use detach::{Attached, Error, detach_all};

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mounted {
    /// The number that the kernel gave this mount: a bind mount of the same device has another.
    pub id: u64,
    /// Its device number, as `MAJOR:MINOR`.
    pub device: String,
    /// The directory of the filesystem that it shows: `/`, except in a bind mount of a part.
    pub root: PathBuf,
    /// Where it is.
    pub mountpoint: PathBuf,
    /// What is mounted.
    pub source: String,
    /// Whose it is.
    pub uid: u32,
}

/// All of them, in the order in which they were mounted.
pub fn list() -> io::Result<Vec<Mounted>> {
    Ok(parse(&std::fs::read("/proc/self/mountinfo")?))
}

/// Those of one device: the mount that was made, unless it is gone, and bind mounts of it.
pub fn of(device: &str) -> io::Result<Vec<Mounted>> {
    let mut mounts = list()?;
    mounts.retain(|m| m.device == device);
    Ok(mounts)
}

/// The mount that `path` is the root of, or that it is in. A mount whose daemon is gone cannot be looked into, but
/// is found all the same.
pub fn find(path: &Path) -> io::Result<Option<Mounted>> {
    let mounts = list()?;
    // One whose daemon is stopped must not be looked at: that would wait for it.
    let path = match named(path) {
        Some(path) if mounts.iter().any(|m| m.mountpoint == path) => path,
        _ => absolute(path)?,
    };
    // Of mounts one over the other, the last is the one that is seen.
    Ok(mounts
        .into_iter()
        .rev()
        .filter(|m| path.starts_with(&m.mountpoint))
        .max_by_key(|m| m.mountpoint.as_os_str().len()))
}

/// The path with all of it resolved but the last name, which is not looked at.
fn named(path: &Path) -> Option<PathBuf> {
    let path = std::path::absolute(path).ok()?;
    Some(path.parent()?.canonicalize().ok()?.join(path.file_name()?))
}

fn absolute(path: &Path) -> io::Result<PathBuf> {
    if let Ok(path) = path.canonicalize() {
        return Ok(path);
    }
    // What cannot be looked at may be the root of a dead mount, or a file in a live one that has not come yet.
    let path = std::path::absolute(path)?;
    let mut rest = Vec::new();
    for ancestor in path.ancestors() {
        if let Ok(there) = ancestor.canonicalize() {
            return Ok(rest.iter().rev().fold(there, |at, name| at.join(name)));
        }
        rest.extend(ancestor.file_name());
    }
    Ok(path)
}

fn parse(text: &[u8]) -> Vec<Mounted> {
    text.split(|&b| b == b'\n').filter_map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Option<Mounted> {
    let fields: Vec<&[u8]> = line.split(|&b| b == b' ').collect();
    let dash = fields.iter().position(|f| *f == b"-")?;
    if *fields.get(dash + 1)? != b"fuse.restorefs" {
        return None;
    }
    let options = String::from_utf8_lossy(fields.get(dash + 3)?).into_owned();
    Some(Mounted {
        id: str::from_utf8(fields.first()?).ok()?.parse().ok()?,
        device: String::from_utf8_lossy(fields.get(2)?).into_owned(),
        root: OsString::from_vec(unescape(fields.get(3)?)).into(),
        mountpoint: OsString::from_vec(unescape(fields.get(4)?)).into(),
        source: String::from_utf8_lossy(&unescape(fields.get(dash + 2)?)).into_owned(),
        uid: options.split(',').find_map(|o| o.strip_prefix("user_id="))?.parse().ok()?,
    })
}

/// `\040` to a blank, and so on.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&b, after)) = rest.split_first() {
        let digits = after.get(..3).filter(|d| b == b'\\' && d.iter().all(|d| (b'0'..=b'7').contains(d)));
        if let Some(digits) = digits {
            out.push(digits.iter().fold(0u8, |n, d| n.wrapping_mul(8).wrapping_add(d - b'0')));
            rest = &after[3..];
        } else {
            out.push(b);
            rest = after;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let text = b"22 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
            77 22 0:45 /s\\040b /mnt/a\\040b ro,nosuid,nodev,noatime shared:3 - fuse.restorefs tcp\\040127.0.0.1:9 ro,user_id=1000,group_id=1000\n";
        assert_eq!(
            parse(text),
            [Mounted {
                id: 77,
                device: "0:45".into(),
                root: "/s b".into(),
                mountpoint: "/mnt/a b".into(),
                source: "tcp 127.0.0.1:9".into(),
                uid: 1000
            }]
        );
    }
}
