//! "Did you mean": the known name that a mistyped one was probably meant to be. Pure.

/// Longer words are not compared: nobody mistypes them, and the work grows with the product of the lengths.
const LONGEST: usize = 64;

/// The candidate nearest to `word`, if it is near enough to be a slip of the finger.
pub(super) fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if word.len() > LONGEST {
        return None;
    }
    let limit = word.chars().count().div_ceil(3);
    candidates
        .into_iter()
        .map(|candidate| (distance(word, candidate), candidate))
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Insertions, deletions, replacements and swaps of neighbours that turn `a` into `b`, case ignored.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.to_lowercase().chars().collect();
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    let mut previous: Option<char> = None;
    for (i, ca) in a.to_lowercase().chars().enumerate() {
        let mut row = vec![i + 1];
        for (j, cb) in b.iter().enumerate() {
            let cell = |row: &[usize], at: usize| row.get(at).copied().unwrap_or(usize::MAX / 2);
            let replaced = cell(&last, j) + usize::from(ca != *cb);
            let mut best = replaced.min(cell(&last, j + 1) + 1).min(cell(&row, j) + 1);
            if let Some(k) = j.checked_sub(1)
                && previous == Some(*cb)
                && b.get(k) == Some(&ca)
            {
                best = best.min(cell(&before, k) + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut last, row);
        previous = Some(ca);
    }
    last.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_recognised_and_strangers_are_not() {
        let known = ["max_pool_size", "mode", "min_idle", "reset_query"];
        for (word, expected) in [
            ("max_pool_sze", Some("max_pool_size")),
            ("max-pool-size", Some("max_pool_size")),
            ("MODE", Some("mode")),
            ("mdoe", Some("mode")),
            ("min_idel", Some("min_idle")),
            ("colour", None),
            ("", None),
            ("äöü", None),
        ] {
            assert_eq!(nearest(word, known), expected, "{word}");
        }
        assert_eq!(nearest(&"m".repeat(5_000), known), None);
    }

    #[test]
    fn a_swap_counts_once() {
        for (a, b, expected) in [("", "", 0), ("ab", "ba", 1), ("abc", "", 3), ("kitten", "sitting", 3)] {
            assert_eq!(distance(a, b), expected, "{a} {b}");
        }
    }
}
