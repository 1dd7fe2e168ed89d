#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| karri_base::fuzz::session_token(data));
