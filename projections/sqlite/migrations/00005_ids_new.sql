-- +goose NO TRANSACTION
-- +goose Up
-- Where operations are, by the hash of organization and id: the newest here, the others in ids, see ids.go.
CREATE TABLE IF NOT EXISTS ids_new (
    id_hash INTEGER NOT NULL,
    key     INTEGER NOT NULL,
    PRIMARY KEY (id_hash, key)
) STRICT, WITHOUT ROWID;
