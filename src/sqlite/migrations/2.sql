-- Which process writes an account. The epoch grows with each holder. The holder is the number of one opening. A process
-- that wants the account sets `expires_at`, in milliseconds since 1970; the holder sets it to NULL again as long as it
-- lives; 0 is given back.

CREATE TABLE leases (
    account INTEGER PRIMARY KEY,
    epoch INTEGER NOT NULL,
    holder BLOB NOT NULL,
    name TEXT NOT NULL,
    expires_at INTEGER
) STRICT;
