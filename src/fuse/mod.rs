//! The thin adapter to the kernel: the only place that names fuser.

mod adapter;

use std::io;
use std::path::Path;

use fuser::{BackgroundSession, Config, MountOption, SessionACL};

use crate::fs::Filesystem;
use adapter::Adapter;

/// So many threads take requests. Reads that wait hold none of them.
const THREADS: usize = 4;

/// A mounted filesystem.
pub struct Session {
    session: BackgroundSession,
}

/// Mounts at `mountpoint`, read-only, without device nodes and setuid. When it returns, the mount answers.
pub fn mount(filesystem: Filesystem, mountpoint: &Path, source: &str, allow_other: bool) -> io::Result<Session> {
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::RO,
        MountOption::NoDev,
        MountOption::NoSuid,
        MountOption::NoAtime,
        MountOption::Subtype("restorefs".into()),
        MountOption::FSName(source_name(source)),
    ];
    if allow_other {
        config.acl = SessionACL::All;
        config.mount_options.push(MountOption::DefaultPermissions);
    }
    config.n_threads = Some(THREADS);
    config.clone_fd = true;
    let session = fuser::Session::new(Adapter::new(filesystem, allow_other), mountpoint, &config)?;
    Ok(Session { session: session.spawn()? })
}

impl Session {
    /// Waits until nothing holds the mount any more.
    pub fn join(self) -> io::Result<()> {
        self.session.join()
    }
}

/// What stands in the first column of /proc/mounts: no commas (they part options), no control characters.
fn source_name(source: &str) -> String {
    source.chars().map(|c| if c == ',' || c == '\\' || c.is_control() { '_' } else { c }).collect()
}
