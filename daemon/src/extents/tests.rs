use super::*;
use crate::file::tests::state;
use crate::pool::Pool;

/// The first byte of a buffer, read from the disk.
const ONE_BYTE: InMemory = InMemory { range: 0..1, source: Source::Direct };

#[tokio::test]
async fn one_read_serves_all_sessions_that_want_an_extent() {
    let (extents, pool) = (Extents::new(4 * EXTENT), Pool::new(8 * EXTENT));
    let key = Key { file: state(1), number: 0 };
    let Begun::Mine(task) = extents.begin(key) else { panic!("nobody else reads") };
    let waiting: Vec<_> = (0..20).map(|_| extents.begin(key)).collect();
    let buffer = pool.take().await;
    let read = |buffer: &mut [u8]| {
        buffer[10..15].copy_from_slice(b"bytes");
        Ok(InMemory { range: 10..15, source: Source::Direct })
    };
    let own = task.pending();
    let read = task.read(buffer, true, read).unwrap();
    assert_eq!((&*read, read.source()), (&b"bytes"[..], Source::Direct));
    assert_eq!(own.wait().await.unwrap().source(), Source::Direct);
    for begun in waiting {
        let Begun::Found(pending) = begun else { panic!("read twice") };
        let found = pending.wait().await.unwrap();
        assert_eq!((&*found, found.source()), (&b"bytes"[..], Source::Cache));
    }
    let Begun::Found(PendingExtent::Ready(cached)) = extents.begin(key) else { panic!("it is cached") };
    assert_eq!(cached.source(), Source::Cache);
}

#[tokio::test]
async fn the_oldest_extents_are_evicted_first_and_return_their_buffers() {
    let (extents, pool) = (Extents::new(2 * EXTENT), Pool::new(8 * EXTENT));
    let key = |number| Key { file: state(1), number };
    for number in 0..5 {
        let Begun::Mine(task) = extents.begin(key(number)) else { panic!("nobody else reads") };
        task.read(pool.take().await, true, |_| Ok(ONE_BYTE)).unwrap();
    }
    let there: Vec<_> = (0..5).filter(|&number| extents.find(key(number)).is_some()).collect();
    assert_eq!((there, pool.available()), (vec![3, 4], 6));
}

#[tokio::test]
async fn a_failed_or_abandoned_read_fails_for_those_who_wait_and_for_nobody_later() {
    let (extents, pool) = (Extents::new(2 * EXTENT), Pool::new(8 * EXTENT));
    let key = Key { file: state(1), number: 0 };
    for abandon in [false, true] {
        let Begun::Mine(task) = extents.begin(key) else { panic!("nobody else reads") };
        let Begun::Found(pending) = extents.begin(key) else { panic!("read twice") };
        if abandon {
            drop(task);
            assert_eq!(pending.wait().await.err(), Some(ItemFailure::Unreadable));
        } else {
            let _ = task.read(pool.take().await, true, |_| Err(ItemFailure::Stale));
            assert_eq!(pending.wait().await.err(), Some(ItemFailure::Stale));
        }
    }
    assert!(matches!(extents.begin(key), Begun::Mine(_)));
}

/// Reads a small file as a session does. Returns whether it was cached.
fn read_small(extents: &Extents, pool: &Arc<Pool>, inode: u64) -> bool {
    let (file, content) = (state(inode), vec![inode as u8; EXTENT / 4]);
    if let [Some(there)] = extents.ready([Key { file, number: 0 }].into_iter()).as_slice() {
        assert_eq!(**there, content);
        return true;
    }
    extents.shelve([(file, content.as_slice())].into_iter(), pool);
    false
}

#[test]
fn an_empty_cache_takes_no_memory_whatever_its_size() {
    let extents = Extents::new(usize::MAX);
    assert!(extents.keeps(1 << 60) && !Extents::new(0).keeps(1));
    assert!(extents.window() > usize::MAX / EXTENT / 2);
}

#[test]
fn small_files_that_were_read_twice_are_cached_once_their_shelf_is_full() {
    let (extents, pool) = (Extents::new(8 * EXTENT), Pool::new(9 * EXTENT));
    let read = |file| read_small(&extents, &pool, file);
    for file in [0, 0, 0, 1, 2, 2, 3, 3, 3, 4, 4, 5] {
        assert!(!read(file), "none of them is available before the shelf is full");
    }
    assert!(!read(5), "this one goes on the next shelf");
    assert_eq!([0, 1, 2, 3, 4, 5].map(read), [true, false, true, true, true, false]);
}

#[tokio::test]
async fn small_and_large_files_leave_each_other_their_share() {
    let (extents, pool) = (Extents::new(8 * EXTENT), Pool::new(9 * EXTENT));
    let read_twice = |files: Range<u64>| {
        for file in files {
            assert!(!read_small(&extents, &pool, file) && !read_small(&extents, &pool, file));
        }
    };
    let shelves = |files: Range<u64>| {
        let keys = files.map(|inode| Key { file: state(inode), number: 0 });
        extents.ready(keys).iter().flatten().count() as f64 / 4.0
    };
    let large = |number| Key { file: state(1000), number };
    let larges = || (0..20).filter(|&number| extents.find(large(number)).is_some()).collect::<Vec<_>>();

    read_twice(0..40);
    assert_eq!(shelves(0..40), 7.0, "beside the open one, with nothing else in the cache");
    for number in 0..20 {
        let Begun::Mine(task) = extents.begin(large(number)) else { panic!("nobody else reads") };
        task.read(pool.take().await, true, |_| Ok(ONE_BYTE)).unwrap();
    }
    assert_eq!((shelves(0..40), larges()), (1.0, (14..20).collect()));
    read_twice(40..80);
    assert_eq!((shelves(0..40), shelves(40..80), larges()), (0.0, 1.0, (14..20).collect()));
    assert_eq!(pool.available(), 1, "everything that is evicted returns its buffer");
}
