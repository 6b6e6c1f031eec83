//! A receiver behind its connections: what a sender that has the token says goes in as bytes, and what is shown then has
//! to be true. For tests, and for fuzzing (`fuzz/`). No part of the library.

use std::path::Path;
use std::sync::Arc;

use super::sink::{Sink, Stopped};
use crate::entry::Timestamp;
use crate::index::{Arrival, Index, Ino, Kind};
use crate::monitor::Monitor;
use crate::record;
use crate::spool::{Config, Spool};
use crate::stop::Stop;
use crate::store::{Read, Store};
use crate::wire::{Frames, FromReceiver, FromSender, Leave};

/// The index of one takes no more: what it is filled with has to end sometime.
pub(super) const MAX_INDEX: u64 = 64 << 20;

/// Of no file more is read.
const LOOK: usize = 64 << 10;

/// A receiver without connections.
pub struct Receiver {
    pub(super) sink: Sink,
    pub(super) store: Arc<Store>,
    pub(super) monitor: Arc<Monitor>,
    /// Everything came.
    finished: bool,
}

impl Receiver {
    /// One with its spool in this directory.
    pub fn new(spool: &Path) -> Receiver {
        let monitor = Monitor::new();
        let store = Arc::new(Store::new(Index::new(0, 0, Timestamp::default())));
        let config =
            Config { directory: spool.into(), limit: None, keep: false, source: "fuzz".into(), ..Config::default() };
        store.set_spool(Spool::create(&config, monitor.clone()).expect("a spool can be made"));
        let stop = Stop::new().expect("there are descriptors");
        let sink = Sink::new(store.clone(), monitor.clone(), stop, MAX_INDEX);
        Receiver { sink, store, monitor, finished: false }
    }

    /// One connection from its beginning to its end: bytes as they come out of TLS. False: no other one is waited for.
    /// `seal`: the checksums of the messages are made right.
    pub fn connection(&mut self, mut bytes: &[u8], seal: bool) -> bool {
        let mut frames = Frames::default();
        let mut greeted = false;
        while !bytes.is_empty() {
            let mut body = match frames.next_body(&mut bytes) {
                Ok(None) => return true,
                // It says that it is alive.
                Ok(Some(body)) if body.is_empty() => continue,
                Ok(Some(body)) => body,
                Err(_) => return true,
            };
            if seal {
                record::seal(&mut body);
            }
            match record::decode::<FromSender>(&body) {
                Ok((FromSender::Hello { session, .. }, &[], length)) if !greeted && length == body.len() => {
                    greeted = true;
                    self.sink.begin(session);
                }
                _ if !greeted => return false,
                Ok((FromSender::Bye(Leave::Done), ..)) => return false,
                Ok((FromSender::Bye(_), ..)) => return true,
                Ok((FromSender::Done, &[], length)) if length == body.len() => {
                    if !self.sink.is_whole() {
                        return false;
                    }
                    if !self.finished {
                        self.sink.finish().expect("the spool can be synced");
                        self.finished = true;
                    }
                }
                _ => {
                    if self.body(&body).is_err() {
                        return false;
                    }
                }
            }
        }
        true
    }

    /// A body of messages. What is answered names nothing that was not announced.
    pub(super) fn body(&mut self, body: &[u8]) -> Result<Vec<FromReceiver>, Stopped> {
        let mut answers = Vec::new();
        self.sink.body(body, || {}, &mut answers)?;
        while self.sink.is_answering() {
            answers.extend(self.sink.next_answers());
        }
        // Somebody reads what came last.
        let last = self.store.index().inodes() as u64;
        answers.extend(self.sink.want(Ino(last)));
        let entries = self.sink.totals().entries;
        for answer in &answers {
            match answer {
                FromReceiver::Whole { ranges } | FromReceiver::Cut { ranges } => {
                    assert!(ranges.iter().all(|(first, count)| first + count <= entries), "{ranges:?} of {entries}");
                }
                FromReceiver::Parts(parts) => {
                    assert!(parts.iter().all(|part| part.id < entries), "{parts:?} of {entries}");
                }
                FromReceiver::Want(position) => {
                    assert!(position.id < entries && position.checked <= position.received, "{position:?}");
                }
                _ => {}
            }
        }
        Ok(answers)
    }

    /// No more comes: nobody waits for ever, and what is shown as whole can be read.
    pub fn end(mut self) {
        if !self.finished {
            self.sink.cut();
        }
        let FromReceiver::Commit { refused, .. } = self.sink.commit_message() else { unreachable!() };
        // What another sender says then changes nothing.
        assert!(self.finished || refused == self.monitor.refused_count(), "what is left out is named");
        let inodes = self.store.index().inodes() as u64;
        for ino in (1..=inodes).map(Ino) {
            let (attributes, arrival) = {
                let index = self.store.index();
                (index.attributes(ino), index.arrival(ino))
            };
            let attributes = attributes.expect("it has attributes");
            match arrival {
                Some(Arrival::Truncated { received }) => assert!(received <= attributes.stored, "{ino:?}"),
                Some(Arrival::Complete) | None => {}
                waits => panic!("{ino:?} waits for ever: {waits:?}"),
            }
            if attributes.kind != Kind::File {
                continue;
            }
            let whole = arrival == Some(Arrival::Complete);
            for at in [0, attributes.size / 2, attributes.size.saturating_sub(1)] {
                let mut bytes = Vec::new();
                match self.store.read(ino, at, LOOK, &mut bytes) {
                    Ok(Read::Bytes(len)) => {
                        let there = (attributes.size - at).min(LOOK as u64);
                        assert_eq!(len as u64, there, "{ino:?} at {at}");
                    }
                    Ok(Read::Lost) => assert!(!whole, "{ino:?} is whole, and cannot be read at {at}"),
                    Ok(Read::NotYet { .. }) => panic!("{ino:?} waits for ever at {at}"),
                    Err(e) => panic!("{ino:?} at {at}: {e}"),
                }
            }
        }
    }
}

/// Whatever is said, over however many connections.
pub fn any_bytes(input: &[u8], spool: &Path) {
    let Some((&how, input)) = input.split_first() else { return };
    let mut receiver = Receiver::new(spool);
    for connection in record::connections(input) {
        if !receiver.connection(connection, how & 1 == 1) {
            break;
        }
    }
    receiver.end();
}
