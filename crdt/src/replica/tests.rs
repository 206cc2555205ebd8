//! Small meshes: who may what, who reads what, and that order does not matter.

mod attack;
mod flood;
mod mesh;
mod order;
mod person;
mod vectors;
