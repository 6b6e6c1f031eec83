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
    /// Every byte of a file's contents: two that look the same by `stat` differ in it.
    pub fill: u8,
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
    /// Each time that a name got its meaning: the name, the node, and whether a member of its own gave it.
    log: Vec<(String, usize, bool)>,
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
            log: Vec::new(),
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
            self.log.push((path.clone(), self.bound[path], true));
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
        let member = Member { path: path.into(), what: What::Directory, mode: 0o755, uid, gid, mtime: (0, 0), fill: 0 };
        self.nodes.push(Node { member, announced: false });
        self.bind(path, self.nodes.len() - 1);
    }

    fn bind(&mut self, path: &str, node: usize) {
        let before = self.bound.insert(path.into(), node);
        if before.is_none() {
            self.order.push(path.into());
        }
        self.log.push((path.into(), node, self.nodes[node].announced));
    }

    fn is_directory(&self, path: &str) -> bool {
        self.bound.get(path).is_some_and(|&n| self.nodes[n].member.what == What::Directory)
    }

    /// Names in a directory, in the order of their first arrival.
    pub fn names(&self, dir: &str) -> Vec<String> {
        let below = self.order.iter().filter(|path| parent(path) == Some(dir));
        below.map(|path| path.rsplit('/').next().unwrap().to_owned()).collect()
    }

    /// The whole tree.
    pub fn view(&self) -> View {
        let mut view = self.view_of(&self.bound);
        for (path, seen) in &mut view {
            if seen.what == What::Directory {
                seen.names = self.names(path);
            }
        }
        view
    }

    /// A tree of these names, each with its node; the names in a directory are sorted.
    pub fn view_of(&self, bound: &BTreeMap<String, usize>) -> View {
        let is_directory = |n: usize| self.nodes[n].member.what == What::Directory;
        let see = |path: &String, n: usize| {
            let Node { member, announced } = &self.nodes[n];
            let same: BTreeSet<_> = bound.iter().filter(|(_, m)| **m == n).map(|(path, _)| path).collect();
            let inside = || bound.iter().filter(|(other, _)| parent(other) == Some(path));
            let directory = is_directory(n);
            let nlink = if directory { 2 + inside().filter(|(_, n)| is_directory(**n)).count() } else { same.len() };
            let names = inside().map(|(path, _)| path.rsplit('/').next().unwrap().to_owned()).collect();
            Seen {
                what: member.what.clone(),
                mode: member.mode,
                uid: member.uid,
                gid: member.gid,
                mtime: announced.then_some(member.mtime),
                nlink: nlink as u64,
                group: if directory { path.clone() } else { same.first().unwrap().to_string() },
                names: if directory { names } else { Vec::new() },
            }
        };
        bound.iter().map(|(path, &n)| (path.clone(), see(path, n))).collect()
    }

    /// The names that `wants` says, and the directories that they are in.
    pub fn selected(&self, wants: impl Fn(&str) -> bool) -> BTreeMap<String, usize> {
        let mut names = BTreeMap::from([(String::new(), self.bound[""])]);
        // A directory that nobody announced is there only for what is in it.
        let stands_alone = |n: usize| self.nodes[n].announced || self.nodes[n].member.what != What::Directory;
        for (path, _) in self.bound.iter().filter(|(path, n)| wants(path) && stands_alone(**n)) {
            let mut at = Some(&**path);
            while let Some(path) = at {
                names.insert(path.into(), self.bound[path]);
                at = parent(path);
            }
        }
        names
    }

    /// The names that are left without the first `strip` components. The later of two wins where it can: what cannot be is
    /// counted.
    pub fn stripped(&self, strip: usize, wants: impl Fn(&str) -> bool) -> (BTreeMap<String, usize>, usize) {
        let is_directory = |n: usize| self.nodes[n].member.what == What::Directory;
        let mut names = BTreeMap::from([(String::new(), self.bound[""])]);
        let mut refused = 0;
        'log: for (path, node, header) in &self.log {
            let Some((at, _)) = path.match_indices('/').nth(strip - 1).filter(|_| wants(path)) else { continue };
            let left = &path[at + 1..];
            for (end, _) in left.match_indices('/') {
                if names.get(&left[..end]).is_some_and(|&n| !is_directory(n)) {
                    refused += usize::from(*header);
                    continue 'log;
                }
            }
            match names.get(left) {
                // A directory that nobody announced takes nobody's place.
                Some(_) if !header => continue,
                Some(&there) if is_directory(there) && is_directory(*node) => {}
                Some(&there) if is_directory(there) && names.keys().any(|other| parent(other) == Some(left)) => {
                    refused += 1;
                    continue;
                }
                _ => {}
            }
            for (end, _) in left.match_indices('/') {
                let full = &path[..at + 1 + end];
                names.entry(left[..end].into()).or_insert(self.bound[full]);
            }
            names.insert(left.into(), *node);
        }
        (names, refused)
    }

    /// The member that a name got its meaning from.
    pub fn member(&self, node: usize) -> &Member {
        &self.nodes[node].member
    }

    /// What a name means.
    pub fn get(&self, path: &str) -> Option<&Member> {
        self.bound.get(path).map(|&n| self.member(n))
    }

    /// All names.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        self.bound.keys().map(String::as_str)
    }
}

/// The directory that a path is in.
pub fn parent(path: &str) -> Option<&str> {
    if path.is_empty() { None } else { Some(path.rsplit_once('/').map_or("", |(dir, _)| dir)) }
}
