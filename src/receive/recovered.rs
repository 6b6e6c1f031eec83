//! A sink over what an earlier daemon has received: what its sender says again is known by the digests in the journal.

use std::collections::HashMap;
use std::num::NonZeroU64;

use super::sink::{Known, Part, Sink, State};
use crate::entry::{EntryPath, clipped};
use crate::index::{Arrival, Ino};
use crate::store::intake::{Draft, FileRef, Intake, Last, Layout};
use crate::store::recover::{Job as Recovery, Lost, Resume};

impl Sink {
    /// Recovers what is there, to be filled further.
    pub(super) fn recovered(job: Recovery, resume: Resume) -> Result<Self, Lost> {
        let found = job.store.resume(&job, resume)?;
        let Recovery { store, monitor, stop, max_index, .. } = job;
        let entries = found.entries.len() as u64;
        let last =
            Last { path: found.last.unwrap_or_else(EntryPath::root), ino: found.entries.last().copied().flatten() };
        let draft = if entries > 0 { Draft::resume(Layout::Catalogue, entries) } else { Draft::new(Layout::Catalogue) };
        let intake = Intake::resume(store.clone(), monitor.clone(), max_index, entries, last);
        let mut sink = Sink::of(intake, draft, store.clone(), monitor, stop);
        sink.recovered = entries > 0;
        let nobody = Known { digest: None, journal: 0, id: None, state: State::Over };
        {
            let index = store.index();
            sink.known.resize(index.inodes() + 1, nobody);
            for (journal, ino) in (0..).zip(&found.entries) {
                let Some(ino) = ino else { continue };
                let stored = index.attributes(*ino).map_or(0, |a| a.stored);
                let state = match index.arrival(*ino) {
                    Some(Arrival::Announced | Arrival::Arriving { .. }) if stored > 0 => State::Awaited,
                    _ => State::Over,
                };
                let digest = found.digests.get(journal as usize).copied().and_then(NonZeroU64::new);
                sink.known[ino.0 as usize] = Known { digest, journal, id: None, state };
            }
        }
        let mut paths: HashMap<Ino, Vec<u8>> = found.parts.values().map(|part| (part.ino, Vec::new())).collect();
        store.index().walk(&mut |path, ino| {
            if let Some(known) = paths.get_mut(&ino) {
                *known = clipped(path).to_vec();
            }
        });
        for (entry, part) in found.parts {
            let ino = part.ino;
            let checked = part.sums.covered();
            let blob = store.reopen(part, FileRef { entry, ino: Some(ino) })?;
            let part = Part {
                path: paths.remove(&ino).unwrap_or_default(),
                stored: store.index().attributes(ino).map_or(0, |a| a.stored),
                checked,
                hasher: blake3::Hasher::new(),
                differs: false,
                blob: Some(blob),
            };
            sink.path_bytes += part.path.len();
            sink.known[ino.0 as usize].state = State::Part;
            sink.parts.insert(ino.0 as u32, part);
        }
        Ok(sink)
    }
}
