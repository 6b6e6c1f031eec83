//! Where the next header stands, by what one header says of itself. It is a guess, made without the work of a decoder:
//! whoever reads ahead of one may go by it, and lose no more than time where it is wrong.

use super::header::{Block, Header, padding};
use super::member::{has_payload, is_plain_file};
use super::number::decimal;
pub use super::sparse::map_continues;

/// What stands behind a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behind {
    /// So many bytes of contents, their padding included, and then a header.
    Contents(u64),
    /// So many bytes of records, one of which may be the size of what follows ([`size_is_elsewhere`]); then a header.
    Records(u64),
    /// So many bytes of a name, or of what is said of all members; then a header.
    Extension(u64),
    /// A block of a sparse map, more as long as [`map_continues`], then so many bytes of contents, and then a header.
    Map(u64),
}

/// Glances at a block; none where it is no header.
pub fn glance(block: &Block) -> Option<Behind> {
    let header = Header::guess(block)?;
    let size = header.size()?;
    let size = size + padding(size);
    Some(match header.typeflag() {
        b'x' | b'X' => Behind::Records(size),
        b'g' | b'L' | b'K' | b'A' => Behind::Extension(size),
        b'S' if header.sparse_continues() => Behind::Map(size),
        typeflag if is_plain_file(typeflag) && header.is_named_as_directory() => Behind::Contents(0),
        typeflag if has_payload(typeflag) => Behind::Contents(size),
        _ => Behind::Contents(0),
    })
}

/// Whether records say another size than the header that follows them; also where they cannot be told from others.
pub fn size_is_elsewhere(mut records: &[u8]) -> bool {
    while let Some(&first) = records.first()
        && first != 0
    {
        let Some(space) = records.iter().take(20).position(|&b| b == b' ') else { return true };
        let len = decimal(&records[..space]).and_then(|len| usize::try_from(len).ok()).unwrap_or(0);
        if len <= space || len > records.len() || records[space + 1..len].starts_with(b"size=") {
            return true;
        }
        records = &records[len..];
    }
    false
}
