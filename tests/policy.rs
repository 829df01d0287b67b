//! The cluster's half of fencing, on a real API server: what the admission policies refuse, what they must not stand in
//! the way of, and what the CRD's schema and rules refuse.
//!
//! `policy/refused.rs` is a table, and `policy/mutants.rs` takes every validation out of the policies, one at a time,
//! and sees the table notice.

mod support;

mod policy {
    mod allowed;
    mod crd;
    mod epoch;
    mod mutants;
    mod refused;
    mod rights;
    mod table;
    mod world;
}
