//! The addresses of a Transit engine. They are read strictly: a doubtful one is refused, because a guess could send the
//! token to another host, or without encryption.

use std::net::{IpAddr, Ipv6Addr};

use super::read::{invalid, is_plain_name};
use crate::error::Result;

/// Returns the URL without slashes at its end.
///
/// # Errors
/// [`Error::InvalidInput`](crate::Error::InvalidInput) if it is not `https://HOST[:PORT][/PATH]`, or the same with
/// `http` and a host that is this machine.
pub(super) fn base(url: &str) -> Result<&str> {
    let refused = |problem| Err(invalid("the URL of the Transit server", problem));
    let (is_encrypted, rest) = match (url.strip_prefix("https://"), url.strip_prefix("http://")) {
        (Some(rest), _) => (true, rest),
        (_, Some(rest)) => (false, rest),
        _ => return refused("must begin with `https://`"),
    };
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let Some(host) = host(authority) else {
        return refused("must be a scheme, a host and a port, without a user or a password");
    };
    if !path.trim_end_matches('/').is_empty() && !is_path(path.trim_end_matches('/')) {
        return refused("may only have letters, digits, `-`, `_`, `.` and `/` after the host");
    }
    let is_here = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    if !is_encrypted && !is_here {
        return refused("must begin with `https://`, because the key would cross the network in plaintext");
    }
    Ok(url.trim_end_matches('/'))
}

/// The host of `HOST[:PORT]`, without the brackets of an IPv6 address.
fn host(authority: &str) -> Option<&str> {
    let (host, port) = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, port)) => (host, port),
        None => authority.split_once(':').map_or((authority, ""), |(host, _)| (host, &authority[host.len()..])),
    };
    let is_number =
        |port: &str| port.bytes().all(|digit| digit.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0);
    let is_port = port.is_empty() || port.strip_prefix(':').is_some_and(is_number);
    let is_host = if authority.starts_with('[') {
        host.parse::<Ipv6Addr>().is_ok()
    } else {
        !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-'))
    };
    (is_host && is_port).then_some(host)
}

/// `true` for names between single slashes, none of which is `.` or `..`.
pub(super) fn is_path(path: &str) -> bool {
    path.split('/').all(is_plain_name)
}

#[cfg(test)]
mod tests {
    use super::base;

    #[test]
    fn only_encrypted_urls_and_this_machine() {
        for (url, read) in [
            ("https://bao.example.org", "https://bao.example.org"),
            ("https://bao.example.org:8200/", "https://bao.example.org:8200"),
            ("https://gate.example.org/bao//", "https://gate.example.org/bao"),
            ("https://[2001:db8::1]:8200", "https://[2001:db8::1]:8200"),
            ("http://localhost:8100", "http://localhost:8100"),
            ("http://127.0.0.53:8100", "http://127.0.0.53:8100"),
            ("http://[::1]:8100", "http://[::1]:8100"),
        ] {
            assert_eq!(base(url).unwrap(), read);
        }
        for url in [
            "",
            "bao.example.org:8200",
            "ftp://bao.example.org",
            "HTTPS://bao.example.org",
            "https://",
            "https:///v1",
            "https://:8200",
            "https://token@bao.example.org",
            "https://user:word@bao.example.org",
            "https://bao.example.org:0",
            "https://bao.example.org:65536",
            "https://bao.example.org:+8",
            "https://bao.example.org:80:80",
            "https://bao.example.org?x=1",
            "https://bao.example.org/#x",
            "https://bao.example.org/a/../b",
            "https://bao.example.org/a//b",
            "https://bao.example.org/%2e",
            "https://bao.example.org\\@other.example.org",
            "https://bao example.org",
            "https://[::1",
            "https://[localhost]",
            "https://2001:db8::1",
            "http://bao.example.org",
            "http://localhost.example.org",
            "http://127.0.0.1.example.org",
            "http://localhost@bao.example.org",
            "http://0.0.0.0:8200",
            "http://10.0.0.1:8200",
            "http://[2001:db8::1]:8200",
        ] {
            assert!(base(url).is_err(), "{url}");
        }
    }
}
