package sqlite

import (
	"crypto/sha256"
	"encoding/binary"

	"github.com/opstream/opstream/domain/operation"
)

// hash is what an index has instead of a text. It is cryptographic because ids and tokens come from callers: nobody can make
// many that fall together.
func hash(text string) int64 {
	var b [128]byte
	sum := sha256.Sum256(append(b[:0], text...))
	return int64(binary.BigEndian.Uint64(sum[:]))
}

func hashID(org string, id operation.ID) int64 {
	var buf [256]byte
	b := binary.AppendUvarint(buf[:0], uint64(len(org)))
	b = append(b, org...)
	b = append(b, id...)
	sum := sha256.Sum256(b)
	return int64(binary.BigEndian.Uint64(sum[:]))
}
