//! Two ends of a connection in one process.

use super::*;
use crate::wire::{Arrival, Batch, Listener, MAX_BODY, Token, connect};

const LONG: Duration = Duration::from_secs(60);

/// Both ends, the one that has connected first.
fn pair() -> (Link, Link) {
    let token = Token::generate().unwrap();
    let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), &token, LONG).unwrap();
    let address = listener.address().to_string();
    let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC).unwrap());
    let arrivals = listener.serve([stop.clone(), stop.clone()], || {}).unwrap();
    let sender = connect(&address, &token, LONG, &stop).unwrap();
    let Ok(Arrival::Sender(receiver)) = arrivals.recv_timeout(LONG) else { panic!("nobody came") };
    rustix::io::write(&stop, &1u64.to_ne_bytes()).unwrap();
    (sender, receiver)
}

fn waiting(link: &Link) -> usize {
    link.shared.state.lock().inbox_bytes
}

/// Waits without a clock: each look is short, and something else runs in between.
fn wait_until(good: impl Fn() -> bool) {
    let begun = Instant::now();
    while !good() {
        assert!(begun.elapsed() < LONG, "it hangs");
        std::thread::yield_now();
    }
}

#[test]
fn what_decompresses_to_much_is_decompressed_when_there_is_room() {
    let (sender, receiver) = pair();
    const BODY: usize = 8 << 20;
    let frames = 100u8;
    for n in 0..frames {
        let mut batch = Batch::default();
        batch.push_encoded(&vec![n; BODY]);
        sender.send_now(batch.compress().unwrap()).unwrap();
    }
    wait_until(|| sender.shared.state.lock().outbox.is_empty());
    for n in 0..frames {
        wait_until(|| waiting(&receiver) > 0);
        assert!(waiting(&receiver) <= INBOX + MAX_BODY, "{} bytes wait", waiting(&receiver));
        let body = receiver.receive(LONG).unwrap().unwrap();
        assert!(body.len() == BODY && body.iter().all(|&b| b == n), "body {n}");
    }
    // What came before the end is given before the end.
    let mut last = Batch::default();
    last.push_encoded(&[7; BODY]);
    for _ in 0..5 {
        sender.send_now(last.compress().unwrap()).unwrap();
    }
    sender.close();
    for _ in 0..5 {
        assert_eq!(receiver.receive(LONG).unwrap().unwrap().len(), BODY);
    }
    assert_eq!(receiver.receive(LONG), Err(Closed::Ended));
}

#[test]
fn who_takes_nothing_is_not_told_without_end() {
    let (sender, receiver) = pair();
    let frame = || {
        let mut batch = Batch::default();
        batch.push_encoded(&[7; 4 << 20]);
        batch.finish()
    };
    // The other side reads nothing after its inbox is full.
    let told = (0..1000).take_while(|_| receiver.send_now(frame()).is_ok()).count();
    assert!((OUTBOX_AT_MOST >> 22..200).contains(&told), "{told}");
    assert!(matches!(receiver.receive(LONG), Err(Closed::Lost(_))));
    drop(sender);
}
