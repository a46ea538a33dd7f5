//! Every target over its corpus and over seeded mutations of it: the same on every machine, within seconds. A failing
//! input is printed as a line that `HELIOS_TARGET_INPUT` takes.
// Test code: a broken assumption has to stop the test, loudly and where it happens.
#![allow(clippy::unwrap_used)]

use helios_targets::TARGETS;
use helios_targets::mutate::{Random, mutate};
use std::fs;
use std::path::Path;

/// Mutations of one target; `HELIOS_TARGET_ROUNDS` says otherwise.
const ROUNDS: usize = 4000;

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    let mut files: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let inputs: Vec<_> = files.iter().map(|file| fs::read(file).unwrap()).collect();
    assert!(!inputs.is_empty(), "{} is empty", folder.display());
    inputs
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Prints the input if the target panics.
struct Shown<'a>(&'a str, &'a [u8]);

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("HELIOS_TARGET_INPUT={}:{}", self.0, hex(self.1));
        }
    }
}

fn replay(name: &str) {
    let (_, target) = TARGETS.iter().find(|(known, _)| *known == name).unwrap();
    let run = |input: &[u8]| {
        let _shown = Shown(name, input);
        target(input);
    };
    if let Some(line) = std::env::var_os("HELIOS_TARGET_INPUT") {
        let line = line.into_string().unwrap();
        let (of, input) = line.split_once(':').unwrap();
        if of == name {
            let pairs = input.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).unwrap());
            run(&pairs.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect::<Vec<_>>());
        }
        return;
    }
    let corpus = corpus(name);
    corpus.iter().for_each(|input| run(input));
    let rounds = std::env::var("HELIOS_TARGET_ROUNDS").map_or(ROUNDS, |n| n.parse().unwrap());
    let mut random = Random::new(0x9e37_79b9_7f4a_7c15);
    for round in 0..rounds {
        let mut input = match round % 3 {
            0 => {
                let len = random.below(600);
                random.bytes(len)
            }
            _ => corpus[random.below(corpus.len())].clone(),
        };
        let other = &corpus[random.below(corpus.len())];
        mutate(&mut input, other, &mut random);
        run(&input);
    }
}

macro_rules! targets {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            replay(stringify!($name));
        })*

        #[test]
        fn no_target_is_left_out() {
            let here = [$(stringify!($name)),*];
            assert!(TARGETS.iter().all(|(name, _)| here.contains(name)));
        }
    };
}

targets!(frames startup scram login sql names ledger session hostile);
