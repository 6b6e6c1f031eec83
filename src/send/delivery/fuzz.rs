//! A sender without connections: what a receiver that has the token says goes in as bytes, and what the sender says then
//! is what it announced. For tests, and for fuzzing (`fuzz/`). No part of the library.

use std::collections::HashMap;
use std::path::Path;

use super::*;
use crate::tree::Options;
use crate::wire::{Frames, MAX_DATA};

/// After each word of the receiver so many batches are sent.
const BATCHES: usize = 4;

/// No batch is longer: a piece of a file or of the catalogue, and what belongs to it.
const MAX_BATCH: usize = 2 * MAX_DATA;

/// Whatever a receiver says, over however many connections, to somebody who sends `tree`.
///
/// The first byte of `input`: with its lowest bit the checksums of the messages are made right.
pub fn any_bytes(input: &[u8], tree: &Path) {
    let Some((&how, input)) = input.split_first() else { return };
    let monitor = Monitor::new();
    let options = Options { directory: Some(tree.into()), ..Options::default() };
    let walk = Walk::new(&[".".into()], options).expect("there is a tree");
    let opener = walk.opener();
    let catalogue = catalogue::begin(walk, monitor.clone(), || {}).expect("a thread can be started");
    let mut delivery = Delivery {
        plan: Plan::new(opener, monitor.clone()),
        catalogue,
        session: [0; 16],
        host: "fuzz".into(),
        pid: 1,
        take_over: false,
        limit: Limit::new(None, Instant::now()),
        flight: Flight::new(Instant::now()),
        shrink: Shrink::new(false),
        monitor,
        stop: Stop::new().expect("there are descriptors"),
    };
    let mut stored = HashMap::new();
    for piece in delivery.catalogue.rest() {
        stored.extend(piece.files.iter().map(|(id, origin)| (*id, origin.stored_len())));
        delivery.plan.announce(piece);
    }
    for connection in record::connections(input) {
        if !delivery.any_connection(connection, how & 1 == 1, &stored) {
            break;
        }
    }
    delivery.plan.missing();
}

impl Delivery {
    fn any_connection(&mut self, mut bytes: &[u8], seal: bool, stored: &HashMap<u64, u64>) -> bool {
        self.plan.disconnected();
        self.flight = Flight::new(Instant::now());
        let mut frames = Frames::default();
        while !bytes.is_empty() {
            let mut body = match frames.next_body(&mut bytes) {
                Ok(Some(body)) => body,
                Ok(None) | Err(_) => return true,
            };
            if seal {
                record::seal(&mut body);
            }
            if self.hear(&body).is_some() {
                return false;
            }
            for _ in 0..BATCHES {
                let next = if self.flight.has_room() { self.plan.next() } else { Ok(None) };
                let Some(batch) = next.expect("the tree can be read") else { break };
                self.flight.sent(batch.len() as u64, Instant::now());
                is_true(batch, stored);
            }
        }
        true
    }
}

/// Whether a batch says only what was announced.
fn is_true(batch: Batch, stored: &HashMap<u64, u64>) {
    assert!(!batch.is_empty() && batch.len() <= MAX_BATCH, "a batch of {} bytes", batch.len());
    let mut body = batch.body();
    while !body.is_empty() {
        let (message, bytes, length) = record::decode::<FromSender>(body).expect("what is said can be read");
        match message {
            FromSender::Data { id, offset } => {
                assert!(offset + bytes.len() as u64 <= stored[&id], "{} bytes at {offset} of {id}", bytes.len());
            }
            FromSender::File { id, .. } => assert!(bytes.len() as u64 <= stored[&id], "{} bytes of {id}", bytes.len()),
            FromSender::Begin { id, .. } | FromSender::End { id, .. } | FromSender::Check { id, .. } => {
                assert!(stored.contains_key(&id), "{id} was not announced");
            }
            _ => {}
        }
        body = &body[length..];
    }
}
