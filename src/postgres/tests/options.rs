//! URLs and settings: which are accepted, and that no text repeats them.

use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;
use tokio_postgres::config::ChannelBinding;

use crate::error::Error;
use crate::postgres::PostgresOptions;
use crate::postgres::parameters::names;
use crate::postgres::url::{Host, parse};

fn tcp(name: &str, port: u16) -> Host {
    Host::Tcp { name: name.to_owned(), port }
}

fn socket(folder: &str, port: u16) -> Host {
    Host::Socket { folder: folder.into(), port }
}

/// The text of the error of a URL.
fn refusal(url: &str) -> String {
    match parse(url).map(drop) {
        Err(error @ Error::InvalidInput { .. }) => error.to_string(),
        result => panic!("{url}: {result:?}"),
    }
}

#[test]
fn a_url_has_the_parts_that_libpq_knows() {
    let target = parse("postgresql://b%40t:p%3a%2Fw%25:x@db1,db2.example:5433,[2001:db8::1],[::1]:6432/w%20a").unwrap();
    assert_eq!(target.user.as_deref(), Some("b@t"));
    assert_eq!(&**target.password.as_ref().unwrap(), b"p:/w%:x");
    let hosts = [tcp("db1", 5432), tcp("db2.example", 5433), tcp("2001:db8::1", 5432), tcp("::1", 6432)];
    assert_eq!(target.hosts, hosts);
    assert_eq!(target.database, "w a");
}

#[test]
fn parameters_stand_for_parts_of_the_place() {
    let target = parse("postgres:///?host=db1,::1&port=1,2&user=bot&password=%ff%26&dbname=wa").unwrap();
    assert_eq!(target.hosts, [tcp("db1", 1), tcp("::1", 2)]);
    assert_eq!((target.user.as_deref(), &*target.database), (Some("bot"), "wa"));
    assert_eq!(&**target.password.as_ref().unwrap(), b"\xff&");
    let target = parse("postgres://bot@db1,db2/wa?port=6000").unwrap();
    assert_eq!(target.hosts, [tcp("db1", 6000), tcp("db2", 6000)]);
}

#[cfg(unix)]
#[test]
fn sockets_are_named_by_their_folder() {
    for url in [
        "postgres://bot@/wa?host=/run/postgresql&port=5433",
        "postgres:///wa?host=%2Frun%2Fpostgresql&port=5433&user=bot",
        "postgres://bot@%2Frun%2Fpostgresql:5433/wa",
    ] {
        assert_eq!(parse(url).unwrap().hosts, [socket("/run/postgresql", 5433)], "{url}");
    }
}

#[test]
fn defaults_are_the_documented_ones() {
    let target = parse("postgres://db1/wa").unwrap();
    assert!(target.verifies && !target.must_write && target.root.is_none() && target.client_certificate.is_none());
    assert!(target.user.is_none() && target.password.is_none() && target.passfile.is_none());
    assert!(target.channel_binding == ChannelBinding::Prefer && target.application_name == "wastore");
    let keepalives = target.keepalives.unwrap();
    let seconds = [target.connect_timeout, target.tcp_user_timeout, keepalives.idle, keepalives.interval];
    assert_eq!((seconds.map(|time| time.as_secs()), keepalives.count), ([4, 5, 5, 1], 3));
    assert!(parse("postgres://db1,db2/wa").unwrap().must_write);
    let options = PostgresOptions::new("postgres://db1/wa").unwrap();
    assert_eq!((options.schema.as_str(), options.lease_name.as_str(), options.lanes), ("wastore", "", 1));
    let times = [options.lease_wait, options.deadline, options.answer_timeout];
    assert_eq!(times.map(|time| time.as_secs()), [20, 10, 5]);
    assert!(options.prepared && options.migrate && options.durability == crate::Durability::SignalState);
    assert_eq!(options.base_key_retention, Some(Duration::from_secs(30 * 24 * 3600)));
}

#[test]
fn parameters_are_read() {
    let target = parse(
        "postgres://db1,db2/wa?sslmode=require&sslrootcert=/ca.pem&sslcert=/c.pem&sslkey=/k.pem\
         &channel_binding=require&passfile=/pass&target_session_attrs=any&connect_timeout=7&application_name=b%26t\
         &keepalives_idle=8&keepalives_interval=9&keepalives_count=10&tcp_user_timeout=11000&load_balance_hosts=disable",
    )
    .unwrap();
    assert!(target.verifies && !target.must_write && target.channel_binding == ChannelBinding::Require);
    assert_eq!(
        (target.root.as_deref(), target.passfile.as_deref()),
        (Some(Path::new("/ca.pem")), Some(Path::new("/pass")))
    );
    assert_eq!(target.client_certificate, Some(("/c.pem".into(), "/k.pem".into())));
    assert_eq!((target.connect_timeout.as_secs(), &*target.application_name), (7, "b&t"));
    let keepalives = target.keepalives.unwrap();
    assert_eq!((keepalives.idle.as_secs(), keepalives.interval.as_secs(), keepalives.count), (8, 9, 10));
    assert_eq!(target.tcp_user_timeout.as_secs(), 11);
    assert_eq!(parse("postgres://db1/wa?keepalives=0").unwrap().keepalives, None);
    assert!(parse("postgres://db1/wa?sslrootcert=system").unwrap().root.is_none());
    assert!(parse("postgres://db1/wa?target_session_attrs=primary").unwrap().must_write);
    assert!(parse("postgres://db1/wa?sslmode=verify-full").unwrap().verifies);
}

#[test]
fn doubtful_urls_are_refused_with_a_remedy() {
    for (url, word) in [
        ("", "postgres://"),
        ("mysql://db1/wa", "postgres://"),
        ("host=db1 dbname=wa", "postgres://"),
        ("postgres://", "host"),
        ("postgres:///wa", "host=/folder"),
        ("postgres://db1", "database"),
        ("postgres://db1/", "database"),
        ("postgres://bot:sec/ret@db1/wa", "%2F"),
        ("postgres://bot:sec?ret@db1/wa", "value"),
        ("postgres://bot:sec@ret@db1/wa", "%40"),
        ("postgres://bot:sec ret@db1/wa", "%20"),
        ("postgres://bot:sec\nret@db1/wa", "control"),
        ("postgres://bot:secret%@db1/wa", "%25"),
        ("postgres://bot:secret%0@db1/wa", "%25"),
        ("postgres://bot:secret%+1@db1/wa", "%25"),
        ("postgres://bot:sec%00ret@db1/wa", "zero"),
        ("postgres://b%fft:secret@db1/wa", "UTF-8"),
        ("postgres://db1/wa/b", "%2F"),
        ("postgres://db1:/wa", "65535"),
        ("postgres://db1:0/wa", "65535"),
        ("postgres://db1:65536/wa", "65535"),
        ("postgres://db1:+1/wa", "65535"),
        ("postgres://::1/wa", "[::1]"),
        ("postgres://[::1/wa", "]"),
        ("postgres://[::1]5432/wa", "]"),
        ("postgres://[db1]/wa", "IPv6"),
        ("postgres://db1,,db2/wa", "name of a host"),
        ("postgres://db 1/wa", "%20"),
        ("postgres://%40abstract/wa", "name of a host"),
        ("postgres://db1,db2,db3/wa?port=1,2", "one for each"),
        ("postgres://db1:5433/wa?port=1", "second time"),
        ("postgres://db1/wa?host=db2", "second time"),
        ("postgres://bot@db1/wa?user=bob", "second time"),
        ("postgres://bot:secret@db1/wa?password=secret", "second time"),
        ("postgres://db1/wa?dbname=wb", "second time"),
        ("postgres://db1/wa?sslmode=disable&sslmode=disable", "twice"),
        ("postgres://db1/wa?sslmode", "name=value"),
        ("postgres://db1/wa?sslmode=a=b", "%3D"),
        ("postgres://db1/wa?sslmode=prefer", "verify-full"),
        ("postgres://db1/wa?sslmode=allow", "verify-full"),
        ("postgres://db1/wa?sslmode=verify-ca", "verify-full"),
        ("postgres://db1/wa?sslmode=on", "verify-full"),
        ("postgres://db1/wa?sslcert=/c.pem", "sslkey"),
        ("postgres://db1/wa?sslrootcert=", "file"),
        ("postgres://db1/wa?channel_binding=yes", "require"),
        ("postgres://localhost/wa?channel_binding=require&sslmode=disable", "TLS"),
        ("postgres://db1/wa?target_session_attrs=standby", "read-write"),
        ("postgres://db1/wa?target_session_attrs=read-only", "read-write"),
        ("postgres://db1/wa?load_balance_hosts=random", "several servers"),
        ("postgres://db1/wa?connect_timeout=0", "3600"),
        ("postgres://db1/wa?connect_timeout=-1", "3600"),
        ("postgres://db1/wa?keepalives=2", "0 nor 1"),
        ("postgres://db1/wa?options=-cgeqo=off", "%3D"),
        ("postgres://db1/wa?options=-cgeqo%3Doff", "ALTER ROLE"),
        ("postgres://db1/wa?service=wa", "URL"),
        ("postgres://db1/wa?replication=true", "standbys"),
        ("postgres://db1/wa?sslcompression=1", "TLS"),
        ("postgres://db1/wa?secret=1", "spelling"),
        ("postgres://bot:secret@db1/wa?passfile=/pass", "remove"),
    ] {
        let text = refusal(url);
        assert!(text.contains(word), "{url}: {text}");
        assert!(
            !["secret", "db1", "bot", "ret@"]
                .iter()
                .any(|part| text.replace("postgres://bot@db1/wa", "").contains(part)),
            "{url}: {text}"
        );
    }
}

#[test]
fn settings_that_do_not_go_together_are_refused() {
    let options = |url: &str| PostgresOptions::new(url).unwrap();
    let valid = || options("postgres://bot@db1/wa");
    assert!(valid().check().is_ok());
    let long = "x".repeat(64);
    for (options, word) in [
        (valid().schema(""), "63"),
        (valid().schema(&long), "63"),
        (valid().schema("a\0b"), "63"),
        (valid().schema("pg_wa"), "pg_"),
        (valid().lease_name(&"x".repeat(257)), "256"),
        (options("postgres://bot:secret@db1/wa").password_file("/secret"), "beside"),
        (options("postgres://bot@db1/wa?passfile=/secret").password_file("/secret"), "beside"),
        (options("postgres://bot@db1/wa?sslmode=disable"), "plaintext_network"),
        (options("postgres://bot@localhost,10.0.0.1/wa?sslmode=disable"), "plaintext_network"),
        (options("postgres://bot@localhost.example/wa?sslmode=disable"), "plaintext_network"),
    ] {
        let text = options.check().unwrap_err().to_string();
        assert!(text.contains(word) && !text.contains("secret"), "{text}");
    }
    assert!(valid().schema(&long[1..]).lease_name(&"x".repeat(256)).check().is_ok());
    for url in [
        "postgres://bot@localhost,127.3.2.1,[::1]/wa?sslmode=disable",
        "postgres://bot@%2Frun/wa?sslmode=disable",
        "postgres://bot@%2Frun/wa",
    ] {
        assert!(options(url).check().is_ok(), "{url}");
    }
    assert!(options("postgres://bot@db1/wa?sslmode=disable").plaintext_network().check().is_ok());
    assert_eq!([0, 1, 64, 65].map(|count| valid().lanes(count).lanes), [1, 1, 64, 64]);
}

#[test]
fn a_schema_is_quoted() {
    let options = PostgresOptions::new("postgres://db1/wa").unwrap().schema("my \"bot\"; DROP");
    assert_eq!(options.quoted_schema(), "\"my \"\"bot\"\"; DROP\"");
}

#[test]
fn debug_shows_the_database_and_the_schema_only() {
    let url = "postgres://the-user:the-password@the-host/wa%1b?sslrootcert=/the-file";
    let options = PostgresOptions::new(url).unwrap().schema("s");
    let options = [options.clone(), options.lease_name("the-lease").password_file("/the-password-file")];
    for options in options {
        assert_eq!(format!("{options:?}"), "postgres(wa\\u{1b}.s)");
        assert_eq!(format!("{options:#?}"), "postgres(wa\\u{1b}.s)");
    }
}

/// Text that is likely to come far.
fn url() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        Just("postgres://".to_owned()),
        proptest::sample::select(names().collect::<Vec<_>>()).prop_map(|name| format!("&{name}=")),
        proptest::sample::select(vec![
            ":",
            "@",
            "/",
            "?",
            "&",
            "=",
            "%",
            "%2F",
            "%ff",
            ",",
            "[",
            "]",
            "::1",
            "wa",
            "5432",
            "verify-full",
            "é",
        ])
        .prop_map(str::to_owned),
        ".{0,3}",
    ];
    proptest::collection::vec(part, 0..12).prop_map(|parts| parts.concat())
}

proptest! {
    #[test]
    fn no_text_panics(url in prop_oneof![".*", url(), url().prop_map(|rest| format!("postgres://db1/wa?{rest}"))]) {
        if let Ok(options) = PostgresOptions::new(&url) {
            prop_assert!(options.check().is_ok() || options.plaintext_network().check().is_ok());
        }
    }

    #[test]
    fn errors_never_repeat_a_password(password in "[a-z@/?&=%:#, ]{8,24}", rest in url()) {
        for url in [format!("postgres://bot:{password}@db1/wa"), format!("postgres://bot:{password}{rest}")] {
            if let Err(error) = PostgresOptions::new(&url) {
                let text = format!("{error} {error:?}");
                // A short password could be one of the words of the text.
                prop_assert!(!text.contains(&password), "{text}");
            }
        }
    }

    #[test]
    fn encoded_passwords_arrive_whole(password in proptest::collection::vec(1u8.., 1..40)) {
        let encoded: String = password.iter().map(|byte| format!("%{byte:02x}")).collect();
        let target = parse(&format!("postgres://bot:{encoded}@db1/wa")).map_err(|_| TestCaseError::fail("refused"))?;
        prop_assert_eq!(target.password.as_ref().map(|password| password.to_vec()), Some(password));
    }
}
