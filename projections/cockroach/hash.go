package cockroach

import (
	"crypto/sha256"
	"encoding/binary"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/projections"
)

// hash is what an index has instead of a text. It is cryptographic because ids and tokens come from callers: nobody can make
// many that fall together. It is never 0, which stands for all organizations.
func hash(text string) int64 {
	sum := sha256.Sum256([]byte(text))
	return first64(sum[:])
}

func hashID(org string, id operation.ID) int64 {
	sum := sumOf(org, string(id))
	return first64(sum[:])
}

func first64(sum []byte) int64 {
	if n := int64(binary.BigEndian.Uint64(sum)); n != 0 {
		return n
	}
	return 1
}

// sumOf tells pairs of texts apart.
func sumOf(a, b string) [sha256.Size]byte {
	var buf [256]byte
	x := binary.AppendUvarint(buf[:0], uint64(len(a)))
	x = append(x, a...)
	x = append(x, b...)
	return sha256.Sum256(x)
}

// bucketOf spreads keys over n buckets. It is stored with every row, and so must never change.
func bucketOf(key projections.Key, n int) int16 {
	if n <= 1 {
		return 0
	}
	x := uint64(key) * 0x9e3779b97f4a7c15 // odd, so that all bits of the key reach the high ones
	return int16((x >> 40) % uint64(n))
}
