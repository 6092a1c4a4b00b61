#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bellrock_arp_fuzz::message(data));
