package settings

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
)

// Secret is a secret, or a reference to one: file:/path for what a file holds, env:NAME for what the environment holds. Nothing that
// prints values prints it; [Secret.Read] returns it.
type Secret string

// secretMax bounds what is read of a file that holds a secret, in bytes: a wrong path may lead to anything.
const secretMax = 64 << 10

// Reference is the text when it is a reference, else "".
func (s Secret) Reference() string {
	if strings.HasPrefix(string(s), "file:") || strings.HasPrefix(string(s), "env:") {
		return string(s)
	}
	return ""
}

// Read returns the secret as it is now: a file is read anew each time, so that a secret which is replaced there is found. One line
// end at the file's end does not belong to it. An empty secret is an error, unless the Secret is empty itself.
func (s Secret) Read() (string, error) {
	if path, ok := strings.CutPrefix(string(s), "file:"); ok {
		return readFile(path)
	}
	if name, ok := strings.CutPrefix(string(s), "env:"); ok {
		value, set := os.LookupEnv(name)
		if !set || value == "" {
			return "", fmt.Errorf("expected the environment variable %s to hold the secret, but it is empty or not set", name)
		}
		return value, nil
	}
	return string(s), nil
}

func readFile(path string) (_ string, err error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("expected a file with the secret, but cannot open it: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	content, err := io.ReadAll(io.LimitReader(f, secretMax+1))
	if err != nil {
		return "", fmt.Errorf("expected to read the secret in %s, but: %w", path, err)
	}
	if len(content) > secretMax {
		return "", fmt.Errorf("expected a secret of at most %d bytes in %s, but the file is larger; is it the right one?", secretMax, path)
	}
	text := strings.TrimSuffix(strings.TrimSuffix(string(content), "\n"), "\r")
	if text == "" {
		return "", fmt.Errorf("expected a secret in %s, but the file is empty", path)
	}
	return text, nil
}

// String hides the secret.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return masked
}

// GoString hides the secret from %#v.
func (s Secret) GoString() string { return `"` + s.String() + `"` }

// Format hides the secret from every verb.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, s.String()) }

// LogValue hides the secret in logs.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// MarshalJSON hides the secret in JSON.
func (s Secret) MarshalJSON() ([]byte, error) { return json.Marshal(s.String()) }

// MarshalText hides the secret in every other format.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }
