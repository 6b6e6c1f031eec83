//! What a sender is told of what is there, once its catalogue is: in as many messages as that takes, each made when there is
//! room for it.

use super::sink::{Became, Sink, State};
use crate::index::{Arrival, Ino};
use crate::wire::{FromReceiver, Position};

/// So many ranges and positions are said at once: some hundred kB.
const AT_ONCE: usize = 16 << 10;

/// So many entries are looked at at once, however little there is to say of them.
const LOOK: usize = 1 << 20;

/// How it stands with the contents of an entry.
enum Standing {
    /// All of them are there; also of what has none.
    Whole,
    /// No more will come.
    Cut,
    Part(Position),
    Awaited,
}

/// What is said at once.
#[derive(Default)]
struct Answer {
    whole: Ranges,
    cut: Ranges,
    parts: Vec<Position>,
}

impl Answer {
    fn add(&mut self, id: u64, standing: Standing) {
        match standing {
            Standing::Whole => self.whole.add(id),
            Standing::Cut => self.cut.add(id),
            Standing::Part(position) => self.parts.push(position),
            Standing::Awaited => {}
        }
    }

    fn is_full(&self) -> bool {
        self.whole.0.len() + self.cut.0.len() + self.parts.len() >= AT_ONCE
    }

    fn messages(self) -> Vec<FromReceiver> {
        vec![
            FromReceiver::Whole { ranges: self.whole.0 },
            FromReceiver::Cut { ranges: self.cut.0 },
            FromReceiver::Parts(self.parts),
        ]
    }
}

/// Numbers, as ranges of a first one and how many.
#[derive(Default)]
struct Ranges(Vec<(u64, u64)>);

impl Ranges {
    fn add(&mut self, id: u64) {
        match self.0.last_mut() {
            Some((first, count)) if *first + *count == id => *count += 1,
            _ => self.0.push((id, 1)),
        }
    }
}

impl Sink {
    /// Whether the sender has to be told more.
    pub(super) fn is_answering(&self) -> bool {
        self.answering.is_some()
    }

    /// The next of what it has to be told; nothing where it has been told all.
    pub(super) fn next_answers(&mut self) -> Vec<FromReceiver> {
        let Some(from) = self.answering else { return Vec::new() };
        let mut answer = Answer::default();
        let upto = self.slots.len().min(from + LOOK);
        let mut at = from;
        {
            let index = self.store.index();
            while at < upto && !answer.is_full() {
                answer.add(at as u64, self.standing(&index, at));
                at += 1;
            }
        }
        let mut answers = answer.messages();
        self.answering = (at < self.slots.len()).then_some(at);
        if self.answering.is_none() {
            answers.push(FromReceiver::Ready);
            answers.extend(self.wanted_messages());
        }
        answers
    }

    fn standing(&self, index: &crate::index::Index, at: usize) -> Standing {
        let ino = match self.slots[at].get() {
            Became::Inode(ino) => ino,
            Became::LeftOut => return Standing::Cut,
            Became::Nothing => return Standing::Whole,
        };
        match self.known.get(ino as usize).map(|known| known.state) {
            Some(State::Awaited) => Standing::Awaited,
            Some(State::Part) => match self.parts.get(&ino) {
                Some(part) => Standing::Part(part.position(at as u64)),
                None => Standing::Awaited,
            },
            Some(State::Over) if index.arrival(Ino(ino.into())) != Some(Arrival::Complete) => Standing::Cut,
            // Also what has no contents of its own.
            Some(State::Over) | None => Standing::Whole,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record;
    use crate::wire::{Batch, Frames, MAX_BODY};

    /// As it stands with an entry of a large catalogue. Every number takes as many bytes as it can.
    fn standing(id: u64) -> Standing {
        match id % 4 {
            0 => Standing::Whole,
            1 => Standing::Part(Position { id, checked: u64::MAX - id, received: u64::MAX }),
            2 => Standing::Cut,
            _ => Standing::Awaited,
        }
    }

    #[test]
    fn answers_are_longer_than_a_frame_can_be() {
        const ENTRIES: u64 = 9 << 20;
        let (mut whole, mut cut, mut parts) = (0, 0, 0);
        let (mut frames, mut bytes) = (Frames::default(), 0);
        let mut id = 0;
        while id < ENTRIES {
            let mut answer = Answer::default();
            while id < ENTRIES && !answer.is_full() {
                answer.add(id, standing(id));
                id += 1;
            }
            let mut batch = Batch::default();
            answer.messages().iter().for_each(|message| batch.push(message));
            bytes += batch.len();
            let body = frames.next_body(&mut &batch.finish()[..]).unwrap().unwrap();
            let mut rest = &body[..];
            while !rest.is_empty() {
                let (message, _, length) = record::decode::<FromReceiver>(rest).unwrap();
                rest = &rest[length..];
                match message {
                    FromReceiver::Whole { ranges } => {
                        assert!(ranges.iter().all(|range| *range == (range.0 / 4 * 4, 1)));
                        whole += ranges.len() as u64;
                    }
                    FromReceiver::Cut { ranges } => {
                        assert!(ranges.iter().all(|range| *range == (range.0 / 4 * 4 + 2, 1)));
                        cut += ranges.len() as u64;
                    }
                    FromReceiver::Parts(positions) => {
                        assert!(positions.iter().all(|position| position.checked == u64::MAX - position.id));
                        parts += positions.len() as u64;
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
        assert!(bytes > MAX_BODY, "{bytes} bytes would fit into one frame");
        assert_eq!((whole, cut, parts), (ENTRIES / 4, ENTRIES / 4, ENTRIES / 4));
    }

    #[test]
    fn numbers_in_a_row_are_one_range() {
        let mut ranges = Ranges::default();
        [3, 4, 5, 7].into_iter().for_each(|id| ranges.add(id));
        assert_eq!(ranges.0, [(3, 3), (7, 1)]);
    }
}
