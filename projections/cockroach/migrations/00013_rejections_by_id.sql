-- +goose NO TRANSACTION
-- +goose Up
CREATE INDEX IF NOT EXISTS rejections_by_id ON rejections (id_hash, at, key);
