//! What a stream is that is no tar archive, told by its first bytes, and what opens it.
//!
//! `file-format` knows the signatures of some hundred formats; what it does not know and a backup may well be, stands
//! here: encrypted files, filesystems, and the streams of other backup programs.

use std::borrow::Cow;

use file_format::FileFormat;

use super::detect::{Compression, Detected, detect};

/// As many of the first bytes as are worth keeping: behind them no signature stands (that of btrfs is at 64 KiB).
pub const HEAD: usize = 66 << 10;

const BLOCK: usize = 512;

/// Why a stream cannot be mounted that is no tar archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoTar {
    /// What it is, and what opens it.
    pub cause: String,
    /// It has tar's own signature: what is wrong is its first header.
    pub damaged: bool,
    /// It has the signature of something else; otherwise it may as well be the beginning of a first header.
    pub is_certain: bool,
}

/// How to get at what is inside.
#[derive(Clone, Copy)]
enum Opens {
    /// A command that writes a tar archive of it.
    AsTar(&'static str),
    /// A command that writes what is inside when it is given the name of a file; it may be a tar archive.
    AsStream(&'static str),
    /// A command that unpacks it, and one that writes a tar archive of it.
    Either(&'static str, &'static str),
    /// A command that is none for a pipe.
    With(&'static str),
    Unknown,
}

const BSDTAR: &str = "bsdtar -cf - @FILE";
const LOOP: &str = "mount -o loop,ro FILE DIR";

/// Says what `head`, the first bytes of a stream that is no tar archive, are the first bytes of. `name` is the name of
/// the file, for a format without a signature; `outer` is how it was compressed.
pub fn recognise(head: &[u8], name: &str, outer: &[Compression]) -> NoTar {
    let damaged = head.get(257..262) == Some(b"ustar");
    let zeros = head.iter().take_while(|&&b| b == 0).count();
    let signature = signature(head);
    let is_certain = signature.is_some() && !damaged;
    let (what, opens) = signature
        .map(|(what, opens)| (Cow::from(what), opens))
        .or_else(|| by_crate(head))
        .or_else(|| by_name(name))
        .unwrap_or_else(|| other(head));
    let programs: Vec<_> = outer.iter().map(|compression| compression.program()).collect();
    let names: Vec<_> = outer.iter().map(|compression| compression.name()).collect();
    let (names, way_out) = (names.join(" and "), way_out(opens, &programs));
    let cause = match () {
        () if damaged && outer.is_empty() => format!("it is {what}"),
        () if damaged => format!("it is compressed with {names}, and inside is {what}"),
        () if outer.is_empty() && zeros >= BLOCK && zeros < head.len() => {
            format!("it begins with zeros, but is not an empty tar archive: it is {what}{way_out}")
        }
        () if outer.is_empty() => format!("it is not a tar archive but {what}{way_out}"),
        () if head.is_empty() => format!("it is compressed with {names}, and nothing is inside"),
        () => format!("it is compressed with {names}, and what is inside is not a tar archive but {what}{way_out}"),
    };
    NoTar { cause, damaged, is_certain }
}

/// Says how to mount what is compressed in a form that is not read. `outer` is how that was compressed.
pub(super) fn unsupported(name: &str, program: &str, outer: Option<Compression>) -> String {
    let outer: Vec<_> = outer.iter().map(|compression| compression.program()).collect();
    format!(
        "it is compressed with {name}, which is not supported; decompress it in front: {} | restorefs mount - MOUNTPOINT",
        pipe(program, &outer)
    )
}

/// The command line that runs `program` on what `outer` give.
fn pipe(program: &str, outer: &[&str]) -> String {
    match outer {
        [] => format!("{program} FILE"),
        [first, rest @ ..] => {
            let program = program.trim_end_matches(" -in");
            [&[&*format!("{first} FILE")], rest, &[program]].concat().join(" | ")
        }
    }
}

fn way_out(opens: Opens, outer: &[&str]) -> String {
    let way_out = match (opens, outer) {
        (Opens::Unknown, []) => return String::new(),
        (Opens::Unknown, [rest @ .., last]) => format!("decompress it with: {}", pipe(last, rest)),
        (Opens::AsStream(command), _) => {
            format!("if a tar archive is inside: {} | restorefs mount - MOUNTPOINT", pipe(command, outer))
        }
        (Opens::AsTar(command), []) => format!("mount it with: {command} | restorefs mount - MOUNTPOINT"),
        (Opens::Either(unpack, command), []) => {
            format!("open it with '{unpack}', or mount it with: {command} | restorefs mount - MOUNTPOINT")
        }
        (Opens::With(command), []) => format!("open it with: {command}"),
        (Opens::AsTar(command) | Opens::Either(command, _) | Opens::With(command), [rest @ .., last]) => {
            format!("open it with: {} >INNER, then {}", pipe(last, rest), command.replace("FILE", "INNER"))
        }
    };
    format!(" ({way_out})")
}

/// What the crate does not know, or what it knows by another name than administrators do.
fn signature(head: &[u8]) -> Option<(&'static str, Opens)> {
    let at = |offset: usize, magic: &[u8]| head.get(offset..).is_some_and(|rest| rest.starts_with(magic));
    let known = match head {
        _ if at(257, b"ustar") => {
            ("a tar archive whose first header is damaged: its checksum is wrong", Opens::Unknown)
        }
        _ if at(0, b"PK\x03\x04") || at(0, b"PK\x05\x06") || at(0, b"PK\x07\x08") => {
            ("a ZIP archive", Opens::Either("unzip FILE", BSDTAR))
        }
        _ if at(0, b"7z\xbc\xaf\x27\x1c") => ("a 7-Zip archive", Opens::Either("7z x FILE", BSDTAR)),
        _ if at(0, b"Rar!\x1a\x07") => ("a RAR archive", Opens::Either("unrar x FILE", BSDTAR)),
        _ if at(0, b"!<arch>\ndebian-binary") => ("a Debian package", Opens::AsTar("dpkg-deb --fsys-tarfile FILE")),
        _ if at(0, b"!<arch>\n") => ("an ar archive", Opens::Either("ar x FILE", BSDTAR)),
        _ if at(0, b"\xed\xab\xee\xdb") => ("an RPM package", Opens::Either("rpm2cpio FILE | cpio -id", BSDTAR)),
        _ if is_cpio(head) => ("a cpio archive", Opens::Either("cpio -id <FILE", BSDTAR)),
        _ if at(0, b"xar!") => ("a xar archive", Opens::Either("xar -xf FILE", BSDTAR)),
        // Encrypted.
        _ if at(0, b"Salted__") => {
            ("a file encrypted with openssl", Opens::AsStream("openssl enc -d -CIPHER -pbkdf2 -in"))
        }
        _ if at(0, b"age-encryption.org/") || at(0, b"-----BEGIN AGE ENCRYPTED FILE-----") => {
            ("a file encrypted with age", Opens::AsStream("age -d"))
        }
        _ if at(0, b"-----BEGIN PGP MESSAGE-----") || is_openpgp(head) => {
            ("a file encrypted with gpg", Opens::AsStream("gpg -d"))
        }
        _ if at(0, b"LUKS\xba\xbe") => {
            ("an encrypted disk (LUKS)", Opens::With("cryptsetup open --readonly FILE NAME"))
        }
        // Filesystems and disks.
        _ if at(1080, b"\x53\xef") => ("an ext2, ext3 or ext4 filesystem", Opens::With(LOOP)),
        _ if at(0, b"XFSB") => ("an XFS filesystem", Opens::With(LOOP)),
        _ if at(65600, b"_BHRfS_M") => ("a btrfs filesystem", Opens::With(LOOP)),
        _ if at(0, b"hsqs") || at(0, b"sqsh") => {
            ("a squashfs filesystem", Opens::With("unsquashfs FILE, or mount -o loop,ro FILE DIR"))
        }
        _ if at(1024, b"\xe2\xe1\xf5\xe0") => ("an EROFS filesystem", Opens::With(LOOP)),
        _ if at(1024, b"\x10\x20\xf5\xf2") => ("an F2FS filesystem", Opens::With(LOOP)),
        _ if at(3, b"NTFS    ") => ("an NTFS filesystem", Opens::With(LOOP)),
        _ if at(54, b"FAT1") || at(82, b"FAT32") => ("a FAT filesystem", Opens::With(LOOP)),
        _ if at(32769, b"CD001") => ("an ISO 9660 image", Opens::Either(LOOP, BSDTAR)),
        _ if at(32769, b"BEA01") => ("a UDF image", Opens::With(LOOP)),
        _ if at(BLOCK, b"LABELONE") => ("an LVM physical volume", Opens::With("losetup -r, then vgscan")),
        _ if at(BLOCK, b"EFI PART") => {
            ("a disk image with a GUID partition table", Opens::With("losetup -rP --show -f FILE"))
        }
        _ if at(510, b"\x55\xaa") => ("a disk image, or a hybrid ISO image", Opens::With("losetup -rP --show -f FILE")),
        // Streams of other backup programs.
        _ if at(0, b"btrfs-stream\0") => ("a stream of 'btrfs send'", Opens::With("btrfs receive DIR <FILE")),
        _ if at(8, b"\xac\xcb\xba\xf5\x02\0\0\0") || at(8, b"\0\0\0\x02\xf5\xba\xcb\xac") => {
            ("a stream of 'zfs send'", Opens::With("zfs receive DATASET <FILE"))
        }
        _ if at(0, b"xFSdump0") => ("a dump of xfsdump", Opens::With("xfsrestore -f FILE DIR")),
        _ if at(24, b"\x6c\xea\0\0") || at(24, b"\0\0\xea\x6c") => {
            ("a dump of dump(8)", Opens::With("restore -rf FILE"))
        }
        _ if at(0, b"PGDMP") => ("a dump of pg_dump", Opens::With("pg_restore FILE")),
        _ if at(0, b"VMA\0") => ("a backup of Proxmox VE", Opens::With("vma extract FILE DIR")),
        _ => return compressed(head),
    };
    Some(known)
}

/// More than two programs have compressed it: two of them are undone.
fn compressed(head: &[u8]) -> Option<(&'static str, Opens)> {
    let opens = match detect(head) {
        Detected::Known(compression) => Opens::AsStream(compression.program()),
        Detected::Unsupported(_, program) => Opens::AsStream(program),
        _ => return None,
    };
    Some(("data that is compressed once more", opens))
}

/// In ASCII, or binary in one byte order or the other (`file-format` knows the first alone).
fn is_cpio(head: &[u8]) -> bool {
    let ascii = [&b"070701"[..], b"070702", b"070707"].iter().any(|magic| head.starts_with(magic));
    // Behind the magic, a mode with one of the known kinds of files is at byte 6.
    let binary = |magic: &[u8], mode: fn([u8; 2]) -> u16| {
        let kind = head.get(6..8).map(|m| mode([m[0], m[1]]) & 0o170_000);
        let kinds = [0o040_000, 0o100_000, 0o120_000, 0o060_000, 0o020_000, 0o010_000, 0o140_000];
        head.starts_with(magic) && kind.is_some_and(|kind| kinds.contains(&kind))
    };
    ascii || binary(b"\xc7\x71", u16::from_le_bytes) || binary(b"\x71\xc7", u16::from_be_bytes)
}

/// Whether an OpenPGP message begins here whose first packet is a session key (RFC 9580, 4.2 and 5.1, 5.3).
fn is_openpgp(head: &[u8]) -> bool {
    let Some((&tag, rest)) = head.split_first() else { return false };
    let (kind, body) = match tag {
        0x80..=0xbf => ((tag >> 2) & 0xf, rest.get([1, 2, 4, 0][usize::from(tag & 3)]..)),
        0xc0.. => {
            let lengths = match rest.first() {
                Some(0..=191) => 1,
                Some(192..=223) => 2,
                Some(255) => 5,
                _ => return false,
            };
            (tag & 0x3f, rest.get(lengths..))
        }
        _ => return false,
    };
    match (kind, body) {
        // For a public key: version 3, the number of the key, and its algorithm.
        (1, Some([3, body @ ..])) => body.get(8).is_some_and(|a| matches!(a, 1..=3 | 16 | 18 | 22 | 25 | 26)),
        // For a passphrase: version 4, a cipher, and how the key is made.
        (3, Some([4, 1..=13, 0 | 1 | 3 | 4, ..])) => true,
        (3, Some([5 | 6, ..])) => true,
        _ => false,
    }
}

fn by_crate(head: &[u8]) -> Option<(Cow<'static, str>, Opens)> {
    let format = FileFormat::from_bytes(head);
    if matches!(format, FileFormat::ArbitraryBinaryData | FileFormat::Empty | FileFormat::PlainText) {
        return None;
    }
    // A script is text, and what it says tells more than its kind.
    let text = matches!(
        format,
        FileFormat::ShellScript | FileFormat::PerlScript | FileFormat::PythonScript | FileFormat::RubyScript
    );
    if text {
        return None;
    }
    let opens = match format {
        FileFormat::Cabinet | FileFormat::Lha => Opens::AsTar(BSDTAR),
        FileFormat::QemuCopyOnWrite
        | FileFormat::VirtualMachineDisk
        | FileFormat::VirtualboxVirtualDiskImage
        | FileFormat::MicrosoftVirtualHardDisk
        | FileFormat::MicrosoftVirtualHardDisk2 => Opens::With("qemu-nbd -r -c /dev/nbd0 FILE"),
        _ => Opens::Unknown,
    };
    Some((format!("a file in the format '{}'", format.name()).into(), opens))
}

/// brotli has no signature.
fn by_name(name: &str) -> Option<(Cow<'static, str>, Opens)> {
    name.ends_with(".br")
        .then_some(("a file compressed with brotli, by its name".into(), Opens::AsStream("brotli -dc")))
}

/// Text, zeros, or what nobody knows.
fn other(head: &[u8]) -> (Cow<'static, str>, Opens) {
    let begin = head.iter().position(|&b| b != 0).map_or(0, |at| at / BLOCK * BLOCK);
    let known = &head[begin..head.len().min(begin + BLOCK)];
    if let Some(text) = readable(known) {
        return (format!("text that begins with '{}'", first_line(text)).into(), Opens::Unknown);
    }
    // What a login prints comes in front of what is asked for.
    let line = known.split_inclusive(|&b| b == b'\n').next().unwrap_or_default();
    if let Some(text) = readable(line).filter(|text| text.len() > 4 && text.ends_with('\n')) {
        let what = format!("text that begins with '{}', with other data behind it", first_line(text));
        return (what.into(), Opens::Unknown);
    }
    if known.iter().all(|&b| b == 0) {
        return ("only zeros".into(), Opens::Unknown);
    }
    let bytes: Vec<_> = known.iter().take(8).map(|b| format!("{b:02x}")).collect();
    (format!("data of an unknown kind (it begins with {})", bytes.join(" ")).into(), Opens::Unknown)
}

/// These bytes, where they are text. The last character may be cut.
fn readable(bytes: &[u8]) -> Option<&str> {
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(e) if e.error_len().is_none() => std::str::from_utf8(&bytes[..e.valid_up_to()]).ok()?,
        Err(_) => return None,
    };
    let is_text = |c: char| !c.is_control() || matches!(c, '\n' | '\r' | '\t' | '\x0c' | '\x1b');
    (!text.is_empty() && text.chars().all(is_text)).then_some(text)
}

fn first_line(text: &str) -> String {
    let line: String = text.trim_start().lines().next().unwrap_or("").chars().take(50).collect();
    line.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cause(head: &[u8]) -> String {
        recognise(head, "x", &[]).cause
    }

    #[test]
    fn openpgp_is_told_by_its_first_packet() {
        // gpg -c; gpg -e to an RSA key, and to one on Curve25519.
        for message in [
            &b"\x8c\x0d\x04\x09\x03\x0a\x3e\x1f"[..],
            b"\x85\x01\x8c\x03\x01\x02\x03\x04\x05\x06\x07\x08\x01\x0b",
            b"\x84\x5e\x03\x01\x02\x03\x04\x05\x06\x07\x08\x12\x01",
            b"\xc1\xc0\x4c\x03\x01\x02\x03\x04\x05\x06\x07\x08\x01\x0b",
        ] {
            assert!(cause(message).contains("encrypted with gpg"), "{message:02x?}: {}", cause(message));
        }
        for other in [&b"\x8c\x0d\x09\x09\x03"[..], b"\x85\x01\x8c\x03", b"\x85", b"\xc3\x0d\x04\x63\x03"] {
            assert!(!is_openpgp(other), "{other:02x?}");
        }
    }

    #[test]
    fn text_is_shown_by_its_first_line() {
        assert!(cause(b"\nWelcome to host!\nLast login").contains("text that begins with 'Welcome to host!'"));
        // The last character is cut, and a line is long.
        assert!(cause("déjà".as_bytes().split_last().unwrap().1).contains("'déj'"));
        assert!(cause(&[b'x'; 600]).contains(&format!("'{}'", "x".repeat(50))));
        assert!(cause(b"text\0").contains("unknown kind (it begins with 74 65 78 74 00)"));
    }

    #[test]
    fn what_is_inside_a_compressor_is_reached_through_it() {
        let inside = |head: &[u8], outer: &[Compression]| recognise(head, "x", outer).cause;
        let zip = inside(b"PK\x03\x04", &[Compression::Gzip]);
        assert!(zip.contains("gzip -dc FILE >INNER, then unzip INNER"), "{zip}");
        let gpg = inside(b"Salted__12345678", &[Compression::Xz, Compression::Gzip]);
        assert!(gpg.contains("compressed with xz and gzip"), "{gpg}");
        assert!(gpg.contains("xz -dc FILE | gzip -dc | openssl enc -d -CIPHER -pbkdf2 | restorefs"), "{gpg}");
        let file = inside(b"one file\n", &[Compression::Bzip2]);
        assert!(file.contains("what is inside is not a tar archive but text"), "{file}");
        assert!(file.contains("bzip2 -dc FILE)"), "{file}");
    }

    #[test]
    fn brotli_is_told_by_the_name_alone() {
        let data = b"\x1b\x03\x80\x01";
        assert!(recognise(data, "x.tar.br", &[]).cause.contains("brotli -dc FILE | restorefs mount"));
        assert!(!cause(data).contains("brotli"));
    }
}
