//! The powers of an attacker who controls the store while it is in use: it lies, forgets, repeats itself, and mixes up
//! rows.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use wacore::store::Device;
use wacore::store::error::Result;
use wacore::store::traits::{Backend, LidPnMappingEntry, TcTokenEntry};

use super::bad_records::{Both, SLOTS, read, replace, stored, tampered};
use super::own_error;
use crate::encrypt::format::token::Domain;
use crate::method::{Method, Record};
use crate::testing::canaries::*;
use crate::testing::{Effect, Fault, Tamper, When};
use crate::{CacheLayer, Error, Layer};

const OTHER: &str = "15550109900:7@s.whatsapp.net";

/// The client's side of a stack whose store lies, with and without a cache that keeps opened records.
async fn deceived(both: &Both) -> (Tamper, [Arc<dyn Backend>; 2]) {
    let tamper = Tamper::new();
    let encrypted = both.vault.layer().layer(tamper.layer(both.inner.clone()));
    let records = [Record::Session, Record::Identity, Record::SenderKey, Record::SignedPrekey];
    let cache = records.into_iter().fold(CacheLayer::new(1 << 20), CacheLayer::with);
    (tamper, [encrypted.clone(), cache.layer(encrypted)])
}

#[tokio::test]
async fn a_row_with_changing_answers_is_one_of_its_own_values() {
    for both in Both::all().await {
        let address = both.address(Record::Session, SESSION_ADDRESS);
        let mut genuine = vec![];
        for value in [&b"first"[..], b"second", b"third"] {
            both.outer.put_session(SESSION_ADDRESS, value).await.unwrap();
            genuine.push((value.to_vec(), both.inner.get_session(&address).await.unwrap().unwrap()));
        }
        both.outer.put_session(OTHER, b"of another user").await.unwrap();
        let foreign = both.inner.get_session(&both.address(Record::Session, OTHER)).await.unwrap().unwrap();
        let (tamper, stacks) = deceived(&both).await;
        let mut answers: Vec<Option<Bytes>> = genuine.iter().map(|(_, sealed)| Some(sealed.clone())).collect();
        answers.extend([None, Some(foreign), Some(Bytes::from_static(b"plain")), Some(Bytes::new())]);
        let mut turn = 0;
        tamper.alter(Method::GetSession, move |answer: &mut Result<Option<Bytes>>| {
            *answer = Ok(answers[turn % answers.len()].clone());
            turn += 1;
        });
        for store in stacks {
            let (mut told, mut errors) = (0, 0);
            for round in 0..40 {
                match store.get_session(SESSION_ADDRESS).await {
                    Ok(None) => {}
                    Ok(Some(session)) => {
                        assert!(genuine.iter().any(|(value, _)| *value == session[..]), "{session:?}");
                        told += 1;
                    }
                    Err(error) => {
                        let error = Error::downcast_ref(&error).unwrap();
                        assert!(matches!(error, Error::Tampered { .. } | Error::Plaintext { .. }), "{error:?}");
                        errors += 1;
                    }
                }
                if round % 10 == 9 {
                    // The client reads its own writes, whatever lies a cache has kept before.
                    store.delete_session(SESSION_ADDRESS).await.unwrap();
                }
            }
            assert!(told > 0 && (errors > 0 || told > 20), "{told} {errors}");
        }
        tamper.clear();
        both.outer.put_session(SESSION_ADDRESS, b"the end").await.unwrap();
        assert_eq!(both.outer.get_session(SESSION_ADDRESS).await.unwrap().as_deref(), Some(&b"the end"[..]));
    }
}

/// The next write removes a lie from a cache.
#[tokio::test]
async fn a_lie_does_not_outlive_a_write_in_a_cache() {
    for both in Both::all().await {
        let address = both.address(Record::Session, SESSION_ADDRESS);
        let older = both.inner.get_session(&address).await.unwrap().unwrap();
        let (tamper, [_, cached]) = deceived(&both).await;
        both.outer.put_session(SESSION_ADDRESS, b"newer").await.unwrap();
        tamper.alter(Method::GetSession, move |answer: &mut Result<Option<Bytes>>| *answer = Ok(Some(older.clone())));
        assert_eq!(cached.get_session(SESSION_ADDRESS).await.unwrap().as_deref(), Some(SESSION));
        cached.put_session(SESSION_ADDRESS, b"newest").await.unwrap();
        tamper.clear();
        assert_eq!(cached.get_session(SESSION_ADDRESS).await.unwrap().as_deref(), Some(&b"newest"[..]));
        // Errors are not remembered either.
        tamper.alter(Method::GetSenderKey, |answer: &mut Result<Option<Vec<u8>>>| *answer = Ok(Some(b"junk".to_vec())));
        assert_eq!(
            own_error(cached.get_sender_key(SENDER_KEY_ADDRESS).await),
            super::bad_records::plaintext(Record::SenderKey)
        );
        tamper.clear();
        assert_eq!(cached.get_sender_key(SENDER_KEY_ADDRESS).await.unwrap().as_deref(), Some(SENDER_KEY));
    }
}

/// Batches and listings with rows that were not requested, rows twice, and rows under each other's names.
#[tokio::test]
async fn batches_and_listings_that_are_not_what_was_asked_for() {
    for both in Both::all().await {
        let (tamper, [store, _]) = deceived(&both).await;
        store.store_prekey(50, b"fifty", false).await.unwrap();
        store.store_signed_prekey(70, b"seventy").await.unwrap();

        type Rows<T> = Result<Vec<(u32, T)>>;
        tamper.alter(Method::LoadPrekeysBatch, |answer: &mut Rows<Bytes>| {
            let rows = answer.as_mut().unwrap();
            let names: Vec<_> = rows.iter().map(|(id, _)| *id).rev().collect();
            rows.iter_mut().zip(names).for_each(|((id, _), name)| *id = name);
        });
        assert_eq!(own_error(store.load_prekeys_batch(&[5, 50]).await), tampered(Record::Prekey));
        tamper.clear();
        tamper.alter(Method::LoadAllSignedPrekeys, |answer: &mut Rows<Vec<u8>>| {
            answer.as_mut().unwrap().iter_mut().for_each(|(id, _)| *id ^= 1);
        });
        assert_eq!(own_error(store.load_all_signed_prekeys().await), tampered(Record::SignedPrekey));
        tamper.clear();
        tamper.alter(Method::LoadAllSignedPrekeys, |answer: &mut Rows<Vec<u8>>| {
            let rows = answer.as_mut().unwrap();
            rows.extend(rows.clone());
        });
        for (id, key) in store.load_all_signed_prekeys().await.unwrap() {
            assert_eq!(key, if id == 7 { SIGNED_PREKEY } else { b"seventy" });
        }

        tamper.alter(Method::GetMutationMacs, |answer: &mut Result<HashMap<[u8; 32], Vec<u8>>>| {
            let macs = answer.as_mut().unwrap();
            let value = macs.values().next().unwrap().clone();
            // A row that was not requested has no place in the answer.
            macs.insert([9; 32], value);
        });
        let macs = store.get_mutation_macs(COLLECTION, &[INDEX_MAC]).await.unwrap();
        assert_eq!(macs, HashMap::from([(INDEX_MAC, VALUE_MAC.to_vec())]));
        tamper.clear();
        tamper.alter(Method::GetMutationMacs, |answer: &mut Result<HashMap<[u8; 32], Vec<u8>>>| {
            answer.as_mut().unwrap().values_mut().for_each(|value| value.truncate(40));
        });
        let torn = store.get_mutation_macs(COLLECTION, &[INDEX_MAC]).await;
        assert_eq!(own_error(torn), tampered(Record::MutationMac));

        store
            .put_lid_mapping(&LidPnMappingEntry { lid: "2".into(), phone_number: "3".into(), ..lid_mapping() })
            .await
            .unwrap();
        tamper.alter(Method::GetAllLidMappings, |answer: &mut Result<Vec<LidPnMappingEntry>>| {
            let rows = answer.as_mut().unwrap();
            let lids: Vec<_> = rows.iter().map(|row| row.lid.clone()).rev().collect();
            rows.iter_mut().zip(lids).for_each(|(row, lid)| row.lid = lid);
        });
        assert_eq!(own_error(store.get_all_lid_mappings().await), tampered(Record::LidMapping));
        tamper.alter(Method::GetLidMapping, |answer: &mut Result<Option<LidPnMappingEntry>>| {
            answer.as_mut().unwrap().as_mut().unwrap().phone_number = "15550100000".to_owned();
        });
        assert_eq!(own_error(store.get_lid_mapping(LID).await), tampered(Record::LidMapping));
        tamper.alter(Method::GetTcToken, |answer: &mut Result<Option<TcTokenEntry>>| {
            answer.as_mut().unwrap().as_mut().unwrap().token = b"chosen".to_vec();
        });
        assert_eq!(own_error(store.get_tc_token(TC_JID).await), super::bad_records::plaintext(Record::TcToken));
        assert_eq!(tamper.altered(), 8);
    }
}

/// A row that the store hides is absent, but a hidden device or header is an error.
#[tokio::test]
async fn what_is_denied_is_absent_but_not_the_device_nor_the_header() {
    for both in Both::all().await {
        let (tamper, [store, cached]) = deceived(&both).await;
        tamper.alter(Method::GetSession, |answer: &mut Result<Option<Bytes>>| *answer = Ok(None));
        tamper.alter(Method::GetSenderKey, |answer: &mut Result<Option<Vec<u8>>>| *answer = Ok(None));
        tamper.alter(Method::Load, |answer: &mut Result<Option<Device>>| *answer = Ok(None));
        tamper.alter(Method::Exists, |answer: &mut Result<bool>| *answer = Ok(false));
        for store in [&store, &cached] {
            assert_eq!(store.get_session(SESSION_ADDRESS).await.unwrap(), None);
            assert_eq!(store.load_identity(IDENTITY_ADDRESS).await.unwrap(), None);
            assert_eq!(store.get_sender_key(SENDER_KEY_ADDRESS).await.unwrap(), None);
            assert_eq!(own_error(store.load().await.map(drop)), "DeviceMissing");
            assert_eq!(own_error(store.exists().await), "DeviceMissing");
            assert_eq!(own_error(store.create().await), "DeviceMissing");
        }
        // The header is read with the same method.
        let lying = tamper.layer(both.inner.clone());
        let opened = super::options().open(lying, super::raw_key()).await;
        assert!(matches!(opened, Err(Error::HeaderMissing)), "{opened:?}");
    }
}

/// Known and documented: an older version of a row in its place is genuine.
#[tokio::test]
async fn a_replayed_row_is_an_older_version_of_itself() {
    for both in Both::all().await {
        for slot in &SLOTS {
            let older = stored(&both, slot.record).await;
            fill(&*both.outer).await;
            let newer = stored(&both, slot.record).await;
            assert_ne!(older, newer, "{}: sealing the same again gives other bytes", slot.record);
            replace(&both, slot.record, &older).await;
            read(&both, slot).await.unwrap_or_else(|error| panic!("{}: {error:?}", slot.record));
        }
    }
}

#[tokio::test]
async fn a_value_does_not_pass_for_one_of_another_data_key() {
    for both in Both::all().await {
        both.vault.rotate_data_key().await.unwrap();
        for slot in &SLOTS {
            let first = stored(&both, slot.record).await;
            call(&*both.outer, writer(slot.record)).await.unwrap();
            let second = stored(&both, slot.record).await;
            assert_eq!((first[6], second[6]), (1, 2), "{}", slot.record);
            for (value, epoch) in [(&first, 2), (&second, 1)] {
                let mut moved = value.clone();
                moved[6] = epoch;
                replace(&both, slot.record, &moved).await;
                assert_eq!(own_error(read(&both, slot).await), tampered(slot.record), "epoch {epoch}");
            }
            for genuine in [&first, &second] {
                replace(&both, slot.record, genuine).await;
                read(&both, slot).await.unwrap();
            }
            // For the next slot of the same record.
            replace(&both, slot.record, &first).await;
        }
    }
}

/// The method that writes a record of [`SLOTS`].
fn writer(record: Record) -> Method {
    let writes = |method: &&Method| method.record() == record && method.access() == crate::Access::Write;
    *Method::ALL.iter().find(|method| writes(method) && **method != Method::Create).unwrap()
}

/// Known and documented: a list of devices with the sender key is not bound to its group, but no device name can be
/// made up.
#[tokio::test]
async fn a_device_moved_to_another_group_keeps_its_name() {
    for both in Both::all().await {
        let other = "120363025544332299@g.us";
        both.outer.set_sender_key_status(other, &[("15550109901:1@s.whatsapp.net", false)]).await.unwrap();
        let [from, to] = [other, GROUP].map(|group| both.token(Record::SenderKeyDevice, Domain::Group, &[group]));
        let devices = both.inner.get_sender_key_devices(&from).await.unwrap();
        let moved: Vec<_> = devices.iter().map(|(device, _)| (device.as_str(), true)).collect();
        both.inner.set_sender_key_status(&to, &moved).await.unwrap();
        let mut found = both.outer.get_sender_key_devices(GROUP).await.unwrap();
        found.sort();
        assert_eq!(found, [("15550109901:1@s.whatsapp.net".to_owned(), true), (DEVICE_JID.to_owned(), true)]);
    }
}

#[tokio::test]
async fn values_of_every_size_and_batches_of_every_shape() {
    for both in Both::all().await {
        for size in [0, 1, 15, 16, 17, 1 << 16, (1 << 16) + 1, 8 << 20] {
            let value: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
            both.outer.put_session(SESSION_ADDRESS, &value).await.unwrap();
            assert!(both.outer.get_session(SESSION_ADDRESS).await.unwrap().unwrap() == value, "{size}");
            both.outer.store_sent_message(CHAT, MESSAGE_ID, &value).await.unwrap();
            assert!(both.outer.take_sent_message(CHAT, MESSAGE_ID).await.unwrap().unwrap() == value, "{size}");
        }
        both.outer.put_sessions_batch(&[]).await.unwrap();
        assert_eq!(both.outer.load_prekeys_batch(&[]).await.unwrap(), []);
        let row = |value: &'static [u8]| (Arc::from(SESSION_ADDRESS), Bytes::from_static(value));
        both.outer.put_sessions_batch(&[row(b"first"), row(b""), row(b"last")]).await.unwrap();
        assert_eq!(both.outer.get_session(SESSION_ADDRESS).await.unwrap().as_deref(), Some(&b"last"[..]));
    }
}

/// An error shows neither a planted value nor the name of its row.
#[tokio::test]
async fn errors_of_planted_rows_name_no_one() {
    for both in Both::all().await {
        let planted = format!("{PHONE} {SESSION_ADDRESS} {MESSAGE_ID} canary planted");
        let mut texts = String::new();
        for slot in &SLOTS {
            replace(&both, slot.record, planted.as_bytes()).await;
            let error = read(&both, slot).await.unwrap_err();
            assert!(!error.is_database_busy_or_locked(), "{error:?}");
            let mut source: Option<&dyn std::error::Error> = Some(&error);
            while let Some(error) = source {
                texts += &format!("{error} {error:?}\n");
                source = error.source();
            }
        }
        for named in [PHONE, SESSION_ADDRESS, MESSAGE_ID, LID, GROUP, TC_JID, CHAT, SENDER, COLLECTION, "canary"] {
            assert!(!texts.contains(named), "{named} is in:\n{texts}");
        }
    }
}

/// Errors from below come out above unchanged, whether or not the store carried out the call.
#[tokio::test]
async fn a_store_that_fails_is_reported_as_it_is() {
    for both in Both::all().await {
        for effect in [Effect::Fail(Fault::error), Effect::FailAfter(Fault::error)] {
            let fault = Fault::new();
            let store = both.vault.layer().layer(fault.layer(both.inner.clone()));
            fault.inject(When::Always, effect);
            for method in Method::ALL.iter().filter(|method| **method != Method::ResourceReport) {
                let error = call(&*store, *method).await.unwrap_err();
                assert!(Fault::is_injected(&error), "{}: {error:?}", method.name());
            }
        }
    }
}
