//! What the driver needs.

use bellrock_arp::Handle;
use bellrock_e2e::netns::{Netns, as_root};

use super::lab::config;

#[test]
fn a_restricted_process_is_told_what_it_lacks() {
    if !as_root() {
        return;
    }
    let ns = Netns::new("node").unwrap();
    let exe = std::env::current_exe().unwrap();
    if std::env::var_os("ARP_RESTRICTED").is_some() {
        let error = Handle::start(config("node")).map(|_| ()).unwrap_err();
        println!("error: {error}");
        return;
    }
    let mut command = ns.command("setpriv");
    command
        .args(["--bounding-set=-net_raw", "--inh-caps=-net_raw", "--"])
        .arg(exe)
        .args([
            "--exact",
            "privileges::a_restricted_process_is_told_what_it_lacks",
            "--nocapture",
        ]);
    let output = command.env("ARP_RESTRICTED", "1").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    if !said.contains("error: cannot open packet sockets") {
        panic!("{said}{}", String::from_utf8_lossy(&output.stderr));
    }
}
