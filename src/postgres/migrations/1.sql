-- Every name that a client chooses is `bytea`: `text` has no NUL, and `bytea` compares by
-- bytes. Every key begins with the account.

CREATE TABLE IF NOT EXISTS @.identities (account integer NOT NULL, address bytea NOT NULL, key bytea NOT NULL,
    PRIMARY KEY (account, address));
CREATE TABLE IF NOT EXISTS @.sessions (account integer NOT NULL, address bytea NOT NULL, record bytea NOT NULL,
    PRIMARY KEY (account, address));
CREATE TABLE IF NOT EXISTS @.prekeys (account integer NOT NULL, id bigint NOT NULL, record bytea NOT NULL,
    uploaded boolean NOT NULL, PRIMARY KEY (account, id));
CREATE TABLE IF NOT EXISTS @.signed_prekeys (account integer NOT NULL, id bigint NOT NULL, record bytea NOT NULL,
    PRIMARY KEY (account, id));
CREATE TABLE IF NOT EXISTS @.sender_keys (account integer NOT NULL, address bytea NOT NULL, record bytea NOT NULL,
    PRIMARY KEY (account, address));
CREATE TABLE IF NOT EXISTS @.sync_keys (account integer NOT NULL, key_id bytea NOT NULL, key_data bytea NOT NULL,
    fingerprint bytea NOT NULL, timestamp bigint NOT NULL, PRIMARY KEY (account, key_id));
CREATE TABLE IF NOT EXISTS @.collection_versions (account integer NOT NULL, name bytea NOT NULL, version bigint NOT NULL,
    hash bytea NOT NULL, index_value_map bytea NOT NULL, mac_mismatch_fatal boolean NOT NULL,
    PRIMARY KEY (account, name));
CREATE TABLE IF NOT EXISTS @.mutation_macs (account integer NOT NULL, name bytea NOT NULL, index_mac bytea NOT NULL,
    value_mac bytea NOT NULL, version bigint NOT NULL, PRIMARY KEY (account, name, index_mac));
CREATE TABLE IF NOT EXISTS @.sender_key_devices (account integer NOT NULL, group_jid bytea NOT NULL,
    device_jid bytea NOT NULL, has_key boolean NOT NULL, PRIMARY KEY (account, group_jid, device_jid));
CREATE INDEX IF NOT EXISTS sender_key_devices_device ON @.sender_key_devices (account, device_jid);
-- `put_order` decides between mappings of the same time: the one put last wins.
CREATE TABLE IF NOT EXISTS @.lid_mappings (account integer NOT NULL, lid bytea NOT NULL, phone_number bytea NOT NULL,
    created_at bigint NOT NULL, updated_at bigint NOT NULL, learning_source bytea NOT NULL, put_order bigint NOT NULL,
    PRIMARY KEY (account, lid));
CREATE INDEX IF NOT EXISTS lid_mappings_phone_number
    ON @.lid_mappings (account, phone_number, updated_at, put_order);
CREATE TABLE IF NOT EXISTS @.base_keys (account integer NOT NULL, address bytea NOT NULL, message_id bytea NOT NULL,
    base_key bytea NOT NULL, created_at bigint NOT NULL, PRIMARY KEY (account, address, message_id));
CREATE INDEX IF NOT EXISTS base_keys_created_at ON @.base_keys (account, created_at);
CREATE TABLE IF NOT EXISTS @.device_lists (account integer NOT NULL, user_id bytea NOT NULL, devices bytea NOT NULL,
    timestamp bigint NOT NULL, phash bytea, raw_id bigint, PRIMARY KEY (account, user_id));
CREATE TABLE IF NOT EXISTS @.group_metadata (account integer NOT NULL, group_jid bytea NOT NULL, info bytea NOT NULL,
    PRIMARY KEY (account, group_jid));
-- No index for the sweep: it runs once per connect, and an index would cost every token that is stored.
CREATE TABLE IF NOT EXISTS @.tc_tokens (account integer NOT NULL, jid bytea NOT NULL, token bytea NOT NULL,
    token_timestamp bigint NOT NULL, sender_timestamp bigint, PRIMARY KEY (account, jid));
CREATE TABLE IF NOT EXISTS @.sent_messages (account integer NOT NULL, chat_jid bytea NOT NULL,
    message_id bytea NOT NULL, payload bytea NOT NULL, created_at bigint NOT NULL,
    PRIMARY KEY (account, chat_jid, message_id));
CREATE INDEX IF NOT EXISTS sent_messages_created_at ON @.sent_messages (account, created_at);
CREATE TABLE IF NOT EXISTS @.pending_inbound (account integer NOT NULL, chat bytea NOT NULL, sender bytea NOT NULL,
    id bytea NOT NULL, message bytea NOT NULL, inserted_at bigint NOT NULL, PRIMARY KEY (account, chat, sender, id));
CREATE INDEX IF NOT EXISTS pending_inbound_inserted_at ON @.pending_inbound (account, inserted_at);
CREATE TABLE IF NOT EXISTS @.message_secrets (account integer NOT NULL, chat bytea NOT NULL, sender bytea NOT NULL,
    msg_id bytea NOT NULL, secret bytea NOT NULL, expires_at bigint NOT NULL, message_ts bigint NOT NULL,
    PRIMARY KEY (account, chat, sender, msg_id));
CREATE INDEX IF NOT EXISTS message_secrets_expires_at ON @.message_secrets (account, expires_at)
    WHERE expires_at <> 0;
CREATE TABLE IF NOT EXISTS @.devices (account integer PRIMARY KEY, record bytea NOT NULL, edge_routing_info bytea);

-- Who may write an account. The second key is not for looking up: it makes a change of the epoch wait for writes that
-- hold `FOR KEY SHARE`.
CREATE TABLE IF NOT EXISTS @.leases (account integer PRIMARY KEY, epoch bigint NOT NULL, holder bytea NOT NULL,
    name bytea NOT NULL, renewed_at timestamptz NOT NULL, expires_at timestamptz NOT NULL, UNIQUE (account, epoch));
