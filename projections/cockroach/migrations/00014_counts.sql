-- +goose NO TRANSACTION
-- +goose Up
-- Each number is kept in as many parts as there are partitions, see apply.go: two projectors never add to the same row. Org is
-- the hash of the organization, 0 for the totals over all of them; slot is a hash of organization and type that two names
-- do not share.
CREATE TABLE IF NOT EXISTS counts (
    org       bigint   NOT NULL,
    slot      bytea    NOT NULL,
    status    smallint NOT NULL,
    wait      smallint NOT NULL,
    shard     bigint   NOT NULL,
    n         bigint   NOT NULL,
    org_name  bytea    NOT NULL,
    type_name bytea    NOT NULL,
    PRIMARY KEY (org, slot, status, wait, shard)
);
