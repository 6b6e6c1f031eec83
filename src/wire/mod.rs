//! The native protocol between `restorefs send` and `restorefs mount --listen`: a token, TLS 1.3 with keys made from it,
//! frames, and the messages in them. What is sent when is the business of [`send`](crate::send), what becomes of it that of
//! [`receive`](crate::receive). `docs/wire.md` has all of it on one page.

mod connect;
mod frame;
mod gate;
mod link;
mod message;
mod random;
mod tls;
mod token;

pub use connect::{ConnectError, connect};
pub use frame::{Batch, FrameError, Frames, MAX_BODY};
pub use gate::{Arrival, Listener};
pub use link::{Closed, Current, Link, OVERDUE, Poker};
pub use message::{
    Fate, FromReceiver, FromSender, Hash, Leave, MAX_DATA, MAX_HOST, Position, SEGMENT, SMALL, Session, Totals,
};
pub use random::random;
pub use token::{Token, TokenError};
