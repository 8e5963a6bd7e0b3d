//! What this processor does well, and how many there are.

use std::num::NonZero;

/// Cores that this process may use, at least 1.
pub fn count() -> usize {
    std::thread::available_parallelism().map_or(1, NonZero::get)
}

/// True when AES-256-GCM runs on dedicated instructions here (AES-NI with carry-less multiplication, or the ARMv8
/// cryptography extension), so that it is faster than ChaCha20-Poly1305 and free of table look-ups.
pub fn has_aes() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq")
    }
    #[cfg(target_arch = "aarch64")]
    {
        std::arch::is_aarch64_feature_detected!("aes") && std::arch::is_aarch64_feature_detected!("pmull")
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        false
    }
}
