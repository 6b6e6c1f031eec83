//! The tree in memory: inodes, dentries, where contents lie and how far they have arrived.
//!
//! One row of 64 bytes for each inode, one of 16 for each dentry, a table of hashes of parent and name with the number of
//! the dentry, eight bytes for both, and the names in an arena. The hash stands in the table since there it is looked at:
//! neither a name that is not there nor a table that grows touches the rows. Inode numbers are never reused and dentries
//! never removed: a name that comes again is bound to a new inode in its old place, so a listing that is under way neither
//! misses nor repeats an entry. No recursion, whatever the depth.

mod ino;
pub mod insert;
mod names;
mod table;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::entry::{Device, EntryPath, SparseMap, Timestamp, Xattrs};
use names::{Arena, NameRef};
use table::Table;

pub use ino::Ino;

/// A name in a directory, whatever it is bound to. It stays good for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Name(u32);

/// What an inode is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A named pipe.
    Fifo,
    /// A Unix socket.
    Socket,
}

/// How far the contents of a file have arrived. Only moves forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// Known by its metadata; nothing of its contents is there.
    Announced,
    /// So many stored bytes are there, and more are coming.
    Arriving {
        /// Stored bytes.
        received: u64,
    },
    /// All is there.
    Complete,
    /// The stream ended after so many stored bytes.
    Truncated {
        /// Stored bytes.
        received: u64,
    },
}

/// Where the stored bytes of a file lie.
#[derive(Clone, Debug)]
pub enum Place {
    /// Nowhere: it has none.
    Empty,
    /// At this offset of the archive itself, which is mounted in place.
    Archive(u64),
    /// In the record at this offset of the spool's journal.
    Journal(u64),
    /// In the blob of this number, at their offsets in the file.
    Blob(u64),
    /// In the blob of this number, one after the other.
    Packed(u64),
    /// Still in memory: a small file that is arriving.
    Memory(Arc<Vec<u8>>),
}

impl Place {
    /// In the blob of this number: one after the other where they are `packed`, else at their offsets.
    pub fn in_blob(number: u64, packed: bool) -> Place {
        if packed { Place::Packed(number) } else { Place::Blob(number) }
    }
}

const PLACE_EMPTY: u8 = 0;
const PLACE_ARCHIVE: u8 = 1;
const PLACE_JOURNAL: u8 = 2;
const PLACE_BLOB: u8 = 3;
const PLACE_MEMORY: u8 = 4;
const PLACE_PACKED: u8 = 5;

/// What `stat` tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// Its number.
    pub ino: Ino,
    /// What it is.
    pub kind: Kind,
    /// Permission bits, at most `0o7777`.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Length, holes included.
    pub size: u64,
    /// Bytes that are not holes.
    pub stored: u64,
    /// Last modification.
    pub mtime: Timestamp,
    /// Bound names; of a directory two more than its subdirectories.
    pub nlink: u32,
    /// Of a device.
    pub device: Option<Device>,
}

const NONE: u32 = u32::MAX;

/// A row of the inode table.
#[derive(Debug)]
struct Inode {
    seconds: i64,
    /// File: size. Directory: first and last dentry. Symlink: the name of the target. Device: its number.
    a: u64,
    /// Where the contents begin.
    b: u64,
    nanos: u32,
    uid: u32,
    gid: u32,
    nlink: u32,
    /// Row of `xattrs`, or NONE.
    xattrs: u32,
    mode: u16,
    kind: Kind,
    place: u8,
    sparse: bool,
    /// Whether contents are to come, or would have been: `arrivals` knows more. Else it is complete.
    pending: bool,
    /// A directory that no header announced yet.
    implied: bool,
}

#[derive(Debug)]
struct Dentry {
    name: NameRef,
    parent: u32,
    ino: u32,
    /// The next one of the same directory.
    next: u32,
}

/// The tree.
#[derive(Debug)]
pub struct Index {
    inodes: Vec<Inode>,
    dentries: Vec<Dentry>,
    /// The inode and the dentry of each directory below the root, in order of arrival.
    directories: Vec<(u32, u32)>,
    table: Table,
    arena: Arena,
    xattrs: Vec<Xattrs>,
    xattr_rows: HashMap<Xattrs, u32>,
    sparse: HashMap<u32, Arc<SparseMap>>,
    memory: HashMap<u32, Arc<Vec<u8>>>,
    /// Of pending files; one that is not here is announced.
    arrivals: HashMap<u32, Arrival>,
    /// Files that were written to while they were sent.
    changed: HashSet<u32>,
    /// Entries that came so far.
    order: u64,
    /// Hard links whose target has not come: target path to the links' order among the entries, and their paths.
    waiting: HashMap<Box<[u8]>, Vec<(u64, EntryPath)>>,
    /// How many links these are.
    waiting_links: usize,
    /// Names that a link waits to have: the order of the last entry that got it, 0 where none did.
    latest: HashMap<EntryPath, u64>,
    /// Where the entry before went; the next one mostly goes there too.
    last_parent: (Vec<u8>, Ino),
    owner: (u32, u32),
    made: Timestamp,
    /// A name has been bound to something else than before.
    has_replaced: bool,
    /// Inodes that lost a name by the last entry.
    replaced: Vec<Ino>,
    /// Memory of what has no row of fixed length.
    bytes: u64,
    contents: u64,
}

impl Index {
    /// An empty tree. Directories that no header announces belong to `uid` and `gid`, and have the time `made`.
    pub fn new(uid: u32, gid: u32, made: Timestamp) -> Self {
        let mut index = Index {
            inodes: Vec::new(),
            dentries: Vec::new(),
            directories: Vec::new(),
            table: Table::new(),
            arena: Arena::default(),
            xattrs: Vec::new(),
            xattr_rows: HashMap::new(),
            sparse: HashMap::new(),
            memory: HashMap::new(),
            arrivals: HashMap::new(),
            changed: HashSet::new(),
            order: 0,
            waiting: HashMap::new(),
            latest: HashMap::new(),
            waiting_links: 0,
            last_parent: (Vec::new(), Ino::ROOT),
            owner: (uid, gid),
            made,
            has_replaced: false,
            replaced: Vec::new(),
            bytes: 0,
            contents: 0,
        };
        index.inodes.push(Inode::directory(uid, gid, made));
        index
    }

    /// The time of directories that no header announces.
    pub fn made(&self) -> Timestamp {
        self.made
    }

    /// Dentries in it.
    pub fn len(&self) -> usize {
        self.dentries.len()
    }

    /// Whether nothing has come yet.
    pub fn is_empty(&self) -> bool {
        self.dentries.is_empty()
    }

    /// Inodes in it.
    pub fn inodes(&self) -> usize {
        self.inodes.len()
    }

    /// Hard links that wait for their target.
    pub fn waiting(&self) -> usize {
        self.waiting_links
    }

    /// Whether a name has come more than once, and means something else than before.
    pub fn has_replaced(&self) -> bool {
        self.has_replaced
    }

    /// What lost a name by the entry that was inserted last: all but directories.
    pub fn replaced(&self) -> &[Ino] {
        &self.replaced
    }

    /// Stored bytes of all files that ever had a name.
    pub fn contents(&self) -> u64 {
        self.contents
    }

    /// Bytes of memory it takes, near enough for a limit.
    pub fn memory(&self) -> u64 {
        (self.inodes.capacity() * size_of::<Inode>()
            + self.dentries.capacity() * size_of::<Dentry>()
            + self.directories.capacity() * size_of::<(u32, u32)>()
            + self.table.bytes()
            + self.arena.bytes()) as u64
            + self.bytes
    }

    fn find(&self, hash: u32, parent: Ino, name: &[u8]) -> Option<u32> {
        self.table.find(parent, hash, |d| self.is_dentry(d, parent, name))
    }

    fn is_dentry(&self, d: u32, parent: Ino, name: &[u8]) -> bool {
        let dentry = &self.dentries[d as usize];
        u64::from(dentry.parent) == parent.0 && self.arena.get(dentry.name) == name
    }

    /// The inode that `name` in `parent` is bound to.
    pub fn lookup(&self, parent: Ino, name: &[u8]) -> Option<Ino> {
        self.find(self.table.hash(parent, name), parent, name).map(|d| Ino(u64::from(self.dentries[d as usize].ino)))
    }

    /// The inode at a path below the root. Walks through directories only.
    pub fn resolve(&self, path: &[u8]) -> Option<Ino> {
        path.split(|&b| b == b'/')
            .filter(|c| !c.is_empty() && *c != b".")
            .try_fold(Ino::ROOT, |at, name| self.lookup(at, name))
    }

    /// The name at a path below the root.
    pub fn name(&self, path: &[u8]) -> Option<Name> {
        let (directory, name) = match path.iter().rposition(|&b| b == b'/') {
            Some(slash) => (&path[..slash], &path[slash + 1..]),
            None => (&[][..], path),
        };
        let parent = self.resolve(directory)?;
        self.find(self.table.hash(parent, name), parent, name).map(Name)
    }

    /// The path of a name. None where something else has taken the place of a directory that it is in.
    pub fn path(&self, name: Name) -> Option<Vec<u8>> {
        let dentry = self.dentries.get(name.0 as usize)?;
        let mut path = match self.directory_number(Ino(u64::from(dentry.parent))) {
            Some(number) => self.directory_path(number, usize::MAX)?,
            None => Vec::new(),
        };
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(self.arena.get(dentry.name));
        Some(path)
    }

    /// What `stat` tells of an inode. None for a number that was never given out.
    pub fn attributes(&self, ino: Ino) -> Option<Attributes> {
        let inode = self.inode(ino)?;
        let (size, stored) = match inode.kind {
            Kind::File if inode.sparse => (inode.a, self.sparse[&(ino.0 as u32)].stored_len()),
            Kind::File => (inode.a, inode.a),
            Kind::Symlink => (self.arena.get(inode.target()).len() as u64, 0),
            _ => (0, 0),
        };
        let device = matches!(inode.kind, Kind::CharDevice | Kind::BlockDevice)
            .then_some(Device { major: (inode.a >> 32) as u32, minor: inode.a as u32 });
        Some(Attributes {
            ino,
            kind: inode.kind,
            mode: inode.mode,
            uid: inode.uid,
            gid: inode.gid,
            size,
            stored,
            mtime: Timestamp::new(inode.seconds, inode.nanos),
            nlink: inode.nlink,
            device,
        })
    }

    /// Whether this is a directory that no header has announced.
    pub fn is_implied(&self, ino: Ino) -> bool {
        self.inode(ino).is_some_and(|inode| inode.implied)
    }

    /// The target of a symbolic link.
    pub fn target(&self, ino: Ino) -> Option<&[u8]> {
        let inode = self.inode(ino)?;
        (inode.kind == Kind::Symlink).then(|| self.arena.get(inode.target()))
    }

    /// Its extended attributes.
    pub fn xattrs(&self, ino: Ino) -> Option<Xattrs> {
        let inode = self.inode(ino)?;
        Some(if inode.xattrs == NONE { Xattrs::default() } else { self.xattrs[inode.xattrs as usize].clone() })
    }

    /// How far the contents of a file have arrived.
    pub fn arrival(&self, ino: Ino) -> Option<Arrival> {
        let inode = self.inode(ino)?;
        Some(if inode.pending {
            self.arrivals.get(&(ino.0 as u32)).copied().unwrap_or(Arrival::Announced)
        } else {
            Arrival::Complete
        })
    }

    /// Whether a file was written to while it was sent: it is whole, and may be of no moment that ever was.
    pub fn is_changed(&self, ino: Ino) -> bool {
        self.changed.contains(&(ino.0 as u32))
    }

    /// Where the contents of a file lie.
    pub fn place(&self, ino: Ino) -> Option<Place> {
        let inode = self.inode(ino)?;
        Some(match inode.place {
            PLACE_ARCHIVE => Place::Archive(inode.b),
            PLACE_JOURNAL => Place::Journal(inode.b),
            PLACE_BLOB => Place::Blob(inode.b),
            PLACE_PACKED => Place::Packed(inode.b),
            PLACE_MEMORY => Place::Memory(self.memory[&(ino.0 as u32)].clone()),
            _ => Place::Empty,
        })
    }

    /// The map of a file with holes.
    pub fn sparse(&self, ino: Ino) -> Option<&Arc<SparseMap>> {
        self.sparse.get(&(ino.0 as u32))
    }

    /// The directory that a directory is in; the root is in itself. For `..`.
    pub fn parent(&self, ino: Ino) -> Option<Ino> {
        let inode = self.inode(ino)?;
        (inode.kind == Kind::Directory).then_some(Ino(inode.b.max(1)))
    }

    /// The directory of this number; those below the root are numbered from 0 on, in order of arrival.
    pub fn directory_at(&self, number: usize) -> Option<Ino> {
        self.directories.get(number).map(|&(ino, _)| Ino(u64::from(ino)))
    }

    /// The number of a directory below the root.
    pub fn directory_number(&self, ino: Ino) -> Option<usize> {
        self.directories.binary_search_by_key(&ino.0, |&(ino, _)| u64::from(ino)).ok()
    }

    /// The path of the directory of this number; none where something else has its name by now, or it is longer than
    /// `longest`.
    pub fn directory_path(&self, number: usize, longest: usize) -> Option<Vec<u8>> {
        let mut names = Vec::new();
        let mut length = 0;
        let mut number = Some(number);
        while let Some(at) = number {
            let &(ino, d) = self.directories.get(at)?;
            let dentry = &self.dentries[d as usize];
            if dentry.ino != ino {
                return None;
            }
            let name = self.arena.get(dentry.name);
            length += name.len() + 1;
            if length > longest {
                return None;
            }
            names.push(name);
            number = self.directory_number(Ino(u64::from(dentry.parent)));
        }
        names.reverse();
        Some(names.join(&b'/'))
    }

    /// The dentries of a directory in order of arrival, from the one after `cookie` (0: the first). Each comes
    /// with its own cookie, which stays good for ever.
    pub fn list(&self, ino: Ino, cookie: u64) -> impl Iterator<Item = (u64, &[u8], Ino)> {
        let mut at = match (cookie, self.inode(ino)) {
            (0, Some(inode)) if inode.kind == Kind::Directory => inode.children().0,
            (0, _) => NONE,
            (n, _) => {
                self.dentries.get(n as usize - 1).filter(|d| u64::from(d.parent) == ino.0).map_or(NONE, |d| d.next)
            }
        };
        std::iter::from_fn(move || {
            let dentry = self.dentries.get(at as usize)?;
            let item = (u64::from(at) + 1, self.arena.get(dentry.name), Ino(u64::from(dentry.ino)));
            at = dentry.next;
            Some(item)
        })
    }

    /// All names below the root, with their paths; a directory before what is in it.
    pub fn walk(&self, name: &mut dyn FnMut(&[u8], Ino)) {
        let mut path = Vec::new();
        // Of each directory on the way: what was listed last, and how long its path is.
        let mut way = vec![(Ino::ROOT, 0, 0)];
        while let Some((directory, cookie, len)) = way.last_mut() {
            path.truncate(*len);
            let Some((next, component, ino)) = self.list(*directory, *cookie).next() else {
                way.pop();
                continue;
            };
            *cookie = next;
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(component);
            name(&path, ino);
            if self.parent(ino).is_some() {
                way.push((ino, 0, path.len()));
            }
        }
    }

    fn inode(&self, ino: Ino) -> Option<&Inode> {
        self.inodes.get((ino.0 as usize).checked_sub(1)?)
    }
}

impl Inode {
    fn directory(uid: u32, gid: u32, mtime: Timestamp) -> Self {
        Inode {
            seconds: mtime.seconds(),
            a: u64::from(NONE) << 32 | u64::from(NONE),
            b: 0,
            nanos: mtime.nanos(),
            uid,
            gid,
            nlink: 2,
            xattrs: NONE,
            mode: 0o755,
            kind: Kind::Directory,
            place: PLACE_EMPTY,
            sparse: false,
            pending: false,
            implied: true,
        }
    }

    /// First and last dentry of a directory.
    fn children(&self) -> (u32, u32) {
        ((self.a >> 32) as u32, self.a as u32)
    }

    fn set_children(&mut self, first: u32, last: u32) {
        self.a = u64::from(first) << 32 | u64::from(last);
    }

    fn target(&self) -> NameRef {
        NameRef::from_bits(self.a as u32)
    }
}
