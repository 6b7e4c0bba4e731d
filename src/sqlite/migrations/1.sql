-- Rows of 1.5 KB make WITHOUT ROWID tables several times slower, so they are for small rows only. Every key begins with
-- the account, so that one index answers lookups, prefix queries and listings of one account.

CREATE TABLE identities (
    account INTEGER NOT NULL,
    address TEXT NOT NULL,
    key BLOB NOT NULL
) STRICT;
CREATE UNIQUE INDEX identities_key ON identities (account, address);

CREATE TABLE sessions (
    account INTEGER NOT NULL,
    address TEXT NOT NULL,
    record BLOB NOT NULL
) STRICT;
CREATE UNIQUE INDEX sessions_key ON sessions (account, address);

CREATE TABLE prekeys (
    account INTEGER NOT NULL,
    id INTEGER NOT NULL,
    record BLOB NOT NULL,
    uploaded INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX prekeys_key ON prekeys (account, id);

CREATE TABLE signed_prekeys (
    account INTEGER NOT NULL,
    id INTEGER NOT NULL,
    record BLOB NOT NULL
) STRICT;
CREATE UNIQUE INDEX signed_prekeys_key ON signed_prekeys (account, id);

CREATE TABLE sender_keys (
    account INTEGER NOT NULL,
    address TEXT NOT NULL,
    record BLOB NOT NULL
) STRICT;
CREATE UNIQUE INDEX sender_keys_key ON sender_keys (account, address);

CREATE TABLE sync_keys (
    account INTEGER NOT NULL,
    key_id BLOB NOT NULL,
    key_data BLOB NOT NULL,
    fingerprint BLOB NOT NULL,
    timestamp INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX sync_keys_key ON sync_keys (account, key_id);

CREATE TABLE collection_versions (
    account INTEGER NOT NULL,
    name TEXT NOT NULL,
    version INTEGER NOT NULL,
    hash BLOB NOT NULL,
    index_value_map BLOB NOT NULL,
    mac_mismatch_fatal INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX collection_versions_key ON collection_versions (account, name);

CREATE TABLE mutation_macs (
    account INTEGER NOT NULL,
    name TEXT NOT NULL,
    index_mac BLOB NOT NULL,
    value_mac BLOB NOT NULL,
    version INTEGER NOT NULL,
    PRIMARY KEY (account, name, index_mac)
) STRICT, WITHOUT ROWID;

CREATE TABLE sender_key_devices (
    account INTEGER NOT NULL,
    group_jid TEXT NOT NULL,
    device_jid TEXT NOT NULL,
    has_key INTEGER NOT NULL,
    PRIMARY KEY (account, group_jid, device_jid)
) STRICT, WITHOUT ROWID;
CREATE INDEX sender_key_devices_device ON sender_key_devices (account, device_jid);

CREATE TABLE lid_mappings (
    account INTEGER NOT NULL,
    lid TEXT NOT NULL,
    phone_number TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    learning_source TEXT NOT NULL
) STRICT;
CREATE UNIQUE INDEX lid_mappings_key ON lid_mappings (account, lid);
CREATE INDEX lid_mappings_phone_number ON lid_mappings (account, phone_number, updated_at);

CREATE TABLE base_keys (
    account INTEGER NOT NULL,
    address TEXT NOT NULL,
    message_id TEXT NOT NULL,
    base_key BLOB NOT NULL,
    created_at INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX base_keys_key ON base_keys (account, address, message_id);
CREATE INDEX base_keys_created_at ON base_keys (account, created_at);

CREATE TABLE device_lists (
    account INTEGER NOT NULL,
    user TEXT NOT NULL,
    devices TEXT NOT NULL,
    timestamp INTEGER NOT NULL,
    phash TEXT,
    raw_id INTEGER
) STRICT;
CREATE UNIQUE INDEX device_lists_key ON device_lists (account, user);

CREATE TABLE group_metadata (
    account INTEGER NOT NULL,
    group_jid TEXT NOT NULL,
    info BLOB NOT NULL
) STRICT;
CREATE UNIQUE INDEX group_metadata_key ON group_metadata (account, group_jid);

CREATE TABLE tc_tokens (
    account INTEGER NOT NULL,
    jid TEXT NOT NULL,
    token BLOB NOT NULL,
    token_timestamp INTEGER NOT NULL,
    sender_timestamp INTEGER
) STRICT;
CREATE UNIQUE INDEX tc_tokens_key ON tc_tokens (account, jid);
-- The sweep's predicate: an empty token counts as expired whatever its time.
CREATE INDEX tc_tokens_expiry ON tc_tokens (account, iif(length(token) = 0, NULL, token_timestamp), sender_timestamp);

CREATE TABLE sent_messages (
    account INTEGER NOT NULL,
    chat_jid TEXT NOT NULL,
    message_id TEXT NOT NULL,
    payload BLOB NOT NULL,
    created_at INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX sent_messages_key ON sent_messages (account, chat_jid, message_id);
CREATE INDEX sent_messages_created_at ON sent_messages (account, created_at);

CREATE TABLE pending_inbound (
    account INTEGER NOT NULL,
    chat TEXT NOT NULL,
    sender TEXT NOT NULL,
    id TEXT NOT NULL,
    message BLOB NOT NULL,
    inserted_at INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX pending_inbound_key ON pending_inbound (account, chat, sender, id);
CREATE INDEX pending_inbound_inserted_at ON pending_inbound (account, inserted_at);

CREATE TABLE message_secrets (
    account INTEGER NOT NULL,
    chat TEXT NOT NULL,
    sender TEXT NOT NULL,
    msg_id TEXT NOT NULL,
    secret BLOB NOT NULL,
    expires_at INTEGER NOT NULL,
    message_ts INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX message_secrets_key ON message_secrets (account, chat, sender, msg_id);
CREATE INDEX message_secrets_expires_at ON message_secrets (account, expires_at) WHERE expires_at != 0;

CREATE TABLE devices (
    account INTEGER PRIMARY KEY,
    record BLOB NOT NULL,
    edge_routing_info BLOB
) STRICT;
