-- +goose NO TRANSACTION
-- +goose Up
-- Where the partition stood when operation_statuses was last brought up to date, which older versions do not do.
ALTER TABLE positions ADD COLUMN IF NOT EXISTS listed bigint;
