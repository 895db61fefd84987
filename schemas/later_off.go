//go:build !later

package schemas

// later makes what this build writes look like that of a newer version, for tests of two versions side by side: with the build tag
// later every message of ours has a member and a header that no version knows.
const later = false
