-- +goose NO TRANSACTION
-- +goose Up
CREATE INDEX IF NOT EXISTS operations_by_token ON operations (token, bucket, created, key) WHERE token IS NOT NULL;
