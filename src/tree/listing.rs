//! The names in a directory, sorted.

use std::ffi::CStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;

use rustix::fs::RawDir;

/// Names, one after the other in one place: a directory may have millions.
#[derive(Debug, Default)]
pub(super) struct Listing {
    names: Vec<u8>,
    /// Where each begins; it ends with its NUL.
    starts: Vec<usize>,
    next: usize,
}

impl Listing {
    /// Reads all of a directory into it, which was opened for this.
    pub(super) fn read(dir: BorrowedFd<'_>, buffer: &mut [MaybeUninit<u8>]) -> io::Result<Self> {
        let mut listing = Listing::default();
        let mut entries = RawDir::new(dir, buffer);
        while let Some(entry) = entries.next() {
            let entry = entry?;
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                listing.push(entry.file_name());
            }
        }
        let names = &listing.names;
        listing.starts.sort_unstable_by_key(|&start| until_nul(&names[start..]));
        Ok(listing)
    }

    fn push(&mut self, name: &CStr) {
        self.starts.push(self.names.len());
        self.names.extend_from_slice(name.to_bytes_with_nul());
    }

    /// The next one.
    pub(super) fn next(&mut self) -> Option<&CStr> {
        let start = *self.starts.get(self.next)?;
        self.next += 1;
        CStr::from_bytes_until_nul(&self.names[start..]).ok()
    }

    /// Whether there is such a name.
    pub(super) fn has(&self, name: &CStr) -> bool {
        self.starts.binary_search_by_key(&name.to_bytes(), |&start| until_nul(&self.names[start..])).is_ok()
    }

    /// Forgets all but this one.
    pub(super) fn retain_only(&mut self, name: &CStr) {
        *self = Listing::default();
        self.push(name);
    }
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    CStr::from_bytes_until_nul(bytes).map_or(bytes, CStr::to_bytes)
}
