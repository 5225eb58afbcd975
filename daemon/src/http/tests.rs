//! The route table over a real socket. The supervisor is gone here, so a request that passes the guard
//! and finds its route is answered 503 `stopping`: that tells the two apart.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::Value;
use ureq::Agent;

use super::*;

const TOKEN: &str = "0123456789abcdef";

/// Serves on a free port for as long as the test's runtime lives.
async fn served() -> SocketAddr {
    let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = router(Weak::new(), Token::new(TOKEN).unwrap());
    tokio::spawn(serve_router(router, listener, std::future::pending()));
    address
}

/// Status and JSON body (null where it is none) of a request, with the token if `token`.
async fn ask(address: SocketAddr, method: &'static str, path: &str, token: Option<&str>, body: &str) -> (u16, Value) {
    let mut request = axum::http::Request::builder().method(method).uri(format!("http://{address}{path}"));
    if let Some(token) = token {
        request = request.header("Authorization", format!("Bearer {token}"));
    }
    let request = request.body(body.to_owned()).unwrap();
    let call = move || {
        let agent: Agent = Agent::config_builder().http_status_as_error(false).proxy(None).build().into();
        let request = agent.configure_request(request).allow_non_standard_methods(true).build();
        let mut response = agent.run(request).unwrap();
        let body = response.body_mut().read_to_string().unwrap();
        (response.status().as_u16(), serde_json::from_str(&body).unwrap_or(Value::Null))
    };
    tokio::task::spawn_blocking(call).await.unwrap()
}

fn assert_fault(answer: &(u16, Value), status: u16, code: &str) {
    assert_eq!((answer.0, answer.1["code"].as_str()), (status, Some(code)), "{answer:?}");
    for part in ["object", "message", "next"] {
        assert!(answer.1[part].is_string(), "{part} of {answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn reading_needs_no_token() {
    let address = served().await;
    for path in ["/livez", "/healthz"] {
        assert_eq!(ask(address, "GET", path, None, "").await.0, 200, "{path}");
    }
    for path in
        ["/readyz", "/v1/status", "/v1/tenants", "/v1/tenants/7", "/v1/tenants/7/route", "/v1/tenants/a%2Fb%20%C3%A4"]
    {
        assert_fault(&ask(address, "GET", path, None, "").await, 503, "stopping");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_is_post_and_needs_the_token() {
    let address = served().await;
    for command in tenants::COMMANDS {
        let path = format!("/v1/tenants/7/{command}");
        for token in [None, Some(""), Some("0123456789abcde"), Some("0123456789abcdef0")] {
            assert_fault(&ask(address, "POST", &path, token, "").await, 401, "unauthorized");
        }
        for method in ["PUT", "DELETE", "PATCH", "OPTIONS"] {
            assert_fault(&ask(address, method, &path, None, "").await, 401, "unauthorized");
            assert_fault(&ask(address, method, &path, Some(TOKEN), "").await, 405, "method");
        }
        assert_fault(&ask(address, "GET", &path, Some(TOKEN), "").await, 405, "method");
    }
    for command in tenants::COMMANDS {
        let path = format!("/v1/tenants/7/{command}");
        assert_fault(&ask(address, "POST", &path, Some(TOKEN), "").await, 503, "stopping");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_exist_is_404_in_json() {
    let address = served().await;
    for path in ["/v2", "/v1/tenants/", "/v1/tenants/7/move/now", "/v1/tenants/../status", "/livez/"] {
        assert_fault(&ask(address, "GET", path, None, "").await, 404, "not_found");
    }
    assert_fault(&ask(address, "POST", "/v1/tenants/7/drop", Some(TOKEN), "").await, 404, "not_found");
    assert_fault(&ask(address, "POST", "/stop", None, "").await, 401, "unauthorized");
    assert_fault(&ask(address, "GET", "/v1/tenants/%FF", None, "").await, 400, "bad_request");
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_bodies_are_refused() {
    let address = served().await;
    let ask = async |body: &str| ask(address, "POST", "/v1/tenants/7/move", Some(TOKEN), body).await;
    for body in ["{", "[]", "{\"to\": 1}", "{\"to\": \"nowhere\"}", "{\"too\": \"schema\"}", "\u{0}"] {
        assert_fault(&ask(body).await, 400, "bad_request");
    }
    for target in [
        "{\"target\": \"postgresql://u:hunter2@h/d\"}",
        "{\"target\": \"postgresql://u@h/d?password=hunter2\"}",
        "{\"target\": \"postgresql://u:hunter2@h:x/d\"}",
        "{\"target\": \"postgresql://u@h/d\", \"target_password_file\": \"hunter2\"}",
        "{\"target_password_file\": \"/hunter2\"}",
    ] {
        let answer = ask(target).await;
        assert!(!answer.1.to_string().contains("hunter2"), "{answer:?}");
        assert_fault(&answer, 400, "bad_request");
    }
    let named = "{\"to\": \"database\", \"target\": \"postgresql://u@h/d\", \"target_password_file\": \"/run/p\"}";
    assert_fault(&ask(named).await, 503, "stopping");
    let answer = ask("{\"to\": \"schema\", \"hunter2\": 1}").await;
    assert!(answer.0 == 400 && !answer.1.to_string().contains("hunter2"), "{answer:?}");
    for body in ["", "{}", "{\"to\": \"shared\"}", "{\"to\": \"schema\"}", " {\"to\":\"database\"} "] {
        assert_fault(&ask(body).await, 503, "stopping");
    }
    assert_fault(&ask(&" ".repeat((64 << 10) + 1)).await, 413, "too_large");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_dawdles_is_cut_off() {
    let address = served().await;
    let dawdle = move || {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Slow: ").unwrap();
        let begun = Instant::now();
        // An end, or a reset: both are the other side's.
        while stream.write_all(b"a").is_ok() && begun.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(50));
        }
        let mut rest = String::new();
        stream.read_to_string(&mut rest).ok();
        (begun.elapsed(), rest)
    };
    let (elapsed, rest) = tokio::task::spawn_blocking(dawdle).await.unwrap();
    assert!(elapsed < Duration::from_secs(5) && !rest.contains("200 OK"), "{elapsed:?} {rest}");
    assert_eq!(ask(address, "GET", "/livez", None, "").await.0, 200);
}

#[tokio::test]
async fn only_loopback_is_listened_on() {
    for listen in ["0.0.0.0:0", "[::]:0", "192.0.2.1:8377"] {
        assert!(matches!(bind(listen.parse().unwrap()).await, Err(BindError::NotLoopback(_))), "{listen}");
    }
    let taken = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    assert!(matches!(bind(taken.local_addr().unwrap()).await, Err(BindError::InUse(_))));
}
