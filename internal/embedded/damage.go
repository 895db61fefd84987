package embedded

import (
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

// wholeBatches counts the batches of a segment up to the first that is none.
func wholeBatches(segment []byte) int {
	n := 0
	for len(segment) >= batchSummed {
		end := batchHead + int64(binary.BigEndian.Uint32(segment[8:]))
		if end < batchSummed || end > int64(len(segment)) {
			break
		}
		if crc32.Checksum(segment[batchSummed:end], castagnoli) != binary.BigEndian.Uint32(segment[batchSummed-4:]) {
			break
		}
		segment = segment[end:]
		n++
	}
	return n
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// damage finds the segments with fewer whole batches than their index knows. A kill leaves none: the last batch may be there in part,
// but then it is not in the index.
func damage(dir string) (paths, said []string, err error) {
	log := filepath.Join(dir, logDir)
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
		segment, err := os.ReadFile(path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if had, whole := info.Size()/indexEntry, wholeBatches(segment); int64(whole) < had {
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
