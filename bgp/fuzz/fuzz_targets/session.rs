#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bellrock_bgp_fuzz::session(data));
