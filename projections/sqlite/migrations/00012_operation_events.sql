-- +goose NO TRANSACTION
-- +goose Up
-- One row for each batch in which an operation had events, after its first.
CREATE TABLE IF NOT EXISTS operation_events (
    key    INTEGER NOT NULL,
    first  INTEGER NOT NULL,
    events BLOB NOT NULL,
    PRIMARY KEY (key, first)
) STRICT, WITHOUT ROWID;
