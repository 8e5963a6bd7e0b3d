//! Entropy, read here and nowhere else.

/// 32 bytes from the kernel's generator (getrandom(2); waits for it to be seeded at early boot).
///
/// # Panics
/// When the kernel has no entropy to give, which no key may outlive.
#[expect(clippy::disallowed_methods, reason = "this is the one place where entropy is read")]
pub fn seed() -> [u8; 32] {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).expect("getrandom(2) works on every supported kernel");
    seed
}
