//! Archives by every tool and in every format, mounted and compared with the packed tree.

use crate::support::compare::{same_holes, same_tree, same_tree_except};
use crate::support::mount::Mount;
use crate::support::needs_fuse;
use crate::support::pack::gnu_tar;
use crate::support::tree::{self, Features};

#[test]
fn gnu_tar_pax_with_everything() {
    needs_fuse!();
    let dir = tempfile::tempdir().unwrap();
    let (packed, archive) = (dir.path().join("tree"), dir.path().join("x.tar"));
    std::fs::create_dir(&packed).unwrap();
    tree::make(&packed, Features::ALL);
    gnu_tar(&packed, &archive, &["--format=pax", "--xattrs", "--xattrs-include=*", "--acls"]);
    let mount = Mount::file(&archive, &[]);
    mount.wait_end();
    same_tree(&packed, &mount.point);
    mount.unmount();
}
