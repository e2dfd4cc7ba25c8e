//! What a backend must provide: arithmetic on `WIDTH` independent values at once.
//!
//! Everything above this trait (formulas, combs, verification, ECDH) is written once, over it. A
//! backend supplies field elements modulo p, scalars modulo n, 64-bit words, and nothing that knows
//! about points.
//!
//! Conventions:
//!
//! * Every method is `#[inline(always)]`, and so is every generic function built from them, except
//!   those that pass their body to [`Lanes::call`]: these are the out-of-line blocks, compiled with
//!   the backend's CPU features.
//! * A lane mask is a `u8`, bit i for lane i. Bits at or above `WIDTH` are unspecified.
//! * Field elements are in Montgomery form with the backend's own R. [`Lanes::Fe`] is *tight*: it
//!   may be a factor. [`Lanes::Loose`] is a sum of products that has not been carried yet. The
//!   numbers passed to `add_p` are part of each formula's bounds proof; a backend that keeps its
//!   elements reduced ignores them.
//! * No method branches on, or indexes by, the values it is given, except where it says so.

use crate::backend::Backend;
use crate::table::Row;
use zeroize::Zeroize;

/// The largest number of lanes of any backend.
pub(crate) const MAX_WIDTH: usize = 8;

/// Sixty-four bytes a lane: two field elements as words, or one lane's row of a table.
pub(crate) type Words<L> = [<L as Lanes>::Word; 4];

/// Arithmetic on `WIDTH` values side by side.
pub(crate) trait Lanes: Copy + Send + Sync + 'static {
    /// How many lanes.
    const WIDTH: usize;
    /// Which backend this is.
    const BACKEND: Backend;

    /// 64 bits a lane.
    type Word: Copy + Zeroize;
    /// A field element a lane, fit to be a factor.
    type Fe: Copy + Zeroize;
    /// A sum of products a lane, to be carried before it is a factor.
    type Loose: Copy;
    /// An integer modulo the group order a lane.
    type Scalar: Copy + Zeroize;
    /// The constant table of a fixed base: see [`Lanes::shared_table`].
    type SharedTable: Send + Sync;
    /// The fastest backend of one lane on the same CPU.
    type One: Lanes<Word = u64>;

    /// The proof that the CPU runs [`Lanes::One`] as well.
    fn one_lane(self) -> Self::One;

    /// Runs `f`, out of line, with the backend's CPU features enabled. Everything else in this
    /// trait is to be reached through it.
    fn call<R>(self, f: impl FnOnce() -> R) -> R;

    // --- words

    /// All lanes `x`.
    fn splat(x: u64) -> Self::Word;
    /// One word a lane; lanes beyond `WIDTH` are ignored.
    fn from_lanes(x: &[u64; MAX_WIDTH]) -> Self::Word;
    /// The word of each lane; lanes beyond `WIDTH` are zero.
    fn to_lanes(x: Self::Word) -> [u64; MAX_WIDTH];
    /// Bitwise and.
    fn and(a: Self::Word, b: Self::Word) -> Self::Word;
    /// Bitwise or.
    fn or(a: Self::Word, b: Self::Word) -> Self::Word;
    /// Bitwise exclusive or.
    fn xor(a: Self::Word, b: Self::Word) -> Self::Word;
    /// Left shift; by 64 or more gives 0.
    fn shl(a: Self::Word, n: u32) -> Self::Word;
    /// Logical right shift; by 64 or more gives 0.
    fn shr(a: Self::Word, n: u32) -> Self::Word;
    /// Lanes where `a & b` is not zero.
    fn test(a: Self::Word, b: Self::Word) -> u8;
    /// Lanes where `a == b`.
    fn eq(a: Self::Word, b: Self::Word) -> u8;
    /// `b` in the lanes of `mask`, `a` elsewhere.
    fn select(mask: u8, a: Self::Word, b: Self::Word) -> Self::Word;

    // --- rows of tables

    /// One row a lane, turned into eight words.
    fn load_rows(rows: &[&Row; MAX_WIDTH]) -> [Self::Word; 8];
    /// The inverse of [`Lanes::load_rows`].
    fn store_rows(words: &[Self::Word; 8]) -> [Row; MAX_WIDTH];
    /// Asks the cache for a row.
    fn prefetch(row: &Row);
    /// Builds the table of a fixed base shared by all lanes: `windows` windows of `entries` rows,
    /// window by window, in canonical Montgomery words.
    fn shared_table(rows: &[Row], windows: usize, entries: usize) -> Self::SharedTable;
    /// Entry `index` (secret, one a lane) of window `window`.
    fn shared_lookup(
        table: &Self::SharedTable,
        window: usize,
        index: Self::Word,
    ) -> (Self::Fe, Self::Fe);

    // --- field elements, modulo p

    /// 1 in Montgomery form.
    fn one() -> Self::Fe;
    /// 3 in Montgomery form.
    fn three() -> Self::Fe;
    /// The curve's b in Montgomery form.
    fn b() -> Self::Fe;
    /// a·b.
    fn mul(a: &Self::Fe, b: &Self::Fe) -> Self::Loose;
    /// a².
    fn sqr(a: &Self::Fe) -> Self::Loose;
    /// a·b + c.
    fn mul_add(a: &Self::Fe, b: &Self::Fe, c: Self::Loose) -> Self::Loose;
    /// a² + 2c.
    fn sqr_add_2(a: &Self::Fe, c: Self::Loose) -> Self::Loose;
    /// a·b + c·d.
    fn mul_add_mul(a: &Self::Fe, b: &Self::Fe, c: &Self::Fe, d: &Self::Fe) -> Self::Loose;
    /// a·b − 2c² (may be negative: down to −2c²/R).
    fn mul_sub_2sqr(a: &Self::Fe, b: &Self::Fe, c: &Self::Fe) -> Self::Loose;
    /// a + b.
    fn add(a: Self::Loose, b: Self::Loose) -> Self::Loose;
    /// a − b.
    fn sub(a: Self::Loose, b: Self::Loose) -> Self::Loose;
    /// −a.
    fn neg(a: Self::Loose) -> Self::Loose;
    /// −a in the lanes of `mask`, a elsewhere.
    fn neg_if(a: Self::Loose, mask: u8) -> Self::Loose;
    /// 2a.
    fn double(a: Self::Loose) -> Self::Loose;
    /// a + k·p, to make a difference non-negative.
    fn add_p(a: Self::Loose, k: u64) -> Self::Loose;
    /// Carries. The value must be in [0, 2²⁶⁰).
    fn tight(a: Self::Loose) -> Self::Fe;
    /// Carries and brings the value below 2.1·p. The value must be in [0, 2²⁶⁰).
    fn reduce(a: Self::Loose) -> Self::Fe;
    /// Forgets that an element is tight.
    fn loose(a: &Self::Fe) -> Self::Loose;
    /// Lanes where a ≡ 0.
    fn is_zero(a: &Self::Fe) -> u8;
    /// Exchanges lane i with lane i ^ `step`; with one lane, does nothing.
    fn swap_fe(a: &Self::Fe, step: usize) -> Self::Fe;
    /// `b` in the lanes of `mask`, `a` elsewhere.
    fn select_fe(mask: u8, a: &Self::Fe, b: &Self::Fe) -> Self::Fe;
    /// Words as they are (Montgomery form, below 2²⁵⁶) to an element.
    fn unpack(w: &Words<Self>) -> Self::Fe;
    /// The canonical Montgomery words of an element below 16·p.
    fn pack(a: &Self::Fe) -> Words<Self>;
    /// An integer below 2²⁵⁶ to Montgomery form.
    fn to_montgomery(w: &Words<Self>) -> Self::Fe;
    /// The integer in [0, p) an element stands for.
    fn from_montgomery(a: &Self::Fe) -> Words<Self>;

    // --- scalars, modulo n

    /// An integer below 2²⁵⁶, as it is.
    fn scalar(w: &Words<Self>) -> Self::Scalar;
    /// The integer in [0, n) that is congruent to a (a below 2n).
    fn scalar_words(a: &Self::Scalar) -> Words<Self>;
    /// a·b/R; one of the two must be below n.
    fn scalar_mul(a: &Self::Scalar, b: &Self::Scalar) -> Self::Scalar;
    /// a²/R, a below 2n.
    fn scalar_sqr(a: &Self::Scalar) -> Self::Scalar;
    /// a + b, fit to be the first factor of a product, for a, b products or integers below 2²⁵⁶.
    fn scalar_add(a: &Self::Scalar, b: &Self::Scalar) -> Self::Scalar;
    /// R² mod n, in all lanes: a·R2/R is a's Montgomery form.
    fn scalar_r2() -> Self::Scalar;
    /// R³ mod n, in all lanes.
    fn scalar_r3() -> Self::Scalar;
    /// R mod n: 1 in Montgomery form.
    fn scalar_one() -> Self::Scalar;
    /// For a canonical u: (u, lanes even) with the even ones replaced by the odd n − u.
    fn scalar_odd(u: &Words<Self>) -> (Words<Self>, u8);
    /// `b` in the lanes of `mask`, `a` elsewhere.
    fn scalar_select(mask: u8, a: &Self::Scalar, b: &Self::Scalar) -> Self::Scalar;
    /// Exchanges lane i with lane i ^ `step`; with one lane, does nothing.
    fn scalar_swap(a: &Self::Scalar, step: usize) -> Self::Scalar;
}
