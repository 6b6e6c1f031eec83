//! The command: parse, run, exit code.

use std::process::ExitCode;

use clap::Parser;
use restorefs::cli::{Cli, run};

fn main() -> ExitCode {
    run(Cli::parse()).into()
}
