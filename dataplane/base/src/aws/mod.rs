//! What AWS's protocols share: request signatures and names.

pub mod keys;
