//! libFuzzer over the target `names`; see `tests/targets`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| helios_targets::run("names", data));
