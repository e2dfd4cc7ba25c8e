//! The portable backend: one lane, with products in safe Rust. It runs on any CPU, and is what the other
//! backends are compared with.

use super::Kind;
use crate::one_lane::{Limbs, Multiply, Narrow, field};

/// Products in safe Rust. Needs no proof: it runs everywhere.
#[derive(Clone, Copy)]
pub(crate) struct Plain;

impl Multiply for Plain {
    const KIND: Kind = Kind::Portable;

    #[inline(always)]
    fn mul(a: &Limbs, b: &Limbs) -> Limbs {
        field::mul(a, b)
    }
    #[inline(always)]
    fn sqr(a: &Limbs) -> Limbs {
        field::sqr(a)
    }
}

/// The portable backend.
pub(crate) type Portable = Narrow<Plain>;
/// Its proof.
pub(crate) const PORTABLE: Portable = Narrow(Plain);
