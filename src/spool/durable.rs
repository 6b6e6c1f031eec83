//! A spool is brought to its disk: as a whole, and by durable points.
//!
//! A durable point is a record in the journal that says up to where journal and blobs are on the disk: after a power
//! failure nothing behind the last one is trusted. Blobs that are closed and synced are not synced again.

use std::io;

use super::unsynced::is_open;
use super::{Spool, open_directory};
use crate::record::{self, Record};

impl Spool {
    /// Brings everything in it to the disk: by fsync(2) of each file where these are few, so that nothing waits for what
    /// others have written; else by syncfs(2). All descriptors have been open since before the first write, so that no
    /// error of a write is missed; of syncfs, from Linux 5.8 on.
    ///
    /// # Errors
    /// The disk failed to take something, now or at an earlier call: of this spool or, as syncfs tells it, of any file on
    /// the same filesystem.
    pub fn sync(&self) -> io::Result<()> {
        let _alone = self.syncing.lock();
        let contents = self.sync_contents();
        contents.and(self.watched(self.journal.sync_data()))
    }

    /// Makes a durable point, where anything has come since the last, and the spool is still written.
    ///
    /// # Errors
    /// As [`Spool::sync`]; or the record cannot be written.
    pub fn make_durable(&self) -> io::Result<()> {
        let _alone = self.syncing.lock();
        let upto = self.position();
        let before = self.unsynced.lock().durable;
        if self.in_memory || self.read_only || before == Some(upto) {
            return Ok(());
        }
        if before.is_none() {
            self.sync_names()?;
        }
        self.sync_contents()?;
        let mut frame = Vec::new();
        record::encode(&Record::Durable { upto }, &[], &mut frame);
        // Where there is no room, there is no durable point.
        let at = self.append_now(&frame)?;
        // Were the record on the disk before what it tells of, the checksums of those frames would end a replay there.
        self.watched(self.journal.sync_data())?;
        // What came while this was made is for the next one.
        self.unsynced.lock().durable = Some(if at == upto { at + frame.len() as u64 } else { upto });
        Ok(())
    }

    /// The spool's own names: those of the files in it, and its own.
    fn sync_names(&self) -> io::Result<()> {
        let above = open_directory(&self.directory, "..")?;
        rustix::fs::fsync(&self.about)?;
        rustix::fs::fsync(&self.directory)?;
        Ok(rustix::fs::fsync(above)?)
    }

    fn sync_contents(&self) -> io::Result<()> {
        let (blobs, incomplete) = {
            let mut unsynced = self.unsynced.lock();
            (std::mem::take(&mut unsynced.blobs), std::mem::take(&mut unsynced.incomplete))
        };
        let open: Vec<bool> = blobs.iter().map(is_open).collect();
        let synced = if incomplete {
            rustix::fs::syncfs(&self.journal).map_err(io::Error::from)
        } else {
            let directories = [&self.blobs_directory, &self.directory].map(|dir| Ok(rustix::fs::fsync(dir)?));
            // All of them, also where one fails.
            let ended: Vec<io::Result<()>> = blobs.iter().map(|blob| blob.sync_data()).chain(directories).collect();
            ended.into_iter().collect()
        };
        let still = blobs.into_iter().zip(open).filter(|(_, open)| *open || synced.is_err()).map(|(blob, _)| blob);
        self.unsynced.lock().blobs.extend(still);
        self.watched(synced)
    }

    /// Remembers an error, and reports one that was there before.
    fn watched(&self, synced: io::Result<()>) -> io::Result<()> {
        let mut unsynced = self.unsynced.lock();
        match (synced, unsynced.failed) {
            (Err(e), _) => {
                unsynced.failed.get_or_insert(e.kind());
                Err(e)
            }
            (Ok(()), Some(kind)) => Err(io::Error::new(kind, "the disk failed to take something before")),
            (Ok(()), None) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::Monitor;
    use crate::spool::Config;
    use std::os::unix::fs::FileExt;

    #[test]
    fn what_comes_while_a_durable_point_is_made_is_covered_by_the_next() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let config = Config { directory: dir.path().into(), ..Config::default() };
        let spool = Spool::create(&config, Monitor::new()).unwrap();
        let mut frame = Vec::new();
        record::encode(&Record::Cut, &[], &mut frame);
        for _ in 0..20 {
            std::thread::scope(|scope| {
                let making = scope.spawn(|| spool.make_durable().unwrap());
                loop {
                    spool.append(&frame, &|| true).unwrap();
                    if making.is_finished() {
                        break;
                    }
                }
            });
            spool.make_durable().unwrap();
            let mut bytes = vec![0; spool.position() as usize];
            spool.journal().read_exact_at(&mut bytes, 0).unwrap();
            let (mut at, mut behind, mut durable) = (0, 0, 0);
            while at < bytes.len() {
                let (record, _, length) = record::decode::<Record>(&bytes[at..]).unwrap();
                at += length;
                match record {
                    Record::Durable { upto } => durable = upto,
                    _ => behind = at as u64,
                }
            }
            assert!(spool.is_in_memory() || durable >= behind, "{durable} {behind}");
        }
    }
}
