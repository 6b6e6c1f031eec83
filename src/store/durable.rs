//! Durable points, made while a stream arrives.

use std::io;
use std::time::Duration;

use super::Store;
use crate::stop::Stop;

/// Time between two durable points: what came after the last one is lost with a power failure.
const EVERY: Duration = Duration::from_secs(5);

impl Store {
    /// Makes a durable point of the spool every few seconds, and gives back what was replaced before it, until the stream
    /// is over or `stop` is said. After an error of the disk there are no more: the end of the stream reports it.
    pub fn keep_durable(&self, stop: &Stop) {
        let Some(spool) = self.spool() else { return };
        while !stop.wait(EVERY) && !self.is_over() {
            let replaced = self.replaced();
            let Err(e) = spool.make_durable() else {
                self.give_back(replaced);
                continue;
            };
            // A full disk may have room again.
            if matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
                log::info!("no durable point: {e}");
                continue;
            }
            if !self.is_over() && !stop.is_stopped() {
                let spool = spool.path().display();
                log::warn!("what arrives is not safe from a power failure: cannot sync '{spool}': {e}");
            }
            return;
        }
    }
}
