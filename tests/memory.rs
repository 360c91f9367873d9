//! Memory of user histories. The test counts the allocations of its process, so that it is a binary of its own.
#[path = "api/support/events.rs"]
mod events;

use events::{START, event};
use lodestone_catalog::ItemKeys;
use lodestone_events::EventKind;
use lodestone_state::users::Users;
use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicUsize, Ordering},
};

/// An allocator that counts live bytes as a general allocator uses them: each allocation has a header of 8 bytes and is
/// rounded up to a multiple of 16, at least 32.
struct Counting;

/// Live bytes.
static LIVE: AtomicUsize = AtomicUsize::new(0);

fn rounded(size: usize) -> usize {
    (size + 8).next_multiple_of(16).max(32)
}

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(rounded(layout.size()), Ordering::Relaxed);
        // SAFETY: the caller's promise about `layout` is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(rounded(layout.size()), Ordering::Relaxed);
        // SAFETY: `pointer` came from `alloc` above with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Returns the bytes per user that `users` users with 100 views and `searches` searches each add to the live bytes.
fn bytes_per_user(users: usize, searches: usize) -> usize {
    let (keys, histories) = (ItemKeys::default(), Users::default());
    for item in 0..100 {
        histories.apply(1, &event("e", EventKind::View, "warm", &format!("i{item}"), START), &keys);
    }
    let before = LIVE.load(Ordering::Relaxed);
    for user in 0..users {
        let user = format!("customer-{user:08}");
        for n in 0..100 {
            histories.apply(1, &event("e", EventKind::View, &user, &format!("i{n}"), START + n * 1000), &keys);
        }
        for n in 0..searches {
            histories.apply(1, &event("e", EventKind::Search, &user, &format!("{n:010}"), START), &keys);
        }
    }
    (LIVE.load(Ordering::Relaxed) - before) / users
}

// The only test of this binary, because the count is that of the process.
#[test]
fn a_user_with_100_events_and_a_summary_uses_at_most_1920_bytes() {
    // The map's share per user is largest just after the map has grown, so that several sizes are tried.
    let sizes = [5_000, 10_000, 15_000, 20_000, 30_000];
    let without: Vec<usize> = sizes.iter().map(|users| bytes_per_user(*users, 0)).collect();
    let with: Vec<usize> = sizes.iter().map(|users| bytes_per_user(*users, 8)).collect();
    println!("bytes per user: {without:?}; with 8 searches: {with:?}");
    assert!(without.iter().all(|bytes| *bytes <= 1920), "{without:?}");
}
