-- +goose NO TRANSACTION
-- +goose Up
CREATE TABLE IF NOT EXISTS positions (
    partition INTEGER PRIMARY KEY,
    next      INTEGER NOT NULL,
    at        INTEGER NOT NULL,
    chain     BLOB
) STRICT;
