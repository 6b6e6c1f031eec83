//! Random numbers that nobody can foresee.

use std::io;

use rustix::rand::{GetRandomFlags, getrandom};

/// From the kernel's random numbers.
pub fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    let mut filled = 0;
    while filled < N {
        filled += getrandom(&mut bytes[filled..], GetRandomFlags::empty())?;
    }
    Ok(bytes)
}
