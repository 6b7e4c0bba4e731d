//! The findings of fuzzing, and the inputs that it began with.

use std::path::Path;

use crate::encrypt::fuzz;

type Target = (&'static str, fn(&[u8]));

#[test]
fn the_corpora_of_the_fuzz_targets() {
    let targets: [Target; 4] = [
        ("header", |data| {
            fuzz::header(data);
            fuzz::header(&fuzz::with_checksum(data));
        }),
        ("envelope", fuzz::envelope),
        ("names", fuzz::names),
        ("carriers", fuzz::carriers),
    ];
    for (name, run) in targets {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
        let mut files = 0;
        for entry in std::fs::read_dir(folder).unwrap() {
            let content = std::fs::read(entry.unwrap().path()).unwrap();
            // And all variants with one altered byte.
            run(&content);
            for at in 0..content.len() {
                let mut altered = content.clone();
                altered[at] ^= 1 << (at % 8);
                run(&altered);
                run(&altered[..at]);
            }
            files += 1;
        }
        assert!(files > 1, "{name}");
    }
}
