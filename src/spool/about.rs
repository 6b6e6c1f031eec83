//! `spool.json`: what a spool holds, who fills it, and on which boot of the machine.
//!
//! Written once when the spool is made, and again when a resumed transfer takes it over. It is read by recovery, by
//! `status` and by `discard`, and nothing in it is trusted beyond what it says about itself.

use std::io;
use std::path::PathBuf;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::config::Config;
use super::form::BLOB_THRESHOLD;
use crate::entry::Timestamp;
use crate::record;

/// The value of `format`.
const FORMAT: &str = "restorefs-spool";

/// No `spool.json` is longer.
pub(super) const MAX_LENGTH: u64 = 64 << 10;

/// Where the kernel says which boot this is.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The contents of `spool.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    format: String,
    version: u32,
    /// What is spooled.
    pub source: String,
    blob_threshold: u64,
    /// The daemon that fills it, or did.
    pub pid: u32,
    /// The boot on which it was filled; empty where that was not known.
    #[serde(default)]
    boot: String,
    /// Where it is, or was, mounted.
    #[serde(default)]
    pub mountpoint: PathBuf,
    /// When it was made, in seconds since the epoch.
    #[serde(default)]
    pub created: u64,
    /// The owner of directories that no header announces.
    #[serde(default)]
    uid: u32,
    #[serde(default)]
    gid: u32,
    /// Their time: seconds and nanoseconds.
    #[serde(default)]
    made: (i64, u32),
}

/// Why the contents of `spool.json` are of no use.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// It cannot be read.
    #[error("cannot read its spool.json")]
    Read(#[source] io::Error),
    /// There is none.
    #[error("there is no spool.json in it")]
    Missing,
    /// It is something else.
    #[error("its spool.json is not one of restorefs")]
    Foreign,
    /// Another version of restorefs has written it.
    #[error("it was written in form {found} by another version of restorefs; this one reads form {known}", known = record::VERSION)]
    Version {
        /// The form in which it is written.
        found: u32,
    },
}

impl About {
    pub(super) fn new(config: &Config) -> About {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        About {
            format: FORMAT.into(),
            version: record::VERSION,
            source: config.source.clone(),
            blob_threshold: BLOB_THRESHOLD,
            pid: std::process::id(),
            boot: this_boot(),
            mountpoint: config.mountpoint.clone(),
            created: now.as_secs(),
            uid: config.owner.0,
            gid: config.owner.1,
            made: (config.made.seconds(), config.made.nanos()),
        }
    }

    /// The same spool, filled by this process from now on.
    pub(super) fn taken_over(self, mountpoint: PathBuf) -> About {
        About { pid: std::process::id(), boot: this_boot(), mountpoint, ..self }
    }

    /// # Errors
    /// [`Unusable::Foreign`] or [`Unusable::Version`].
    pub(super) fn decode(text: &[u8]) -> Result<About, Unusable> {
        #[derive(Deserialize)]
        struct Kind {
            format: String,
            version: u32,
        }
        let kind: Kind = serde_json::from_slice(text).map_err(|_| Unusable::Foreign)?;
        if kind.format != FORMAT {
            return Err(Unusable::Foreign);
        }
        if kind.version != record::VERSION {
            return Err(Unusable::Version { found: kind.version });
        }
        serde_json::from_slice(text).map_err(|_| Unusable::Foreign)
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut text = serde_json::to_vec_pretty(self).expect("a plain struct can be encoded");
        text.push(b'\n');
        text
    }

    /// Owner and group of directories that no header announces.
    pub fn owner(&self) -> (u32, u32) {
        (self.uid, self.gid)
    }

    /// The time of directories that no header announces.
    pub fn made(&self) -> Timestamp {
        Timestamp::new(self.made.0, self.made.1)
    }

    /// Whether the machine has been up ever since it was filled: then what was written is there, synced or not.
    pub fn is_of_this_boot(&self) -> bool {
        !self.boot.is_empty() && self.boot == this_boot()
    }
}

/// Empty where the kernel does not say.
fn this_boot() -> String {
    std::fs::read_to_string(BOOT_ID).map(|id| id.trim().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back_and_nothing_else_is() {
        let config = Config { source: "a".into(), owner: (1, 2), made: Timestamp::new(-3, 4), ..Config::default() };
        let about = About::new(&config);
        assert_eq!(About::decode(&about.encode()).unwrap(), about);
        assert!(about.is_of_this_boot() && about.made() == config.made && about.owner() == (1, 2));
        let text = String::from_utf8(about.encode()).unwrap();
        let newer = text.replace(&format!("\"version\": {}", record::VERSION), "\"version\": 999");
        assert!(matches!(About::decode(newer.as_bytes()), Err(Unusable::Version { found: 999 })));
        for foreign in ["", "{}", "[1]", &text.replace(FORMAT, "another")] {
            assert!(matches!(About::decode(foreign.as_bytes()), Err(Unusable::Foreign)), "{foreign}");
        }
        let elsewhere = About { boot: "another".into(), ..about };
        assert!(!elsewhere.is_of_this_boot());
        assert!(elsewhere.taken_over("/mnt".into()).is_of_this_boot());
    }
}
