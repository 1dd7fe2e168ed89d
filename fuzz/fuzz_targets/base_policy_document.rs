#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| karri_base::fuzz::policy_document(data));
