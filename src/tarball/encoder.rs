//! Entries to tar, as pax: what ustar can say is said by ustar alone.
//!
//! Like the decoder it does no I/O: an entry goes in, and the bytes before its contents come out. Names are passed byte
//! for byte. What GNU tar and bsdtar both read is written as they read it: holes as GNU's sparse format 1.0, attributes
//! and ACLs as `SCHILY.*`, the SELinux label as `RHT.security.selinux`. Numbers that octal cannot hold are in base-256
//! too, so that a reader without pax sees the same, and none can be led astray.

use std::collections::HashMap;
use std::sync::Arc;

use super::header::{BLOCK, Block, padding};
use super::number::{write_number, write_time};
use crate::entry::{ACL_ACCESS, ACL_DEFAULT, Acl, Entry, EntryKind, Metadata, SparseMap};

/// The end marker.
pub const END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];

/// Archives are padded to a multiple of this, as POSIX has it by default, and GNU tar.
pub const RECORD: usize = 20 * BLOCK;

const MAX_OCTAL_ID: u32 = 0o7777777;
const MAX_OCTAL: u64 = 0o77777777777;

const SELINUX: &[u8] = b"security.selinux";

/// Tar cannot carry it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unsupported {
    /// There is no type for them. GNU tar leaves them out, too.
    #[error("tar has no sockets")]
    Socket,
}

/// Makes headers.
pub struct Encoder {
    user_name: fn(u32) -> Option<Vec<u8>>,
    group_name: fn(u32) -> Option<Vec<u8>>,
    users: HashMap<u32, Option<Arc<[u8]>>>,
    groups: HashMap<u32, Option<Arc<[u8]>>>,
    records: Vec<u8>,
}

impl Encoder {
    /// The names are those of users and groups in ACLs; numbers without a name stay numbers.
    pub fn new(user_name: fn(u32) -> Option<Vec<u8>>, group_name: fn(u32) -> Option<Vec<u8>>) -> Self {
        Encoder { user_name, group_name, users: HashMap::new(), groups: HashMap::new(), records: Vec::new() }
    }

    /// Writes all that comes before the stored bytes of `entry`. Behind them come [`fill`] zeros. Returns what had to
    /// be left out.
    pub fn begin(&mut self, entry: &Entry, out: &mut Vec<u8>) -> Result<Vec<String>, Unsupported> {
        let metadata = &entry.metadata;
        let mut header = Header([0; BLOCK]);
        let mut left_out = Vec::new();
        self.records.clear();
        let mut raw = false;
        let mut path = entry.path.as_bytes().to_vec();
        let mut map = Vec::new();
        let mut size = entry.kind.stored_len();
        let mut device = None;
        let typeflag = match &entry.kind {
            EntryKind::File { sparse: None, .. } => b'0',
            EntryKind::File { sparse: Some(sparse), .. } => {
                map = lines(sparse);
                size += map.len() as u64;
                b'0'
            }
            EntryKind::HardLink { target } => {
                raw |= self.link(target.as_bytes(), &mut header);
                b'1'
            }
            EntryKind::Symlink { target } => {
                raw |= self.link(target, &mut header);
                b'2'
            }
            EntryKind::CharDevice { device: number } => {
                device = Some(number);
                b'3'
            }
            EntryKind::BlockDevice { device: number } => {
                device = Some(number);
                b'4'
            }
            EntryKind::Directory => {
                path.extend_from_slice(if path.is_empty() { b"./" } else { b"/" });
                b'5'
            }
            EntryKind::Fifo => b'6',
            EntryKind::Socket => return Err(Unsupported::Socket),
        };
        match &entry.kind {
            EntryKind::File { sparse: Some(sparse), .. } => {
                raw |= self.record(b"GNU.sparse.name", &path);
                self.record(b"GNU.sparse.major", b"1");
                self.record(b"GNU.sparse.minor", b"0");
                self.record(b"GNU.sparse.realsize", sparse.size().to_string().as_bytes());
                // What a tar that does not know of holes makes of it must not have the name of the file.
                header.path(&stand_in(&path));
            }
            _ if !header.path(&path) => raw |= self.record(b"path", &path),
            _ => {}
        }
        header.number(100..108, metadata.mode.into());
        header.number(124..136, size);
        if size > MAX_OCTAL {
            self.record(b"size", size.to_string().as_bytes());
        }
        raw |= self.owner(metadata, &mut header);
        self.time(metadata, &mut header);
        if let Some(device) = device {
            header.number(329..337, device.major.into());
            header.number(337..345, device.minor.into());
        }
        // The attributes are those of the inode, and came with its first name.
        if typeflag != b'1' {
            self.attributes(metadata, &mut left_out);
        }
        if !self.records.is_empty() {
            if raw {
                self.prepend(b"hdrcharset", b"BINARY");
            }
            self.extended(&path, metadata, out);
        }
        out.extend_from_slice(&header.finish(typeflag));
        out.extend_from_slice(&map);
        Ok(left_out)
    }

    /// The target of a link. True: it is in a record, and no text.
    fn link(&mut self, target: &[u8], header: &mut Header) -> bool {
        if target.len() <= 100 {
            header.0[157..157 + target.len()].copy_from_slice(target);
            return false;
        }
        self.record(b"linkpath", target)
    }

    fn owner(&mut self, metadata: &Metadata, header: &mut Header) -> bool {
        for (key, range, id) in [(&b"uid"[..], 108..116, metadata.uid), (b"gid", 116..124, metadata.gid)] {
            header.number(range, id.into());
            if id > MAX_OCTAL_ID {
                self.record(key, id.to_string().as_bytes());
            }
        }
        let mut raw = false;
        for (key, at, name) in [(&b"uname"[..], 265, &metadata.user), (b"gname", 297, &metadata.group)] {
            match name.as_deref() {
                None => {}
                Some(name) if name.len() < 32 => header.0[at..at + name.len()].copy_from_slice(name),
                Some(name) => raw |= self.record(key, name),
            }
        }
        raw
    }

    fn time(&mut self, metadata: &Metadata, header: &mut Header) {
        let mtime = metadata.mtime;
        let seconds = mtime.seconds().clamp(0, MAX_OCTAL as i64);
        header.number(136..148, seconds as u64);
        if seconds != mtime.seconds() || mtime.nanos() != 0 {
            self.record(b"mtime", write_time(mtime).as_bytes());
        }
        if let Some(atime) = metadata.atime {
            self.record(b"atime", write_time(atime).as_bytes());
        }
    }

    fn attributes(&mut self, metadata: &Metadata, left_out: &mut Vec<String>) {
        for (name, value) in metadata.xattrs.iter() {
            match name {
                ACL_ACCESS | ACL_DEFAULT => match Acl::from_bytes(value) {
                    None => left_out.push("its ACL is left out: it is not of the version that is known".into()),
                    Some(acl) => {
                        let key = if name == ACL_ACCESS { &b"SCHILY.acl.access"[..] } else { b"SCHILY.acl.default" };
                        let text = acl.to_text(
                            |id| self.users.entry(id).or_insert_with(|| (self.user_name)(id).map(Into::into)).clone(),
                            |id| self.groups.entry(id).or_insert_with(|| (self.group_name)(id).map(Into::into)).clone(),
                        );
                        self.record(key, &text);
                    }
                },
                // The kernel's value ends with a NUL; GNU tar packs it without, and restores it with.
                SELINUX => {
                    self.record(b"RHT.security.selinux", value.strip_suffix(b"\0").unwrap_or(value));
                }
                _ => {
                    self.record(&xattr_key(name), value);
                }
            }
        }
    }

    /// Adds a record. True where it is text that is not UTF-8, as which it would be read.
    fn record(&mut self, key: &[u8], value: &[u8]) -> bool {
        write_record(&mut self.records, key, value);
        std::str::from_utf8(value).is_err()
    }

    fn prepend(&mut self, key: &[u8], value: &[u8]) {
        let mut records = Vec::with_capacity(self.records.len() + 32);
        write_record(&mut records, key, value);
        records.extend_from_slice(&self.records);
        self.records = records;
    }

    /// The header before the header.
    fn extended(&self, path: &[u8], metadata: &Metadata, out: &mut Vec<u8>) {
        let mut header = Header([0; BLOCK]);
        let (_, name) = split(path.strip_suffix(b"/").unwrap_or(path));
        let name = &name[..name.len().min(80)];
        header.path(&[b"PaxHeaders/", name].concat());
        header.number(100..108, 0o644);
        header.number(108..116, 0);
        header.number(116..124, 0);
        header.number(124..136, self.records.len() as u64);
        header.number(136..148, metadata.mtime.seconds().clamp(0, MAX_OCTAL as i64) as u64);
        out.extend_from_slice(&header.finish(b'x'));
        out.extend_from_slice(&self.records);
        out.resize(out.len() + fill(self.records.len() as u64), 0);
    }
}

/// So many zeros come behind `stored` bytes of contents.
pub fn fill(stored: u64) -> usize {
    padding(stored) as usize
}

fn write_record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    // "LENGTH KEY=VALUE\n", where the length counts its own digits.
    let rest = key.len() + value.len() + 3;
    let mut len = rest + 1;
    while len != rest + len.ilog10() as usize + 1 {
        len = rest + len.ilog10() as usize + 1;
    }
    records.extend_from_slice(len.to_string().as_bytes());
    records.push(b' ');
    records.extend_from_slice(key);
    records.push(b'=');
    records.extend_from_slice(value);
    records.push(b'\n');
}

/// GNU tar escapes what ends a key, and what escapes.
fn xattr_key(name: &[u8]) -> Vec<u8> {
    let mut key = b"SCHILY.xattr.".to_vec();
    for &b in name {
        match b {
            b'=' => key.extend_from_slice(b"%3D"),
            b'%' => key.extend_from_slice(b"%25"),
            b => key.push(b),
        }
    }
    key
}

/// The map of a file with holes, as lines of numbers, padded to a block.
fn lines(map: &SparseMap) -> Vec<u8> {
    let last = map.segments().last().map_or(0, |s| s.offset + s.len);
    // GNU tar sets the size of the file by a segment of nothing at its end.
    let end = (last < map.size() || map.size() == 0).then_some((map.size(), 0));
    let mut lines = format!("{}\n", map.segments().len() + usize::from(end.is_some())).into_bytes();
    for (offset, len) in map.segments().iter().map(|s| (s.offset, s.len)).chain(end) {
        lines.extend_from_slice(format!("{offset}\n{len}\n").as_bytes());
    }
    lines.resize(lines.len().next_multiple_of(BLOCK), 0);
    lines
}

fn stand_in(path: &[u8]) -> Vec<u8> {
    let (directory, name) = split(path);
    let whole = match directory {
        b"" => [b"GNUSparseFile.0/", name].concat(),
        _ => [directory, b"/GNUSparseFile.0/", name].concat(),
    };
    if ustar(&whole).is_some() { whole } else { [b"GNUSparseFile.0/", &name[..name.len().min(80)]].concat() }
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&b| b == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

/// Prefix and name, where a path can be parted so.
fn ustar(path: &[u8]) -> Option<(&[u8], &[u8])> {
    if path.len() <= 100 {
        return Some((b"", path));
    }
    // The name must not be empty: that of a directory ends with its slash.
    let first = path.len().checked_sub(101)?;
    let slash = (first..path.len() - 1).find(|&i| path[i] == b'/').filter(|&i| (1..=155).contains(&i))?;
    Some((&path[..slash], &path[slash + 1..]))
}

struct Header(Block);

impl Header {
    /// False: it has no room for it, and holds what there is room for.
    fn path(&mut self, path: &[u8]) -> bool {
        match ustar(path) {
            Some((prefix, name)) => {
                self.0[345..345 + prefix.len()].copy_from_slice(prefix);
                self.0[..name.len()].copy_from_slice(name);
                true
            }
            None => {
                self.0[..100].copy_from_slice(&path[..100]);
                false
            }
        }
    }

    fn number(&mut self, field: std::ops::Range<usize>, n: u64) {
        write_number(&mut self.0[field], n);
    }

    fn finish(mut self, typeflag: u8) -> Block {
        self.0[156] = typeflag;
        self.0[257..265].copy_from_slice(b"ustar\x0000");
        // Fields without a number are zeros, in words of the format.
        for field in [329..337, 337..345] {
            if self.0[field.clone()].iter().all(|&b| b == 0) {
                self.number(field, 0);
            }
        }
        self.0[148..156].fill(b' ');
        let sum: u64 = self.0.iter().map(|&b| u64::from(b)).sum();
        write_number(&mut self.0[148..155], sum);
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::{Device, EntryPath, Segment, Timestamp};
    use crate::tarball::{Decoder, Event, Options};

    fn encoder() -> Encoder {
        Encoder::new(|uid| (uid == 1234).then(|| b"joe".to_vec()), |_| None)
    }

    fn entry(path: &[u8], kind: EntryKind) -> Entry {
        let metadata = Metadata { mode: 0o644, ..Metadata::default() };
        Entry { path: EntryPath::parse(path).unwrap(), kind, metadata }
    }

    fn file(size: u64) -> EntryKind {
        EntryKind::File { size, sparse: None }
    }

    /// What our own decoder makes of it; `resolve`: it knows joe.
    fn decoded(archive: &[u8]) -> (Vec<Entry>, Vec<u8>) {
        let resolve = |name: &[u8]| (name == b"joe").then_some(99);
        let options = Options { resolve_user: resolve, ..Options::default() };
        let mut decoder = Decoder::new(options);
        let (mut entries, mut data) = (Vec::new(), Vec::new());
        let mut input = archive;
        while let Some(event) = decoder.step(&mut input).unwrap() {
            match event {
                Event::Entry { entry, .. } => entries.push(*entry),
                Event::Data(bytes) => data.extend_from_slice(bytes),
                Event::EntryEnd | Event::EndOfArchive => {}
                other => panic!("{other:?}"),
            }
        }
        (entries, data)
    }

    fn round_trip(entry: &Entry, contents: &[u8]) -> Vec<u8> {
        assert_eq!(entry.kind.stored_len(), contents.len() as u64);
        let mut out = Vec::new();
        assert!(encoder().begin(entry, &mut out).unwrap().is_empty());
        let before = out.len();
        out.extend_from_slice(contents);
        out.resize(out.len() + fill(contents.len() as u64), 0);
        out.extend_from_slice(&END);
        let (entries, data) = decoded(&out);
        assert_eq!(entries, std::slice::from_ref(entry));
        assert_eq!(data, contents);
        out.truncate(before);
        out
    }

    #[test]
    fn one_block_where_ustar_can_say_it() {
        assert_eq!(round_trip(&entry(b"a", file(3)), b"abc").len(), BLOCK);
        assert_eq!(round_trip(&entry(&[b'n'; 100], file(0)), b"").len(), BLOCK);
        assert_eq!(round_trip(&entry(&[&[b'p'; 155][..], b"/", &[b'n'; 100]].concat(), file(0)), b"").len(), BLOCK);
        assert_eq!(round_trip(&entry(".".as_bytes(), EntryKind::Directory), b"").len(), BLOCK);
        assert_eq!(round_trip(&entry(b"\xff\n\\", EntryKind::Fifo), b"").len(), BLOCK);
        let target = EntryKind::Symlink { target: vec![b't'; 100].into() };
        assert_eq!(round_trip(&entry(b"l", target), b"").len(), BLOCK);
        let kind = EntryKind::CharDevice { device: Device { major: 4095, minor: (1 << 20) - 1 } };
        assert_eq!(round_trip(&entry(b"c", kind), b"").len(), BLOCK);
    }

    #[test]
    fn records_where_it_cannot() {
        for path in [
            vec![b'n'; 101],
            [&[b'p'; 156][..], b"/", &[b'n'; 100]].concat(),
            [&[b'p'; 155][..], b"/", &[b'n'; 101]].concat(),
            b"\xff\xfe/".repeat(100),
            b"0123456789/".repeat(500),
        ] {
            for kind in
                [file(0), EntryKind::Directory, EntryKind::HardLink { target: EntryPath::parse(&path).unwrap() }]
            {
                let is_link = matches!(kind, EntryKind::HardLink { .. });
                let entry = entry(if is_link { b"link" } else { &path }, kind);
                assert!(round_trip(&entry, b"").len() > 2 * BLOCK);
            }
        }
        let target = EntryKind::Symlink { target: vec![b't'; 4095].into() };
        round_trip(&entry(b"l", target), b"");
        let mut wide = entry(b"wide", EntryKind::Directory);
        (wide.metadata.uid, wide.metadata.gid) = (u32::MAX - 1, 2_097_152);
        wide.metadata.user = Some(vec![b'u'; 40].into());
        wide.metadata.group = Some(b"g".as_slice().into());
        for (seconds, nanos) in [(-1, 750_000_000), (-1, 0), (1, 1), (1 << 33, 0), (i64::MAX, 0), (-i64::MAX, 0)] {
            wide.metadata.mtime = Timestamp::new(seconds, nanos);
            round_trip(&wide, b"");
        }
    }

    #[test]
    fn a_directory_at_the_edge_of_the_name() {
        for len in 98..=103 {
            let path = [&[b'p'; 60][..], b"/", &vec![b'n'; len - 61]].concat();
            round_trip(&entry(&path, EntryKind::Directory), b"");
            round_trip(&entry(&vec![b'n'; len], EntryKind::Directory), b"");
        }
    }

    #[test]
    fn sizes_beyond_octal() {
        let mut out = Vec::new();
        encoder().begin(&entry(b"big", file(1 << 33)), &mut out).unwrap();
        let (entries, _) = decoded(&out);
        assert_eq!(entries[0].kind, file(1 << 33));
        // A reader that does not know of the record comes to the same place.
        assert_eq!(crate::tarball::number::header_number(&out[1024 + 124..1024 + 136]), Some(1 << 33));
    }

    #[test]
    fn attributes_and_acls() {
        let mut e = entry(b"d", EntryKind::Directory);
        e.metadata.mode = 0o775;
        let acl = |text: &[u8]| Acl::parse(text, |_| None, |_| None).unwrap();
        let access = acl(b"user::rwx,user:1234:rw-,user:5:r--,group::r-x,mask::rwx,other::r-x");
        for (name, value) in [
            (&b"user.a=b%3D"[..], &b"\0\n=\xff"[..]),
            (b"user.empty", b""),
            (b"security.capability", b"\x01\0\0\x02"),
            (b"security.selinux", b"system_u:object_r:etc_t:s0\0"),
            (ACL_ACCESS, access.as_bytes()),
            (ACL_DEFAULT, acl(b"user::rwx,group::r-x,other::---").as_bytes()),
        ] {
            e.metadata.xattrs.insert(name, value).unwrap();
        }
        round_trip(&e, b"");
        e.metadata.xattrs.insert(ACL_ACCESS, b"\x03\0\0\0").unwrap();
        assert_eq!(encoder().begin(&e, &mut Vec::new()).unwrap().len(), 1);
    }

    #[test]
    fn holes() {
        let seg = |offset, len| Segment { offset, len };
        for (size, segments) in [
            (1 << 20, vec![]),
            (1 << 20, vec![seg(4096, 10)]),
            (4106, vec![seg(4096, 10)]),
            (1 << 35, vec![seg(0, 1), seg(1 << 34, 600)]),
            (1 << 24, (0..200).map(|n| seg(n * 65536, 3)).collect()),
        ] {
            let map = SparseMap::new(size, segments).unwrap();
            let contents = vec![7; map.stored_len() as usize];
            let kind = EntryKind::File { size, sparse: Some(Arc::new(map)) };
            round_trip(&entry(b"dir/sparse", kind.clone()), &contents);
            round_trip(&entry(&b"\xe4/".repeat(150), kind), &contents);
        }
    }

    #[test]
    fn lengths_of_records_count_their_own_digits() {
        for len in (0..120).chain(980..1020).chain(9980..10010) {
            let mut records = Vec::new();
            write_record(&mut records, b"k", &vec![b'v'; len]);
            let text = std::str::from_utf8(&records).unwrap();
            assert_eq!(text.split(' ').next().unwrap().parse::<usize>().unwrap(), records.len());
        }
    }

    #[test]
    fn no_sockets() {
        assert_eq!(encoder().begin(&entry(b"s", EntryKind::Socket), &mut Vec::new()), Err(Unsupported::Socket));
    }
}
