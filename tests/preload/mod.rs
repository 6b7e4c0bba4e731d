//! Libraries that a test preloads between its child process and the C library.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Compiles `tests/preload/<name>.c` into a library in `folder`, for `LD_PRELOAD`.
pub(crate) fn compile(name: &str, folder: &Path) -> PathBuf {
    let library = folder.join(format!("{name}.so"));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/preload").join(format!("{name}.c"));
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(source).arg("-ldl");
    let compiled = compiler.output().expect("`cc` is needed, as it is for the bundled SQLite");
    assert!(compiled.status.success(), "cc: {}", String::from_utf8_lossy(&compiled.stderr));
    library
}
