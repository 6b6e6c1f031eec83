//! File systems of their own: of a size, of a kind, read-only. Each is taken away again.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::mount::{UnmountFlags, unmount};
use tempfile::TempDir;

use super::{run, shell};

/// A mounted file system.
pub struct Disk {
    point: PathBuf,
    _dir: Option<TempDir>,
}

impl Disk {
    /// What `mount -t KIND -o OPTIONS` makes of nothing: a tmpfs, a ramfs.
    pub fn new(kind: &str, options: &str) -> Disk {
        let dir = tempfile::tempdir().unwrap();
        Disk::mount(&["-t", kind, "-o", options, kind], dir.path().join("disk"), Some(dir))
    }

    /// The same, mounted at `point`.
    pub fn at(point: &Path, kind: &str, options: &str) -> Disk {
        Disk::mount(&["-t", kind, "-o", options, kind], point.to_owned(), None)
    }

    /// An ext4 in the file `image`, made with the options `make`, and mounted at `point`.
    pub fn ext4(image: &Path, point: &Path, make: &str, options: &str) -> Disk {
        shell(Path::new("/"), &format!("truncate -s 32M {image:?} && mkfs.ext4 -q {make} {image:?} 2>/dev/null"));
        Disk::of_image(image, point, options)
    }

    /// The file system in the file `image`, mounted at `point`.
    pub fn of_image(image: &Path, point: &Path, options: &str) -> Disk {
        Disk::mount(&["-o", &format!("loop,{options}"), image.to_str().unwrap()], point.to_owned(), None)
    }

    /// The file system on a device, mounted at `point`.
    pub fn of_device(device: &Path, point: &Path, options: &str) -> Disk {
        Disk::mount(&["-o", options, device.to_str().unwrap()], point.to_owned(), None)
    }

    fn mount(args: &[&str], point: PathBuf, dir: Option<TempDir>) -> Disk {
        fs::create_dir(&point).unwrap();
        run(Command::new("mount").args(args).arg(&point));
        Disk { point, _dir: dir }
    }

    /// Changes it: its size, whether it can be written.
    pub fn remount(&self, options: &str) {
        run(Command::new("mount").args(["-o", &format!("remount,{options}")]).arg(&self.point));
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.point
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = unmount(&self.point, UnmountFlags::DETACH);
    }
}
