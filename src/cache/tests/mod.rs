//! Tests of the cache: each race by itself with a store that is held up, all of them together under random schedules,
//! and what is wiped.

mod races;
mod schedules;
mod wiping;

use std::cell::Cell;

thread_local! {
    /// The thread runs a shuttle test, in which tasks may change places wherever `interleave` is called.
    static SHUTTLE: Cell<bool> = const { Cell::new(false) };
}

pub(super) fn interleave() {
    if SHUTTLE.get() {
        shuttle::thread::yield_now();
    }
}
