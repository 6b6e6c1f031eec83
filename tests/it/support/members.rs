//! What is in an archive, and at which byte each thing is known, told by Python's tarfile.

use std::collections::{BTreeMap, HashMap};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::run;

/// A member of an archive.
#[derive(Clone, Debug)]
pub struct Member {
    /// Without `./` and `/` at either end; the root is empty.
    pub path: String,
    /// `file`, `dir`, `symlink`, `hardlink`, `char`, `block` or `fifo`.
    pub kind: String,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: (i64, u32),
    /// Of a symlink as packed, of a hard link a path like [`Member::path`].
    pub target: String,
    pub device: (u32, u32),
    /// Everything that says what it is has come with the byte before this one: extended headers and sparse map too.
    pub header_end: u64,
    /// Where its stored bytes begin.
    pub data: u64,
    pub contents: Vec<u8>,
    /// Where the stored bytes belong in the contents.
    pub segments: Vec<(u64, u64)>,
    pub xattrs: BTreeMap<String, String>,
}

impl Member {
    pub fn is(&self, kind: &str) -> bool {
        self.kind == kind
    }

    /// Bytes in the archive.
    pub fn stored(&self) -> u64 {
        self.segments.iter().map(|(_, len)| len).sum()
    }

    /// Stored bytes in front of this byte of the archive.
    pub fn received(&self, cut: u64) -> u64 {
        cut.saturating_sub(self.data).min(self.stored())
    }

    /// How much of the contents is known from its beginning when so many stored bytes are there.
    pub fn known(&self, mut received: u64) -> u64 {
        for &(offset, len) in &self.segments {
            if received < len {
                return offset + received;
            }
            received -= len;
        }
        self.contents.len() as u64
    }
}

/// The members of an archive that is not compressed, in their order.
pub fn members(archive: &Path) -> Vec<Member> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/support/members.py");
    let output = run(Command::new("python3").arg(script).arg(archive));
    let bytes = std::fs::read(archive).unwrap();
    let found: Vec<_> = String::from_utf8(output.stdout).unwrap().lines().map(|line| member(line, &bytes)).collect();
    assert!(!found.is_empty());
    found
}

/// Asserts that a mounted tree shows the member as it was packed; contents and the number of links apart.
pub fn is_shown(root: &Path, m: &Member) {
    let path = root.join(&m.path);
    let seen = path.symlink_metadata().unwrap_or_else(|e| panic!("{}: {e}", m.path));
    if m.is("hardlink") {
        assert_eq!(seen.ino(), root.join(&m.target).symlink_metadata().unwrap().ino(), "{}", m.path);
        return;
    }
    let kind = match seen.mode() & libc::S_IFMT {
        libc::S_IFREG => "file",
        libc::S_IFDIR => "dir",
        libc::S_IFLNK => "symlink",
        libc::S_IFIFO => "fifo",
        libc::S_IFCHR => "char",
        _ => "something else",
    };
    assert_eq!(kind, m.kind, "{}", m.path);
    assert_eq!((seen.mode() & 0o7777, seen.uid(), seen.gid()), (m.mode, m.uid, m.gid), "{}", m.path);
    assert_eq!((seen.mtime(), seen.mtime_nsec() as u32), m.mtime, "{}", m.path);
    match kind {
        "file" => assert_eq!(seen.size(), m.contents.len() as u64, "{}", m.path),
        "symlink" => assert_eq!(std::fs::read_link(&path).unwrap().to_str(), Some(m.target.as_str()), "{}", m.path),
        "char" => {
            let device = (rustix::fs::major(seen.rdev()), rustix::fs::minor(seen.rdev()));
            assert_eq!(device, m.device, "{}", m.path);
        }
        _ => {}
    }
}

fn member(line: &str, archive: &[u8]) -> Member {
    let json: Value = serde_json::from_str(line).unwrap();
    let number = |value: &Value| value.as_u64().unwrap();
    let text = |key: &str| json[key].as_str().unwrap().to_owned();
    let name = |key: &str| {
        let text = text(key);
        text.strip_prefix("./").unwrap_or(if text == "." { "" } else { &text }).to_owned()
    };
    let pair = |value: &Value| (number(&value[0]), number(&value[1]));
    let kind = text("kind");
    let data = number(&json["data"]);
    // A pax 1.0 map is lines of digits, filled up to a block; all others end with a whole header.
    let lines = json["sparse"] == true && archive[data as usize - 512].is_ascii_digit();
    let padding = archive[..data as usize].iter().rev().take_while(|&&b| b == 0).count() as u64;
    let time = text("mtime");
    let (seconds, fraction) = time.split_once('.').unwrap_or((&time, ""));
    let device = pair(&json["device"]);
    let xattrs: HashMap<String, String> = serde_json::from_value(json["xattrs"].clone()).unwrap();
    Member {
        path: name("path"),
        mode: number(&json["mode"]) as u32,
        uid: number(&json["uid"]) as u32,
        gid: number(&json["gid"]) as u32,
        mtime: (seconds.parse().unwrap(), format!("{fraction:0<9}").parse().unwrap()),
        target: if kind == "hardlink" { name("target") } else { text("target") },
        device: (device.0 as u32, device.1 as u32),
        header_end: if lines { data - padding } else { data },
        data,
        contents: serde_json::from_value(json["contents"].clone()).unwrap(),
        segments: json["segments"].as_array().unwrap().iter().map(pair).collect(),
        xattrs: xattrs.into_iter().collect(),
        kind,
    }
}
