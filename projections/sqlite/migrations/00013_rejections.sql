-- +goose NO TRANSACTION
-- +goose Up
CREATE TABLE IF NOT EXISTS rejections (
    key     INTEGER PRIMARY KEY,
    id_hash INTEGER NOT NULL,
    at      INTEGER NOT NULL,
    body    BLOB NOT NULL
) STRICT;
