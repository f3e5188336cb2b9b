//! What a catalog does with restore point after restore point, seen from outside. Each file is one subject; [`trees`] is what they
//! stand on: made-up guests, and the frames that a walk of them sends.

mod asking;
mod crash;
mod damage;
mod history;
mod hostile;
mod large;
mod model;
mod past_versions;
mod trees;
