//! The driver over the emulated controller: what it does when all is well, and when it is not.

mod bad_controllers;
mod containment;
mod data;
mod deadlines;
mod faults;
mod life;
mod world;
