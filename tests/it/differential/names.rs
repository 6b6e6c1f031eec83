//! Names and links of generated members, and the ways in which they are written down.

use super::archive::{Dialect, Extension, Member};
use super::generate::{Generator, Quirk};

impl Generator {
    fn component(&mut self) -> Vec<u8> {
        self.names += 1;
        let n = self.names;
        match self.random.below(60) {
            // bsdtar fails on it in a pax record.
            0 if !self.gnu_fails() => [b"caf\xe9 ".as_slice(), n.to_string().as_bytes()].concat(),
            1 => format!("ünï{n}").into_bytes(),
            2 => format!("new\nline{n}").into_bytes(),
            3 => format!("-rf {n}").into_bytes(),
            4 => format!("back\\slash{n}").into_bytes(),
            5 => format!("...{n}").into_bytes(),
            6 => format!("\x1b[31m{n}").into_bytes(),
            7 => format!("{n:0>99}").into_bytes(),
            8 => format!("{n:0>100}").into_bytes(),
            9 => format!("{n:n>120}").into_bytes(),
            10 => format!("{n:n>255}").into_bytes(),
            11 => format!("{n} ").into_bytes(),
            _ => format!("n{n}").into_bytes(),
        }
    }

    /// A path that is not there, often in a directory that is.
    pub(super) fn fresh(&mut self) -> Vec<u8> {
        let dirs: Vec<_> = self.there.iter().filter(|(_, directory)| *directory).map(|(path, _)| path).collect();
        let mut names: Vec<Vec<u8>> = Vec::new();
        if !dirs.is_empty() && self.random.chance(50) {
            names.push((*self.random.of(&dirs)).clone());
        } else if self.random.chance(25) {
            names.push(self.component());
        }
        names.push(self.component());
        names.retain(|name| !name.is_empty());
        names.join(&b'/')
    }

    /// A path for a member that is a directory, or not.
    pub(super) fn path(&mut self, directory: bool) -> Vec<u8> {
        if !directory && !self.awaited.is_empty() && self.random.chance(30) {
            let n = self.random.below(self.awaited.len());
            return self.awaited.swap_remove(n);
        }
        let same: Vec<_> = self.there.iter().filter(|(_, d)| *d == directory).map(|(path, _)| path.clone()).collect();
        // Where bsdtar loses a member, GNU tar must be right about the others, and it gives to what replaces a directory
        // what belongs to that.
        let again = self.quirk != Quirk::Padding;
        match self.random.below(100) {
            0..=9 if again && !same.is_empty() => self.random.of(&same).clone(),
            10..=12 if again && !self.there.is_empty() => self.random.of(&self.there).0.clone(),
            // Through something that may be a symbolic link, or a file.
            15..=29 if !self.there.is_empty() && self.quirk == Quirk::Through => {
                [&*self.random.of(&self.there).0, b"/through"].concat()
            }
            14 => [b"dots/../", &*self.fresh()].concat(),
            13 if directory => Vec::new(),
            _ => self.fresh(),
        }
    }

    /// The same path, as other programs write it.
    pub(super) fn decorate(&mut self, path: &[u8]) -> Vec<u8> {
        if path.is_empty() {
            return b".".to_vec();
        }
        let in_middle = |with: &[u8]| match path.iter().position(|&b| b == b'/') {
            Some(at) => [&path[..at], with, &path[at + 1..]].concat(),
            None => path.to_vec(),
        };
        match self.random.below(40) {
            0..=5 => [b"./", path].concat(),
            6 => [b"/", path].concat(),
            7 => [b".//", path].concat(),
            8 => in_middle(b"//"),
            9 => in_middle(b"/./"),
            _ => path.to_vec(),
        }
    }

    /// Writes a name down, in one of the ways that there are.
    pub(super) fn name(&mut self, member: &mut Member, raw: Vec<u8>) {
        let split = |most| {
            (1..raw.len().saturating_sub(1))
                .filter(|&at| raw[at] == b'/' && at <= most && raw.len() - at - 1 <= 100)
                .max_by_key(|at| usize::from(raw[*at - 1] != b'/' && raw[*at + 1] != b'/') * *at)
        };
        let prefix = match member.dialect {
            Dialect::Ustar => split(155),
            // Its last byte has to be NUL.
            Dialect::Star => split(130),
            _ => None,
        };
        let short = raw[..raw.len().min(100)].to_vec();
        let clean = |name: &[u8]| !name.ends_with(b"/") || raw.ends_with(b"/");
        let decoy = if clean(&short) { short } else { b"decoy".to_vec() };
        // In a record that is not UTF-8 bsdtar does not see the slash.
        let recordable = !raw.ends_with(b"/") || std::str::from_utf8(&raw).is_ok();
        match self.random.below(20) {
            0..=1 if recordable => {
                member.name = decoy;
                self.add(member, "path", &raw);
            }
            2..=3 => {
                member.name = decoy;
                let nul = if self.random.chance(80) { b"\0".as_slice() } else { b"" };
                member.before.push(Extension::Long(b'L', [&raw, nul].concat()));
            }
            4 if recordable => {
                // Both, and the pax one wins.
                member.name = decoy;
                let directory = member.typeflag == b'5' || raw.ends_with(b"/");
                let other = if self.quirk == Quirk::TwoNames && !directory { self.fresh() } else { raw.clone() };
                let at = self.random.below(member.before.len() + 1);
                member.before.insert(at, Extension::Long(b'L', [&other, &b"\0"[..]].concat()));
                self.add(member, "path", &raw);
            }
            5..=9 if prefix.is_some() => self.split(member, &raw, prefix.unwrap_or(0)),
            _ if raw.len() <= 100 => member.name = raw,
            _ if prefix.is_some() => self.split(member, &raw, prefix.unwrap_or(0)),
            _ if recordable && self.random.chance(50) => {
                member.name = decoy;
                self.add(member, "path", &raw);
            }
            _ => {
                member.name = decoy;
                member.before.push(Extension::Long(b'L', [&raw, &b"\0"[..]].concat()));
            }
        }
    }

    fn split(&mut self, member: &mut Member, raw: &[u8], at: usize) {
        member.prefix = raw[..at].to_vec();
        member.name = raw[at + 1..].to_vec();
    }

    pub(super) fn link(&mut self, member: &mut Member, target: Vec<u8>) {
        match self.random.below(10) {
            0 => {
                member.link = target[..target.len().min(100)].to_vec();
                self.add(member, "linkpath", &target);
            }
            1 => {
                member.link = target[..target.len().min(100)].to_vec();
                member.before.push(Extension::Long(b'K', [&target, &b"\0"[..]].concat()));
            }
            _ if target.len() <= 100 => member.link = target,
            _ => {
                member.link = target[..100].to_vec();
                member.before.push(Extension::Long(b'K', [&target, &b"\0"[..]].concat()));
            }
        }
    }
}
