-- +goose NO TRANSACTION
-- +goose Up
-- Organization 0 has the totals over all of them.
CREATE TABLE IF NOT EXISTS counts (
    org    INTEGER NOT NULL,
    type   INTEGER NOT NULL,
    status INTEGER NOT NULL,
    wait   INTEGER NOT NULL,
    n      INTEGER NOT NULL,
    PRIMARY KEY (org, type, status, wait)
) STRICT, WITHOUT ROWID;
