//! Health check ports on loopback.

use super::*;

const HOST: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

fn key() -> ServiceKey {
    ServiceKey::new("default", "web")
}

/// A port that nobody has at the moment.
fn free_port() -> u16 {
    let socket = std::net::TcpListener::bind((HOST, 0)).unwrap();
    socket.local_addr().unwrap().port()
}

fn check(port: u16, endpoints_v4: u32) -> Option<HealthCheck> {
    Some(HealthCheck {
        port,
        endpoints_v4,
        endpoints_v6: 0,
    })
}

/// The answer, once it is what is waited for.
async fn ask(port: u16, wanted: impl Fn(&io::Result<String>) -> bool) {
    let once = async || {
        let mut stream = TcpStream::connect((HOST, port)).await?;
        stream
            .write_all(b"GET /any HTTP/1.1\r\nHost: x\r\n\r\n")
            .await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        io::Result::Ok(text)
    };
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    loop {
        let answer = once().await;
        if wanted(&answer) {
            return;
        }
        assert!(tokio::time::Instant::now() < deadline, "{answer:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn says(status: &str, count: u32) -> impl Fn(&io::Result<String>) -> bool {
    let status = format!("HTTP/1.1 {status} ");
    let weight = format!("X-Load-Balancing-Endpoint-Weight: {count}\r\n");
    move |answer| {
        let answer = answer.as_ref().map(String::as_str).unwrap_or_default();
        answer.starts_with(&status) && answer.contains(&weight)
    }
}

#[test]
fn row_7_the_answer_is_kube_proxys() {
    let answer = Answer {
        service: key(),
        endpoints: 2,
    };
    let text = response(&answer, true);
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    for line in [
        "Content-Type: application/json",
        "X-Content-Type-Options: nosniff",
        "X-Load-Balancing-Endpoint-Weight: 2",
    ] {
        assert!(head.lines().any(|l| l == line), "{head}");
    }
    assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())));
    let body: serde_json::Value = serde_json::from_str(body).unwrap();
    let expected = serde_json::json!({
        "service": { "namespace": "default", "name": "web" },
        "localEndpoints": 2,
        "serviceProxyHealthy": true,
    });
    assert_eq!(body, expected);

    for (endpoints, healthy) in [(0, true), (2, false), (0, false)] {
        let answer = Answer {
            service: key(),
            endpoints,
        };
        let text = response(&answer, healthy);
        assert!(text.starts_with("HTTP/1.1 503 Service Unavailable\r\n"));
        assert!(text.contains(&format!("Endpoint-Weight: {endpoints}\r\n")));
    }
}

#[tokio::test]
async fn ports_open_follow_their_service_and_close() {
    let mut checks = HealthChecks::default();
    checks.set_healthy(true);
    let (first, second) = (free_port(), free_port());
    checks.set(&key(), check(first, 1));
    // Nowhere to listen yet.
    checks.listen_on(&[HOST].into());
    ask(first, says("200", 1)).await;
    checks.set(&key(), check(first, 0));
    ask(first, says("503", 0)).await;
    checks.set(&key(), check(second, 3));
    ask(second, says("200", 3)).await;
    ask(first, Result::is_err).await;
    checks.set_healthy(false);
    ask(second, says("503", 3)).await;
    checks.listen_on(&BTreeSet::new());
    ask(second, Result::is_err).await;
    checks.listen_on(&[HOST].into());
    ask(second, says("503", 3)).await;
    checks.set(&key(), None);
    ask(second, Result::is_err).await;
    assert!(checks.taken().is_empty());
}

#[tokio::test]
async fn a_port_that_passes_to_another_service_is_answered_for_that_one() {
    let mut checks = HealthChecks::default();
    checks.set_healthy(true);
    checks.listen_on(&[HOST].into());
    let (port, heir) = (free_port(), ServiceKey::new("default", "heir"));
    checks.set(&key(), check(port, 1));
    // Its new owner is heard of first.
    checks.set(&heir, check(port, 2));
    checks.set(&key(), None);
    ask(port, says("200", 2)).await;
    checks.set(&heir, None);
    ask(port, Result::is_err).await;
}

#[tokio::test]
async fn a_port_that_another_process_holds_is_told_and_taken_when_it_is_free() {
    let holder = std::net::TcpListener::bind((HOST, 0)).unwrap();
    let port = holder.local_addr().unwrap().port();
    let mut checks = HealthChecks::default();
    checks.set_healthy(true);
    checks.listen_on(&[HOST].into());
    checks.set(&key(), check(port, 1));
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while checks.taken().is_empty() {
        assert!(tokio::time::Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let (reason, words) = checks.taken().remove(0);
    assert_eq!(reason, NodeReason::HealthCheckPortTaken);
    assert!(words.starts_with(&format!("{HOST}:{port}: ")), "{words}");
    drop(holder);
    ask(port, says("200", 1)).await;
    assert!(checks.taken().is_empty());
}

#[tokio::test]
async fn clients_that_say_nothing_do_not_keep_others_from_an_answer() {
    let mut checks = HealthChecks::default();
    checks.set_healthy(true);
    checks.listen_on(&[HOST].into());
    let port = free_port();
    checks.set(&key(), check(port, 1));
    ask(port, says("200", 1)).await;
    let mut silent = Vec::new();
    for _ in 0..AT_ONCE {
        silent.push(TcpStream::connect((HOST, port)).await.unwrap());
    }
    ask(port, says("200", 1)).await;
}

#[tokio::test]
async fn ports_that_nobody_asks_keep_none_from_an_answer() {
    let mut checks = HealthChecks::default();
    checks.set_healthy(true);
    checks.listen_on(&[HOST].into());
    let ports: Vec<u16> = {
        let bind = |_| std::net::TcpListener::bind((HOST, 0)).unwrap();
        let held: Vec<_> = (0..=AT_ONCE).map(bind).collect();
        held.iter()
            .map(|socket| socket.local_addr().unwrap().port())
            .collect()
    };
    for &port in &ports {
        let service = ServiceKey::new("default", format!("web-{port}"));
        checks.set(&service, check(port, 1));
    }
    for &port in &ports {
        ask(port, says("200", 1)).await;
    }
}
