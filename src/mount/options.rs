//! What to mount, where, and how.

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::fuse::Helper;
use crate::source::Source;
use crate::spool::left::Left;
use crate::tarball;
use crate::wire::Listener;

/// Where entries come from.
#[derive(Debug)]
pub enum Feed {
    /// An archive.
    Archive(Source),
    /// A native sender.
    Sender(Listener),
    /// What a daemon that is gone has left.
    Spool(Box<Left>),
}

impl Feed {
    /// What it is called.
    pub(super) fn name(&self) -> String {
        match self {
            Feed::Archive(source) => source.name().into(),
            Feed::Sender(listener) => format!("sender to {}", listener.address()),
            Feed::Spool(left) => left.about().source.clone(),
        }
    }

    /// Whether it is there already, and needs nobody who sends.
    pub fn is_file(&self) -> bool {
        match self {
            Feed::Archive(source) => source.file().is_some(),
            Feed::Sender(_) => false,
            Feed::Spool(_) => true,
        }
    }

    /// The address that is listened on, where one is.
    pub fn local_address(&self) -> Option<SocketAddr> {
        match self {
            Feed::Archive(source) => source.local_address(),
            Feed::Sender(listener) => Some(listener.address()),
            Feed::Spool(_) => None,
        }
    }
}

/// What to mount, where, and how.
#[derive(Debug)]
pub struct Options {
    /// Where entries come from.
    pub feed: Feed,
    /// An existing directory.
    pub mountpoint: PathBuf,
    /// In which directory contents are spooled, where they have to be.
    pub spool_directory: PathBuf,
    /// The most that is spooled, in bytes.
    pub spool_limit: Option<u64>,
    /// Whether the spool stays behind.
    pub keep_spool: bool,
    /// Whether others than the owner may look in; the kernel then checks permissions.
    pub allow_other: bool,
    /// Whether the kernel may read complete large files by itself, where it can.
    pub passthrough: bool,
    /// Whether extended attributes can be seen; what is restored from the mount has them all the same.
    pub xattrs: bool,
    /// The most memory that the index may take, in bytes; a quarter of the machine's where it is not said.
    pub max_index: Option<u64>,
    /// Who lists directories ahead, where somebody can.
    pub helper: Option<Helper>,
    /// How the archive is to be read.
    pub tar: tarball::Options,
    /// A spool that holds the first part of it, to be filled further.
    pub resume: Option<Box<Left>>,
}
