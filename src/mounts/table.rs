//! What /proc/self/mountinfo says about every mount, of whatever type: which is on which, and which share their mounts
//! (proc_pid_mountinfo(5), mount_namespaces(7)).

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use super::mounted::Mounted;

/// All mounts that can be seen from here. The kernel lists them in the order in which they were mounted.
#[derive(Debug)]
pub struct Table(Vec<Line>);

/// What becomes of the other mounts of a file system when one of them is unmounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Others {
    /// There are none.
    None,
    /// All of them may be copies that the kernel unmounts with it.
    MayGo,
    /// At least one stays.
    Stay,
}

#[derive(Debug, PartialEq, Eq)]
struct Line {
    id: u64,
    parent: u64,
    device: String,
    /// What of the file system it shows.
    root: PathBuf,
    mountpoint: PathBuf,
    /// The peer group in which it propagates what is mounted on it, and unmounted.
    shared: Option<u64>,
    /// Whether it receives what is mounted, or unmounted, somewhere else.
    receives: bool,
    /// Source and user, where it is a restorefs.
    restorefs: Option<(String, u32)>,
}

impl Table {
    /// Reads it.
    pub fn read() -> io::Result<Table> {
        Ok(Table::parse(&std::fs::read("/proc/self/mountinfo")?))
    }

    fn parse(text: &[u8]) -> Table {
        Table(text.split(|&b| b == b'\n').filter_map(Line::parse).collect())
    }

    /// Those of restorefs.
    pub fn restorefs(&self) -> Vec<Mounted> {
        let mounted = |line: &Line| {
            let (source, uid) = line.restorefs.clone()?;
            let (device, root, mountpoint) = (line.device.clone(), line.root.clone(), line.mountpoint.clone());
            Some(Mounted { id: line.id, device, root, mountpoint, source, uid })
        };
        self.0.iter().filter_map(mounted).collect()
    }

    /// The number of the mount that a mount is on.
    pub fn parent(&self, id: u64) -> Option<u64> {
        self.line(id).map(|line| line.parent)
    }

    /// What becomes of the other mounts of a device when the mount `id` goes. It may be in another mount namespace.
    pub fn others(&self, device: &str, id: u64) -> Others {
        let mut others = Others::None;
        for other in self.0.iter().filter(|line| line.device == device && line.id != id) {
            if self.stays(other, id) {
                return Others::Stay;
            }
            others = Others::MayGo;
        }
        others
    }

    /// The mounts that go when the mount `id` of this device goes, because they are mounted below it or below a copy of it
    /// that may go too: where they are.
    pub fn below(&self, device: &str, id: u64) -> Vec<PathBuf> {
        let goes = |line: &&Line| line.id == id || (line.device == device && !self.stays(line, id));
        let going: Vec<&Line> = self.0.iter().filter(goes).collect();
        let is_below = |line: &&Line| going.iter().any(|going| self.is_on(line, going.id));
        self.0.iter().filter(is_below).map(|line| line.mountpoint.clone()).collect()
    }

    /// How many mounts a mount is on, one on the other.
    pub(super) fn depth(&self, id: u64) -> usize {
        self.line(id).map_or(0, |line| self.ancestors(line).count())
    }

    /// Whether a mount certainly stays when `id` is unmounted: that reaches the peers and the slaves of the mount that `id`
    /// is on, at the same place, and whatever is mounted on it.
    fn stays(&self, line: &Line, id: u64) -> bool {
        if self.is_on(line, id) {
            return false;
        }
        let from = self.line(id).and_then(|unmounted| self.line(unmounted.parent));
        let (Some(from), Some(on)) = (from, self.line(line.parent)) else {
            // What cannot be seen from here may propagate.
            return self.line(line.parent).is_some_and(|on| on.shared.is_none() && !on.receives);
        };
        // Only the mount at the very same place goes, and that is `id`.
        from.id == on.id || from.shared.is_none() || (from.shared != on.shared && !on.receives)
    }

    fn is_on(&self, line: &Line, id: u64) -> bool {
        self.ancestors(line).any(|ancestor| ancestor == id)
    }

    fn ancestors<'a>(&'a self, line: &Line) -> impl Iterator<Item = u64> + 'a {
        let next = |&id: &u64| self.line(id).map(|line| line.parent).filter(|&parent| parent != id);
        // The list is not read in one piece, so that it might lead in a circle.
        std::iter::successors(Some(line.parent), next).take(self.0.len())
    }

    fn line(&self, id: u64) -> Option<&Line> {
        self.0.iter().find(|line| line.id == id)
    }
}

impl Line {
    fn parse(line: &[u8]) -> Option<Line> {
        let fields: Vec<&[u8]> = line.split(|&b| b == b' ').collect();
        let dash = fields.iter().position(|f| *f == b"-")?;
        let number = |field: &[u8]| str::from_utf8(field).ok()?.parse::<u64>().ok();
        let peers = fields.get(6..dash)?;
        let restorefs = || {
            let options = String::from_utf8_lossy(fields.get(dash + 3)?).into_owned();
            let uid = options.split(',').find_map(|o| o.strip_prefix("user_id="))?.parse().ok()?;
            Some((String::from_utf8_lossy(&unescape(fields.get(dash + 2)?)).into_owned(), uid))
        };
        Some(Line {
            id: number(fields.first()?)?,
            parent: number(fields.get(1)?)?,
            device: String::from_utf8_lossy(fields.get(2)?).into_owned(),
            root: OsString::from_vec(unescape(fields.get(3)?)).into(),
            mountpoint: OsString::from_vec(unescape(fields.get(4)?)).into(),
            shared: peers.iter().find_map(|field| number(field.strip_prefix(b"shared:")?)),
            receives: peers.iter().any(|f| f.starts_with(b"master:") || f.starts_with(b"propagate_from:")),
            restorefs: if *fields.get(dash + 1)? == b"fuse.restorefs" { Some(restorefs()?) } else { None },
        })
    }
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

/// All of them, in the order in which they were mounted.
pub fn list() -> io::Result<Vec<Mounted>> {
    Ok(Table::read()?.restorefs())
}

/// Those of one device: the mount that was made, unless it is gone, and bind mounts of it.
pub fn of(device: &str) -> io::Result<Vec<Mounted>> {
    let mut mounts = list()?;
    mounts.retain(|m| m.device == device);
    Ok(mounts)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RESTOREFS: &str = "- fuse.restorefs tcp\\040127.0.0.1:9 ro,user_id=1000,group_id=1000\n";

    #[test]
    fn lines() {
        let text = format!(
            "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n77 22 0:45 /s\\040b /mnt/a\\040b ro,nosuid,nodev,noatime shared:3 {RESTOREFS}"
        );
        let table = Table::parse(text.as_bytes());
        assert_eq!(
            table.restorefs(),
            [Mounted {
                id: 77,
                device: "0:45".into(),
                root: "/s b".into(),
                mountpoint: "/mnt/a b".into(),
                source: "tcp 127.0.0.1:9".into(),
                uid: 1000
            }]
        );
        assert_eq!((table.parent(77), table.depth(77)), (Some(22), 2));
    }

    #[test]
    fn copies_may_go_and_others_stay() {
        // The mount 10 is on 2; the mount 20 is of the same device, and on 3.
        for (two, three, expected) in [
            ("", "", Others::Stay),
            ("", "master:5", Others::Stay),
            ("shared:1", "", Others::Stay),
            ("shared:1", "shared:2", Others::Stay),
            ("shared:1", "shared:1", Others::MayGo),
            ("shared:1", "master:1", Others::MayGo),
            ("shared:1", "shared:2 master:1", Others::MayGo),
            // By way of a mount that cannot be seen from here.
            ("shared:1", "master:7 propagate_from:1", Others::MayGo),
        ] {
            let text = format!(
                "1 1 8:1 / / rw - ext4 /dev/sda1 rw\n2 1 0:2 / /sh rw {two} - tmpfs x rw\n3 1 0:2 / /peer rw {three} - tmpfs x rw\n\
                 10 2 0:45 / /sh/m ro {RESTOREFS}20 3 0:45 / /peer/m ro {RESTOREFS}30 20 0:9 / /peer/m/x rw - tmpfs x rw\n"
            );
            let table = Table::parse(text.replace("  ", " ").as_bytes());
            assert_eq!(table.others("0:45", 10), expected, "{text}");
            let below = table.below("0:45", 10);
            assert_eq!(below.len(), usize::from(expected == Others::MayGo), "{text}");
        }
        let text = format!(
            "2 1 0:2 / /sh rw shared:1 - tmpfs x rw\n10 2 0:45 / /sh/m ro {RESTOREFS}20 2 0:45 / /sh/other ro {RESTOREFS}"
        );
        let mut table = Table::parse(text.as_bytes());
        assert_eq!(table.others("0:45", 10), Others::Stay);
        // Seen from another namespace than the one in which it is unmounted.
        assert_eq!(table.others("0:45", 99), Others::MayGo);
        table.0.pop();
        assert_eq!(table.others("0:45", 10), Others::None);
        // One on the other goes with it.
        let text = format!("10 2 0:45 / /m ro {RESTOREFS}20 10 0:45 / /m ro {RESTOREFS}");
        assert_eq!(Table::parse(text.as_bytes()).others("0:45", 10), Others::MayGo);
    }
}
