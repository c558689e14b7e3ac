//! libibverbs and librdmacm as C sees them: RC and UD verbs, memory windows, shared receive queues,
//! the extended QP and CQ interfaces, and rdma_cm.
//!
//! This crate stands in for `rdma-sys` 0.3.0 from crates.io, which does not build where libclang is
//! 16 or newer (docs/decisions/0002-rdma-sys-patch.md). Names, argument types and results are the
//! same, so that code written against either builds with both. Three things differ on purpose:
//! `ibv_event_type` is an integer with constants, because an event that a newer library adds would
//! be undefined behaviour in a Rust enum; extended contexts are recognized by the mark that C uses
//! (upstream compares with 32 ones, so on 64-bit machines it always takes the fallback or fails);
//! and `ibv_inc_rkey` wraps.
//!
//! How it works: `bindings` was generated once, by `./regenerate` (which names the packages and the
//! bindgen version), from rdma-core 44, and is checked in: building needs no libclang. Its const
//! asserts compare every size and offset with what clang computed. Newer libraries keep those
//! layouts; the one struct that grew up to rdma-core 56, `ibv_port_attr`, has its size passed at
//! run time. `types` holds the structs with unions, whose member names are part of the API. `verbs`
//! holds what C has as `static inline` functions: calls through the device's operation tables.
//!
//! Traps for whoever uses it:
//! - Zero every struct before filling it; fields that are left alone are read.
//! - `ibv_query_port` is the symbol of an old ABI and writes a shorter struct: use
//!   [`___ibv_query_port`].
//! - rdma_cm pads private data: 56 bytes arrive with a request and 196 with a response, whatever
//!   was sent. Parse a fixed struct, not the length.
//! - rxe reports a remote invalidation with bit 2 of `wc_flags` (the kernel's numbering), other
//!   devices with bit 3 ([`ibv_wc_flags::IBV_WC_WITH_INV`]).
//! - Functions that return an `Option` of a pointer may return `Some(null)`: check both.
//!
//! What it does not do: flow steering, work queues, counters, device memory, tag matching, thread
//! domains, XRC, and the helper functions of `rdma_verbs.h`.
#![allow(unsafe_code)]
// C's names, and C's documentation: the manual pages of rdma-core describe every item.
#![allow(non_camel_case_types, non_snake_case, non_upper_case_globals, missing_docs)]
#![allow(clippy::missing_safety_doc)]

#[rustfmt::skip]
#[allow(clippy::all)]
mod bindings;
mod types;
mod verbs;

pub use bindings::*;
pub use types::*;
pub use verbs::*;
