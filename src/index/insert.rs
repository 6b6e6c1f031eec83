//! How entries get into the tree: binding names, replacing them, links that wait for their target.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{
    Arrival, Dentry, Index, Ino, Inode, Kind, NONE, PLACE_ARCHIVE, PLACE_BLOB, PLACE_EMPTY, PLACE_JOURNAL,
    PLACE_MEMORY, PLACE_PACKED, Place,
};
use crate::entry::{Entry, EntryKind, EntryPath, Metadata, Xattrs};

/// Why an entry is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A component of its path is not a directory.
    #[error("its path passes through something that is not a directory")]
    ThroughNonDirectory,
    /// It would take the place of a directory with entries in it.
    #[error("a directory that is not empty has this name")]
    NotEmpty,
    /// The root can only be a directory.
    #[error("only a directory can be the root")]
    Root,
    /// A hard link to its own name.
    #[error("it is a hard link to itself")]
    LinkToItself,
    /// A hard link to a directory.
    #[error("it is a hard link to a directory")]
    LinkToDirectory,
    /// A hard link whose target never came.
    #[error("it is a hard link to a name that never came")]
    LinkTargetMissing,
    /// Numbers or the names' arena are used up.
    #[error("the index can hold no more names")]
    Full,
}

/// What became of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inserted {
    /// It has this inode, a new one or, for a directory that was there and for a hard link, an old one.
    Bound(Ino),
    /// A hard link whose target has not come yet: it is bound when that does.
    Waits,
}

/// What became of a hard link that waited for its target.
#[derive(Clone, Copy, Debug)]
pub struct Late<'a> {
    /// Its path.
    pub link: &'a EntryPath,
    /// What it is linked to.
    pub target: &'a EntryPath,
    /// What its path meant before.
    pub before: Option<Ino>,
    /// The inode that it has now, or why it is left out.
    pub bound: Result<Ino, Refusal>,
}

/// A name in a directory, with what the table says of it.
struct Slot<'n> {
    parent: Ino,
    name: &'n [u8],
    hash: u32,
    /// Its dentry, where it is bound.
    old: Option<u32>,
}

impl Index {
    /// Puts an entry into the tree. A file with contents is [`Arrival::Announced`] until
    /// [`Index::set_arrival`] says more. `late` is told of links that waited for this name.
    pub fn insert(&mut self, entry: &Entry, late: &mut dyn FnMut(Late<'_>)) -> Result<Inserted, Refusal> {
        self.order += 1;
        self.replaced.clear();
        let bound = self.insert_one(entry)?;
        if let Inserted::Bound(_) = bound
            && !self.waiting.is_empty()
        {
            self.taken(&entry.path, self.order);
            // A bound link can be what another link waits for; of all that can be bound, the first of the archive is.
            let mut ready = BTreeMap::new();
            self.ready(&entry.path, &mut ready);
            while let Some((order, (link, target))) = ready.pop_first() {
                if self.latest.get(&link).is_some_and(|&latest| latest > order) {
                    continue;
                }
                let before = self.resolve(link.as_bytes());
                let bound = self.link(&link, &target);
                late(Late { link: &link, target: &target, before, bound });
                if bound.is_ok() {
                    self.taken(&link, order);
                    self.ready(&link, &mut ready);
                }
            }
        }
        Ok(bound)
    }

    /// Links that wait for `target`, by their order in the archive.
    fn ready(&mut self, target: &EntryPath, ready: &mut BTreeMap<u64, (EntryPath, EntryPath)>) {
        for (order, link) in self.waiting.remove(target.as_bytes()).unwrap_or_default() {
            self.waiting_links -= 1;
            ready.insert(order, (link, target.clone()));
        }
    }

    /// A name has been bound by the entry of this order: links of the same name that came before it are replaced.
    fn taken(&mut self, path: &EntryPath, order: u64) {
        if let Some(latest) = self.latest.get_mut(path) {
            *latest = order.max(*latest);
        }
    }

    /// The stream is over: names the links whose target never came.
    pub fn finish(&mut self, refuse: &mut dyn FnMut(&EntryPath, Refusal)) {
        let latest = std::mem::take(&mut self.latest);
        let mut links: Vec<_> = std::mem::take(&mut self.waiting).into_values().flatten().collect();
        links.retain(|(order, link)| latest.get(link).is_none_or(|latest| latest < order));
        self.waiting_links = 0;
        links.sort();
        for (_, link) in links {
            refuse(&link, Refusal::LinkTargetMissing);
        }
    }

    fn insert_one(&mut self, entry: &Entry) -> Result<Inserted, Refusal> {
        if let EntryKind::HardLink { target } = &entry.kind {
            if *target == entry.path {
                return Err(Refusal::LinkToItself);
            }
            if self.resolve(target.as_bytes()).is_none() {
                self.bytes += (target.as_bytes().len() + 2 * entry.path.as_bytes().len() + 192) as u64;
                self.waiting.entry(target.as_bytes().into()).or_default().push((self.order, entry.path.clone()));
                self.latest.entry(entry.path.clone()).or_insert(0);
                self.waiting_links += 1;
                return Ok(Inserted::Waits);
            }
            return self.link(&entry.path, target).map(Inserted::Bound);
        }
        let Some((dir, name)) = entry.path.split() else {
            if entry.kind != EntryKind::Directory {
                return Err(Refusal::Root);
            }
            self.update(Ino::ROOT, &entry.metadata);
            return Ok(Inserted::Bound(Ino::ROOT));
        };
        let parent = self.directory(dir)?;
        let slot = self.slot(parent, name);
        if let Some(d) = slot.old {
            let ino = Ino(u64::from(self.dentries[d as usize].ino));
            let inode = &self.inodes[ino.row()];
            if inode.kind == Kind::Directory {
                if entry.kind == EntryKind::Directory {
                    self.update(ino, &entry.metadata);
                    return Ok(Inserted::Bound(ino));
                }
                if inode.children().0 != NONE {
                    return Err(Refusal::NotEmpty);
                }
            }
        }
        let ino = self.create(entry, parent)?;
        self.bind(slot, ino)?;
        Ok(Inserted::Bound(ino))
    }

    fn link(&mut self, path: &EntryPath, target: &EntryPath) -> Result<Ino, Refusal> {
        let ino = self.resolve(target.as_bytes()).ok_or(Refusal::LinkTargetMissing)?;
        if self.inodes[ino.row()].kind == Kind::Directory {
            return Err(Refusal::LinkToDirectory);
        }
        let (dir, name) = path.split().ok_or(Refusal::Root)?;
        let parent = self.directory(dir)?;
        let slot = self.slot(parent, name);
        if let Some(d) = slot.old {
            let there = Ino(u64::from(self.dentries[d as usize].ino));
            if there == ino {
                return Ok(ino);
            }
            let inode = &self.inodes[there.row()];
            if inode.kind == Kind::Directory && inode.children().0 != NONE {
                return Err(Refusal::NotEmpty);
            }
        }
        self.bind(slot, ino)?;
        Ok(ino)
    }

    /// The directory at a path; what is missing on the way is made.
    pub(super) fn directory(&mut self, path: &[u8]) -> Result<Ino, Refusal> {
        if self.last_parent.0 == path {
            return Ok(self.last_parent.1);
        }
        let mut at = Ino::ROOT;
        for name in path.split(|&b| b == b'/').filter(|c| !c.is_empty()) {
            let slot = self.slot(at, name);
            at = match slot.old.map(|d| Ino(u64::from(self.dentries[d as usize].ino))) {
                Some(ino) if self.inodes[ino.row()].kind == Kind::Directory => ino,
                Some(_) => return Err(Refusal::ThroughNonDirectory),
                None => {
                    let (uid, gid) = self.owner;
                    let ino = self.push(Inode { b: at.0, ..Inode::directory(uid, gid, self.made) })?;
                    self.bind(slot, ino)?;
                    ino
                }
            };
        }
        self.last_parent.0.clear();
        self.last_parent.0.extend_from_slice(path);
        self.last_parent.1 = at;
        Ok(at)
    }

    fn push(&mut self, inode: Inode) -> Result<Ino, Refusal> {
        if self.inodes.len() >= NONE as usize - 1 {
            return Err(Refusal::Full);
        }
        self.inodes.push(inode);
        Ok(Ino(self.inodes.len() as u64))
    }

    fn create(&mut self, entry: &Entry, parent: Ino) -> Result<Ino, Refusal> {
        let m = &entry.metadata;
        let mut inode = Inode { mode: m.mode, nlink: 0, implied: false, ..Inode::directory(m.uid, m.gid, m.mtime) };
        inode.a = 0;
        inode.xattrs = self.intern(&m.xattrs);
        let mut map = None;
        inode.kind = match &entry.kind {
            EntryKind::File { size, sparse } => {
                inode.a = *size;
                inode.sparse = sparse.is_some();
                inode.pending = entry.kind.stored_len() > 0;
                map = sparse.clone();
                Kind::File
            }
            EntryKind::Directory => {
                inode.set_children(NONE, NONE);
                inode.nlink = 2;
                inode.b = parent.0;
                Kind::Directory
            }
            EntryKind::Symlink { target } => {
                inode.a = u64::from(self.arena.add(target).ok_or(Refusal::Full)?.bits());
                Kind::Symlink
            }
            EntryKind::CharDevice { device } | EntryKind::BlockDevice { device } => {
                inode.a = u64::from(device.major) << 32 | u64::from(device.minor);
                if matches!(entry.kind, EntryKind::CharDevice { .. }) { Kind::CharDevice } else { Kind::BlockDevice }
            }
            EntryKind::Fifo => Kind::Fifo,
            EntryKind::Socket => Kind::Socket,
            // Links have no inode of their own.
            EntryKind::HardLink { .. } => return Err(Refusal::LinkTargetMissing),
        };
        self.contents = self.contents.saturating_add(entry.kind.stored_len());
        let ino = self.push(inode)?;
        if let Some(map) = map {
            self.bytes += (map.segments().len() * 24 + 64) as u64;
            self.sparse.insert(ino.0 as u32, map);
        }
        Ok(ino)
    }

    fn intern(&mut self, xattrs: &Xattrs) -> u32 {
        if xattrs.is_empty() {
            return NONE;
        }
        if let Some(&row) = self.xattr_rows.get(xattrs) {
            return row;
        }
        let row = self.xattrs.len() as u32;
        self.bytes += xattrs.iter().map(|(n, v)| n.len() + v.len() + 64).sum::<usize>() as u64 + 128;
        self.xattrs.push(xattrs.clone());
        self.xattr_rows.insert(xattrs.clone(), row);
        row
    }

    /// A header for a directory that is there: its metadata count from now on.
    fn update(&mut self, ino: Ino, m: &Metadata) {
        let xattrs = self.intern(&m.xattrs);
        let inode = &mut self.inodes[ino.row()];
        (inode.mode, inode.uid, inode.gid) = (m.mode, m.uid, m.gid);
        (inode.seconds, inode.nanos) = (m.mtime.seconds(), m.mtime.nanos());
        inode.xattrs = xattrs;
        inode.implied = false;
    }

    /// Where a name is, or would be.
    fn slot<'n>(&self, parent: Ino, name: &'n [u8]) -> Slot<'n> {
        let hash = self.table.hash(parent, name);
        Slot { parent, name, hash, old: self.find(hash, parent, name) }
    }

    fn bind(&mut self, slot: Slot<'_>, ino: Ino) -> Result<(), Refusal> {
        let Slot { parent, name, hash, old } = slot;
        if self.inodes[ino.row()].kind == Kind::Directory {
            self.inodes[parent.row()].nlink += 1;
        } else {
            self.inodes[ino.row()].nlink += 1;
        }
        if let Some(d) = old {
            self.has_replaced = true;
            let before = Ino(u64::from(std::mem::replace(&mut self.dentries[d as usize].ino, ino.0 as u32)));
            if self.inodes[before.row()].kind == Kind::Directory {
                self.inodes[parent.row()].nlink -= 1;
                self.inodes[before.row()].nlink = 0;
                self.last_parent = (Vec::new(), Ino::ROOT);
            } else {
                self.inodes[before.row()].nlink -= 1;
                self.replaced.push(before);
            }
            self.number(ino, d);
            return Ok(());
        }
        if self.dentries.len() >= NONE as usize - 1 {
            return Err(Refusal::Full);
        }
        let name = self.arena.add(name).ok_or(Refusal::Full)?;
        let d = self.dentries.len() as u32;
        self.dentries.push(Dentry { name, parent: parent.0 as u32, ino: ino.0 as u32, next: NONE });
        self.table.add(parent, hash, d);
        let (first, last) = self.inodes[parent.row()].children();
        if last == NONE {
            self.inodes[parent.row()].set_children(d, d);
        } else {
            self.dentries[last as usize].next = d;
            self.inodes[parent.row()].set_children(first, d);
        }
        self.number(ino, d);
        Ok(())
    }

    /// A directory is bound once, right after it was made: so their inodes ascend.
    fn number(&mut self, ino: Ino, d: u32) {
        if self.inodes[ino.row()].kind == Kind::Directory {
            self.directories.push((ino.0 as u32, d));
        }
    }

    /// Says where the stored bytes of a file lie.
    pub fn set_place(&mut self, ino: Ino, place: Place) {
        let key = ino.0 as u32;
        let inode = &mut self.inodes[ino.row()];
        if inode.place == PLACE_MEMORY {
            self.memory.remove(&key);
        }
        (inode.place, inode.b) = match place {
            Place::Empty => (PLACE_EMPTY, 0),
            Place::Archive(at) => (PLACE_ARCHIVE, at),
            Place::Journal(at) => (PLACE_JOURNAL, at),
            Place::Blob(number) => (PLACE_BLOB, number),
            Place::Packed(number) => (PLACE_PACKED, number),
            Place::Memory(bytes) => {
                self.memory.insert(key, Arc::clone(&bytes));
                (PLACE_MEMORY, 0)
            }
        };
    }

    /// Says how far a file has arrived. What would move it back is ignored: a file of which all is there, or no more comes,
    /// stays as it is, and of one that is arriving more and more is there.
    pub fn set_arrival(&mut self, ino: Ino, arrival: Arrival) {
        let key = ino.0 as u32;
        if !self.inodes[ino.row()].pending {
            return;
        }
        let goes_back = match (self.arrivals.get(&key), arrival) {
            (None | Some(Arrival::Announced), _) => false,
            (Some(Arrival::Complete | Arrival::Truncated { .. }), _) => true,
            (Some(Arrival::Arriving { .. }), Arrival::Announced) => true,
            (Some(Arrival::Arriving { received: before }), Arrival::Arriving { received }) => received < *before,
            (Some(Arrival::Arriving { .. }), Arrival::Complete | Arrival::Truncated { .. }) => false,
        };
        if goes_back {
            return;
        }
        if arrival == Arrival::Complete {
            self.inodes[ino.row()].pending = false;
            if !self.arrivals.is_empty() {
                self.arrivals.remove(&key);
            }
        } else {
            self.arrivals.insert(key, arrival);
        }
    }

    /// See [`Index::is_changed`].
    pub fn set_changed(&mut self, ino: Ino) {
        self.changed.insert(ino.0 as u32);
    }

    /// Nothing more comes: what has not arrived is cut. Returns the files that were still awaited.
    pub fn cut_all(&mut self) -> Vec<Ino> {
        let pending = (1..).zip(&self.inodes).filter(|(_, inode)| inode.pending).map(|(n, _)| Ino(n));
        let coming = |&ino: &Ino| !matches!(self.arrival(ino), None | Some(Arrival::Truncated { .. }));
        let cut: Vec<Ino> = pending.filter(coming).collect();
        for &ino in &cut {
            let received = match self.arrival(ino) {
                Some(Arrival::Arriving { received }) => received,
                _ => 0,
            };
            self.set_arrival(ino, Arrival::Truncated { received });
        }
        cut
    }
}
