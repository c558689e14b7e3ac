//! What the fuzz targets run: one function per target, from bytes to an assertion that fails.
//!
//! The targets in `tests/fuzz` hand each input to the function of their name; the test of this
//! crate hands it every input of `tests/fuzz/corpus`, and random ones, in an ordinary test run.
//! The functions read their bytes as a script: whatever the bytes, there is a script.
//!
//! What it does not do: verbs, sockets and SSDs, which need hardware or a kernel.
#![forbid(unsafe_code)]

use std::sync::{Mutex, PoisonError};

use dma::Arena;

mod admin;
mod capsule;
mod format;
mod input;
mod pool_image;
mod private_data;
mod sgl;
mod tcp;
mod tcp_host;
mod tcp_target;
mod tcp_target_engine;

pub use admin::admin;
pub use capsule::capsule;
pub use format::{catalog, journal_block, leaf, superblock};
pub use pool_image::pool_image;
pub use private_data::private_data;
pub use sgl::sgl;
pub use tcp_host::tcp_host;
pub use tcp_target::tcp_target;
pub use tcp_target_engine::tcp_target_engine;

/// Memory for a world. It lasts as long as the process, and the list keeps it in sight of whoever
/// looks for leaks when a thread has ended.
fn arena_of(bytes: usize) -> &'static Arena {
    static ARENAS: Mutex<Vec<&'static Arena>> = Mutex::new(Vec::new());
    let arena = Arena::plain_pages(bytes).expect("memory");
    ARENAS.lock().unwrap_or_else(PoisonError::into_inner).push(arena);
    arena
}

fn arena() -> &'static Arena {
    arena_of(1 << 20)
}
