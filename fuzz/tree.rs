//! A small tree with a file of each kind that is sent in another way.

use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

/// Makes it where it is not there yet. Entries come in the order of their names: 0 is the tree itself.
pub fn make() -> io::Result<PathBuf> {
    let path = std::env::temp_dir().join("restorefs-fuzz-tree");
    fs::create_dir_all(path.join("directory"))?;
    fs::write(path.join("directory/small"), "contents")?;
    fs::write(path.join("large"), vec![7; 300 << 10])?;
    fs::write(path.join("small"), vec![7; 1000])?;
    fs::File::create(path.join("sparse"))?.write_all_at(b"behind a hole", 1 << 20)?;
    Ok(path)
}
