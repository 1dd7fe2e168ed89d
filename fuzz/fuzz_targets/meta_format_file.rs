#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| karri_meta::fuzz::format_file(data));
