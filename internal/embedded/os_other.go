//go:build !(linux || darwin || freebsd)

package embedded

import (
	"errors"
	"math"
	"os"
)

var errNoDisk = errors.New("the embedded broker keeps data on disk on Linux, macOS and FreeBSD only; leave the directory out " +
	"to keep it in memory, or use a real Kafka")

// tryLock refuses: without a lock that dies with its process two brokers could ruin one directory.
func tryLock(*os.File) (held bool, err error) { return false, errNoDisk }

func freeBytes(string) (uint64, error) { return 0, errNoDisk }

func descriptorsMax() uint64 { return math.MaxUint64 }
