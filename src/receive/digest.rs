//! What stands for an entry when a sender that was started again says it once more: whether it is the very same.

use std::num::NonZeroU64;

/// Of what a sender says of an entry, as it was encoded: the entry, and of a file with contents its ctime.
pub(super) fn digest(encoded: &[u8]) -> NonZeroU64 {
    let hash = blake3::hash(encoded);
    let first: [u8; 8] = hash.as_bytes()[..8].try_into().expect("a hash has 32 bytes");
    NonZeroU64::new(u64::from_le_bytes(first)).unwrap_or(NonZeroU64::MIN)
}
