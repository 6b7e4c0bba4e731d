//! Backups and snapshots.

use std::fs;

use wacore::store::traits::{DeviceStore, SignalStore};

use super::*;
use crate::testing::canaries;

#[tokio::test]
async fn backups_hold_everything_and_open() {
    let scratch = Scratch::new().await;
    canaries::fill(&scratch.store).await;
    scratch.store.account(2).put_session("second", b"x").await.unwrap();
    let target = scratch.path.with_file_name("it's a backup.db");
    scratch.store.backup(&target).await.unwrap();
    let copy = config().open(&target).await.unwrap();
    assert_eq!(copy.get_session(canaries::SESSION_ADDRESS).await.unwrap().unwrap(), canaries::SESSION);
    assert!(copy.account(2).has_session("second").await.unwrap());
    assert_eq!(copy.integrity_check().await.unwrap(), [] as [String; 0]);
    // The copy is an independent store.
    copy.put_session("only here", b"x").await.unwrap();
    assert!(!scratch.store.has_session("only here").await.unwrap());
    // A backup never replaces an existing file.
    let error = scratch.store.backup(&target).await.unwrap_err();
    assert!(matches!(&error, Error::TargetExists { path } if *path == target), "{error:?}");
    assert!(copy.has_session("only here").await.unwrap());
    assert!(scratch.store.backup(scratch.path.with_file_name("no folder").join("x")).await.is_err());
    assert_eq!(names(&scratch).iter().filter(|name| name.contains("partial")).count(), 0);

    let memory = SqliteStore::in_memory().await.unwrap();
    let error = memory.backup(scratch.path.with_file_name("memory.db")).await.unwrap_err();
    assert!(matches!(error, Error::InvalidInput { .. }), "{error:?}");
    assert!(memory.snapshot_db("name", None).await.is_err());
}

#[tokio::test]
async fn backups_while_writing_are_of_one_moment() {
    let scratch = Scratch::with(config().durability(Durability::Process)).await;
    let store = scratch.store.clone();
    let pair = |number: u32| {
        ["left", "right"].map(|side| (Arc::from(side), bytes::Bytes::copy_from_slice(&number.to_le_bytes()))).to_vec()
    };
    store.put_sessions_batch(&pair(0)).await.unwrap();
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let writer = tokio::spawn({
        let (stop, store) = (stop.clone(), store.clone());
        async move {
            let mut number = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                number += 1;
                store.put_sessions_batch(&pair(number)).await.unwrap();
                tokio::task::yield_now().await;
            }
            number
        }
    });
    let mut copies = Vec::new();
    for number in 0..10 {
        let target = scratch.path.with_file_name(format!("copy {number}.db"));
        store.backup(&target).await.unwrap();
        copies.push(target);
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    assert!(writer.await.unwrap() > 0);
    let mut before = None;
    for copy in copies {
        let copy = config().open(&copy).await.unwrap();
        let left = copy.get_session("left").await.unwrap().unwrap();
        assert_eq!(Some(&left), copy.get_session("right").await.unwrap().as_ref());
        let number = u32::from_le_bytes(left[..].try_into().unwrap());
        assert!(Some(number) >= before);
        before = Some(number);
    }
}

#[tokio::test]
async fn snapshots_have_tame_names_and_are_private() {
    let scratch = Scratch::new().await;
    scratch.store.put_session("a", b"x").await.unwrap();
    let wild = format!("../../etc/\0pass wd%{}", "é".repeat(100));
    scratch.store.snapshot_db(&wild, Some(b"the stanza")).await.unwrap();
    scratch.store.snapshot_db("", None).await.unwrap();
    let snapshots: Vec<_> = names(&scratch).into_iter().filter(|name| name.contains("snapshot")).collect();
    assert_eq!(snapshots.len(), 3, "{snapshots:?}");
    for name in &snapshots {
        assert!(name.starts_with("wa.db.snapshot-") && name.len() < 120, "{name}");
        assert!(name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)), "{name}");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = fs::metadata(scratch.path.with_file_name(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
    }
    let extra = snapshots.iter().find(|name| name.ends_with(".extra")).unwrap();
    assert_eq!(fs::read(scratch.path.with_file_name(extra)).unwrap(), b"the stanza");
    let copy = snapshots.iter().find(|name| **name == extra.trim_end_matches(".extra")).unwrap();
    assert!(config().open(scratch.path.with_file_name(copy)).await.unwrap().has_session("a").await.unwrap());
}

#[tokio::test]
async fn old_snapshots_are_deleted_and_nothing_else() {
    let keep = |count| std::num::NonZeroUsize::new(count).unwrap();
    let scratch = Scratch::with(config().snapshots_kept(keep(3))).await;
    for number in 0..5u8 {
        scratch.store.snapshot_db(&format!("reason {number}"), Some(&[number])).await.unwrap();
    }
    let others = [
        "wa.db.snapshot-x-y",
        "wa.db.snapshot-1-a.b",
        "other.db.snapshot-1-a",
        "wa.db.snapshot-1",
        "wa.db.snapshot-1-a.extra2",
    ];
    for other in others {
        fs::write(scratch.path.with_file_name(other), "another's").unwrap();
    }
    let ours = || {
        let mut names: Vec<_> = names(&scratch).into_iter().filter(|name| name.contains("-reason_")).collect();
        names.sort();
        names
    };
    let kept = ours();
    assert_eq!(kept.len(), 6, "{kept:?}");
    assert!(kept[0].ends_with("-reason_2") && kept[1].ends_with("-reason_2.extra"), "{kept:?}");
    assert_eq!(scratch.store.prune_snapshots(keep(3)).await.unwrap(), [] as [PathBuf; 0]);
    assert_eq!(scratch.store.prune_snapshots(keep(1)).await.unwrap().len(), 4);
    assert!(ours()[0].ends_with("-reason_4"));
    for other in others {
        assert!(scratch.path.with_file_name(other).exists(), "{other}");
    }
}

#[tokio::test]
async fn checkpoints_empty_the_log_and_shrinking_the_file() {
    let scratch = Scratch::new().await;
    let log = PathBuf::from(format!("{}-wal", scratch.path.display()));
    let size = |path: &Path| fs::metadata(path).unwrap().len();
    let rows: Vec<_> = (0..2000).map(|number| (address(number), vec![7; 1500].into())).collect();
    scratch.store.put_sessions_batch(&rows).await.unwrap();
    assert!(size(&log) > 1 << 20);
    scratch.store.checkpoint().await.unwrap();
    assert_eq!(size(&log), 0);
    let full = size(&scratch.path);
    assert!(full > 3 << 20);

    scratch.store.delete_account().await.unwrap();
    let left = scratch.store.shrink(Some(100)).await.unwrap();
    assert!(left > 200, "{left}");
    assert_eq!(scratch.store.shrink(Some(0)).await.unwrap(), left);
    assert_eq!(scratch.store.shrink(None).await.unwrap(), 0);
    scratch.store.checkpoint().await.unwrap();
    assert!(size(&scratch.path) < full / 10);
    assert_eq!(scratch.store.integrity_check().await.unwrap(), [] as [String; 0]);
}

/// Under steady load the log starts over now and then, instead of growing for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_does_not_grow_for_ever() {
    let scratch = Scratch::with(config().durability(Durability::Process)).await;
    let log = PathBuf::from(format!("{}-wal", scratch.path.display()));
    let writers = (0..4usize).map(|task| {
        let store = scratch.store.clone();
        tokio::spawn(async move {
            for round in 0..150usize {
                let row = |number| (address(task * 1000 + number), vec![round as u8; 1500].into());
                let rows: Vec<_> = (0..200).map(row).collect();
                store.put_sessions_batch(&rows).await.unwrap();
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    // 180 MB of sessions were written, and even more pages.
    let size = fs::metadata(log).unwrap().len();
    assert!(size < 100 << 20, "{size}");
}

/// Deleted or replaced values are overwritten, not only marked as free.
#[tokio::test]
async fn deleted_records_leave_no_traces_in_the_file() {
    let scratch = Scratch::new().await;
    let canary = canaries::secret(1).repeat(20);
    scratch.store.put_session("deleted", &canary).await.unwrap();
    scratch.store.put_session("replaced", &canary).await.unwrap();
    scratch.store.checkpoint().await.unwrap();
    let found = || memchr::memmem::find(&fs::read(&scratch.path).unwrap(), &canaries::secret(1)).is_some();
    assert!(found());
    scratch.store.delete_session("deleted").await.unwrap();
    scratch.store.put_session("replaced", b"short").await.unwrap();
    scratch.store.checkpoint().await.unwrap();
    assert!(!found());
}

fn names(scratch: &Scratch) -> Vec<String> {
    fs::read_dir(scratch.path.parent().unwrap())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect()
}
