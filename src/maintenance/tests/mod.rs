//! Maintenance over an engine that is not SQLite.
