//! The tree that docs/policy.md asks for, written as plainly as can be: a map of paths, searched through each time.

use std::collections::{BTreeMap, BTreeSet};

/// What a member says it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    File { size: u64 },
    Directory,
    Symlink { target: String },
    HardLink { target: String },
    Device { major: u32, minor: u32 },
    Fifo,
}

/// A member of the archive. Paths have no `/` at either end; the empty one is the root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub path: String,
    pub what: What,
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub mtime: (i64, u32),
}

/// What can be seen of one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub what: What,
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    /// None of a directory that nobody announced: any will do.
    pub mtime: Option<(i64, u32)>,
    pub nlink: u64,
    /// The first path, in order of the alphabet, that is the same inode.
    pub group: String,
    /// Names in it, in the order of listing.
    pub names: Vec<String>,
}

/// Everything by its path.
pub type View = BTreeMap<String, Seen>;

#[derive(Debug)]
struct Node {
    member: Member,
    announced: bool,
}

#[derive(Debug)]
struct Waiting {
    number: usize,
    path: String,
    target: String,
}

/// The tree while members are put into it.
#[derive(Debug)]
pub struct Model {
    nodes: Vec<Node>,
    bound: BTreeMap<String, usize>,
    /// Paths in the order in which they were bound first.
    order: Vec<String>,
    waiting: Vec<Waiting>,
    owner: (u32, u32),
    members: usize,
    pub refused: usize,
}

/// A member was refused.
struct Refused;

impl Model {
    pub fn new(uid: u32, gid: u32) -> Model {
        let mut model = Model {
            nodes: Vec::new(),
            bound: BTreeMap::new(),
            order: Vec::new(),
            waiting: Vec::new(),
            owner: (uid, gid),
            members: 0,
            refused: 0,
        };
        model.imply("");
        model
    }

    /// The next member of the archive.
    pub fn put(&mut self, member: &Member) {
        self.members += 1;
        match self.take(member) {
            Ok(()) => self.bind_waiting(),
            Err(Refused) => self.refused += 1,
        }
    }

    /// The archive is over: what still waits is refused.
    pub fn finish(&mut self) {
        self.refused += std::mem::take(&mut self.waiting).len();
    }

    fn take(&mut self, member: &Member) -> Result<(), Refused> {
        let path = &member.path;
        if let What::HardLink { target } = &member.what {
            if target == path {
                return Err(Refused);
            }
            if !self.bound.contains_key(target) {
                self.waiting.push(Waiting { number: self.members, path: path.clone(), target: target.clone() });
                return Ok(());
            }
            return self.link(path, target, self.members);
        }
        if member.what == What::Directory && self.is_directory(path) {
            self.later_wins(path, self.members);
            let node = &mut self.nodes[self.bound[path]];
            *node = Node { member: member.clone(), announced: true };
            return Ok(());
        }
        self.make_way(path)?;
        self.nodes.push(Node { member: member.clone(), announced: true });
        self.bind(path, self.nodes.len() - 1);
        self.later_wins(path, self.members);
        Ok(())
    }

    fn link(&mut self, path: &str, target: &str, number: usize) -> Result<(), Refused> {
        if self.is_directory(target) {
            return Err(Refused);
        }
        let node = self.bound[target];
        self.make_way(path)?;
        self.bind(path, node);
        self.later_wins(path, number);
        Ok(())
    }

    /// Links that waited are bound in the order of the archive, as soon as a member with the name is there.
    fn bind_waiting(&mut self) {
        let announced =
            |model: &Model, target: &str| model.bound.get(target).is_some_and(|&n| model.nodes[n].announced);
        while let Some(n) = self.waiting.iter().position(|link| announced(self, &link.target)) {
            let link = self.waiting.remove(n);
            if self.link(&link.path, &link.target, link.number).is_err() {
                self.refused += 1;
            }
        }
    }

    /// Links of this name that still wait have been replaced by what came after them.
    fn later_wins(&mut self, path: &str, number: usize) {
        self.waiting.retain(|link| link.path != path || link.number > number);
    }

    /// Whether something that is no directory may have this name: parents are made where they are missing.
    fn make_way(&mut self, path: &str) -> Result<(), Refused> {
        let empty = !self.bound.keys().any(|other| parent(other) == Some(path));
        if path.is_empty() || self.is_directory(path) && !empty {
            return Err(Refused);
        }
        let parents: Vec<&str> = path.match_indices('/').map(|(at, _)| &path[..at]).collect();
        if parents.iter().any(|dir| self.bound.contains_key(*dir) && !self.is_directory(dir)) {
            return Err(Refused);
        }
        for dir in parents {
            if !self.bound.contains_key(dir) {
                self.imply(dir);
            }
        }
        Ok(())
    }

    fn imply(&mut self, path: &str) {
        let (uid, gid) = self.owner;
        let member = Member { path: path.into(), what: What::Directory, mode: 0o755, uid, gid, mtime: (0, 0) };
        self.nodes.push(Node { member, announced: false });
        self.bind(path, self.nodes.len() - 1);
    }

    fn bind(&mut self, path: &str, node: usize) {
        if self.bound.insert(path.into(), node).is_none() {
            self.order.push(path.into());
        }
    }

    fn is_directory(&self, path: &str) -> bool {
        self.bound.get(path).is_some_and(|&n| self.nodes[n].member.what == What::Directory)
    }

    /// Names in a directory, in the order of their first arrival.
    pub fn names(&self, dir: &str) -> Vec<String> {
        let below = self.order.iter().filter(|path| parent(path) == Some(dir));
        below.map(|path| path.rsplit('/').next().unwrap().to_owned()).collect()
    }

    pub fn view(&self) -> View {
        let see = |path: &String, n: usize| {
            let Node { member, announced } = &self.nodes[n];
            let same: BTreeSet<_> = self.bound.iter().filter(|(_, m)| **m == n).map(|(path, _)| path).collect();
            let directory = member.what == What::Directory;
            let inside = |other: &&String| parent(other) == Some(path) && self.is_directory(other);
            let nlink = if directory { 2 + self.bound.keys().filter(inside).count() } else { same.len() };
            Seen {
                what: member.what.clone(),
                mode: member.mode,
                uid: member.uid,
                gid: member.gid,
                mtime: announced.then_some(member.mtime),
                nlink: nlink as u64,
                group: same.first().unwrap().to_string(),
                names: if directory { self.names(path) } else { Vec::new() },
            }
        };
        self.bound.iter().map(|(path, &n)| (path.clone(), see(path, n))).collect()
    }
}

/// The directory that a path is in.
pub fn parent(path: &str) -> Option<&str> {
    if path.is_empty() { None } else { Some(path.rsplit_once('/').map_or("", |(dir, _)| dir)) }
}
