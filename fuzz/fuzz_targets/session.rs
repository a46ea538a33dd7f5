//! libFuzzer over the target `session`; see `tests/targets`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| helios_targets::run("session", data));
