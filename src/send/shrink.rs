//! Whether frames are compressed: where the network takes less than the compressor gives, and what is sent gets smaller.

use std::time::{Duration, Instant};

use crate::wire::{Batch, Link};

/// Over this long it is measured what the network takes.
const WINDOW: Duration = Duration::from_millis(250);

/// Where it did not get smaller, so many batches pass before it is tried again, at most.
const MOST_PASSED: u32 = 64;

/// What is not at least this much smaller is not worth the work on both sides.
const WORTH: f64 = 0.9;

/// What the compressor does before it has been measured, in bytes a second.
const GUESS: f64 = 300e6;

#[derive(Debug)]
pub(super) struct Shrink {
    allowed: bool,
    /// What the network takes, in bytes a second; none yet.
    network: Option<f64>,
    compressor: f64,
    sampled: Instant,
    sample: (u64, f64),
    /// Batches that pass.
    pass: u32,
    passed: u32,
}

impl Shrink {
    pub(super) fn new(allowed: bool) -> Self {
        Shrink {
            allowed,
            network: None,
            compressor: GUESS,
            sampled: Instant::now(),
            sample: (0, 0.0),
            pass: 0,
            passed: 1,
        }
    }

    /// Another connection.
    pub(super) fn begin(&mut self, link: &Link) {
        self.network = None;
        self.sampled = Instant::now();
        self.sample = link.sent();
    }

    /// A batch as it is sent.
    pub(super) fn frame(&mut self, batch: Batch, link: &Link) -> Vec<u8> {
        if !self.allowed {
            return batch.finish();
        }
        self.measure(link);
        if self.network.is_none_or(|network| network >= self.compressor) {
            return batch.finish();
        }
        if self.pass > 0 {
            self.pass -= 1;
            return batch.finish();
        }
        let begun = Instant::now();
        let frame = batch.compress();
        let rate = batch.len() as f64 / begun.elapsed().as_secs_f64().max(1e-6);
        self.compressor = 0.9 * self.compressor + 0.1 * rate;
        match frame {
            Some(frame) if frame.len() as f64 <= WORTH * batch.len() as f64 => {
                self.passed = 1;
                frame
            }
            _ => {
                self.pass = self.passed;
                self.passed = (self.passed * 2).min(MOST_PASSED);
                batch.finish()
            }
        }
    }

    fn measure(&mut self, link: &Link) {
        if self.sampled.elapsed() < WINDOW {
            return;
        }
        let (bytes, busy) = link.sent();
        let (bytes_before, busy_before) = std::mem::replace(&mut self.sample, (bytes, busy));
        self.sampled = Instant::now();
        // Where the network mostly had nothing to do, it is not what is waited for.
        let busy = busy - busy_before;
        if busy > 0.5 * WINDOW.as_secs_f64() {
            let rate = (bytes - bytes_before) as f64 / busy;
            self.network = Some(self.network.map_or(rate, |before| 0.5 * before + 0.5 * rate));
        } else {
            self.network = None;
        }
    }
}
