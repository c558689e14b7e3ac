//! Hosts played against the control half, command by command, in simulated time.

mod bring_up;
mod connect;
mod discovery;
mod events;
mod host;
mod hostile;
mod lifecycle;
mod log_pages;
