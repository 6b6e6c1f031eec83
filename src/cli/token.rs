//! Where tokens come from and go to: files of their owner, the environment, a terminal. Never the command line, which
//! everybody on the machine can read.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::termios::{LocalModes, OptionalActions, SpecialCodeIndex, tcgetattr, tcsetattr};

use super::show;
use crate::wire::Token;

/// The variable of the environment that has it.
pub(super) const VARIABLE: &str = "RESTOREFS_TOKEN";

/// A token is a line. More is another file.
const MAX: u64 = 4096;

const CONTROL_C: u8 = 3;
const CONTROL_D: u8 = 4;
const CONTROL_U: u8 = 21;

/// The receiver's: what the file has, which is made where there is none; without a file a new one.
pub(super) fn of_receiver(file: Option<&Path>) -> Result<Token, String> {
    let new = || Token::generate().map_err(|e| format!("cannot make a token: {e}"));
    let Some(path) = file else { return new() };
    match File::options().write(true).create_new(true).mode(0o600).open(path) {
        Ok(mut file) => {
            let token = new()?;
            writeln!(file, "{}", token.reveal())
                .and_then(|()| file.sync_all())
                .map_err(|e| format!("cannot write the token to '{}': {e}", show::path(path)))?;
            Ok(token)
        }
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => read(path),
        Err(e) => Err(format!("cannot make the token file '{}': {e}", show::path(path))),
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

fn read(path: &Path) -> Result<Token, String> {
    let failed = |e: &dyn std::fmt::Display| format!("cannot read the token file '{}': {e}", show::path(path));
    let file = File::open(path).map_err(|e| failed(&e))?;
    let metadata = file.metadata().map_err(|e| failed(&e))?;
    if metadata.is_file() && metadata.mode() & 0o077 != 0 {
        return Err(failed(&format_args!(
            "others may read it (mode {:04o}): 'chmod 600 {}', or better make a new token",
            metadata.mode() & 0o7777,
            show::path(path)
        )));
    }
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
