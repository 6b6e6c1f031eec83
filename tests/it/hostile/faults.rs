//! Faults on our side: whoever waits is told all the same.

use super::*;
use restorefs::monitor::Verdict;

#[test]
fn a_panic_in_receiving_ends_the_stream_and_every_wait() {
    for from in BOTH {
        let told = Arc::new(parking_lot::Mutex::new(Vec::new()));
        let listener = told.clone();
        // The header and the first half of one file, in a piece of its own; then one that makes us fail.
        let large = vec![7; 300 << 10];
        let archive = [
            file("whole", b"12345"),
            file("large", &large),
            pax(b'x', &[("SCHILY.acl.access", b"user:joe:rwx")]),
            file("bad", b"1"),
            file("behind", b"2"),
            END.to_vec(),
        ]
        .concat();
        let received = receive_with(&archive, from, |job| {
            job.options.resolve_user = |_| panic!("on purpose");
            job.store.set_listener(move |ino| listener.lock().push(ino));
        });
        let Some(Verdict::Failed { cause }) = &received.status.end else { panic!("{:?}", received.status.end) };
        assert!(cause.contains("panic"), "{cause}");
        assert!(received.store.is_over());
        // Nothing is left that a reader would wait for.
        for path in received.tree() {
            let (path, _) = path.split_once(' ').unwrap();
            let contents = received.contents(path);
            assert!(contents.is_none_or(|bytes| bytes == b"12345" || bytes == large), "{path}");
        }
        if from == From::Pipe {
            assert!(told.lock().contains(&received.ino("large")));
        }
    }
}
