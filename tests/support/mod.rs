//! What the integration tests share. Each binary uses a part of it.
#![allow(dead_code)]

pub mod cluster;
pub mod helm;
pub mod postgres;
pub mod proxy;
pub mod ran;
pub mod world;
pub mod writes;
