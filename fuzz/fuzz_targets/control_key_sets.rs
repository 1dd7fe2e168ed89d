#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| karri_control::fuzz::key_sets(data));
