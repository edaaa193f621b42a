//! The memory that a socket is read into.

use std::collections::VecDeque;

use bytes::{Buf as _, BytesMut};
use stillmirror_protocol::limits;

/// A buffer whose bytes are handed out without a copy. Its memory is used again once all of them are dropped: memory
/// from the kernel is zeroed and mapped page by page, which costs as much as reading the bytes.
#[derive(Debug, Default)]
pub(super) struct Buffer {
    /// The bytes that are not handed out yet, and the room behind them.
    current: BytesMut,
    /// Memory whose bytes were handed out, in this order.
    used: VecDeque<BytesMut>,
}

impl Buffer {
    /// Returns the bytes that are not handed out yet.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.current
    }

    /// Hands out the first `len` bytes, which must be there.
    pub(super) fn take(&mut self, len: usize) -> BytesMut {
        self.current.split_to(len)
    }

    /// Drops the first `len` bytes, which must be there.
    pub(super) fn skip(&mut self, len: usize) {
        self.current.advance(len);
    }

    /// Returns the place for the next bytes. It has room for at least `len` of them, and mostly for many more.
    pub(super) fn room(&mut self, len: usize) -> &mut BytesMut {
        if self.current.capacity() - self.current.len() < len {
            let wanted = PIECE.max(self.current.len() + len);
            let free = self.used.iter_mut().position(|used| used.try_reclaim(wanted));
            let next = free.and_then(|free| self.used.remove(free)).unwrap_or_else(|| BytesMut::with_capacity(wanted));
            let mut filled = std::mem::replace(&mut self.current, next);
            self.current.extend_from_slice(&filled);
            filled.clear();
            if self.used.len() == USED {
                self.used.pop_front();
            }
            self.used.push_back(filled);
        }
        &mut self.current
    }
}

/// The size of a piece of memory, in bytes.
const PIECE: usize = limits::REPLY_PAYLOAD;
/// Maximum number of pieces that are kept to be used again.
const USED: usize = 64;

#[cfg(test)]
mod tests {
    use bytes::BufMut as _;

    use super::*;

    #[test]
    fn memory_is_used_again_once_its_bytes_are_dropped_and_not_before() {
        let mut buffer = Buffer::default();
        let mut held = VecDeque::new();
        let mut places = std::collections::HashSet::new();
        for number in 0..200u8 {
            buffer.room(PIECE * 2 / 3).put_bytes(number, PIECE * 2 / 3);
            // The last bytes are handed out with the next ones.
            let bytes = buffer.take(buffer.bytes().len() - 1).freeze();
            places.insert(bytes.as_ptr() as usize / PIECE);
            held.push_back((number, bytes));
            for (number, bytes) in &held {
                assert!(bytes[1..].iter().all(|byte| byte == number));
            }
            if held.len() > 3 {
                held.pop_front();
            }
        }
        assert!(places.len() < 20, "{} pieces of memory", places.len());
    }

    #[test]
    fn room_for_more_than_a_piece_keeps_the_bytes_that_are_there() {
        let mut buffer = Buffer::default();
        buffer.room(5).put_slice(b"begin");
        buffer.room(3 * PIECE).put_bytes(7, 3 * PIECE);
        buffer.skip(1);
        assert_eq!(&buffer.bytes()[..5], b"egin\x07");
        assert_eq!(buffer.bytes().len(), 4 + 3 * PIECE);
    }
}
