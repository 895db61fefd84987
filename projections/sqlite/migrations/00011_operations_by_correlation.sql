-- +goose NO TRANSACTION
-- +goose Up
CREATE INDEX IF NOT EXISTS operations_by_correlation ON operations (correlation, created) WHERE correlation IS NOT NULL;
