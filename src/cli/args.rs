//! The command line: the commands, and what each can be told.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::spool;

/// Mount a tar archive while it is still arriving.
///
/// Every entry can be seen, and every symbolic link is right, from the moment its header has come. Reads of what
/// is still on its way wait for it. Whatever ends the stream, all that arrived stays.
#[derive(Debug, Parser)]
#[command(name = "restorefs", version, after_help = EXIT_CODES, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    pub(super) command: Command,
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
pub(super) enum Command {
    /// Mount an archive: a file, a FIFO, standard input, or what somebody sends over TCP; or what an earlier mount left
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
                      restorefs mount [OPTIONS] --listen [ADDR:]PORT --plain MOUNTPOINT\n       \
                      restorefs mount [OPTIONS] SPOOL MOUNTPOINT",
    after_help = "SOURCE is '-' (standard input), a file or a FIFO: tar as v7, ustar, GNU or pax, as it is or \
                  compressed with gzip, zstd, xz, bzip2, lz4, lzma or lzip.\n\nSPOOL is a directory that an earlier \
                  mount has left ('restorefs status' lists them): what arrived is mounted again, and the spool stays. The \
                  exit code is 0 if the transfer was complete, 4 if it was not. With --resume the transfer goes on.\n\nThe command stays in front to show progress \
                  until the stream is over, then exits; the mount stays until it is unmounted. Ctrl-C stops receiving: \
                  what arrived stays mounted. Where nothing came, or what came is no archive, nothing stays mounted."
)]
pub(super) struct MountArgs {
    #[arg(required = true, num_args = 1..=2, value_names = ["SOURCE", "MOUNTPOINT"], hide = true)]
    pub(super) paths: Vec<PathBuf>,
    /// Listen for 'restorefs send', which is told what to type there, with a token for this one time; without ADDR only from
    /// this machine, with port 0 on a free port, which is printed
    #[arg(long, value_name = "[ADDR:]PORT")]
    pub(super) listen: Option<String>,
    /// Take a bare tar stream instead, from the first connection that sends one: no token, no encryption
    #[arg(long, requires = "listen")]
    pub(super) plain: bool,
    /// Take the token from this file, which is made where there is none: for unattended use. Only you (or root) may own
    /// it and its directory, and nobody else may read it
    #[arg(long, value_name = "FILE", requires = "listen", conflicts_with = "plain")]
    pub(super) token_file: Option<PathBuf>,
    /// Take a connection for lost when nothing has come over it for this many seconds (the other side says every 5 s that it
    /// is there)
    #[arg(long, value_name = "SECONDS", default_value = "30", requires = "listen", value_parser = parse_timeout)]
    pub(super) timeout: Seconds,
    /// Stay one process, in front, until unmounted (for systemd: Type=notify)
    #[arg(short, long, conflicts_with = "detach")]
    pub(super) foreground: bool,
    /// Return as soon as the mount answers; with a file for SOURCE, when its first entry is there
    #[arg(short, long)]
    pub(super) detach: bool,
    /// Also restore everything into this directory as it arrives, as 'restorefs materialize' does; the exit code is of both
    #[arg(long, value_name = "DEST", conflicts_with = "detach")]
    pub(super) materialize: Option<PathBuf>,
    /// Where contents are kept on disk while mounted (not needed for an uncompressed archive file)
    #[arg(long, value_name = "DIR", default_value = spool::DIRECTORY)]
    pub(super) spool: PathBuf,
    /// Keep at most SIZE there, as 500M or 20G; when it is full, receiving waits
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(super) spool_limit: Option<u64>,
    /// Leave the spool where it is when unmounted: 'restorefs mount SPOOL MOUNTPOINT' mounts it again
    #[arg(long)]
    pub(super) keep_spool: bool,
    /// Go on filling this spool, which a transfer that broke off has left: with the same SOURCE, which is read again from its
    /// beginning, or for the same sender with the same --token-file
    #[arg(long, value_name = "SPOOL", conflicts_with_all = ["spool"])]
    pub(super) resume: Option<PathBuf>,
    /// Let other users look in, as far as the permissions of the entries allow
    #[arg(long)]
    pub(super) allow_other: bool,
    /// Serve every read ourselves: do not let the kernel read large files in the spool directly (it can for root, from Linux 6.9 on)
    #[arg(long)]
    pub(super) no_passthrough: bool,
    /// Show no extended attributes and ACLs: 'cp -a' asks for them three times for each file, and takes half the time without
    /// ('restorefs materialize' restores them all the same)
    #[arg(long)]
    pub(super) no_xattrs: bool,
    /// Let names and attributes take at most SIZE of memory [default: a quarter of the machine's]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(super) max_index: Option<u64>,
    /// Read on behind an end marker: for archives that were joined with cat
    #[arg(long)]
    pub(super) concatenated: bool,
    /// Tell more of what goes on, and each problem: otherwise the first 20 are told
    #[arg(short, long)]
    pub(super) verbose: bool,
}

#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    /// A mount point, or a path in a mount; without it, all mounts, those whose daemon is gone too, and spools without a
    /// daemon
    pub(super) mountpoint: Option<PathBuf>,
    /// As JSON, an object per line: for each mount, with all problems in it, and for each spool without a daemon
    #[arg(long)]
    pub(super) json: bool,
    /// Again every second, until the stream is over
    #[arg(long, requires = "mountpoint")]
    pub(super) watch: bool,
    /// All problems instead, a line for each: what was left out, and what was changed to be taken; with --json an object per
    /// line
    #[arg(long, requires = "mountpoint", conflicts_with = "watch")]
    pub(super) problems: bool,
}

#[derive(Debug, Args)]
pub(super) struct WaitArgs {
    /// The mount point
    pub(super) mountpoint: PathBuf,
    /// Paths in it, relative to it or absolute; without any, all of it
    pub(super) paths: Vec<PathBuf>,
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
pub(super) struct MaterializeArgs {
    /// The mount point
    pub(super) mountpoint: PathBuf,
    /// The directory that everything goes into; it is made where there is none
    pub(super) dest: PathBuf,
    /// Paths in the mount, relative to it or absolute; without any, all of it
    pub(super) paths: Vec<PathBuf>,
    #[command(flatten)]
    pub(super) how: RestoreArgs,
}

/// What `materialize` can be told, however it is called.
#[derive(Debug, Default, Args)]
pub(super) struct RestoreArgs {
    /// Restore only what matches; can be given several times
    #[arg(long, value_name = "PATTERN")]
    pub(super) include: Vec<String>,
    /// Leave out what matches; can be given several times, and counts for more than --include
    #[arg(long, value_name = "PATTERN")]
    pub(super) exclude: Vec<String>,
    /// Strip N leading components from each path
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(super) strip_components: usize,
    /// Restore only what was changed after this file was, or after this time (@SECONDS since 1970); directories come
    /// as they are needed
    #[arg(long, value_name = "FILE|@SECONDS")]
    pub(super) newer_than: Option<String>,
    /// What becomes of names that are taken: if-changed leaves what has the same kind, size and time
    #[arg(long, value_name = "WHEN", value_enum, default_value_t = OverwriteArg::IfChanged)]
    pub(super) overwrite: OverwriteArg,
    /// Find owners by name, where this machine has the name
    #[arg(long)]
    pub(super) map_owner: bool,
    /// Take what is there now, and do not wait for what is still to come
    #[arg(long)]
    pub(super) no_wait: bool,
    /// Return without waiting for the disk
    #[arg(long)]
    pub(super) no_sync: bool,
    /// Read everything back, and compare
    #[arg(long)]
    pub(super) verify: bool,
    /// Change nothing; print for each entry what would be done: make, replace, keep, or nothing (right)
    #[arg(long, conflicts_with_all = ["verify", "json"])]
    pub(super) dry_run: bool,
    /// Print a report as JSON on standard output
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum OverwriteArg {
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
                  each is named. It is 4 where the reader of the archive ends before it is complete, and 1 where a PATH \
                  is not there or the archive cannot be written.\n\nWith --to it is 4 where it was stopped, or a part of a \
                  file is missing at the receiver; the same command goes on from what is there. It is 1 where another \
                  sender with the same token is alive (see --take-over)."
)]
pub(super) struct SendArgs {
    /// What is to be sent, and '-' for an archive on standard output
    #[arg(required = true, value_name = "PATH")]
    pub(super) paths: Vec<PathBuf>,
    #[command(flatten)]
    pub(super) walk: WalkArgs,
    /// Send at most so many bytes a second, as 500K or 20M
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(super) rate_limit: Option<u64>,
    #[command(flatten)]
    pub(super) deliver: DeliverArgs,
    /// Print a report as JSON on standard output
    #[arg(long, requires = "to")]
    pub(super) json: bool,
}

/// How a tree is delivered to a receiver.
#[derive(Debug, Args)]
pub(super) struct DeliverArgs {
    /// Send to 'restorefs mount --listen', which prints what to type; the token comes from RESTOREFS_TOKEN, --token-file, or
    /// is asked for
    #[arg(long, value_name = "HOST:PORT")]
    pub(super) to: Option<String>,
    /// Take the token from this file. Only you (or root) may own it and its directory, and nobody else may read it
    #[arg(long, value_name = "FILE", requires = "to")]
    pub(super) token_file: Option<PathBuf>,
    /// Try for so many seconds to connect again when the connection is lost
    #[arg(long, value_name = "SECONDS", default_value_t = 600, requires = "to")]
    pub(super) retry: u64,
    /// Take a connection for lost when nothing has come over it for this many seconds
    #[arg(long, value_name = "SECONDS", default_value = "30", requires = "to", value_parser = parse_timeout)]
    pub(super) timeout: Seconds,
    /// Take the place of another sender with the same token that is still sending, instead of being refused
    #[arg(long, requires = "to")]
    pub(super) take_over: bool,
    /// Never compress; otherwise it is done where the network is slower than the compressor, for what gets smaller
    #[arg(long, requires = "to")]
    pub(super) no_compress: bool,
}

/// What is sent of what is there.
#[derive(Debug, Args)]
pub(super) struct WalkArgs {
    /// Take each PATH from in there
    #[arg(short = 'C', long, value_name = "DIR")]
    pub(super) directory: Option<PathBuf>,
    /// Of other file systems that are mounted below a PATH, send the mount points only
    #[arg(long)]
    pub(super) one_file_system: bool,
    /// Leave out what matches; can be given several times
    #[arg(long, value_name = "PATTERN")]
    pub(super) exclude: Vec<String>,
    /// Leave out what matches a line of this file; can be given several times
    #[arg(long, value_name = "FILE")]
    pub(super) exclude_from: Vec<PathBuf>,
    /// Of directories with a valid CACHEDIR.TAG, send that only
    #[arg(long)]
    pub(super) exclude_caches: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Contents are read from the disk where the system can drop what it has of them in memory. Damaged files \
                  are named, and the exit code is 1: send or mount the archive again. An archive that is mounted in \
                  place has no spool; check it with the tool that made it."
)]
pub(super) struct ScrubArgs {
    /// The mount point
    pub(super) mountpoint: PathBuf,
    /// Print the result as JSON on standard output
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "The exit code is that of the stream (4: incomplete), or 0 where it was over already.")]
pub(super) struct StopArgs {
    /// The mount point
    pub(super) mountpoint: PathBuf,
}

#[derive(Debug, Args)]
#[command(
    after_help = "A mount that is in use is not unmounted: while 'restorefs materialize', 'wait' or 'scrub' are at work, or a \
                  process has something in it open, mapped, or as its working or root directory. Each is named."
)]
pub(super) struct UmountArgs {
    /// The mount point
    pub(super) mountpoint: PathBuf,
    /// Unmount even while it is in use, while it receives (what has not arrived is lost), while something is mounted below
    /// it (that is unmounted too), or when its daemon does not answer or refuses; end the daemon even if files in the mount
    /// are open, another mount covers it, or another mount namespace has a copy. A 'materialize' at work goes on with what
    /// has arrived
    #[arg(short, long)]
    pub(super) force: bool,
    /// Detach it from the tree now; whoever uses it goes on, and what they wait for still arrives. Daemon and spool go with
    /// the last of them
    #[arg(short, long, conflicts_with = "force")]
    pub(super) lazy: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "A spool stays when its daemon is killed, or with 'mount --keep-spool'; 'restorefs status' names all that \
                  were left. What arrived is in there and nowhere else: nothing is asked before it is removed. A spool that \
                  is mounted is refused."
)]
pub(super) struct DiscardArgs {
    /// Directories that 'restorefs status' names
    #[arg(required_unless_present = "all", value_name = "SPOOL")]
    pub(super) spools: Vec<PathBuf>,
    /// Every one of yours that is left over
    #[arg(long, conflicts_with = "spools")]
    pub(super) all: bool,
}

/// A time in whole seconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seconds(u64);

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
    fn sizes() {
        assert_eq!(parse_size("500M"), Ok(500 << 20));
        assert_eq!(parse_size("1GiB"), Ok(1 << 30));
        assert_eq!(parse_size("7"), Ok(7));
        for wrong in ["", "0", "M", "1X", "-1", "1.5G", "99999999999T"] {
            assert!(parse_size(wrong).is_err(), "{wrong}");
        }
    }
}
