//! Seeded mutations of an input, as a fuzzer makes them, but the same on every machine.

/// A small generator of numbers (xorshift); the seed is not 0.
pub struct Random(u64);

impl Random {
    /// From a seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(if seed == 0 { 1 } else { seed })
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below `limit`; 0 if that is 0.
    pub fn below(&mut self, limit: usize) -> usize {
        let most = u64::try_from(limit).unwrap();
        usize::try_from(self.number().checked_rem(most).unwrap_or(0)).unwrap()
    }

    fn byte(&mut self) -> u8 {
        self.number().to_be_bytes()[3]
    }

    /// Random bytes.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.byte()).collect()
    }
}

/// Changes an input at a few places; `other` is what parts may be taken from.
pub fn mutate(input: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    for _ in 0..=random.below(4) {
        let at = random.below(input.len().saturating_add(1));
        match random.below(6) {
            0 => input.insert(at, random.byte()),
            1 if at < input.len() => input[at] = random.byte(),
            2 if at < input.len() => input[at] ^= 1 << random.below(8),
            3 => {
                let end = at.saturating_add(random.below(8)).min(input.len());
                input.drain(at..end);
            }
            4 => {
                let from = random.below(other.len());
                let end = from.saturating_add(random.below(24)).min(other.len());
                input.splice(at..at, other[from..end].iter().copied());
            }
            _ => input.extend(random.bytes(8)),
        }
    }
}
