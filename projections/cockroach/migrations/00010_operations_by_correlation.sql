-- +goose NO TRANSACTION
-- +goose Up
CREATE INDEX IF NOT EXISTS operations_by_correlation ON operations (correlation, bucket, created, key) WHERE correlation IS NOT NULL;
