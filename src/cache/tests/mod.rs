//! Tests of the cache: each race on its own with a store that pauses, all races together under random schedules, and
//! the wiping of values.

mod races;
mod schedules;
mod wiping;

use std::cell::Cell;

thread_local! {
    /// The thread runs a shuttle test, in which tasks may switch wherever `interleave` is called.
    static SHUTTLE: Cell<bool> = const { Cell::new(false) };
}

pub(super) fn interleave() {
    if SHUTTLE.get() {
        shuttle::thread::yield_now();
    }
}
