//! Every path through headers, epochs, generations and an anchor, up to a number of steps, with the
//! real code.
//!
//! A state is the content of a small store: two header copies, the device and a session, each with
//! its previous value, the saved headers, and the anchor. The steps are those of an operator, a
//! writing bot, a process that dies in the middle of a change, and an attacker without keys who
//! puts headers and rows back. States that differ only in the distance between numbers count as
//! one.

use std::collections::{BTreeMap, HashMap, HashSet};

use wacore::store::traits::Backend;

use super::*;
use crate::Layer;
use crate::encrypt::{Vault, VaultOptions};
use crate::maintenance::Rotate;
use crate::maintenance::restore_account_header;
use crate::secret::Key;
use crate::testing::canaries;
use crate::vault::OpenMode;
use crate::vault::{Anchor, Argon2Cost, HeaderCopy, HeaderInfo, RollbackAnchor};

const ADDRESS: &str = "15550001111:2@s.whatsapp.net";
/// The first secret, the one after a revocation, and one that is removed again.
const FIRST: u8 = 1;
const SECOND: u8 = 2;
const LEAKED: u8 = 3;

fn key(byte: u8) -> Key {
    Key::from_bytes(&mut [byte; 32])
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Step {
    Open,
    WriteSession,
    WriteDevice,
    AddLeaked,
    RemoveLeaked,
    Rotate,
    RotateLeaving,
    DieInRotation,
    Revoke,
    RestoreFirst,
    RestoreNewest,
    AcceptRollback,
    PutHeaderBack,
    PutFirstHeaderBack,
    PutSessionBack,
    PutDeviceBack,
}

const STEPS: [Step; 16] = [
    Step::Open,
    Step::WriteSession,
    Step::WriteDevice,
    Step::AddLeaked,
    Step::RemoveLeaked,
    Step::Rotate,
    Step::RotateLeaving,
    Step::DieInRotation,
    Step::Revoke,
    Step::RestoreFirst,
    Step::RestoreNewest,
    Step::AcceptRollback,
    Step::PutHeaderBack,
    Step::PutFirstHeaderBack,
    Step::PutSessionBack,
    Step::PutDeviceBack,
];

/// One of the two rows: its current and its previous value.
#[derive(Debug, Clone, Default)]
struct Row {
    now: Vec<u8>,
    before: Vec<u8>,
    /// Sealed since the leaked secret was removed, and since the first one was revoked.
    since: [bool; 2],
    before_since: [bool; 2],
}

#[derive(Debug, Clone)]
struct World {
    headers: [Vec<u8>; 2],
    device: Row,
    session: Row,
    /// The first header, the one before the last change, and the newest one that the operator
    /// saved.
    first: Vec<u8>,
    previous: Vec<u8>,
    saved: Vec<u8>,
    anchor: BTreeMap<[u8; 16], [u8; Anchor::BYTES]>,
    /// The secret with which the operator opens the store.
    secret: u8,
    leaked_is_removed: bool,
    is_revoked: bool,
    /// The generations of the headers that ended the leaked secret and the first one.
    ended_at: [u64; 2],
    /// The operator has added the leaked secret since everything was revoked.
    leaked_is_back: bool,
}

#[derive(Default)]
struct Remembered(Mutex<BTreeMap<[u8; 16], [u8; Anchor::BYTES]>>);

#[async_trait::async_trait]
impl RollbackAnchor for Remembered {
    async fn load(&self, store: &[u8; 16]) -> Result<Option<Anchor>, Box<dyn std::error::Error + Send + Sync>> {
        Ok(self.0.lock().unwrap().get(store).map(Anchor::from_bytes))
    }

    async fn advance(
        &self,
        store: &[u8; 16],
        from: Option<Anchor>,
        to: Anchor,
    ) -> Result<bool, Box<dyn std::error::Error + Send + Sync>> {
        let mut remembered = self.0.lock().unwrap();
        let same = remembered.get(store).map(Anchor::from_bytes) == from;
        if same {
            remembered.insert(*store, to.to_bytes());
        }
        Ok(same)
    }
}

struct Explorer {
    store: SqliteStore,
    anchor: Option<Arc<Remembered>>,
}

impl Explorer {
    async fn new(anchored: bool) -> Self {
        let store = SqliteStore::in_memory().await.unwrap();
        Self { store, anchor: anchored.then(Arc::default) }
    }

    fn backend(&self) -> Arc<dyn Backend> {
        Arc::new(self.store.clone())
    }

    fn options(&self) -> VaultOptions {
        let options = VaultOptions::new().kdf_cost(Argon2Cost::MINIMUM);
        match &self.anchor {
            Some(anchor) => options.rollback_anchor(anchor.clone()),
            None => options,
        }
    }

    async fn first(&self) -> World {
        let vault = self.options().create(self.backend(), key(FIRST)).await.unwrap();
        let layered = vault.layer().layer(self.backend());
        layered.save(&canaries::device()).await.unwrap();
        layered.put_session(ADDRESS, b"a session").await.unwrap();
        let header = vault.save_header();
        let mut world = World {
            headers: Default::default(),
            device: Row::default(),
            session: Row::default(),
            first: header.clone(),
            previous: header.clone(),
            saved: header,
            anchor: BTreeMap::new(),
            secret: FIRST,
            leaked_is_removed: false,
            is_revoked: false,
            ended_at: [0; 2],
            leaked_is_back: false,
        };
        self.read_into(&mut world).await;
        (world.device.before, world.session.before) = (world.device.now.clone(), world.session.now.clone());
        world
    }

    async fn read_into(&self, world: &mut World) {
        let read = |c: &rusqlite::Connection| {
            let one = |sql: &'static str, address: &str| {
                c.first(sql, rusqlite::params_from_iter((!address.is_empty()).then_some(address)), |row| {
                    row.get::<_, Vec<u8>>(0)
                })
            };
            const HEADER: &str = "/* test */ SELECT record FROM sender_keys WHERE address = ?1";
            Ok([
                one(HEADER, HeaderCopy::A.address())?,
                one(HEADER, HeaderCopy::B.address())?,
                one("/* test */ SELECT edge_routing_info FROM devices", "")?,
                one("/* test */ SELECT record FROM sessions", "")?,
            ])
        };
        let [a, b, device, session] = self.store.database.read(read).await.unwrap().map(Option::unwrap);
        (world.headers, world.device.now, world.session.now) = ([a, b], device, session);
        if let Some(anchor) = &self.anchor {
            world.anchor = anchor.0.lock().unwrap().clone();
        }
    }

    async fn write(&self, world: &World) {
        let values = [&world.headers[0], &world.headers[1], &world.device.now, &world.session.now].map(Clone::clone);
        let write = move |c: &rusqlite::Connection| {
            let [a, b, device, session] = &values;
            const HEADER: &str = "/* test */ UPDATE sender_keys SET record = ?1 WHERE address = ?2";
            c.run(HEADER, (a, HeaderCopy::A.address()))?;
            c.run(HEADER, (b, HeaderCopy::B.address()))?;
            c.run("/* test */ UPDATE devices SET edge_routing_info = ?1", (device,))?;
            c.run("/* test */ UPDATE sessions SET record = ?1", (session,)).map(drop)
        };
        self.store.database.write(WritePlan::RELAXED.transaction(), write).await.unwrap();
        if let Some(anchor) = &self.anchor {
            *anchor.0.lock().unwrap() = world.anchor.clone();
        }
    }

    /// Whether a secret reads the device, and the session.
    async fn reads(&self, secret: u8) -> [bool; 2] {
        let Ok(vault) = self.options().mode(OpenMode::ReadOnly).open(self.backend(), key(secret)).await else {
            return [false; 2];
        };
        let layered = vault.layer().layer(self.backend());
        let session = layered.get_session(ADDRESS).await.is_ok_and(|found| found.is_some());
        [layered.load().await.is_ok_and(|found| found.is_some()), session]
    }

    async fn open(&self, world: &World) -> crate::Result<Vault> {
        self.options().open(self.backend(), key(world.secret)).await
    }

    /// Takes a step in the store. Returns how many rows it reported as left behind.
    async fn run(&self, world: &World, step: Step) -> crate::Result<u64> {
        let rotate = async |rotate: Rotate| {
            let vault = self.open(world).await?;
            rotate.run(&self.store, &vault).await.map(|report| report.left_behind())
        };
        match step {
            Step::Open => self.open(world).await.map(|_| 0),
            Step::WriteSession => {
                let layered = self.open(world).await?.layer().layer(self.backend());
                Ok(layered.put_session(ADDRESS, b"a session").await.map(|()| 0)?)
            }
            Step::WriteDevice => {
                let layered = self.open(world).await?.layer().layer(self.backend());
                Ok(layered.save(&canaries::device()).await.map(|()| 0)?)
            }
            Step::AddLeaked => self.open(world).await?.add_slot("leaked", key(LEAKED)).await.map(|_| 0),
            Step::RemoveLeaked => {
                let vault = self.open(world).await?;
                let slot = vault.slots().into_iter().find(|slot| slot.label == "leaked").map(|slot| slot.id);
                vault.remove_slot(slot.unwrap_or(99)).await.map(|()| 0)
            }
            Step::Rotate => rotate(Rotate::new()).await,
            Step::RotateLeaving => rotate(Rotate::new().leave_damaged()).await,
            Step::DieInRotation => self.open(world).await?.begin_rotation(false).await.map(|_| 0),
            Step::Revoke => {
                let (old, new) = (key(world.secret), key(SECOND));
                Rotate::new().revoke(&self.store, &self.options(), old, new).await.map(|_| 0)
            }
            Step::RestoreFirst | Step::RestoreNewest => {
                let saved = if step == Step::RestoreFirst { &world.first } else { &world.saved };
                restore_account_header(&self.store, &self.options(), saved, key(world.secret)).await.map(|_| 0)
            }
            Step::AcceptRollback => {
                self.options().mode(OpenMode::AcceptRollback).open(self.backend(), key(world.secret)).await.map(|_| 0)
            }
            Step::PutHeaderBack | Step::PutFirstHeaderBack | Step::PutSessionBack | Step::PutDeviceBack => Ok(0),
        }
    }

    /// The world after a step, checked; `None` if the step makes no sense in it.
    async fn after(&self, world: &World, step: Step) -> Option<World> {
        let mut next = world.clone();
        match step {
            Step::PutHeaderBack => next.headers = [world.previous.clone(), world.previous.clone()],
            Step::PutFirstHeaderBack => next.headers = [world.first.clone(), world.first.clone()],
            Step::PutSessionBack => put_back(&mut next.session),
            Step::PutDeviceBack => put_back(&mut next.device),
            Step::Revoke if world.secret != FIRST => return None,
            Step::AcceptRollback if self.anchor.is_none() => return None,
            _ => {}
        }
        self.forget_what_was_put_back_whole(&mut next);
        self.write(&next).await;
        let before = self.reads(world.secret).await;
        let outcome = self.run(world, step).await;
        if outcome.is_ok() && step == Step::Revoke {
            next.secret = SECOND;
        }
        let was = next.clone();
        self.read_into(&mut next).await;
        let after = self.reads(next.secret).await;
        let said = format!("{step:?} over {} gave {outcome:?}: {before:?} became {after:?}", describe(world));

        // Everything that was readable still is.
        assert!(before.iter().zip(after).all(|(before, after)| !before || after), "{said}");
        if outcome.is_ok() && matches!(step, Step::Rotate | Step::Revoke) {
            assert_eq!(after, [true; 2], "{said}");
        }
        if let Ok(left) = outcome {
            let unreadable = after.iter().filter(|readable| !**readable).count() as u64;
            assert!(step != Step::RotateLeaving || left == unreadable, "{said}");
        }

        for (row, old) in [(&mut next.device, &was.device), (&mut next.session, &was.session)] {
            if row.now != old.now {
                (row.before, row.before_since) = (old.now.clone(), old.since);
                row.since = [next.leaked_is_removed, next.is_revoked];
            }
        }
        if outcome.is_ok() {
            match step {
                // The secret may have been added twice.
                Step::RemoveLeaked if slots(&next.headers[0]).all(|label| label != "leaked") => {
                    (next.leaked_is_removed, next.ended_at[0]) = (true, generation(&next.headers[0]));
                    (next.device.since[0], next.session.since[0]) = (false, false);
                }
                Step::AddLeaked => (next.leaked_is_removed, next.leaked_is_back) = (false, true),
                // The owner decides to accept an older state.
                Step::RestoreFirst | Step::RestoreNewest | Step::AcceptRollback => {
                    next.leaked_is_removed = false;
                }
                Step::Revoke => {
                    (next.is_revoked, next.leaked_is_back) = (true, false);
                    next.ended_at[1] = generation(&next.headers[0]);
                    (next.device.since[1], next.session.since[1]) = (true, true);
                }
                _ => {}
            }
            if next.headers != was.headers && matches!(step, Step::RemoveLeaked | Step::Rotate | Step::Revoke) {
                next.previous = was.headers[0].clone();
            }
            // An owner who saves the header as the docs ask, and checks the store first.
            if after == [true; 2] {
                next.saved = next.headers[0].clone();
            }
        }
        self.check_leaks(&next, &said).await;
        Some(next)
    }

    /// Without an anchor, a store that was put back as a whole looks like one that never continued.
    /// The owner's removal of a secret is lost, with everything that was written since.
    fn forget_what_was_put_back_whole(&self, world: &mut World) {
        let is_from_before = |which: usize| {
            generation(&world.headers[0]) < world.ended_at[which]
                && !world.device.since[which]
                && !world.session.since[which]
        };
        if self.anchor.is_none() && is_from_before(0) {
            world.leaked_is_removed = false;
        }
        if self.anchor.is_none() && is_from_before(1) {
            world.is_revoked = false;
        }
    }

    /// A removed or revoked secret reads nothing that was written since, not even with old headers
    /// put back.
    async fn check_leaks(&self, world: &World, said: &str) {
        let sealed_since = |which: usize| [world.device.since[which], world.session.since[which]];
        for headers in
            [world.headers.clone(), [&world.first; 2].map(Clone::clone), [&world.previous; 2].map(Clone::clone)]
        {
            self.write(&World { headers, ..world.clone() }).await;
            if world.leaked_is_removed {
                let leaked = self.reads(LEAKED).await;
                assert!(!leaked.iter().zip(sealed_since(0)).any(|(read, since)| *read && since), "{said}: {leaked:?}");
            }
            if world.is_revoked {
                for secret in [FIRST, LEAKED].into_iter().filter(|secret| *secret == FIRST || !world.leaked_is_back) {
                    let revoked = self.reads(secret).await;
                    let leaks = revoked.iter().zip(sealed_since(1)).any(|(read, since)| *read && since);
                    assert!(!leaks, "{said}: {revoked:?}");
                }
            }
        }
    }
}

fn generation(header: &[u8]) -> u64 {
    u64::from_le_bytes(header[32..40].try_into().unwrap())
}

/// The labels of the slots.
fn slots(header: &[u8]) -> impl Iterator<Item = String> {
    HeaderInfo::parse(header).unwrap().slots.into_iter().map(|slot| slot.label)
}

fn put_back(row: &mut Row) {
    std::mem::swap(&mut row.now, &mut row.before);
    std::mem::swap(&mut row.since, &mut row.before_since);
}

/// A text that distinguishes worlds: numbers by their order only, keys and values by their first
/// appearance.
fn describe(world: &World) -> String {
    let record_generation = |value: &[u8]| u64::from(u32::from_le_bytes(value[10..14].try_into().unwrap()));
    let headers = [&world.headers[0], &world.headers[1], &world.first, &world.previous, &world.saved];
    let rows = [&world.device.now, &world.device.before, &world.session.now, &world.session.before];
    let remembered = world.anchor.values().map(|bytes| u64::from_le_bytes(bytes[..8].try_into().unwrap()));
    let mut numbers: Vec<u64> = headers.iter().map(|header| generation(header)).collect();
    numbers.extend(rows.iter().map(|row| record_generation(row)));
    numbers.extend(remembered.clone());
    numbers.extend(world.ended_at);
    numbers.sort_unstable();
    numbers.dedup();
    let rank = |number: u64| numbers.binary_search(&number).unwrap();
    let mut seen: HashMap<Vec<u8>, usize> = HashMap::new();
    let mut id = |bytes: Vec<u8>| {
        let next = seen.len();
        *seen.entry(bytes).or_insert(next)
    };
    let mut text = String::new();
    for header in headers {
        let info = HeaderInfo::parse(header).unwrap();
        let slots: Vec<_> = slots(header).collect();
        let epochs: Vec<_> = info.epochs.iter().map(|epoch| id(epoch.to_le_bytes().to_vec())).collect();
        text += &format!("{}{slots:?}{epochs:?}{} ", rank(generation(header)), info.rotating);
    }
    for row in rows {
        text += &format!("{}/{} ", rank(record_generation(row)), id(row[6..10].to_vec()));
    }
    text += &format!("{:?} ", world.ended_at.map(rank));
    text += &format!("{:?}{:?}", world.device.since, world.device.before_since);
    text += &format!("{:?}{:?}", world.session.since, world.session.before_since);
    let remembered: Vec<_> = remembered.map(rank).collect();
    text += &format!("{remembered:?} {} {} ", world.secret, world.leaked_is_removed);
    text += &format!("{} {}", world.is_revoked, world.leaked_is_back);
    text
}

async fn explore(anchored: bool, depth: usize) -> (usize, usize) {
    let explorer = Explorer::new(anchored).await;
    let first = explorer.first().await;
    let mut seen = HashSet::from([describe(&first)]);
    let (mut frontier, mut steps) = (vec![first], 0);
    for _ in 0..depth {
        let mut further = vec![];
        for world in &frontier {
            for step in STEPS {
                let Some(next) = explorer.after(world, step).await else { continue };
                steps += 1;
                if seen.insert(describe(&next)) {
                    further.push(next);
                }
            }
        }
        frontier = further;
    }
    (seen.len(), steps)
}

/// No path ends with a success and a lost row, and none lets a removed or revoked secret read later
/// writes.
#[tokio::test]
async fn no_path_through_the_keys_loses_a_row_or_admits_a_secret() {
    let depth = std::env::var("WASTORE_LONG").map_or(3, |_| 4);
    for anchored in [false, true] {
        let (states, steps) = explore(anchored, depth).await;
        println!("{states} states, {steps} steps, {depth} deep, anchor: {anchored}");
        assert!(states > 100, "{states}");
    }
}
