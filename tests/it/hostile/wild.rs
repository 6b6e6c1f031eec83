//! Archives that look odd and are good: as programs other than tar make them. All of it is taken, and nothing is said.

use super::*;

/// Receives it from a file and through a pipe: complete, nothing refused, nothing mended.
#[track_caller]
fn is_taken(what: &str, pieces: &[Vec<u8>], tree: &[&str], look: impl Fn(&Received)) {
    for from in BOTH {
        let received = receive(&[pieces.concat(), END.to_vec()].concat(), from);
        assert_eq!(received.exit(), 0, "{what}: {:?} {:?}", received.status.end, received.status.problems);
        assert!(received.status.problems.is_empty(), "{what}: {:?}", received.status.problems);
        assert_eq!(received.tree(), tree, "{what}");
        look(&received);
    }
}

impl Received {
    fn xattr(&self, path: &str, name: &str) -> Option<Vec<u8>> {
        let ino = self.ino(path);
        self.store.index().xattrs(ino)?.get(name.as_bytes()).map(<[u8]>::to_vec)
    }
}

#[test]
fn layers_of_container_images() {
    // A capability has NULs, and may have newlines; overlayfs marks what is gone with a device 0:0, images with a name.
    let capability = b"\x01\0\0\x02\0\x04\n\0\0\0\0\0\0=\0\n\0\0\0\0";
    let pieces = [
        dir("bin/"),
        pax(b'x', &[("SCHILY.xattr.security.capability", capability)]),
        file("bin/ping", b"elf"),
        link("bin/ping6", b'1', "bin/ping"),
        file("etc/.wh.passwd", b""),
        file("var/.wh..wh..opq", b""),
        member("gone", b'3', b""),
        link("lib", b'2', "usr/lib"),
    ];
    let tree = [
        "bin/",
        "bin/ping 3 *2",
        "bin/ping6 3 *2",
        "etc/",
        "etc/.wh.passwd 0",
        "gone CharDevice Some((0, 0))",
        "lib -> usr/lib",
        "var/",
        "var/.wh..wh..opq 0",
    ];
    is_taken("layer", &pieces, &tree, |received| {
        assert_eq!(received.xattr("bin/ping6", "security.capability").unwrap(), capability);
    });
}

#[test]
fn packages_of_languages() {
    // npm writes no directories, splits long names in two, and cuts in the header what the record says in full.
    let name = format!("package/lib/{}.js", "n".repeat(120));
    let prefix = header(b"index.js", b'0', 2, |b| b[345..356].copy_from_slice(b"package/lib"));
    let pieces = [
        pax(b'g', &[("comment", b"0123456789abcdef")]),
        [prefix, padded(b"hi")].concat(),
        pax(b'x', &[("path", name.as_bytes()), ("mtime", b"499162500"), ("atime", b"499162500.5")]),
        file(&name[..100], b"long"),
    ];
    let long = format!("{name} 4");
    is_taken("npm", &pieces, &["package/", "package/lib/", "package/lib/index.js 2", &long], |received| {
        let index = received.store.index();
        assert_eq!(index.attributes(received.ino(&name)).unwrap().mtime.seconds(), 499_162_500);
    });
}

#[test]
fn what_macos_packs() {
    // libarchive there: flags, times of birth, attributes in both ways, and AppleDouble files beside them.
    let records: &[(&str, &[u8])] = &[
        ("LIBARCHIVE.creationtime", b"1700000000.123456789"),
        ("SCHILY.fflags", b"uchg"),
        ("SCHILY.dev", b"16777220"),
        ("SCHILY.ino", b"1234"),
        ("SCHILY.nlink", b"1"),
        ("LIBARCHIVE.symlinktype", b"file"),
        ("ctime", b"1700000000.5"),
        ("charset", b"ISO-IR 10646 2000 UTF-8"),
        ("hdrcharset", b"BINARY"),
        ("LIBARCHIVE.xattr.user.tag%3D", b"YQpi"),
        ("SCHILY.xattr.user.tag%3D", b"a\nb"),
    ];
    let pieces = [pax(b'x', records), file("._f", &[0; 163]), pax(b'x', records), file("f", b"1")];
    is_taken("AppleDouble", &pieces, &["._f 163", "f 1"], |received| {
        assert_eq!(received.xattr("f", "user.tag=").unwrap(), b"a\nb");
    });
}

#[test]
fn what_star_and_solaris_pack() {
    // Solaris has its own letter for pax records; star writes numbers behind the names in ACLs.
    let acl = b"user::rw-,user:nobody-here:r-x:4711,group::r--,mask::r-x,other::---";
    let star = header(b"f", b'0', 1, |b| {
        b[476..487].copy_from_slice(b"07346545001");
        b[508..512].copy_from_slice(b"tar\0");
    });
    let pieces = [
        pax(b'X', &[("path", b"by X"), ("mtime", b"5")]),
        file("f", b"12"),
        pax(b'x', &[("SCHILY.acl.access", acl), ("SCHILY.filetype", b"file"), ("SCHILY.volno", b"1")]),
        [star, padded(b"1")].concat(),
        member("contiguous", b'7', b"123"),
    ];
    is_taken("star", &pieces, &["by X 2", "contiguous 3", "f 1"], |received| {
        let value = received.xattr("f", "system.posix_acl_access").unwrap();
        assert!(value.windows(4).any(|id| id == 4711u32.to_le_bytes()));
    });
}

#[test]
fn headers_of_old_programs() {
    // Before POSIX: numbers led by blanks, ended by nothing; directories by their slash; garbage behind the link name.
    let old = |name: &[u8], size: &[u8; 12]| {
        header(name, 0, 0, |b| {
            b[100..108].copy_from_slice(b"   644 \0");
            b[108..116].copy_from_slice(b"     0 \0");
            b[124..136].copy_from_slice(size);
            b[136..148].copy_from_slice(b"07346545000 ");
            b[257..].fill(b'g');
        })
    };
    let pieces = [old(b"d/", b"          0 "), old(b"d/f", b"          3 "), padded(b"abc")];
    is_taken("v7", &pieces, &["d/", "d/f 3"], |received| assert_eq!(received.contents("d/f").unwrap(), b"abc"));
    // Magic of GNU, with the version of nobody.
    let odd = header(b"f", b'0', 0, |b| b[257..265].copy_from_slice(b"ustar\x0012"));
    is_taken("version", &[odd], &["f 0"], |_| {});
    // busybox: GNU magic, empty owners; a long target in a K, with and without its NUL.
    for target in ["t".repeat(150), "t".repeat(150) + "\0"] {
        let busybox = |name: &[u8], typeflag| header(name, typeflag, 0, |b| b[257..265].copy_from_slice(b"ustar  \0"));
        let pieces = [member("././@LongLink", b'K', target.as_bytes()), busybox(b"l", b'2')];
        is_taken("busybox", &pieces, &[&format!("l -> {}", "t".repeat(150))], |_| {});
    }
}

#[test]
fn sparse_maps_in_records() {
    // GNU tar 1.15 wrote them so; a size and no map is a hole.
    let records: &[(&str, &[u8])] = &[
        ("GNU.sparse.size", b"100"),
        ("GNU.sparse.numblocks", b"2"),
        ("GNU.sparse.offset", b"10"),
        ("GNU.sparse.numbytes", b"3"),
        ("GNU.sparse.offset", b"100"),
        ("GNU.sparse.numbytes", b"0"),
    ];
    let hole = pax(b'x', &[("GNU.sparse.size", b"7"), ("GNU.sparse.name", b"real name")]);
    let pieces = [pax(b'x', records), file("s", b"abc"), hole, file("GNUSparseFile.0/s", b"")];
    is_taken("0.0", &pieces, &["real name 7", "s 100"], |received| {
        let contents = received.contents("s").unwrap();
        assert_eq!((&contents[..14], contents.len()), (&b"\0\0\0\0\0\0\0\0\0\0abc\0"[..], 100));
        assert_eq!(received.contents("real name").unwrap(), [0; 7]);
    });
}
