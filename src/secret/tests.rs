//! Tests that secrets survive typing and reading, and that weak secrets are recognized.

use std::path::Path;

use super::*;
use crate::error::Error;

#[test]
fn recovery_key_survives_being_typed() {
    let key = RecoveryKey::generate().unwrap();
    let text = key.expose();
    assert_eq!(text.len(), 54 + 13);
    assert_eq!(text.split('-').map(str::len).collect::<Vec<_>>(), [[4; 13].as_slice(), &[2]].concat());
    let typed = [
        text.to_string(),
        text.to_lowercase(),
        text.replace('-', " "),
        text.replace('0', "o").replace('1', "L"),
        format!("  {}\n", text.replace('-', "")),
        format!("recovery key: \"{}\"", text.replace('-', "\u{2013}")),
        format!("{} (bot 1)", *text),
        format!("wastore: a warning\n{}\nthis recovery key opens the store and is not shown again\n", *text),
        text.replace('-', "\u{a0}"),
    ];
    for text in typed {
        assert_eq!(RecoveryKey::parse(&text).unwrap().0.expose(), key.0.expose());
    }
}

#[test]
fn recovery_key_refuses_typing_errors() {
    let text = RecoveryKey::generate().unwrap().expose();
    for problem in ["", "0000", &text[1..], &text.replace('-', "U")] {
        assert!(matches!(RecoveryKey::parse(problem), Err(Error::InvalidInput { .. })));
    }
    // One wrong character: ten check bits let about one in a thousand through.
    let mut accepted = 0;
    for position in (0..text.len()).filter(|&at| text.as_bytes()[at] != b'-') {
        for symbol in "0123456789ABCDEFGHJKMNPQRSTVWXYZ".chars() {
            let mut wrong = text.to_string();
            wrong.replace_range(position..=position, symbol.encode_utf8(&mut [0; 4]));
            accepted += u32::from(wrong != **text && RecoveryKey::parse(&wrong).is_ok());
        }
    }
    assert!(accepted < 20, "{accepted} of 1674 single typing errors were accepted");
}

#[test]
fn passphrase_limits() {
    assert!(Passphrase::new("").is_err());
    assert!(Passphrase::new(vec![0xff; Passphrase::MAX_BYTES]).is_ok());
    assert!(Passphrase::new(vec![b'a'; Passphrase::MAX_BYTES + 1]).is_err());
}

/// A file that only its owner can read.
fn write(path: &Path, content: impl AsRef<[u8]>) {
    std::fs::write(path, content).unwrap();
    #[cfg(unix)]
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
}

#[test]
fn secrets_from_files() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("secret");
    for (content, expected) in [("word\n", "word"), ("word\r\n", "word"), ("word", "word"), (" a b \n\n", " a b \n")] {
        write(&path, content);
        assert_eq!(Passphrase::from_file(&path).unwrap().as_bytes(), expected.as_bytes());
    }
    write(&path, "\n");
    assert!(matches!(Passphrase::from_file(&path), Err(Error::InvalidInput { .. })));
    write(&path, vec![b'a'; Passphrase::MAX_BYTES + 3]);
    assert!(matches!(Passphrase::from_file(&path), Err(Error::InvalidInput { .. })));
    assert!(matches!(Passphrase::from_file(folder.path().join("none")), Err(Error::File { .. })));

    let key: Vec<u8> = (0..32u8).map(|position| position.wrapping_mul(position).wrapping_mul(93)).collect();
    let hex = hex::encode(&key);
    for content in [key.clone(), hex.clone().into_bytes(), format!("{}\n", hex.to_uppercase()).into_bytes()] {
        write(&path, content);
        assert_eq!(Key::from_file(&path).unwrap().expose(), &key[..]);
    }
    for content in ["", "ab", &hex.replace('0', "g"), &format!("{hex}ab")] {
        write(&path, content);
        assert!(matches!(Key::from_file(&path), Err(Error::InvalidInput { .. })));
    }
    let recovery = RecoveryKey::generate().unwrap();
    write(&path, format!("{}\n", *recovery.expose()));
    assert_eq!(RecoveryKey::from_file(&path).unwrap().0.expose(), recovery.0.expose());
    write(&path, [b' '; 2000]);
    assert!(matches!(RecoveryKey::from_file(&path), Err(Error::InvalidInput { .. })));
    // A device file that never ends.
    #[cfg(unix)]
    for error in [
        Passphrase::from_file("/dev/zero").unwrap_err(),
        Key::from_file("/dev/zero").unwrap_err(),
        RecoveryKey::from_file("/dev/zero").unwrap_err(),
    ] {
        assert!(matches!(error, Error::InvalidInput { problem: "is too long", .. }), "{error:?}");
    }
}

#[test]
fn generated_keys_are_not_taken_for_weak_ones() {
    for _ in 0..10_000 {
        assert_eq!(Key::generate().unwrap().find_weakness(), None);
    }
}

#[test]
fn text_is_normalized_and_other_bytes_are_not() {
    let bytes = |passphrase: &[u8]| Passphrase::new(passphrase).unwrap().as_bytes().to_vec();
    assert_eq!(bytes(b"hunter2\n"), b"hunter2");
    assert_eq!(bytes(b"hunter2\n\n"), b"hunter2\n");
    assert_eq!(bytes(b"hunter2\r\n"), b"hunter2");
    assert_eq!(bytes(b"\xff\xfeh\0\xe4\0\n\0"), "hä".as_bytes());
    assert_eq!(bytes(b"\xfe\xff\0h\0\xe4"), "hä".as_bytes());
    // Half a surrogate pair, and half a unit.
    assert_eq!(bytes(b"\xff\xfe\0\xd8"), b"\xff\xfe\0\xd8");
    assert_eq!(bytes(b"\xff\xfeh"), b"\xff\xfeh");
    assert_eq!(bytes("Schlu\u{308}ssel".as_bytes()), "Schlüssel".as_bytes());
    assert_eq!(bytes("Ångström".as_bytes()), "Ångström".as_bytes());
    // Three times as long, which is Unicode's bound.
    assert_eq!(bytes("\u{1d160}".repeat(1000).as_bytes()).len(), 12_000);
    for other in [b"u\xcc\x88\xff".as_slice(), b"\xfe\xfd", &[0]] {
        assert_eq!(bytes(other), other);
    }
}

#[test]
fn debug_shows_nothing() {
    let passphrase = Passphrase::new("hunter2").unwrap();
    assert_eq!(format!("{passphrase:?}"), "Passphrase(..)");
    assert_eq!(format!("{:?}", Secret::from(passphrase)), "Secret(..)");
    assert_eq!(format!("{:?}", Key::generate().unwrap()), "Key(..)");
}
