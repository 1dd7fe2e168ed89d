#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| karri_control::fuzz::unsigned_tokens(data));
