-- +goose NO TRANSACTION
-- +goose Up
CREATE TABLE IF NOT EXISTS ids (
    id_hash INTEGER NOT NULL,
    key     INTEGER NOT NULL,
    PRIMARY KEY (id_hash, key)
) STRICT, WITHOUT ROWID;
