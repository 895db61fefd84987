-- +goose NO TRANSACTION
-- +goose Up
CREATE TABLE IF NOT EXISTS positions (
    partition bigint NOT NULL PRIMARY KEY,
    next      bigint NOT NULL,
    at        bigint NOT NULL,
    chain     bytea
);
