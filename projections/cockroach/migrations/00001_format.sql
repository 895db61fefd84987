-- +goose NO TRANSACTION
-- +goose Up
-- One row: the version in which states and events are stored, and into how many buckets keys are spread.
CREATE TABLE IF NOT EXISTS format (
    one     smallint NOT NULL PRIMARY KEY,
    version bigint   NOT NULL,
    buckets smallint NOT NULL
);
