-- +goose NO TRANSACTION
-- +goose Up
CREATE TABLE IF NOT EXISTS rejections (
    bucket  smallint NOT NULL,
    key     bigint NOT NULL,
    id_hash bigint NOT NULL,
    at      bigint NOT NULL,
    body    bytea NOT NULL,
    PRIMARY KEY (bucket, key)
);
