//! Where tokens come from and go to: files of their owner, the environment, a terminal. Never the command line, which
//! everybody on the machine can read.

use std::ffi::OsStr;
use std::fmt::Display;
use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, fstat, openat, unlinkat};
use rustix::io::Errno;
use rustix::process::geteuid;
use rustix::termios::{LocalModes, OptionalActions, SpecialCodeIndex, tcgetattr, tcsetattr};

use super::show;
use crate::wire::Token;

/// The variable of the environment that has it.
pub(super) const VARIABLE: &str = "RESTOREFS_TOKEN";

/// A token is a line. More is another file.
const MAX: u64 = 4096;

/// Bits of a mode.
const OF_OTHERS: u32 = 0o077;
const WRITTEN_BY_OTHERS: u32 = 0o022;
const STICKY: u32 = 0o1000;

const CONTROL_C: u8 = 3;
const CONTROL_D: u8 = 4;
const CONTROL_U: u8 = 21;

/// The receiver's: what the file has, which is made where there is none; without a file a new one.
pub(super) fn of_receiver(file: Option<&Path>) -> Result<Token, String> {
    let new = || Token::generate().map_err(|e| format!("cannot make a token: {e}"));
    let Some(path) = file else { return new() };
    let failed = |e: &dyn Display| format!("cannot make the token file '{}': {e}", show::path(path));
    let (directory, name) = directory_of(path).map_err(|e| failed(&e))?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    match openat(&directory, name, flags, Mode::RUSR | Mode::WUSR) {
        Ok(file) => {
            let (mut file, token) = (File::from(file), new()?);
            let written = writeln!(file, "{}", token.reveal()).and_then(|()| file.sync_all());
            if let Err(e) = written {
                // What is half written would be no token the next time.
                let _ = unlinkat(&directory, name, AtFlags::empty());
                return Err(format!("cannot write the token to '{}': {e}", show::path(path)));
            }
            Ok(token)
        }
        Err(Errno::EXIST) => read(path),
        Err(e) => Err(failed(&io::Error::from(e))),
    }
}

/// The sender's: from a file, the environment, or asked for.
pub(super) fn of_sender(file: Option<&Path>) -> Result<Token, String> {
    if let Some(path) = file {
        return read(path);
    }
    if let Some(text) = std::env::var_os(VARIABLE) {
        let text = text.into_string().map_err(|_| format!("{VARIABLE} has no token: it is not text"))?;
        return Token::parse(&text).map_err(|e| format!("{VARIABLE} has no token: {e}"));
    }
    ask()
}

/// Why a file is not read as a token, by the rules of sshd's StrictModes.
#[derive(Debug, thiserror::Error)]
enum Unsafe {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("it is not a regular file (to take a token from a command, set {VARIABLE}=\"$(command)\")")]
    NotRegular,
    #[error("it belongs to user {0}, who can put another token there: take a file that you or root own")]
    Owner(u32),
    #[error("others may read it (mode {mode:04o}): 'chmod 600 {path}', or better make a new token")]
    Mode { mode: u32, path: String },
    #[error(
        "its directory '{directory}' belongs to user {owner}, who can put another file there: keep the token in a \
         directory that you or root own"
    )]
    DirectoryOwner { directory: String, owner: u32 },
    #[error(
        "others may write to its directory '{directory}' (mode {mode:04o}) and put another file there: \
         'chmod go-w {directory}', or keep the token elsewhere"
    )]
    DirectoryMode { directory: String, mode: u32 },
}

/// The owner of a file or directory can change it, and so can root.
fn is_trusted(owner: u32) -> bool {
    owner == 0 || owner == geteuid().as_raw()
}

/// The directory that a path is in, opened, and the name there. A directory where somebody else can replace the file is
/// refused.
fn directory_of(path: &Path) -> Result<(OwnedFd, &OsStr), Unsafe> {
    let name = path.file_name().ok_or_else(|| io::Error::from(io::ErrorKind::IsADirectory))?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = openat(CWD, parent, flags, Mode::empty()).map_err(io::Error::from)?;
    let stat = fstat(&directory).map_err(io::Error::from)?;
    let (owner, mode) = (stat.st_uid, stat.st_mode & 0o7777);
    if !is_trusted(owner) {
        return Err(Unsafe::DirectoryOwner { directory: show::path(parent), owner });
    }
    // Where names can be removed only by their owners, ours stays.
    if mode & WRITTEN_BY_OTHERS != 0 && mode & STICKY == 0 {
        return Err(Unsafe::DirectoryMode { directory: show::path(parent), mode });
    }
    Ok((directory, name))
}

/// Opens a file that nobody else can read or change. A link is followed, as by ssh: what it leads to has to be safe.
fn open(path: &Path) -> Result<File, Unsafe> {
    let path = path.canonicalize()?;
    let (directory, name) = directory_of(&path)?;
    // Nobody writes to a FIFO, perhaps.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = File::from(openat(&directory, name, flags, Mode::empty()).map_err(io::Error::from)?);
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(Unsafe::NotRegular);
    }
    let (owner, mode) = (metadata.uid(), metadata.mode() & 0o7777);
    if !is_trusted(owner) {
        return Err(Unsafe::Owner(owner));
    }
    if mode & OF_OTHERS != 0 {
        return Err(Unsafe::Mode { mode, path: show::path(&path) });
    }
    Ok(file)
}

fn read(path: &Path) -> Result<Token, String> {
    let failed = |e: &dyn Display| format!("cannot read the token file '{}': {e}", show::path(path));
    let file = open(path).map_err(|e| failed(&e))?;
    let mut text = String::new();
    file.take(MAX).read_to_string(&mut text).map_err(|e| failed(&e))?;
    Token::parse(&text).map_err(|e| failed(&e))
}

/// Asks on the terminal, without showing what is typed.
fn ask() -> Result<Token, String> {
    let terminal = File::options().read(true).write(true).open("/dev/tty").ok().filter(File::is_terminal);
    let Some(mut terminal) = terminal else {
        return Err(format!(
            "there is no token: set {VARIABLE}, name a file that has it with --token-file, or run it on a terminal"
        ));
    };
    let failed = |e: io::Error| format!("cannot ask for the token: {e}");
    for _ in 0..3 {
        let line = hidden_line(&terminal, "token: ").map_err(failed)?;
        let _ = writeln!(terminal);
        match Token::parse(&line) {
            Ok(token) => return Ok(token),
            Err(e) => {
                let _ = writeln!(terminal, "{e}");
            }
        }
    }
    Err("there is no token".into())
}

/// A line that is not shown. The prompt comes when nothing is echoed and nothing flushed any more. Keys come one by one,
/// also Ctrl-C: the terminal must be as before when that ends us.
fn hidden_line(mut terminal: &File, prompt: &str) -> io::Result<String> {
    let before = tcgetattr(terminal)?;
    let mut hidden = before.clone();
    hidden.local_modes.remove(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG);
    hidden.special_codes[SpecialCodeIndex::VMIN] = 1;
    hidden.special_codes[SpecialCodeIndex::VTIME] = 0;
    tcsetattr(terminal, OptionalActions::Flush, &hidden)?;
    let line = terminal.write_all(prompt.as_bytes()).and_then(|()| keys(terminal));
    tcsetattr(terminal, OptionalActions::Now, &before)?;
    let line = line?;
    if line.is_none() {
        let _ = writeln!(terminal);
        signal_hook::low_level::emulate_default_handler(signal_hook::consts::SIGINT)?;
    }
    Ok(line.unwrap_or_default())
}

/// What was typed up to the end of the line; none where it was Ctrl-C.
fn keys(terminal: &File) -> io::Result<Option<String>> {
    let mut line = String::new();
    for key in io::BufReader::new(terminal.take(MAX)).bytes() {
        match key? {
            b'\n' | b'\r' | CONTROL_D => break,
            CONTROL_C => return Ok(None),
            CONTROL_U => line.clear(),
            b'\x08' | b'\x7f' => {
                line.pop();
            }
            key => line.push(char::from(key)),
        }
    }
    Ok(Some(line))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_file_is_made_once_and_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let token = of_receiver(Some(&path)).unwrap();
        assert_eq!(path.metadata().unwrap().mode() & 0o7777, 0o600);
        assert_eq!(of_receiver(Some(&path)).unwrap(), token);
        assert_eq!(of_sender(Some(&path)).unwrap(), token);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(of_sender(Some(&path)).unwrap_err().contains("chmod 600"));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::write(&path, "rfs1-0000").unwrap();
        assert!(of_sender(Some(&path)).unwrap_err().contains("32 digits"));
        assert!(of_sender(Some(Path::new("/nowhere/token"))).unwrap_err().contains("No such file"));
    }
}
