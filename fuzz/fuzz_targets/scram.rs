//! libFuzzer over the target `scram`; see `tests/targets`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| helios_targets::run("scram", data));
