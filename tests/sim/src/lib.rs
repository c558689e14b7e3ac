//! A seeded world of block devices that lose, tear and reorder writes, and pools in it.
#![forbid(unsafe_code)]
