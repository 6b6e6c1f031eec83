//! The numbers of inodes.

/// The number of an inode; the root has 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ino(pub u64);

impl Ino {
    /// The root of the tree.
    pub const ROOT: Ino = Ino(1);

    pub(super) fn row(self) -> usize {
        self.0 as usize - 1
    }
}
