//! Bytes as decisions: a fuzzer's input read as numbers, choices and slices. Zeros when it is used up, so that every
//! input is a whole scenario.

/// What is left of an input.
pub struct Source<'a> {
    rest: &'a [u8],
}

impl<'a> Source<'a> {
    /// From the start of an input.
    #[must_use]
    pub const fn new(rest: &'a [u8]) -> Self {
        Self { rest }
    }

    /// Whether it is used up.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// One byte.
    pub fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.rest.split_first() else { return 0 };
        self.rest = rest;
        first
    }

    /// A number below `limit`; 0 if that is 0.
    pub fn below(&mut self, limit: usize) -> usize {
        let number = usize::from(self.byte());
        let number = if limit > 256 { (number << 8) | usize::from(self.byte()) } else { number };
        number.checked_rem(limit).unwrap_or(0)
    }

    /// True one time in `of`.
    pub fn one_in(&mut self, of: usize) -> bool {
        self.below(of) == of.saturating_sub(1)
    }

    /// One of these.
    ///
    /// # Panics
    /// Of none.
    pub fn pick<'b, T>(&mut self, of: &'b [T]) -> &'b T {
        let at = self.below(of.len());
        of.get(at).expect("something to pick from")
    }

    /// Up to `most` bytes.
    pub fn bytes(&mut self, most: usize) -> &'a [u8] {
        let n = self.below(most.saturating_add(1)).min(self.rest.len());
        let (head, rest) = self.rest.split_at(n);
        self.rest = rest;
        head
    }

    /// Everything that is left.
    pub fn all(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }
}
