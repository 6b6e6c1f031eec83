//! Archives of every kind, by the tools that people use.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::run;

/// Packs `tree` as `out` with GNU tar; the archive has `./` for the tree itself.
pub fn gnu_tar(tree: &Path, out: &Path, args: &[&str]) {
    run(Command::new("tar").arg("-C").arg(tree).args(args).arg("-cf").arg(out).arg("."));
}

/// The same with bsdtar.
pub fn bsdtar(tree: &Path, out: &Path, args: &[&str]) {
    run(Command::new("bsdtar").arg("-C").arg(tree).args(args).arg("-cf").arg(out).arg("."));
}

/// The same with Python's tarfile, in one of its formats.
pub fn python_tar(tree: &Path, out: &Path, format: &str) {
    let script = "import sys, tarfile\n\
        with tarfile.open(sys.argv[2], 'w', format=getattr(tarfile, sys.argv[3])) as archive:\n    \
            archive.add(sys.argv[1], '.')\n";
    run(Command::new("python3").args(["-c", script]).arg(tree).arg(out).arg(format));
}

/// A compressor, by its command: the compressed file is a new one.
pub fn compress(archive: &Path, command: &[&str]) -> PathBuf {
    let out = archive.with_extension(format!("tar.{}", command[0]));
    let packed = run(Command::new(command[0]).args(&command[1..]).arg("-c").arg(archive));
    std::fs::write(&out, packed.stdout).unwrap();
    out
}
