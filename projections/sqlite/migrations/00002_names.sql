-- +goose NO TRANSACTION
-- +goose Up
-- Organizations and types as small numbers, for the indexes.
CREATE TABLE IF NOT EXISTS names (key INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE) STRICT;
