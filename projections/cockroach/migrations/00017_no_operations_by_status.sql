-- +goose NO TRANSACTION
-- +goose Up
DROP INDEX IF EXISTS operations_by_status;
