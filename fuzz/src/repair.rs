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

/// Makes the parts of a zip archive agree again: its end with its directory, the directory with
/// the headers, and checksums with data that is stored as it is.
pub fn zip(bytes: &mut [u8]) {
    const END: usize = 22;
    let find = |bytes: &[u8], word: &[u8]| bytes.windows(4).rposition(|it| it == word);
    let Some(end) = find(bytes, b"PK\x05\x06").filter(|end| end + END <= bytes.len()) else {
        return;
    };
    let Some(begin) = bytes[..end].windows(4).position(|it| it == b"PK\x01\x02") else { return };
    let (mut at, mut count) = (begin, 0u16);
    while at + 46 <= end && bytes[at..].starts_with(b"PK\x01\x02") {
        entry(bytes, at);
        at += 46
            + [28, 30, 32]
                .map(|field| usize::from(u16_at(bytes, at + field)))
                .iter()
                .sum::<usize>();
        count += 1;
    }
    let comment = (bytes.len() - end - END) as u16;
    bytes[end + 4..end + 8].fill(0);
    put(bytes, end + 8, &count.to_le_bytes());
    put(bytes, end + 10, &count.to_le_bytes());
    put(bytes, end + 12, &((end - begin) as u32).to_le_bytes());
    put(bytes, end + 16, &(begin as u32).to_le_bytes());
    put(bytes, end + 20, &comment.to_le_bytes());
}

/// The header of the entry whose record in the directory is at `record`.
fn entry(bytes: &mut [u8], record: usize) {
    let header = u32_at(bytes, record + 42) as usize;
    let name = usize::from(u16_at(bytes, record + 28));
    let data = header.saturating_add(30 + name);
    let fits = data <= record && record + 46 + name <= bytes.len();
    if !fits || !bytes[header..].starts_with(b"PK\x03\x04") {
        return;
    }
    if u16_at(bytes, record + 10) == 0 {
        let length = u32_at(bytes, record + 20);
        put(bytes, record + 24, &length.to_le_bytes());
        if let Some(stored) = bytes[..record].get(data..data.saturating_add(length as usize)) {
            let sum = crc(stored);
            put(bytes, record + 16, &sum.to_le_bytes());
        }
    }
    // From the version that is needed to the length of the name; then the name.
    bytes.copy_within(record + 6..record + 30, header + 4);
    bytes[header + 28..header + 30].fill(0);
    bytes.copy_within(record + 46..record + 46 + name, header + 30);
}

/// CRC-32 as zip has it, bit by bit: inputs are small.
fn crc(bytes: &[u8]) -> u32 {
    let step = |sum: u32, _| if sum & 1 == 1 { sum >> 1 ^ 0xedb8_8320 } else { sum >> 1 };
    !bytes.iter().fold(u32::MAX, |sum, &byte| (0..8).fold(sum ^ u32::from(byte), step))
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}
