//! What can be seen of a tree, and where three of them differ.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use restorefs::entry::escape;

use super::archive::Archive;
use super::extract::Extracted;

/// What is compared of one path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Aspect {
    /// Whether all went well.
    Exit,
    /// What it is, or that it is not there.
    Kind,
    Mode,
    Owner,
    Mtime,
    Size,
    Contents,
    Target,
    Device,
    Attributes,
    /// Its other names.
    Links,
}

type Node = BTreeMap<Aspect, String>;

/// Everything by its path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    nodes: BTreeMap<Vec<u8>, Node>,
    inos: BTreeMap<Vec<u8>, u64>,
}

/// The time of a directory that did not get one.
pub const NOW: &str = "now";

/// Looks at a tree. Nothing but regular files is opened.
pub fn walk(root: &Path) -> Tree {
    let mut tree = Tree::default();
    let mut todo = vec![Vec::new()];
    while let Some(path) = todo.pop() {
        let full = root.join(OsStr::from_bytes(&path));
        let metadata = full.symlink_metadata().unwrap();
        let mut node = Node::new();
        let kind = match metadata.mode() & libc::S_IFMT {
            libc::S_IFREG => {
                let bytes = fs::read(&full).unwrap();
                let hash = blake3::hash(&bytes).to_hex();
                node.insert(Aspect::Size, metadata.size().to_string());
                node.insert(Aspect::Contents, format!("{} bytes, {}", bytes.len(), &hash[..8]));
                "file"
            }
            libc::S_IFDIR => {
                for entry in fs::read_dir(&full).unwrap() {
                    let name = entry.unwrap().file_name();
                    let dir = if path.is_empty() { Vec::new() } else { [&*path, b"/"].concat() };
                    todo.push([&*dir, name.as_bytes()].concat());
                }
                "directory"
            }
            libc::S_IFLNK => {
                let target = fs::read_link(&full).unwrap();
                node.insert(Aspect::Target, escape(target.as_os_str().as_bytes()));
                "symlink"
            }
            libc::S_IFIFO => "fifo",
            other => {
                let device = metadata.rdev();
                let device = (rustix::fs::major(device), rustix::fs::minor(device));
                node.insert(Aspect::Device, format!("{device:?}"));
                if other == libc::S_IFCHR { "char device" } else { "block device" }
            }
        };
        node.insert(Aspect::Kind, kind.into());
        node.insert(Aspect::Mode, format!("{:o}", metadata.mode() & 0o7777));
        node.insert(Aspect::Owner, format!("{}:{}", metadata.uid(), metadata.gid()));
        let time = match (metadata.mtime(), metadata.mtime_nsec()) {
            // No archive here has a time of these years: something was put into it.
            (1_500_000_000..2_147_000_000, _) if kind == "directory" => NOW.into(),
            (seconds @ 0.., nanos) => format!("{seconds}.{nanos:09}"),
            (seconds, nanos) => format!("{seconds} + 0.{nanos:09}"),
        };
        node.insert(Aspect::Mtime, time);
        node.insert(Aspect::Attributes, attributes(&full));
        if kind != "directory" {
            tree.inos.insert(path.clone(), metadata.ino());
        }
        tree.nodes.insert(path, node);
    }
    tree
}

fn attributes(path: &Path) -> String {
    let mut names = vec![0; 64 << 10];
    let n = rustix::fs::llistxattr(path, &mut names).unwrap_or(0);
    let names: BTreeSet<&[u8]> = names[..n].split(|&b| b == 0).filter(|name| !name.is_empty()).collect();
    let shown = names.into_iter().map(|name| {
        let mut value = vec![0; 64 << 10];
        let n = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value).unwrap();
        format!("{}='{}'", escape(name), escape(&value[..n]))
    });
    shown.collect::<Vec<_>>().join(" ")
}

impl Tree {
    fn get(&self, path: &[u8], aspect: Aspect) -> Option<&str> {
        self.nodes.get(path)?.get(&aspect).map(String::as_str)
    }

    /// Names of the same inode, of those that `wanted` has.
    fn links(&self, path: &[u8], wanted: &BTreeSet<&Vec<u8>>) -> Option<String> {
        let ino = self.inos.get(path)?;
        let same = self.inos.iter().filter(|(path, other)| *other == ino && wanted.contains(path));
        Some(same.map(|(path, _)| escape(path)).collect::<Vec<_>>().join(" = "))
    }
}

/// One thing on which not all agree.
#[derive(Clone, PartialEq, Eq)]
pub struct Difference {
    pub path: Vec<u8>,
    pub aspect: Aspect,
    pub gnu: Option<String>,
    pub bsd: Option<String>,
    pub ours: Option<String>,
}

impl fmt::Debug for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let said = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".into());
        write!(f, "{:?} of '{}': ", self.aspect, escape(&self.path))?;
        write!(f, "GNU {}, bsdtar {}, restorefs {}", said(&self.gnu), said(&self.bsd), said(&self.ours))
    }
}

impl Difference {
    /// What kind of difference it is, for counting.
    pub fn class(&self) -> String {
        let said = |value: &Option<String>| value.clone().unwrap_or_else(|| "nothing".into());
        let (gnu, bsd, ours) = (said(&self.gnu), said(&self.bsd), said(&self.ours));
        match self.aspect {
            Aspect::Exit | Aspect::Kind => format!("{:?} {gnu}, {bsd}, {ours}", self.aspect),
            aspect => format!("{aspect:?} {}", if gnu == bsd { "on which they agree" } else { "on which they differ" }),
        }
    }
}

const ASPECTS: [Aspect; 8] = [
    Aspect::Mode,
    Aspect::Owner,
    Aspect::Mtime,
    Aspect::Size,
    Aspect::Contents,
    Aspect::Target,
    Aspect::Device,
    Aspect::Attributes,
];

/// Where ours is not what both tools make of it; where they differ, neither what the one nor what the other does.
pub fn differences(archive: &Archive, gnu: &Extracted, bsd: &Extracted, ours: &Extracted) -> Vec<Difference> {
    let mut found = Vec::new();
    let fine = |extracted: &Extracted| Some(extracted.exit == 0);
    if fine(ours) != fine(gnu) && fine(ours) != fine(bsd) {
        let code = |extracted: &Extracted| Some(extracted.exit.to_string());
        let (gnu, bsd, ours) = (code(gnu), code(bsd), code(ours));
        found.push(Difference { path: Vec::new(), aspect: Aspect::Exit, gnu, bsd, ours });
    }
    let directories = archive.members.iter().filter(|member| member.is_directory());
    let announced: BTreeSet<_> = directories.map(|member| member.path()).collect();
    let trees = [&gnu.tree, &bsd.tree, &ours.tree];
    let paths: BTreeSet<_> = trees.iter().flat_map(|tree| tree.nodes.keys()).collect();
    let in_all: BTreeSet<_> =
        paths.iter().copied().filter(|path| trees.iter().all(|tree| tree.inos.contains_key(*path))).collect();
    for path in paths {
        let mut check = |aspect, values: [Option<String>; 3], comparable: [bool; 2]| {
            let [gnu, bsd, ours] = values;
            let same = [gnu == ours, bsd == ours];
            // A tool that made something else of the path has no say in its details.
            let good = match comparable {
                [true, true] => same[0] || same[1],
                [true, false] => same[0],
                [false, true] => same[1],
                [false, false] => true,
            };
            if !good {
                found.push(Difference { path: path.clone(), aspect, gnu, bsd, ours });
            }
        };
        let [g, b, o] = trees.map(|tree| tree.get(path, Aspect::Kind));
        let own = |value: Option<&str>| value.map(str::to_owned);
        check(Aspect::Kind, [own(g), own(b), own(o)], [true, true]);
        let comparable = [g == o, b == o];
        if o.is_none() {
            continue;
        }
        for aspect in ASPECTS {
            // Directories that nobody announced, or whose header is refused, are made when they are needed, by whoever
            // extracts.
            let made = |tree: &&Tree| tree.get(path, aspect) == Some(NOW);
            let implied = !announced.contains(path) || trees[..2].iter().all(made);
            if aspect == Aspect::Mtime && o == Some("directory") && implied {
                continue;
            }
            check(aspect, trees.map(|tree| own(tree.get(path, aspect))), comparable);
        }
        if in_all.contains(path) {
            check(Aspect::Links, trees.map(|tree| tree.links(path, &in_all)), [true, true]);
        }
    }
    found
}

/// Where two of our own trees are not the same.
pub fn same(archive: &Archive, a: &Extracted, b: &Extracted) -> Vec<Difference> {
    differences(archive, a, a, b)
}
