//! The commands. The only place that prints.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod args;
mod ask;
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
mod print;
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

use args::Command;
use print::fail;

pub use args::Cli;
pub use exit::Exit;

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
