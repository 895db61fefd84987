// Package retry says whether a failed attempt is tried again, and when.
package retry

import (
	"math"
	"time"
)

// Class is what a failure means for the operation (spec section 8.1: fail, retry, suspend).
type Class uint8

// The classes. Unknown means that the reporter left it to the table of error codes.
const (
	Unknown Class = iota
	Fail          // final: Completed/Failed
	Again         // tried again by itself, as the policy says
	Suspend       // waits until a person has mended something and resumes it
)

var classNames = [...]string{"", "fail", "retry", "suspend"}

func (c Class) String() string { return classNames[c] }

// ParseClass is the inverse of String.
func ParseClass(name string) (Class, bool) {
	for c, n := range classNames {
		if n == name {
			return Class(c), true
		}
	}
	return 0, false
}

// The original's error codes that decide by themselves (spec sections 8.1 and 8.5), as signed 32-bit numbers.
const (
	CodeInfiniteLoop         = -2147204734 // 0x80044182
	CodeServerBusy           = -2147180543 // 0x8004A001
	CodeOrganizationDisabled = -2147180284 // 0x8004A104
	CodeOrganizationLocked   = -2147180281 // 0x8004A107
	CodeUnexpectedSQL        = -2147220970 // 0x80040216
	CodeGenericSQL           = -2147204784 // 0x80044150
	CodeSQLTimeout           = -2147204783 // 0x80044151
	CodeNetwork              = -2147204346 // 0x80044306
	CodeCustomAbort          = -2147220891 // 0x80040265
	CodeWorkflowPaused       = -2147201001 // 0x80045017
	CodeWorkflowRecordGone   = -2147200975 // 0x80045031
)

var classes = map[int32]Class{
	CodeInfiniteLoop: Fail, CodeCustomAbort: Fail,
	CodeServerBusy: Again, CodeOrganizationDisabled: Again, CodeOrganizationLocked: Again,
	CodeUnexpectedSQL: Again, CodeGenericSQL: Again, CodeSQLTimeout: Again, CodeNetwork: Again,
	CodeWorkflowPaused: Suspend, CodeWorkflowRecordGone: Suspend,
}

// ClassOf returns the class that a failure has: what the reporter says, else what the original's table says of the error
// code, else Fail ("anything else").
func ClassOf(reported Class, errorCode int32) Class {
	if reported != Unknown {
		return reported
	}
	if c, ok := classes[errorCode]; ok {
		return c
	}
	return Fail
}

// Policy says how often and at what distance an operation is tried.
type Policy struct {
	MaxAttempts int           // attempts in all, the first one included; at least 1
	Initial     time.Duration // wait after the first failure
	Max         time.Duration // upper bound of one wait, before jitter
	Multiplier  float64       // of each wait over the one before; at least 1
	Jitter      float64       // the wait is spread over ±Jitter of itself, 0 to 1
	GiveUpAfter time.Duration // after acceptance no new attempt begins; 0 means never give up by time
}

// Default is the policy of types that have no other: five attempts over about 15 seconds.
var Default = Policy{MaxAttempts: 5, Initial: time.Second, Max: 5 * time.Minute, Multiplier: 2, Jitter: 0.2}

// Next returns how long to wait after the given number of failures (at least 1), and whether there is another attempt at
// all. The same seed gives the same wait.
func (p Policy) Next(failures int, seed uint64) (time.Duration, bool) {
	if failures >= p.MaxAttempts {
		return 0, false
	}
	wait := float64(p.Initial) * math.Pow(max(p.Multiplier, 1), float64(max(failures-1, 0)))
	if p.Max > 0 {
		wait = min(wait, float64(p.Max))
	}
	if p.Jitter > 0 {
		wait *= 1 + p.Jitter*(2*unit(seed)-1)
	}
	// Far below the largest Duration, so that later sums cannot overflow. A product of nothing and infinity is no number.
	if wait > 0 {
		return time.Duration(min(wait, float64(100*365*24*time.Hour))), true
	}
	return 0, true
}

// Seed makes a seed for [Policy.Next] from an operation's id and attempt, so that operations which fail together do not
// come back together.
func Seed(id string, attempt uint32) uint64 {
	h := uint64(14695981039346656037) // FNV-1a
	for i := 0; i < len(id); i++ {
		h = (h ^ uint64(id[i])) * 1099511628211
	}
	return h ^ uint64(attempt)<<32
}

// unit maps a seed to [0, 1) (one round of SplitMix64).
func unit(seed uint64) float64 {
	z := seed + 0x9e3779b97f4a7c15
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	z ^= z >> 31
	return float64(z>>11) / (1 << 53)
}
