//! `palisade doctor`: every finding, produced for real where that can be done: the program on a real Postgres and a real
//! API server that were broken on purpose. What no server here can be (Postgres 14, another machine) is told by facts.
//! tests/house.rs sees to it that no finding is left out.

mod support;

mod doctor {
    mod cluster;
    mod configuration;
    mod database;
    mod facts;
    mod logins;
    mod ran;
    mod servers;
}
