-- +goose NO TRANSACTION
-- +goose Up
-- All but succeeded (7), which nearly all are in the end: what is written once, at its end, never enters this index.
CREATE INDEX IF NOT EXISTS operations_by_status ON operations (status, bucket, created, key) WHERE status <> 7;
