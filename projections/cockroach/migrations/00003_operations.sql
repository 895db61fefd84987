-- +goose NO TRANSACTION
-- +goose Up
-- Times are microseconds since 1970. Organization, type, id, token and correlation id are the first 64 bits of SHA-256, see
-- hash.go: what callers bring need not be text, and what is long is not in an index. The history of the batch in which the
-- operation began stands in its row, what came later in operation_events.
CREATE TABLE IF NOT EXISTS operations (
    bucket      smallint NOT NULL,
    status      smallint NOT NULL,
    wait        smallint NOT NULL,
    key         bigint NOT NULL,
    org         bigint NOT NULL,
    type        bigint NOT NULL,
    created     bigint NOT NULL,
    modified    bigint NOT NULL,
    id_hash     bigint NOT NULL,
    token       bigint,
    correlation bigint,
    state       bytea NOT NULL,
    history     bytea NOT NULL,
    request     bytea NOT NULL,
    PRIMARY KEY (bucket, key)
);
