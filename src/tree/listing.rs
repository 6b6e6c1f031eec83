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
    /// Where each begins and ends, its NUL included.
    places: Vec<(usize, usize)>,
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
        listing.places.sort_unstable_by_key(|&(start, end)| &names[start..end]);
        Ok(listing)
    }

    fn push(&mut self, name: &CStr) {
        let start = self.names.len();
        self.names.extend_from_slice(name.to_bytes_with_nul());
        self.places.push((start, self.names.len()));
    }

    /// The next one.
    pub(super) fn next(&mut self) -> Option<&CStr> {
        let &(start, end) = self.places.get(self.next)?;
        self.next += 1;
        CStr::from_bytes_with_nul(&self.names[start..end]).ok()
    }

    /// Whether there is such a name.
    pub(super) fn has(&self, name: &CStr) -> bool {
        self.places.binary_search_by_key(&name.to_bytes_with_nul(), |&(start, end)| &self.names[start..end]).is_ok()
    }

    /// Forgets all but this one.
    pub(super) fn retain_only(&mut self, name: &CStr) {
        *self = Listing::default();
        self.push(name);
    }
}
