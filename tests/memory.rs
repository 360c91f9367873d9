//! What a user's history costs in memory.
mod support;

use lodestone_catalog::ItemKeys;
use lodestone_events::EventKind;
use lodestone_state::users::Users;
use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicUsize, Ordering},
};
use support::{START, event};

/// Counts what is held, each piece as a general allocator rounds it: a header of 8 bytes, then up to 16.
struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);

fn rounded(size: usize) -> usize {
    (size + 8).next_multiple_of(16).max(32)
}

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        HELD.fetch_add(rounded(layout.size()), Ordering::Relaxed);
        // SAFETY: the caller's promise about `layout` is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(rounded(layout.size()), Ordering::Relaxed);
        // SAFETY: `pointer` came from `alloc` above with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes per user, of everything that is held more than before the users came.
fn bytes_per_user(users: usize, searches: usize) -> usize {
    let (keys, histories) = (ItemKeys::default(), Users::default());
    for item in 0..100 {
        histories.apply(1, &event("e", EventKind::View, "warm", &format!("i{item}"), START), &keys);
    }
    let before = HELD.load(Ordering::Relaxed);
    for user in 0..users {
        let user = format!("customer-{user:08}");
        for n in 0..100 {
            histories.apply(1, &event("e", EventKind::View, &user, &format!("i{n}"), START + n * 1000), &keys);
        }
        for n in 0..searches {
            histories.apply(1, &event("e", EventKind::Search, &user, &format!("{n:010}"), START), &keys);
        }
    }
    (HELD.load(Ordering::Relaxed) - before) / users
}

// One test, since the count is the process's.
#[test]
fn a_user_with_a_hundred_events_takes_at_most_1536_bytes() {
    // The map's share is worst just after it has grown, so several sizes are tried.
    let sizes = [5_000, 10_000, 15_000, 20_000, 30_000];
    let without: Vec<usize> = sizes.iter().map(|users| bytes_per_user(*users, 0)).collect();
    let with: Vec<usize> = sizes.iter().map(|users| bytes_per_user(*users, 8)).collect();
    println!("bytes per user: {without:?}; with 8 searches: {with:?}");
    assert!(without.iter().all(|bytes| *bytes <= 1536), "{without:?}");
}
