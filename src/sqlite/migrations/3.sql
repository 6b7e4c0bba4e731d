-- Lists the mappings of an account in the order in which they lie in the table. The index of their key has them in the
-- order of their names, and encrypted names are scattered.

CREATE INDEX lid_mappings_account ON lid_mappings (account);
