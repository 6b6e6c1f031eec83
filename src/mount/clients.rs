//! Who has asked a daemon for something that takes its time, or restores from it. The spool stays as long as they are there.

use parking_lot::{Condvar, Mutex};
use serde::{Deserialize, Serialize};

/// What a client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Doing {
    /// It restores, by descriptors of the spool or of the archive.
    Materialize,
    /// It waits for an entry, or for the end of the stream.
    Wait,
    /// It has the spool read back.
    Scrub,
}

/// A process that is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Client {
    /// Its number. None where it is in a PID namespace that cannot be seen from here.
    pub pid: Option<u32>,
    /// What it does.
    pub doing: Doing,
}

/// Those who are there.
#[derive(Debug, Default)]
pub struct Clients {
    there: Mutex<There>,
    fewer: Condvar,
}

#[derive(Debug, Default)]
struct There {
    clients: Vec<(u64, Client)>,
    next: u64,
    given_up: bool,
}

/// One of them, until it is dropped.
#[derive(Debug)]
pub struct Present<'a> {
    of: &'a Clients,
    number: u64,
}

impl Clients {
    /// One more.
    pub fn enter(&self, client: Client) -> Present<'_> {
        let mut there = self.there.lock();
        let number = there.next;
        there.next += 1;
        there.clients.push((number, client));
        Present { of: self, number }
    }

    /// All of them, in the order in which they came.
    pub fn list(&self) -> Vec<Client> {
        self.there.lock().clients.iter().map(|(_, client)| *client).collect()
    }

    /// Waits until there are none, or they are given up.
    pub(super) fn wait_none(&self) {
        let mut there = self.there.lock();
        while !there.clients.is_empty() && !there.given_up {
            self.fewer.wait(&mut there);
        }
    }

    /// Nobody waits for them any more.
    pub(super) fn give_up(&self) {
        self.there.lock().given_up = true;
        self.fewer.notify_all();
    }
}

impl Drop for Present<'_> {
    fn drop(&mut self) {
        self.of.there.lock().clients.retain(|(number, _)| *number != self.number);
        self.of.fewer.notify_all();
    }
}
