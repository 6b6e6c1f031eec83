//! Pieces of an archive, for streams that a test feeds by hand.

use tar::{EntryType, Header};

/// The header of a file in ustar format.
pub fn file(name: &str, size: usize) -> Vec<u8> {
    let mut header = header(name, EntryType::Regular);
    header.set_size(size as u64);
    finish(header)
}

/// A symbolic link.
pub fn link(name: &str, target: &str) -> Vec<u8> {
    let mut header = header(name, EntryType::Symlink);
    header.set_link_name(target).unwrap();
    finish(header)
}

/// A file with its contents, padded.
pub fn whole(name: &str, contents: &[u8]) -> Vec<u8> {
    [file(name, contents.len()), contents.to_vec(), padding(contents.len())].concat()
}

/// What fills the last block of contents.
pub fn padding(size: usize) -> Vec<u8> {
    vec![0; size.next_multiple_of(512) - size]
}

/// The end of the archive.
pub fn end() -> Vec<u8> {
    vec![0; 1024]
}

fn header(name: &str, kind: EntryType) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_path(name).unwrap();
    header.set_mode(0o644);
    header.set_mtime(1_000_000_000);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(0);
    header
}

fn finish(mut header: Header) -> Vec<u8> {
    header.set_cksum();
    header.as_bytes().to_vec()
}

/// A member with names as they are, good or bad, of at most 100 bytes.
pub fn member(kind: EntryType, name: &str, target: &str, mtime: u64, contents: &[u8]) -> Vec<u8> {
    let mut header = Header::new_ustar();
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
    header.set_entry_type(kind);
    header.set_mode(match kind {
        EntryType::Directory => 0o755,
        EntryType::Symlink => 0o777,
        _ => 0o644,
    });
    header.set_mtime(mtime);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(contents.len() as u64);
    [finish(header), contents.to_vec(), padding(contents.len())].concat()
}
