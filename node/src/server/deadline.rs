//! How long a handler may take: the caller's `grpc-timeout`, less what the answer needs to travel.

use std::time::Duration;

use http::HeaderMap;
use tokio::time::Instant;

/// For a caller that names no deadline.
const DEFAULT: Duration = Duration::from_secs(10);
/// No caller may make a handler wait longer.
const LONGEST: Duration = Duration::from_secs(300);

/// Until when a request has to be answered.
#[must_use]
pub fn of<T>(request: &tonic::Request<T>) -> Instant {
    of_headers(request.metadata().as_ref())
}

/// The same of a request that nobody has taken apart yet.
#[must_use]
pub fn of_headers(headers: &HeaderMap) -> Instant {
    let timeout = timeout(headers).unwrap_or(DEFAULT).min(LONGEST);
    // tonic cuts the call off at the deadline, on both sides; the answer has to be there before, on a busy machine too.
    let travel = (timeout / 10).clamp(Duration::from_millis(100), Duration::from_millis(500)).min(timeout / 2);
    Instant::now() + timeout - travel
}

fn timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    // At most eight digits, by the specification.
    let value: u64 = digits.parse().ok().filter(|_| digits.len() <= 8)?;
    match unit {
        "H" => Some(Duration::from_secs(value * 3600)),
        "M" => Some(Duration::from_secs(value * 60)),
        "S" => Some(Duration::from_secs(value)),
        "m" => Some(Duration::from_millis(value)),
        "u" => Some(Duration::from_micros(value)),
        "n" => Some(Duration::from_nanos(value)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_specification_s_units() {
        let parse = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", text.parse().unwrap());
            timeout(&headers)
        };
        assert_eq!(parse("10S"), Some(Duration::from_secs(10)));
        assert_eq!(parse("1500m"), Some(Duration::from_millis(1500)));
        assert_eq!(parse("2M"), Some(Duration::from_secs(120)));
        for bad in ["", "S", "-1S", "123456789S", "5x"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
