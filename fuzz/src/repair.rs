//! Checksums made right again after a mutation, so that what lies behind them is reached.

const BLOCK: usize = 512;

/// Gives each block of a tar archive that says it is a header the checksum it needs.
pub fn tar(bytes: &mut [u8]) {
    for block in bytes.chunks_exact_mut(BLOCK) {
        if &block[257..262] == b"ustar" {
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
}
