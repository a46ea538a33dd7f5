//! libFuzzer over the target `startup`; see `tests/targets`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| helios_targets::run("startup", data));
