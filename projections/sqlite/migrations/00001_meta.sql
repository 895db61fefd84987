-- +goose NO TRANSACTION
-- +goose Up
-- One row: the version in which states and events are stored.
CREATE TABLE IF NOT EXISTS format (version INTEGER NOT NULL) STRICT;
