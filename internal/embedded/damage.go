package embedded

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// DamagedError says that segments of the log are not what was written. kfake opens such a log without a word, cuts each segment off
// at the first batch that it cannot read, and with it all that stands behind.
type DamagedError struct {
	Dir      string
	Segments []string // each with the number of batches that are whole, and that there were
}

func (e *DamagedError) Error() string {
	return fmt.Sprintf("embedded broker: expected the log in %s as it was written, but it is damaged: %s; keep the directory as it is, and put back a backup of it",
		e.Dir, strings.Join(e.Segments, ", "))
}

const damagedDir = "damaged"

// The lengths that a batch has in a segment: up to the field that says how long the rest is, and up to where its checksum counts from.
const (
	batchHead   = 12
	batchSummed = 21
	indexEntry  = 15 // one for each batch in the file .idx, written after it
)

// wholeBatches counts the batches of a segment up to the first that is none. Logs are long, and a start waits for this: nothing is kept of
// what was read.
func wholeBatches(segment *bufio.Reader) int {
	for n := 0; ; n++ {
		head, err := segment.Peek(batchSummed)
		if err != nil {
			return n
		}
		left, want := batchHead+int64(binary.BigEndian.Uint32(head[8:]))-batchSummed, binary.BigEndian.Uint32(head[batchSummed-4:])
		if left < 0 {
			return n
		}
		_, _ = segment.Discard(batchSummed) // what was peeked at
		sum := uint32(0)
		for left > 0 {
			part, err := segment.Peek(int(min(left, int64(segment.Size()))))
			if err != nil {
				return n
			}
			sum = crc32.Update(sum, castagnoli, part)
			_, _ = segment.Discard(len(part))
			left -= int64(len(part))
		}
		if sum != want {
			return n
		}
	}
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// damage finds the segments with fewer whole batches than their index knows. A kill leaves none: the last batch may be there in part,
// but then it is not in the index.
func damage(dir string) (paths, said []string, err error) {
	log, buffered := filepath.Join(dir, logDir), bufio.NewReaderSize(nil, 1<<20)
	err = filepath.WalkDir(log, func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // a new directory
		}
		if err != nil || filepath.Ext(path) != ".idx" {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		path = strings.TrimSuffix(path, ".idx") + ".dat"
		whole := 0
		switch segment, err := os.Open(path); {
		case err == nil:
			buffered.Reset(segment)
			whole = wholeBatches(buffered)
			_ = segment.Close()
		case !errors.Is(err, fs.ErrNotExist):
			return err
		}
		if had := info.Size() / indexEntry; int64(whole) < had {
			name, _ := filepath.Rel(log, path)
			paths, said = append(paths, path), append(said, fmt.Sprintf("%s has %d whole batches of %d", name, whole, had))
		}
		return nil
	})
	if err != nil {
		err = fmt.Errorf("embedded broker: expected to read the log in %s, but could not: let this user (uid %d) read it: %w", log, os.Getuid(), err)
	}
	return paths, said, err
}

// keepDamaged copies damaged segments beside the log before kfake cuts them off, and tells of them. What is before the damage goes on.
func (c Config) keepDamaged() error {
	paths, said, err := damage(c.Dir)
	if err != nil || len(paths) == 0 {
		return err
	}
	if c.Whole {
		return &DamagedError{c.Dir, said}
	}
	kept := filepath.Join(c.Dir, damagedDir)
	err = os.Mkdir(kept, 0o755)
	for i := 2; errors.Is(err, fs.ErrExist); i++ { // it was damaged before
		kept = filepath.Join(c.Dir, damagedDir+"-"+strconv.Itoa(i))
		err = os.Mkdir(kept, 0o755)
	}
	if err != nil {
		return unwritable(c.Dir, err)
	}
	for _, path := range paths {
		for _, ext := range []string{".dat", ".idx"} {
			path = strings.TrimSuffix(path, filepath.Ext(path)) + ext
			content, err := os.ReadFile(path)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err == nil {
				err = os.WriteFile(filepath.Join(kept, filepath.Base(filepath.Dir(path))+"-"+filepath.Base(path)), content, 0o644)
			}
			if err != nil {
				return unwritable(c.Dir, err)
			}
		}
	}
	c.Logger.Error("the log is damaged, and goes on without what stands behind the damage: stop, and put back a backup of the data directory",
		"dir", c.Dir, "segments", said, "kept", kept)
	return nil
}
