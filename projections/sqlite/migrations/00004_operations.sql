-- +goose NO TRANSACTION
-- +goose Up
-- Times are microseconds since 1970. The hashes are the first 64 bits of SHA-256, see hash.go. The history of the batch in
-- which the operation began stands in its row, what came later in operation_events. The request is last, so that lists
-- need not read past it.
CREATE TABLE IF NOT EXISTS operations (
    key         INTEGER PRIMARY KEY,
    org         INTEGER NOT NULL,
    type        INTEGER NOT NULL,
    status      INTEGER NOT NULL,
    wait        INTEGER NOT NULL,
    created     INTEGER NOT NULL,
    modified    INTEGER NOT NULL,
    id_hash     INTEGER NOT NULL,
    token       INTEGER,
    correlation INTEGER,
    state       BLOB NOT NULL,
    history     BLOB NOT NULL,
    request     BLOB NOT NULL
) STRICT;
