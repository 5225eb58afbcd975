//! Random numbers that can be had again: a random test prints its seed, and `CARVEOUT_SEED` gives it back.
//! Never draw from an unseeded generator in a test.

use std::env;

use rand::SeedableRng;
use rand::rngs::StdRng;

/// Gives back the seed of a run.
const VARIABLE: &str = "CARVEOUT_SEED";

/// The seed from `CARVEOUT_SEED`, otherwise a new one; printed with how to repeat it.
pub fn seed(test: &str) -> u64 {
    let given = env::var(VARIABLE).ok();
    let seed = given.map(|text| text.trim().parse().expect("CARVEOUT_SEED is a whole number"));
    let seed = seed.unwrap_or_else(rand::random);
    println!("{test}: seed {seed} (again with {VARIABLE}={seed})");
    seed
}

/// A generator for [`seed`] of this test.
pub fn rng(test: &str) -> StdRng {
    StdRng::seed_from_u64(seed(test))
}
