//! The commands that the control half answers, by the sets they belong to.

mod admin;
mod discovery;
mod fabrics;
mod features;
mod identify;
mod log_pages;
