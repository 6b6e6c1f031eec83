//! Durable points, made while a stream arrives.

use std::time::Duration;

use super::Store;
use crate::stop::Stop;

/// Time between two durable points: what came after the last one is lost with a power failure.
const EVERY: Duration = Duration::from_secs(5);

impl Store {
    /// Makes a durable point of the spool every few seconds, until the stream is over or `stop` is said. After an error of
    /// the disk there are no more: the end of the stream reports it.
    pub fn keep_durable(&self, stop: &Stop) {
        let Some(spool) = self.spool().filter(|spool| !spool.is_in_memory()) else { return };
        while !stop.wait(EVERY) && !self.is_over() {
            if let Err(e) = spool.make_durable() {
                if !self.is_over() && !stop.is_stopped() {
                    log::warn!(
                        "what arrives is not safe from a power failure: cannot sync '{}': {e}",
                        spool.path().display()
                    );
                }
                // A full disk may have room again.
                if !matches!(e.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded) {
                    return;
                }
            }
        }
    }
}
