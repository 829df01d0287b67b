//! The Helm chart: what it renders, what it refuses, and that a real API server takes it.

mod support;

#[path = "chart/cluster.rs"]
mod cluster;
#[path = "chart/example.rs"]
mod example;
#[path = "chart/readme.rs"]
mod readme;
#[path = "chart/releases.rs"]
mod releases;
#[path = "chart/render.rs"]
mod render;
#[path = "chart/source.rs"]
mod source;
#[path = "chart/throwaway.rs"]
mod throwaway;
