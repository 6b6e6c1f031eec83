//! The commands. The only place that prints.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod busy;
mod daemon;
mod deliver;
mod discard;
mod exit;
mod foreground;
mod front;
mod left;
mod line;
mod materialize;
mod mount;
mod names;
mod problems;
mod progress;
mod scrub;
mod send;
mod show;
mod signals;
mod status;
mod stop;
mod token;
mod umount;
mod wait;

use std::io::Write;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::spool;

pub use exit::Exit;

/// Mount a tar archive while it is still arriving.
///
/// Every entry can be seen, and every symbolic link is right, from the moment its header has come. Reads of what
/// is still on its way wait for it. Whatever ends the stream, all that arrived stays.
#[derive(Debug, Parser)]
#[command(name = "restorefs", version, after_help = EXIT_CODES, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "\
Exit codes:
  0  complete
  1  failed
  2  wrong usage
  3  complete, with problems: entries or attributes were left out, each is named
  4  incomplete: the stream ended early or was stopped, or 'send --to' could not bring a file to its end
  5  corrupt: the stream cannot be followed further
  6  'send' has another token than the receiver";

#[derive(Debug, Subcommand)]
enum Command {
    /// Mount an archive: a file, a FIFO, standard input, or what somebody sends over TCP
    Mount(MountArgs),
    /// Tell how a mount stands; or all mounts, and what daemons that are gone have left
    Status(StatusArgs),
    /// Wait until all of a mount, or the named paths in it, have arrived
    Wait(WaitArgs),
    /// Copy a mounted tree, or parts of it, to disk with all that belongs to it, also while it is still arriving
    Materialize(MaterializeArgs),
    /// Send files and directories, with all that belongs to them: to a receiver, or as a pax archive on standard output
    Send(SendArgs),
    /// Read back what a mount has in its spool, and compare it with its checksums
    Scrub(ScrubArgs),
    /// Stop receiving, as Ctrl-C in front does: what arrived stays mounted
    Stop(StopArgs),
    /// Unmount
    Umount(UmountArgs),
    /// Remove a spool that no daemon has any more
    Discard(DiscardArgs),
}

#[derive(Debug, Args)]
#[command(
    override_usage = "restorefs mount [OPTIONS] SOURCE MOUNTPOINT\n       \
                      restorefs mount [OPTIONS] --listen [ADDR:]PORT MOUNTPOINT\n       \
                      restorefs mount [OPTIONS] --listen [ADDR:]PORT --plain MOUNTPOINT",
    after_help = "SOURCE is '-' (standard input), a file or a FIFO: tar as v7, ustar, GNU or pax, as it is or \
                  compressed with gzip, zstd, xz, bzip2, lz4, lzma or lzip.\n\nThe command stays in front to show progress \
                  until the stream is over, then exits; the mount stays until it is unmounted. Ctrl-C stops receiving: \
                  what arrived stays mounted. Where nothing came, or what came is no archive, nothing stays mounted."
)]
struct MountArgs {
    #[arg(required = true, num_args = 1..=2, value_names = ["SOURCE", "MOUNTPOINT"], hide = true)]
    paths: Vec<PathBuf>,
    /// Listen for 'restorefs send', which is told what to type there, with a token for this one time; without ADDR only from
    /// this machine, with port 0 on a free port, which is printed
    #[arg(long, value_name = "[ADDR:]PORT")]
    listen: Option<String>,
    /// Take a bare tar stream instead, from the first connection that sends one: no token, no encryption
    #[arg(long, requires = "listen")]
    plain: bool,
    /// Take the token from this file, which is made where there is none: for unattended use. Only you (or root) may own
    /// it and its directory, and nobody else may read it
    #[arg(long, value_name = "FILE", requires = "listen", conflicts_with = "plain")]
    token_file: Option<PathBuf>,
    /// Take a connection for lost when nothing has come over it for so many seconds (the other side says every 5 s that it
    /// is there)
    #[arg(long, value_name = "SECONDS", default_value = "30", requires = "listen", value_parser = parse_timeout)]
    timeout: Seconds,
    /// Stay one process, in front, until unmounted (for systemd: Type=notify)
    #[arg(short, long, conflicts_with = "detach")]
    foreground: bool,
    /// Return as soon as the mount answers; with a file for SOURCE, when its first entry is there
    #[arg(short, long)]
    detach: bool,
    /// Also restore everything into this directory as it arrives, as 'restorefs materialize' does; the exit code is of both
    #[arg(long, value_name = "DEST", conflicts_with = "detach")]
    materialize: Option<PathBuf>,
    /// Where contents are kept on disk while mounted (not needed for an uncompressed archive file)
    #[arg(long, value_name = "DIR", default_value = spool::DIRECTORY)]
    spool: PathBuf,
    /// Keep at most so much there, as 500M or 20G; when it is full, receiving waits
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    spool_limit: Option<u64>,
    /// Leave the spool where it is when unmounted
    #[arg(long)]
    keep_spool: bool,
    /// Go on filling this spool, which a transfer that broke off has left: with the same SOURCE, which is read again from its
    /// beginning, or for the same sender with the same --token-file
    #[arg(long, value_name = "SPOOL", conflicts_with_all = ["spool"])]
    resume: Option<PathBuf>,
    /// Let other users look in, as far as the permissions of the entries allow
    #[arg(long)]
    allow_other: bool,
    /// Serve every read ourselves: do not let the kernel read large files in the spool directly (it can for root, from Linux 6.9 on)
    #[arg(long)]
    no_passthrough: bool,
    /// Show no extended attributes and ACLs: 'cp -a' asks for them three times for each file, and takes half the time without
    /// ('restorefs materialize' restores them all the same)
    #[arg(long)]
    no_xattrs: bool,
    /// Let names and attributes take at most so much memory [default: a quarter of the machine's]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    max_index: Option<u64>,
    /// Read on behind an end marker: for archives that were joined with cat
    #[arg(long)]
    concatenated: bool,
    /// Tell more of what goes on, and each problem: otherwise the first 20 are told
    #[arg(short, long)]
    verbose: bool,
}

#[derive(Debug, Args)]
struct StatusArgs {
    /// A mount point, or a path in a mount; without it, all mounts, those whose daemon is gone too, and spools without a
    /// daemon
    mountpoint: Option<PathBuf>,
    /// As JSON, an object per line: for each mount, with all problems in it, and for each spool without a daemon
    #[arg(long)]
    json: bool,
    /// Again every second, until the stream is over
    #[arg(long, requires = "mountpoint")]
    watch: bool,
    /// All problems instead, a line for each: what was left out, and what was changed to be taken; with --json an object per
    /// line
    #[arg(long, requires = "mountpoint", conflicts_with = "watch")]
    problems: bool,
}

#[derive(Debug, Args)]
struct WaitArgs {
    /// The mount point
    mountpoint: PathBuf,
    /// Paths in it, relative to it or absolute; without any, all of it
    paths: Vec<PathBuf>,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Owners are restored when root runs it; anybody else owns what they restore. A PATH brings what is \
                  below it, and the directories that it is in with their metadata.\n\nPatterns are like those of tar's \
                  --exclude: *, ?, [...] and {a,b}, where * and ? match / too. A pattern matches an entry when it \
                  matches its path from the root or from behind any /, or that of a directory that it is in; with a / \
                  in front, from the root only.\n\nThe exit code is that of the stream, or 3 where something could \
                  not be restored as it was packed, or where a PATH, an --include or --strip-components matches nothing. \
                  Run again, it goes on where it was stopped."
)]
struct MaterializeArgs {
    /// The mount point
    mountpoint: PathBuf,
    /// The directory that everything goes into; it is made where there is none
    dest: PathBuf,
    /// Paths in the mount, relative to it or absolute; without any, all of it
    paths: Vec<PathBuf>,
    #[command(flatten)]
    how: RestoreArgs,
}

/// What `materialize` can be told, however it is called.
#[derive(Debug, Default, Args)]
struct RestoreArgs {
    /// Restore only what matches; can be given several times
    #[arg(long, value_name = "PATTERN")]
    include: Vec<String>,
    /// Leave out what matches; can be given several times, and counts for more than --include
    #[arg(long, value_name = "PATTERN")]
    exclude: Vec<String>,
    /// Leave away so many leading components of each path
    #[arg(long, value_name = "N", default_value_t = 0)]
    strip_components: usize,
    /// Restore only what was changed after this file was, or after this time (@SECONDS since 1970); directories come
    /// as they are needed
    #[arg(long, value_name = "FILE|@SECONDS")]
    newer_than: Option<String>,
    /// What becomes of names that are taken: if-changed leaves what has the same kind, size and time
    #[arg(long, value_name = "WHEN", value_enum, default_value_t = OverwriteArg::IfChanged)]
    overwrite: OverwriteArg,
    /// Find owners by name, where this machine has the name
    #[arg(long)]
    map_owner: bool,
    /// Take what is there now, and do not wait for what is still to come
    #[arg(long)]
    no_wait: bool,
    /// Return without waiting for the disk
    #[arg(long)]
    no_sync: bool,
    /// Read everything back, and compare
    #[arg(long)]
    verify: bool,
    /// Change nothing; print for each entry what would be done: make, replace, keep, or nothing (right)
    #[arg(long, conflicts_with_all = ["verify", "json"])]
    dry_run: bool,
    /// Print a report as JSON on standard output
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum OverwriteArg {
    Never,
    IfNewer,
    #[default]
    IfChanged,
    Always,
}

#[derive(Debug, Args)]
#[command(
    override_usage = "restorefs send [OPTIONS] PATH... --to HOST:PORT\n       \
                      restorefs send [OPTIONS] PATH... -",
    after_help = "The archive is pax, which tar and bsdtar read; give them --xattrs --xattrs-include='*' --acls, and \
                  --numeric-owner, to extract all that is in it. Names are sent without a / in front, and without \
                  anything up to a '..'. Symbolic links are sent as such; a PATH that is one, with a / behind it, is the \
                  directory that it leads to.\n\nPatterns are like those of tar's --exclude: *, ?, [...] and {a,b}, \
                  where * and ? match / too. A pattern matches an entry when it matches its path from the root or \
                  from behind any /, or that of a directory that it is in; with a / in front, from the root only.\n\n\
                  The exit code is 3 where something vanished, was changed while it was read, or could not be read: \
                  each is named. It is 4 where whoever reads the archive ends before it is complete, and 1 where a PATH \
                  is not there or the archive cannot be written.\n\nWith --to it is 4 where it was stopped, or a part of a \
                  file is missing at the receiver; the same command goes on from what is there. It is 1 where another \
                  sender with the same token is alive (see --take-over)."
)]
struct SendArgs {
    /// What is to be sent, and '-' for an archive on standard output
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    #[command(flatten)]
    walk: WalkArgs,
    /// Send at most so many bytes a second, as 500K or 20M
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    rate_limit: Option<u64>,
    #[command(flatten)]
    deliver: DeliverArgs,
    /// Print a report as JSON on standard output
    #[arg(long, requires = "to")]
    json: bool,
}

/// How a tree is delivered to a receiver.
#[derive(Debug, Args)]
struct DeliverArgs {
    /// Send to 'restorefs mount --listen', which prints what to type; the token comes from RESTOREFS_TOKEN, --token-file, or
    /// is asked for
    #[arg(long, value_name = "HOST:PORT")]
    to: Option<String>,
    /// Take the token from this file. Only you (or root) may own it and its directory, and nobody else may read it
    #[arg(long, value_name = "FILE", requires = "to")]
    token_file: Option<PathBuf>,
    /// Try for so many seconds to connect again when the connection is lost
    #[arg(long, value_name = "SECONDS", default_value_t = 600, requires = "to")]
    retry: u64,
    /// Take a connection for lost when nothing has come over it for so many seconds
    #[arg(long, value_name = "SECONDS", default_value = "30", requires = "to", value_parser = parse_timeout)]
    timeout: Seconds,
    /// Take the place of another sender with the same token that is still sending, instead of being refused
    #[arg(long, requires = "to")]
    take_over: bool,
    /// Never compress; otherwise it is done where the network is slower than the compressor, for what gets smaller
    #[arg(long, requires = "to")]
    no_compress: bool,
}

/// What is sent of what is there.
#[derive(Debug, Args)]
struct WalkArgs {
    /// Take each PATH from in there
    #[arg(short = 'C', long, value_name = "DIR")]
    directory: Option<PathBuf>,
    /// Of other file systems that are mounted below a PATH, send the mount points only
    #[arg(long)]
    one_file_system: bool,
    /// Leave out what matches; can be given several times
    #[arg(long, value_name = "PATTERN")]
    exclude: Vec<String>,
    /// Leave out what matches a line of this file; can be given several times
    #[arg(long, value_name = "FILE")]
    exclude_from: Vec<PathBuf>,
    /// Of directories with a valid CACHEDIR.TAG, send that only
    #[arg(long)]
    exclude_caches: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Contents are read from the disk where the system can drop what it has of them in memory. Damaged files \
                  are named, and the exit code is 1: send or mount the archive again. An archive that is mounted in \
                  place has no spool; check it with the tool that made it."
)]
struct ScrubArgs {
    /// The mount point
    mountpoint: PathBuf,
    /// Print the result as JSON on standard output
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "The exit code is that of the stream (4: incomplete), or 0 where it was over already.")]
struct StopArgs {
    /// The mount point
    mountpoint: PathBuf,
}

#[derive(Debug, Args)]
#[command(
    after_help = "A mount that is in use is not unmounted: while 'restorefs materialize', 'wait' or 'scrub' are at work, or a \
                  process has something in it open, mapped, or as its working or root directory. Each is named."
)]
struct UmountArgs {
    /// The mount point
    mountpoint: PathBuf,
    /// Unmount even while it is in use, while it receives (what has not arrived is lost), while something is mounted below
    /// it (that is unmounted too), or when its daemon does not answer or refuses; end the daemon even if files in the mount
    /// are open, another mount covers it, or another mount namespace has a copy. A 'materialize' at work goes on with what
    /// has arrived
    #[arg(short, long)]
    force: bool,
    /// Detach it from the tree now; whoever uses it goes on, and what they wait for still arrives. Daemon and spool go with
    /// the last of them
    #[arg(short, long, conflicts_with = "force")]
    lazy: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "A spool stays when its daemon is killed, or with 'mount --keep-spool'; 'restorefs status' names all that \
                  were left. What arrived is in there and nowhere else: nothing is asked before it is removed. A spool that \
                  is mounted is refused."
)]
struct DiscardArgs {
    /// Directories that 'restorefs status' names
    #[arg(required_unless_present = "all", value_name = "SPOOL")]
    spools: Vec<PathBuf>,
    /// Every one of yours that is left over
    #[arg(long, conflicts_with = "spools")]
    all: bool,
}

/// Runs a command line.
pub fn run(cli: Cli) -> Exit {
    // Over a limit on the size of files (ulimit -f) the write fails, and is reported; the signal would only kill.
    if let Err(e) = signal_hook::flag::register(signal_hook::consts::SIGXFSZ, std::sync::Arc::default()) {
        return fail(format_args!("cannot ignore SIGXFSZ: {e}"));
    }
    match cli.command {
        Command::Mount(args) => mount::run(args),
        Command::Status(args) => status::run(&args),
        Command::Wait(args) => wait::run(&args),
        Command::Materialize(args) => materialize::run(&args),
        Command::Send(args) => send::run(args),
        Command::Scrub(args) => scrub::run(&args),
        Command::Stop(args) => stop::run(&args),
        Command::Umount(args) => umount::run(&args),
        Command::Discard(args) => discard::run(&args),
    }
}

/// `restorefs: <message>` on standard error.
fn fail(message: impl std::fmt::Display) -> Exit {
    tell(message);
    Exit::Failed
}

fn tell(message: impl std::fmt::Display) {
    // Nobody may read it; that is no reason to stop.
    let _ = writeln!(std::io::stderr(), "restorefs: {}", harmless(&message.to_string()));
}

/// A line on standard output. False when nobody reads it any more.
fn say(line: impl std::fmt::Display) -> bool {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", harmless(&line.to_string())).and_then(|()| out.flush()).is_ok()
}

/// Lines on standard output, written together. False when nobody reads them any more.
fn say_lines(lines: impl Iterator<Item = String>) -> bool {
    let text: String = lines.map(|line| harmless(&line) + "\n").collect();
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_ok()
}

/// What a terminal would obey is shown as text. Names are escaped where they come from; but a status may come from
/// the daemon of another user, and an error may quote anything.
fn harmless(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    for c in line.trim_end().chars() {
        if is_harmful(c) { out.extend(c.escape_default()) } else { out.push(c) }
    }
    out
}

/// What a terminal would obey, or what changes the order in which the rest of a line is shown.
fn is_harmful(c: char) -> bool {
    c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A line of JSON on standard output, safe to show on a terminal. False when nobody reads it any more.
fn say_json(value: &serde_json::Value) -> bool {
    say(harmless_json(value))
}

fn harmless_json(value: &serde_json::Value) -> String {
    let mut out = String::new();
    for c in value.to_string().chars() {
        // Such characters stand in strings only, and all are in the first plane.
        if is_harmful(c) { out.push_str(&format!("\\u{:04x}", u32::from(c))) } else { out.push(c) }
    }
    out
}

/// A time in whole seconds.
#[derive(Clone, Copy, Debug)]
struct Seconds(u64);

impl From<Seconds> for std::time::Duration {
    fn from(seconds: Seconds) -> Self {
        std::time::Duration::from_secs(seconds.0)
    }
}

/// Longer than what is between two signs of life, and not for ever.
fn parse_timeout(text: &str) -> Result<Seconds, String> {
    match text.parse() {
        Ok(seconds @ 6..=86_400) => Ok(Seconds(seconds)),
        _ => Err("give a number of seconds from 6 to 86400".into()),
    }
}

/// `500M`: bytes, in powers of 1024.
fn parse_size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim_end_matches("iB").trim_end_matches('B').to_ascii_uppercase().as_str() {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return Err("give a number of bytes, or one with K, M, G or T behind it, as 500M".into()),
    };
    let number: u64 = number.parse().map_err(|_| "give a number, as 500M".to_owned())?;
    number.checked_mul(1 << shift).filter(|&n| n > 0).ok_or_else(|| "that is out of range".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn what_a_terminal_would_obey_is_escaped_and_json_stays_json() {
        let name = "a\u{1b}[2J\u{7f}\u{9b}\u{202e}\u{2066}é\n";
        let value = serde_json::json!({ "mountpoint": name });
        let line = harmless_json(&value);
        assert_eq!(serde_json::from_str::<serde_json::Value>(&line).unwrap(), value);
        assert_eq!(harmless(&line), line);
        assert!(!harmless(name).contains(is_harmful));
    }

    #[test]
    fn sizes() {
        assert_eq!(parse_size("500M"), Ok(500 << 20));
        assert_eq!(parse_size("1GiB"), Ok(1 << 30));
        assert_eq!(parse_size("7"), Ok(7));
        for wrong in ["", "0", "M", "1X", "-1", "1.5G", "99999999999T"] {
            assert!(parse_size(wrong).is_err(), "{wrong}");
        }
    }
}
