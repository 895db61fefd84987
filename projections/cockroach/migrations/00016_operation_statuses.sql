-- +goose NO TRANSACTION
-- +goose Up
-- All but succeeded (7), which nearly all are in the end: what is written once, at its end, never enters this table.
-- It is no index of operations, so that no index of operations has a column that changes: PostgreSQL then writes the new version of a
-- row beside the old one and leaves all indexes alone.
CREATE TABLE IF NOT EXISTS operation_statuses (
    status  smallint NOT NULL,
    bucket  smallint NOT NULL,
    created bigint   NOT NULL,
    key     bigint   NOT NULL,
    PRIMARY KEY (status, bucket, created, key)
);
