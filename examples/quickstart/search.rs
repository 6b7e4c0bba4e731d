//! The search of the files for everything that they must not contain.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::Result;

/// By kind: the number of searched values, and the number of values found.
pub(crate) type Report = BTreeMap<&'static str, (usize, usize)>;

/// Everything to search for, by kind.
#[derive(Default)]
pub(crate) struct Secrets(Vec<(&'static str, Vec<u8>)>);

impl Secrets {
    pub(crate) fn add(&mut self, kind: &'static str, secret: &[u8]) {
        if !secret.is_empty() && !self.0.iter().any(|(known, bytes)| (*known, &bytes[..]) == (kind, secret)) {
            self.0.push((kind, secret.to_vec()));
        }
    }

    /// Searches the raw bytes of every file in the folder: databases, WAL and SHM.
    pub(crate) fn search(&self, folder: &Path) -> Result<Report> {
        let mut files: Vec<PathBuf> = Vec::new();
        for entry in std::fs::read_dir(folder)? {
            files.push(entry?.path());
        }
        files.sort();
        let mut contents = Vec::new();
        for file in &files {
            let content = std::fs::read(file)?;
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            println!("searching {:>8} bytes of {name}", content.len());
            contents.push(content);
        }
        let mut report = Report::new();
        for (kind, secret) in &self.0 {
            // As raw bytes and as JSON, because the store keeps the device as JSON.
            let json = secret.iter().map(u8::to_string).collect::<Vec<_>>().join(",");
            let found = contents.iter().any(|content| {
                memchr::memmem::find(content, secret).is_some()
                    || memchr::memmem::find(content, json.as_bytes()).is_some()
            });
            let (count, findings) = report.entry(kind).or_default();
            *count += 1;
            *findings += usize::from(found);
        }
        Ok(report)
    }
}
