-- +goose NO TRANSACTION
-- +goose Up
-- One row for each batch in which an operation had events, after its first.
CREATE TABLE IF NOT EXISTS operation_events (
    bucket smallint NOT NULL,
    key    bigint NOT NULL,
    first  bigint NOT NULL,
    events bytea NOT NULL,
    PRIMARY KEY (bucket, key, first)
);
