//go:build later

package schemas

const later = true
