-- Sealed values do not compress. Values up to a page stay in the table's pages, and updates find room there.
ALTER TABLE @.sessions ALTER record SET STORAGE EXTERNAL;
ALTER TABLE @.sender_keys ALTER record SET STORAGE EXTERNAL;
ALTER TABLE @.prekeys ALTER record SET STORAGE EXTERNAL;
ALTER TABLE @.signed_prekeys ALTER record SET STORAGE EXTERNAL;
ALTER TABLE @.sync_keys ALTER fingerprint SET STORAGE EXTERNAL;
ALTER TABLE @.collection_versions ALTER index_value_map SET STORAGE EXTERNAL;
ALTER TABLE @.lid_mappings ALTER learning_source SET STORAGE EXTERNAL;
ALTER TABLE @.device_lists ALTER phash SET STORAGE EXTERNAL;
ALTER TABLE @.group_metadata ALTER info SET STORAGE EXTERNAL;
ALTER TABLE @.tc_tokens ALTER token SET STORAGE EXTERNAL;
ALTER TABLE @.sent_messages ALTER payload SET STORAGE EXTERNAL;
ALTER TABLE @.pending_inbound ALTER message SET STORAGE EXTERNAL;
ALTER TABLE @.devices ALTER edge_routing_info SET STORAGE EXTERNAL;
ALTER TABLE @.sessions SET (fillfactor = 75, toast_tuple_target = 8160, autovacuum_vacuum_scale_factor = 0.05);
ALTER TABLE @.sender_keys SET (fillfactor = 75, toast_tuple_target = 8160, autovacuum_vacuum_scale_factor = 0.05);
ALTER TABLE @.leases SET (fillfactor = 50);
