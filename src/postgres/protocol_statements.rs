//! The statements of `protocol.rs`.

use super::statement::Column::{Bytes as Blob, Flag, Long};
use super::statement::{Fold, Kind, Statement, change, upsert};
use crate::method::Record;

pub(super) static GET_SENDER_KEY_DEVICES: Statement = Statement::read(
    Record::SenderKeyDevice,
    &[Blob],
    "SELECT device_jid, has_key FROM @.sender_key_devices WHERE account = $1 AND group_jid = $2",
);
pub(super) static SET_SENDER_KEY_STATUS: Statement = Statement::upsert(
    Record::SenderKeyDevice,
    2,
    &[Blob, Blob, Flag],
    upsert!(
        "INSERT INTO @.sender_key_devices (account, group_jid, device_jid, has_key)
        SELECT $1, r.* FROM fence, unnest($5, $6, $7) AS r ON CONFLICT (account, group_jid, device_jid) DO UPDATE
        SET has_key = excluded.has_key"
    ),
);
pub(super) static CLEAR_SENDER_KEY_DEVICES: Statement = Statement::single(
    Record::SenderKeyDevice,
    &[Blob],
    change!(
        "DELETE FROM @.sender_key_devices WHERE account = $1 AND group_jid = $5 AND EXISTS (SELECT FROM fence)
        RETURNING 1"
    ),
);
pub(super) static DELETE_SENDER_KEY_DEVICES: Statement = Statement::change(
    Record::SenderKeyDevice,
    &[Blob],
    change!(
        "DELETE FROM @.sender_key_devices WHERE account = $1 AND device_jid = ANY($5) AND EXISTS (SELECT FROM fence)
        RETURNING 1"
    ),
);
pub(super) static CLEAR_ALL_SENDER_KEY_DEVICES: Statement = Statement::single(
    Record::SenderKeyDevice,
    &[],
    change!("DELETE FROM @.sender_key_devices WHERE account = $1 AND EXISTS (SELECT FROM fence) RETURNING 1"),
);
pub(super) static GET_LID_MAPPING: Statement = Statement::read(
    Record::LidMapping,
    &[Blob],
    "SELECT lid, phone_number, created_at, updated_at, learning_source FROM @.lid_mappings
    WHERE account = $1 AND lid = $2",
);
pub(super) static GET_PN_MAPPING: Statement = Statement::read(
    Record::LidMapping,
    &[Blob],
    "SELECT lid, phone_number, created_at, updated_at, learning_source FROM @.lid_mappings
    WHERE account = $1 AND phone_number = $2 ORDER BY updated_at DESC, put_order DESC LIMIT 1",
);
pub(super) static PUT_LID_MAPPING: Statement = Statement::upsert(
    Record::LidMapping,
    1,
    &[Blob, Blob, Long, Long, Blob, Long],
    upsert!(
        "INSERT INTO @.lid_mappings
            (account, lid, phone_number, created_at, updated_at, learning_source, put_order)
        SELECT $1, r.* FROM fence, unnest($5, $6, $7, $8, $9, $10) AS r ON CONFLICT (account, lid) DO UPDATE
        SET phone_number = excluded.phone_number, created_at = excluded.created_at, updated_at = excluded.updated_at,
        learning_source = excluded.learning_source, put_order = excluded.put_order"
    ),
);
pub(super) static GET_ALL_LID_MAPPINGS: Statement = Statement::read(
    Record::LidMapping,
    &[],
    "SELECT lid, phone_number, created_at, updated_at, learning_source FROM @.lid_mappings WHERE account = $1",
);
pub(super) static SAVE_BASE_KEY: Statement = Statement::upsert(
    Record::BaseKey,
    2,
    &[Blob, Blob, Blob, Long],
    upsert!(
        "INSERT INTO @.base_keys (account, address, message_id, base_key, created_at)
        SELECT $1, r.* FROM fence, unnest($5, $6, $7, $8) AS r ON CONFLICT (account, address, message_id) DO UPDATE
        SET base_key = excluded.base_key"
    ),
)
.kind(Kind::Upsert(Fold::Never));
pub(super) static RETIRE_BASE_KEYS: Statement = Statement::single(
    Record::BaseKey,
    &[Long],
    change!(
        "DELETE FROM @.base_keys WHERE account = $1 AND created_at < $5 AND created_at <= coalesce(
            (SELECT created_at FROM @.base_keys WHERE account = $1 AND created_at < $5
            ORDER BY created_at OFFSET 999 LIMIT 1), $5)
        AND EXISTS (SELECT FROM fence) RETURNING 1"
    ),
);
pub(super) static HAS_SAME_BASE_KEY: Statement = Statement::read(
    Record::BaseKey,
    &[Blob, Blob, Blob],
    "SELECT base_key = $4 FROM @.base_keys WHERE account = $1 AND address = $2 AND message_id = $3",
);
pub(super) static DELETE_BASE_KEYS: Statement = Statement::change(
    Record::BaseKey,
    &[Blob, Blob],
    change!(
        "DELETE FROM @.base_keys t USING unnest($5, $6) AS r(address, message_id)
        WHERE t.account = $1 AND t.address = r.address AND t.message_id = r.message_id
        AND EXISTS (SELECT FROM fence) RETURNING 1"
    ),
);
pub(super) static UPDATE_DEVICE_LISTS: Statement = Statement::upsert(
    Record::DeviceList,
    1,
    &[Blob, Blob, Long, Blob, Long],
    upsert!(
        "INSERT INTO @.device_lists (account, user_id, devices, timestamp, phash, raw_id)
        SELECT $1, r.* FROM fence, unnest($5, $6, $7, $8, $9) AS r ON CONFLICT (account, user_id) DO UPDATE
        SET devices = excluded.devices, timestamp = excluded.timestamp, phash = excluded.phash,
        raw_id = excluded.raw_id"
    ),
);
pub(super) static GET_DEVICES: Statement = Statement::read(
    Record::DeviceList,
    &[Blob],
    "SELECT user_id, devices, timestamp, phash, raw_id FROM @.device_lists WHERE account = $1 AND user_id = $2",
);
pub(super) static DELETE_DEVICES: Statement = Statement::change(
    Record::DeviceList,
    &[Blob],
    change!(
        "DELETE FROM @.device_lists WHERE account = $1 AND user_id = ANY($5) AND EXISTS (SELECT FROM fence)
        RETURNING 1"
    ),
);
pub(super) static GET_GROUP_METADATA: Statement = Statement::read(
    Record::GroupMetadata,
    &[Blob],
    "SELECT info FROM @.group_metadata WHERE account = $1 AND group_jid = $2",
);
pub(super) static PUT_GROUP_METADATA: Statement = Statement::upsert(
    Record::GroupMetadata,
    1,
    &[Blob, Blob],
    upsert!(
        "INSERT INTO @.group_metadata (account, group_jid, info) SELECT $1, r.* FROM fence, unnest($5, $6) AS r
        ON CONFLICT (account, group_jid) DO UPDATE SET info = excluded.info"
    ),
);
pub(super) static DELETE_GROUP_METADATA: Statement = Statement::change(
    Record::GroupMetadata,
    &[Blob],
    change!(
        "DELETE FROM @.group_metadata WHERE account = $1 AND group_jid = ANY($5) AND EXISTS (SELECT FROM fence)
        RETURNING 1"
    ),
);
pub(super) static GET_TC_TOKEN: Statement = Statement::read(
    Record::TcToken,
    &[Blob],
    "SELECT token, token_timestamp, sender_timestamp FROM @.tc_tokens WHERE account = $1 AND jid = $2",
);
pub(super) static PUT_TC_TOKEN: Statement = Statement::upsert(
    Record::TcToken,
    1,
    &[Blob, Blob, Long, Long],
    upsert!(
        "INSERT INTO @.tc_tokens (account, jid, token, token_timestamp, sender_timestamp)
        SELECT $1, r.* FROM fence, unnest($5, $6, $7, $8) AS r ON CONFLICT (account, jid) DO UPDATE
        SET token = excluded.token, token_timestamp = excluded.token_timestamp,
        sender_timestamp = excluded.sender_timestamp"
    ),
);
pub(super) static DELETE_TC_TOKENS: Statement = Statement::change(
    Record::TcToken,
    &[Blob],
    change!("DELETE FROM @.tc_tokens WHERE account = $1 AND jid = ANY($5) AND EXISTS (SELECT FROM fence) RETURNING 1"),
);
pub(super) static GET_ALL_TC_TOKENS: Statement =
    Statement::read(Record::TcToken, &[], "SELECT jid FROM @.tc_tokens WHERE account = $1");
pub(super) static DELETE_EXPIRED_TC_TOKENS: Statement = Statement::single(
    Record::TcToken,
    &[Long, Long],
    change!(
        "DELETE FROM @.tc_tokens WHERE account = $1 AND (length(token) = 0 OR token_timestamp < $5)
        AND coalesce(sender_timestamp < $6, true) AND EXISTS (SELECT FROM fence) RETURNING 1"
    ),
);
// `greatest` skips NULL.
pub(super) static TOUCH_TC_TOKEN: Statement = Statement::upsert(
    Record::TcToken,
    1,
    &[Blob, Long],
    upsert!(
        "INSERT INTO @.tc_tokens AS t (account, jid, token, token_timestamp, sender_timestamp)
        SELECT $1, r.jid, '', r.touched, r.touched FROM fence, unnest($5, $6) AS r(jid, touched)
        ON CONFLICT (account, jid) DO UPDATE
        SET sender_timestamp = greatest(t.sender_timestamp, excluded.sender_timestamp)"
    ),
)
.kind(Kind::Upsert(Fold::Never));
// The newer token wins, an equally new one too, and the placeholder of a touch yields.
pub(super) static STORE_RECEIVED_TC_TOKEN: Statement = Statement::single(
    Record::TcToken,
    &[Blob, Blob, Long],
    change!(
        "INSERT INTO @.tc_tokens AS t (account, jid, token, token_timestamp) SELECT $1, $5, $6, $7 FROM fence
        ON CONFLICT (account, jid) DO UPDATE SET token = excluded.token, token_timestamp = excluded.token_timestamp
        WHERE length(t.token) = 0 OR excluded.token_timestamp >= t.token_timestamp RETURNING 1"
    ),
);
pub(super) static STORE_SENT_MESSAGE: Statement = Statement::upsert(
    Record::SentMessage,
    2,
    &[Blob, Blob, Blob, Long],
    upsert!(
        "INSERT INTO @.sent_messages (account, chat_jid, message_id, payload, created_at)
        SELECT $1, r.* FROM fence, unnest($5, $6, $7, $8) AS r ON CONFLICT (account, chat_jid, message_id) DO UPDATE
        SET payload = excluded.payload, created_at = excluded.created_at"
    ),
);
pub(super) static TAKE_SENT_MESSAGE: Statement = Statement::single(
    Record::SentMessage,
    &[Blob, Blob],
    change!(
        "DELETE FROM @.sent_messages WHERE account = $1 AND chat_jid = $5 AND message_id = $6
        AND EXISTS (SELECT FROM fence) RETURNING payload",
        "(SELECT payload FROM change)"
    ),
)
.kind(Kind::Once);
pub(super) static DELETE_EXPIRED_SENT_MESSAGES: Statement = Statement::single(
    Record::SentMessage,
    &[Long],
    change!(
        "DELETE FROM @.sent_messages WHERE account = $1 AND created_at < $5 AND created_at <= coalesce(
            (SELECT created_at FROM @.sent_messages WHERE account = $1 AND created_at < $5
            ORDER BY created_at OFFSET 999 LIMIT 1), $5)
        AND EXISTS (SELECT FROM fence) RETURNING 1"
    ),
);
pub(super) static STORE_PENDING_INBOUND: Statement = Statement::upsert(
    Record::PendingInbound,
    3,
    &[Blob, Blob, Blob, Blob, Long],
    upsert!(
        "INSERT INTO @.pending_inbound (account, chat, sender, id, message, inserted_at)
        SELECT $1, r.* FROM fence, unnest($5, $6, $7, $8, $9) AS r ON CONFLICT (account, chat, sender, id) DO UPDATE
        SET message = excluded.message, inserted_at = excluded.inserted_at"
    ),
);
pub(super) static GET_PENDING_INBOUND: Statement = Statement::read(
    Record::PendingInbound,
    &[Blob, Blob, Blob],
    "SELECT message FROM @.pending_inbound WHERE account = $1 AND chat = $2 AND sender = $3 AND id = $4",
);
pub(super) static DELETE_PENDING_INBOUND: Statement = Statement::change(
    Record::PendingInbound,
    &[Blob, Blob, Blob],
    change!(
        "DELETE FROM @.pending_inbound t USING unnest($5, $6, $7) AS r(chat, sender, id)
        WHERE t.account = $1 AND t.chat = r.chat AND t.sender = r.sender AND t.id = r.id
        AND EXISTS (SELECT FROM fence) RETURNING 1"
    ),
)
.proof(
    "SELECT NOT EXISTS (SELECT FROM @.pending_inbound WHERE account = $1 AND chat = $2 AND sender = $3 AND id = $4)",
);
pub(super) static DELETE_EXPIRED_PENDING_INBOUND: Statement = Statement::single(
    Record::PendingInbound,
    &[Long],
    change!(
        "DELETE FROM @.pending_inbound WHERE account = $1 AND inserted_at < $5 AND inserted_at <= coalesce(
            (SELECT inserted_at FROM @.pending_inbound WHERE account = $1 AND inserted_at < $5
            ORDER BY inserted_at OFFSET 999 LIMIT 1), $5)
        AND EXISTS (SELECT FROM fence) RETURNING 1"
    ),
);
