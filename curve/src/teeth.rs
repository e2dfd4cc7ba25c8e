//! The teeth of keys' combs, which spare verification most of its doublings.

use crate::backend::portable::PORTABLE;
use crate::backend::{Backend, Kind};
use crate::comb::{self, TRANSIENT};
use crate::context::{CHUNK, points, store4};
use crate::keys::PublicKey;
use crate::lanes::{Lanes, MAX_WIDTH};
use crate::point::{Affine, Point, normalise, point_of};
#[cfg(target_arch = "x86_64")]
use crate::{
    backend::{adx::Adx, ifma::Ifma},
    one_lane::Narrow,
};
use std::fmt;

/// Teeth that are kept of a comb; the lightest is the key itself.
const KEPT: usize = TRANSIENT.w - 1;

/// A key's multiples by 2⁶⁴, 2¹²⁸ and 2¹⁹²: 192 bytes, with which verification takes three fifths of its time.
///
/// Plain integers, so that every backend may use them.
#[derive(Clone, Copy)]
pub struct Teeth([PublicKey; KEPT]);

impl Teeth {
    /// The teeth of each key, in their order. Sixty-four at once cost the least.
    #[must_use]
    pub fn of(backend: Backend, keys: &[PublicKey]) -> Vec<Self> {
        match backend.0 {
            #[cfg(target_arch = "x86_64")]
            Kind::Ifma if keys.len() > 1 => {
                if let Some(lanes) = Ifma::detect() {
                    return make(lanes, keys);
                }
            }
            #[cfg(target_arch = "x86_64")]
            Kind::Ifma | Kind::Adx => {
                if let Some(proof) = Adx::detect() {
                    return make(Narrow(proof), keys);
                }
            }
            Kind::Portable => {}
        }
        make(PORTABLE, keys)
    }
}

impl fmt::Debug for Teeth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Teeth(…)")
    }
}

/// As [`Teeth::of`].
pub(crate) fn make<L: Lanes>(lanes: L, keys: &[PublicKey]) -> Vec<Teeth> {
    let mut out = Vec::with_capacity(keys.len());
    for chunk in keys.chunks(CHUNK) {
        let groups = || chunk.chunks(L::WIDTH);
        let teeth: Vec<_> = groups()
            .flat_map(|group| {
                let key = points(lanes, |lane| group[lane.min(group.len() - 1)]);
                comb::teeth(lanes, &key, TRANSIENT).split_off(1)
            })
            .collect();
        let mut affine = Vec::with_capacity(teeth.len());
        normalise(lanes, &teeth, 1, &mut affine);
        for (group, entries) in groups().zip(affine.chunks_exact(KEPT)) {
            let mut made = [Teeth([group[0]; KEPT]); MAX_WIDTH];
            for (t, entry) in entries.iter().enumerate() {
                let (x, y) = lanes.call(
                    #[inline(always)]
                    || {
                        let tooth = Affine::<L>::from_entry(entry);
                        (L::from_montgomery(&tooth.x), L::from_montgomery(&tooth.y))
                    },
                );
                let (x, y) = (store4(lanes, &x), store4(lanes, &y));
                for (lane, teeth) in made.iter_mut().enumerate() {
                    teeth.0[t] = PublicKey { x: x[lane], y: y[lane] };
                }
            }
            out.extend_from_slice(&made[..group.len()]);
        }
    }
    out
}

/// All teeth of one key's comb a lane.
pub(crate) fn load<'a, L: Lanes>(
    lanes: L,
    of: impl Fn(usize) -> (&'a PublicKey, &'a Teeth),
) -> Vec<Point<L>> {
    let tooth =
        |t: usize| points(lanes, |lane| t.checked_sub(1).map_or(*of(lane).0, |t| of(lane).1.0[t]));
    (0..=KEPT).map(|t| point_of(lanes, &tooth(t))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use p256::elliptic_curve::Group as _;
    use p256::{ProjectivePoint, Scalar};

    /// The same in every backend, whatever the number of keys.
    #[test]
    fn teeth_are_the_keys_multiples_by_powers_of_two() {
        let point = |k: &Scalar| {
            let point = ProjectivePoint::mul_by_generator(k).to_affine();
            PublicKey::from(&p256::PublicKey::from_affine(point).expect("not infinity"))
        };
        let scalars: Vec<_> = (1..=70u64).map(Scalar::from).collect();
        let keys: Vec<_> = scalars.iter().map(point).collect();
        for backend in Backend::all() {
            for count in [0, 1, 2, 8, 9, 64, 70] {
                let teeth = Teeth::of(backend, &keys[..count]);
                assert_eq!(teeth.len(), count);
                for (scalar, teeth) in scalars.iter().zip(&teeth) {
                    let mut multiple = *scalar;
                    for tooth in &teeth.0 {
                        (0..64).for_each(|_| multiple = multiple.double());
                        assert_eq!(*tooth, point(&multiple), "{backend:?}, {count}");
                    }
                }
            }
        }
    }
}
