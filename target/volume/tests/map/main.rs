//! The map, its space and grace periods, from outside.

mod any_changes;
mod checkpoints;
mod epochs;
mod sharing;
mod space;
mod world;
