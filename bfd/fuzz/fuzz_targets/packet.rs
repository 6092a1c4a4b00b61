#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bellrock_bfd_fuzz::packet(data));
