package pgtest_test

import (
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/opstream/opstream/internal/pgtest"
)

func TestPostgresIsFresh(t *testing.T) {
	first, second := pgtest.Postgres(t), pgtest.Postgres(t)
	if first == second {
		t.Fatalf("expected two databases, but got %s twice", first)
	}
	for _, address := range []string{first, pgtest.With(t, second, "default_transaction_isolation", "serializable")} {
		conn, err := pgx.Connect(t.Context(), address)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(t.Context())
		if _, err := conn.Exec(t.Context(), "CREATE TABLE t (n bigint)"); err != nil {
			t.Errorf("expected an empty database, but: %v", err)
		}
		var level string
		if err := conn.QueryRow(t.Context(), "SHOW transaction_isolation").Scan(&level); err != nil {
			t.Fatal(err)
		}
		if want := map[bool]string{true: "read committed", false: "serializable"}[address == first]; level != want {
			t.Errorf("expected the isolation %s, but got %s", want, level)
		}
	}
}

func TestCockroachIsFresh(t *testing.T) {
	conn, err := pgx.Connect(t.Context(), pgtest.Cockroach(t))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	if _, err := conn.Exec(t.Context(), "CREATE TABLE t (n bigint)"); err != nil {
		t.Errorf("expected an empty database, but: %v", err)
	}
}

func TestLocalKeepsAddressAndData(t *testing.T) {
	local := pgtest.StartLocal(t)
	run := func(statement string) error {
		conn, err := pgx.Connect(t.Context(), local.URL)
		if err != nil {
			return err
		}
		defer conn.Close(t.Context())
		_, err = conn.Exec(t.Context(), statement)
		return err
	}
	if err := run("CREATE TABLE t (n bigint)"); err != nil {
		t.Fatal(err)
	}
	if err := local.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := run("SELECT * FROM t"); err == nil {
		t.Error("expected nobody to answer after Stop")
	}
	if err := local.Start(); err != nil {
		t.Fatal(err)
	}
	if err := run("SELECT * FROM t"); err != nil {
		t.Errorf("expected the table to be there again, but: %v", err)
	}
}
