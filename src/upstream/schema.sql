-- The schema of `whatsapp-rust-sqlite-storage` 0.7.0 after all of its migrations, as SQLite gives it back. A test compares it
-- with that of a database that upstream's own code made.

CREATE TABLE __diesel_schema_migrations (
       version VARCHAR(50) PRIMARY KEY NOT NULL,
       run_on TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP
);

CREATE TABLE "device" (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    lid TEXT NOT NULL,
    pn TEXT NOT NULL,
    registration_id INTEGER NOT NULL,
    noise_key BLOB NOT NULL,
    identity_key BLOB NOT NULL,
    signed_pre_key BLOB NOT NULL,
    signed_pre_key_id INTEGER NOT NULL,
    signed_pre_key_signature BLOB NOT NULL,
    adv_secret_key BLOB NOT NULL,
    account BLOB,
    push_name TEXT NOT NULL DEFAULT '',
    app_version_primary INTEGER NOT NULL DEFAULT 0,
    app_version_secondary INTEGER NOT NULL DEFAULT 0,
    app_version_tertiary BIGINT NOT NULL DEFAULT 0,
    app_version_last_fetched_ms BIGINT NOT NULL DEFAULT 0
, edge_routing_info BLOB, props_hash TEXT, next_pre_key_id INTEGER NOT NULL DEFAULT 0, nct_salt BLOB, server_has_prekeys BOOLEAN NOT NULL DEFAULT 0, server_cert_chain BLOB NULL, login_counter INTEGER NOT NULL DEFAULT 0, first_unupload_pre_key_id INTEGER NOT NULL DEFAULT 0, lid_migrated BOOLEAN NOT NULL DEFAULT 0, last_signed_pre_key_rotation_ms BIGINT NOT NULL DEFAULT 0, read_receipts_disabled BOOLEAN NOT NULL DEFAULT 0);

CREATE TABLE "identities" (
    address TEXT NOT NULL,
    key BLOB NOT NULL,
    device_id INTEGER NOT NULL DEFAULT 1,
    PRIMARY KEY (address, device_id)
);

CREATE INDEX idx_identities_device_id ON identities (device_id);

CREATE TABLE "sessions" (
    address TEXT NOT NULL,
    record BLOB NOT NULL,
    device_id INTEGER NOT NULL DEFAULT 1,
    PRIMARY KEY (address, device_id)
);

CREATE INDEX idx_sessions_device_id ON sessions (device_id);

CREATE TABLE "prekeys" (
    id INTEGER NOT NULL,
    key BLOB NOT NULL,
    uploaded BOOLEAN NOT NULL DEFAULT FALSE,
    device_id INTEGER NOT NULL DEFAULT 1,
    PRIMARY KEY (id, device_id)
);

CREATE INDEX idx_prekeys_device_id ON prekeys (device_id);

CREATE TABLE "sender_keys" (
    address TEXT NOT NULL,
    record BLOB NOT NULL,
    device_id INTEGER NOT NULL DEFAULT 1,
    PRIMARY KEY (address, device_id)
);

CREATE INDEX idx_sender_keys_device_id ON sender_keys (device_id);

CREATE TABLE "signed_prekeys" (
    id INTEGER NOT NULL,
    record BLOB NOT NULL,
    device_id INTEGER NOT NULL DEFAULT 1,
    PRIMARY KEY (id, device_id)
);

CREATE INDEX idx_signed_prekeys_device_id ON signed_prekeys (device_id);

CREATE TABLE "app_state_keys" (
    key_id BLOB NOT NULL,
    key_data BLOB NOT NULL,
    device_id INTEGER NOT NULL DEFAULT 1,
    PRIMARY KEY (key_id, device_id)
);

CREATE INDEX idx_app_state_keys_device_id ON app_state_keys (device_id);

CREATE TABLE "app_state_versions" (
    name TEXT NOT NULL,
    state_data BLOB NOT NULL,
    device_id INTEGER NOT NULL DEFAULT 1,
    PRIMARY KEY (name, device_id)
);

CREATE INDEX idx_app_state_versions_device_id ON app_state_versions (device_id);

CREATE TABLE "app_state_mutation_macs" (
    name TEXT NOT NULL,
    version BIGINT NOT NULL,
    index_mac BLOB NOT NULL,
    value_mac BLOB NOT NULL,
    device_id INTEGER NOT NULL DEFAULT 1,
    PRIMARY KEY (name, index_mac, device_id)
);

CREATE INDEX idx_app_state_mutation_macs_device_id ON app_state_mutation_macs (device_id);

CREATE TABLE lid_pn_mapping (
    lid TEXT NOT NULL,                      -- LID user part (e.g., "100000012345678")
    phone_number TEXT NOT NULL,             -- Phone number user part (e.g., "559980000001")
    created_at BIGINT NOT NULL,            -- Unix timestamp when mapping was first learned
    learning_source TEXT NOT NULL,          -- Source of the mapping (usync, peer_pn_message, etc.)
    updated_at BIGINT NOT NULL,            -- Unix timestamp of last update
    device_id INTEGER NOT NULL,             -- Device ID for multi-account support
    PRIMARY KEY (lid, device_id),
    FOREIGN KEY(device_id) REFERENCES device(id) ON DELETE CASCADE
);

CREATE INDEX idx_lid_pn_mapping_phone ON lid_pn_mapping(phone_number, device_id);

CREATE TABLE base_keys (
    address TEXT NOT NULL,
    message_id TEXT NOT NULL,
    base_key BLOB NOT NULL,
    device_id INTEGER NOT NULL DEFAULT 1,
    created_at INTEGER NOT NULL DEFAULT (strftime('%s', 'now')),
    PRIMARY KEY (address, message_id, device_id)
);

CREATE INDEX idx_base_keys_device ON base_keys (device_id);

CREATE TABLE device_registry (
    user_id TEXT NOT NULL,
    devices_json TEXT NOT NULL,
    timestamp INTEGER NOT NULL,
    phash TEXT,
    device_id INTEGER NOT NULL DEFAULT 1,
    updated_at INTEGER NOT NULL DEFAULT (strftime('%s', 'now')), raw_id INTEGER,
    PRIMARY KEY (user_id, device_id)
);

CREATE INDEX idx_device_registry_timestamp ON device_registry (timestamp);

CREATE INDEX idx_device_registry_device ON device_registry (device_id);

CREATE INDEX idx_device_registry_updated_at ON device_registry (updated_at);

CREATE TABLE tc_tokens (
    jid TEXT NOT NULL,
    token BLOB NOT NULL,
    token_timestamp INTEGER NOT NULL,
    sender_timestamp INTEGER,
    device_id INTEGER NOT NULL DEFAULT 1,
    updated_at INTEGER NOT NULL DEFAULT (strftime('%s', 'now')),
    PRIMARY KEY (jid, device_id)
);

CREATE INDEX idx_tc_tokens_timestamp ON tc_tokens (token_timestamp, device_id);

CREATE TABLE sent_messages (
    chat_jid TEXT NOT NULL,
    message_id TEXT NOT NULL,
    payload BLOB NOT NULL,
    device_id INTEGER NOT NULL DEFAULT 1,
    created_at INTEGER NOT NULL DEFAULT (strftime('%s', 'now')),
    PRIMARY KEY (chat_jid, message_id, device_id)
);

CREATE INDEX idx_sent_messages_created ON sent_messages (created_at, device_id);

CREATE TABLE sender_key_devices (
    group_jid  TEXT    NOT NULL,
    device_jid TEXT    NOT NULL,
    has_key    INTEGER NOT NULL DEFAULT 0,
    device_id  INTEGER NOT NULL DEFAULT 1,
    updated_at INTEGER NOT NULL DEFAULT (strftime('%s', 'now')),
    PRIMARY KEY (group_jid, device_jid, device_id)
);

CREATE INDEX idx_sender_key_devices_group ON sender_key_devices (group_jid, device_id);

CREATE TABLE msg_secrets (
    chat TEXT NOT NULL,
    sender TEXT NOT NULL,
    msg_id TEXT NOT NULL,
    secret BLOB NOT NULL,
    device_id INTEGER NOT NULL DEFAULT 1,
    created_at INTEGER NOT NULL DEFAULT (strftime('%s', 'now')), expires_at INTEGER NOT NULL DEFAULT 0, message_ts INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (chat, sender, msg_id, device_id)
);

CREATE INDEX idx_msg_secrets_expires ON msg_secrets (device_id, expires_at);

CREATE TABLE group_metadata (
    group_jid TEXT NOT NULL,
    info BLOB NOT NULL,
    device_id INTEGER NOT NULL DEFAULT 1,
    updated_at INTEGER NOT NULL DEFAULT (strftime('%s', 'now')),
    PRIMARY KEY (group_jid, device_id)
);

CREATE TABLE pending_inbound_messages (
    chat TEXT NOT NULL,
    sender TEXT NOT NULL,
    id TEXT NOT NULL,
    message BLOB NOT NULL,
    device_id INTEGER NOT NULL DEFAULT 1,
    inserted_at INTEGER NOT NULL DEFAULT (strftime('%s', 'now')),
    PRIMARY KEY (chat, sender, id, device_id)
);

CREATE INDEX idx_pending_inbound_inserted ON pending_inbound_messages (device_id, inserted_at);
