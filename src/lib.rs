//! restorefs mounts a backup while it is still arriving. In one line: *a stream of entries, and the places it can
//! flow to*.
//!
//! ```text
//!  bytes            bytes              entries and contents          requests of the kernel
//! ┌────────┐      ┌────────┐      ┌─────────┐      ┌────────┐      ┌────────┐      ┌───────┐
//! │ source │ ───► │ filter │ ───► │ tarball │ ───► │ index  │ ◄─── │   fs   │ ◄─── │ fuse  │
//! │        │      │        │      │         │      │ spool  │      │        │      │       │
//! └────────┘      └────────┘      └─────────┘      └────────┘      └────────┘      └───────┘
//!  stdin, file,    gzip zstd xz    tar, every       store: who      reads that      the only
//!  FIFO, TCP       bzip2 lz4       dialect          has what        wait            part that
//!  ╰──────────────── driven by ingest ──────────────────╯                           knows FUSE
//! ```
//!
//! The other way in is a native sender, which has the entries already: `tree` ─► `send` ─► `wire` ─► `receive` ─► `index`
//! and `spool`.
//!
//! An [`Entry`](entry::Entry) is the one currency: the decoder makes them, the index takes them, and the journal
//! of the spool keeps them as [records](record). Nothing on the left knows anything of what is on its right. What
//! holds everywhere:
//!
//! * **Visible at once.** An entry is there when the last byte of its header has come. No buffer on the way waits
//!   to be full.
//! * **Never wrong bytes.** A read returns archived bytes, waits for them, or fails with `EIO`.
//! * **A waiting reader costs nothing**, holds no thread, and can be killed.
//! * **What arrived survives** the cut stream, the corrupt one, the full disk and the killed daemon; and what is behind a
//!   durable point, the power failure. The spool is mounted again, or filled further; `docs/recovery.md` has the rules.
//! * **Refusals are loud**: named, counted, in the status and in the exit code.
//!
//! The modules, in the order in which data flows:
//!
//! | The vocabulary | |
//! |---|---|
//! | [`entry`] | what an entry is: paths, metadata, times, attributes, maps of holes; each cannot be built wrong |
//! | [`pattern`] | which paths are meant by `*.o` |
//! | [`monitor`] | how the library tells of progress and problems; it never prints |
//! | [`stop`] | the word "stop", said once to everything that waits |
//! | [`strangers`] | who gives way when many connect to a port, and how much of that is logged |
//!
//! | From bytes to entries | |
//! |---|---|
//! | [`source`] | where bytes come from: standard input, a file, a FIFO, a TCP connection |
//! | [`filter`] | decompression, recognised by magic, in a thread of its own; what a stream is that is no archive |
//! | [`tarball`] | tar to entries, without I/O: every dialect, in any split of the input |
//!
//! | From entries to a tree | |
//! |---|---|
//! | [`record`] | entries to bytes and back, for the journal |
//! | [`proof`] | checksums of contents, and reads that are compared with them |
//! | [`spool`] | contents on disk: a journal, a blob for each large file, durable points; spools whose daemon is gone are found, opened again, removed |
//! | [`index`] | the tree in memory: inodes, dentries, where contents lie, how far they have arrived |
//! | [`store`] | index and contents together, and who is told when more is there; [`store::intake`] is the only way in, [`store::recover`] the way back from a spool |
//! | [`ingest`] | the one that drives: source, filter, decoder, store; also through an archive once more, past what is there |
//!
//! | From a directory to entries | |
//! |---|---|
//! | [`tree`] | a live directory, walked, and its contents, opened later |
//! | [`wire`] | what sender and receiver say to each other: a token, TLS, frames, messages; `docs/wire.md` has it on a page |
//! | [`send`] | all of that to an archive, or to a receiver: names first, and what somebody waits for ahead of all |
//! | [`receive`] | from a native sender into the store, over as many connections, and daemons, as it takes |
//!
//! | From a tree to its users | |
//! |---|---|
//! | [`mounts`] | which mounts of restorefs there are, who uses one, and how it is taken away |
//! | [`fs`] | the filesystem in our own types: attributes, handles, reads that wait |
//! | [`fuse`] | the thin adapter to the kernel, and the process that lists directories before somebody asks |
//! | [`mount`] | one mount from beginning to end: from a source, a sender, or a spool |
//! | [`control`] | what can be asked of a running mount, over a Unix socket |
//! | [`replay`] | what a mount received, once more: the entries of a journal or an archive, and their contents |
//! | [`materialize`] | the entries of a mount once more, onto a disk: exactly, by several threads, and never outside |
//! | [`cli`] | the commands; the only part that prints |
//! | [`sys`] | the few system calls that need `unsafe` |
//!
//! `tests/it/layering.rs` holds the modules to this order, `tests/it/circles.rs` the files in each.

#![cfg_attr(test, allow(clippy::print_stdout, clippy::print_stderr))]

pub mod cli;
pub mod control;
pub mod entry;
pub mod filter;
pub mod fs;
pub mod fuse;
pub mod index;
pub mod ingest;
pub mod materialize;
pub mod monitor;
pub mod mount;
pub mod mounts;
pub mod pattern;
pub mod proof;
pub mod receive;
pub mod record;
pub mod replay;
pub mod send;
pub mod source;
pub mod spool;
pub mod stop;
pub mod store;
pub mod strangers;
pub mod sys;
pub mod tarball;
pub mod tree;
pub mod wire;
