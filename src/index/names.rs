//! Byte strings in one arena: names of dentries, and targets of symbolic links.

/// Where a string begins in its arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NameRef(u32);

impl NameRef {
    pub(crate) fn from_bits(bits: u32) -> Self {
        NameRef(bits)
    }

    pub(crate) fn bits(self) -> u32 {
        self.0
    }
}

/// Strings, each behind its length in two bytes. Nothing is ever taken out.
#[derive(Debug, Default)]
pub(crate) struct Arena(Vec<u8>);

impl Arena {
    /// None when the four gigabytes that a reference can reach are used up.
    pub(crate) fn add(&mut self, bytes: &[u8]) -> Option<NameRef> {
        let at = u32::try_from(self.0.len()).ok()?;
        let len = u16::try_from(bytes.len()).ok()?;
        self.0.extend_from_slice(&len.to_le_bytes());
        self.0.extend_from_slice(bytes);
        Some(NameRef(at))
    }

    pub(crate) fn get(&self, name: NameRef) -> &[u8] {
        let at = name.0 as usize;
        let len = u16::from_le_bytes([self.0[at], self.0[at + 1]]) as usize;
        &self.0[at + 2..at + 2 + len]
    }

    pub(crate) fn bytes(&self) -> usize {
        self.0.len()
    }
}
