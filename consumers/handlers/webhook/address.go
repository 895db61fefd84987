package webhook

import (
	"fmt"
	"net/netip"
	"syscall"
)

// A rule names a range of addresses that a stranger's URL must not lead to.
type rule struct {
	prefix  netip.Prefix
	private bool // Config.AllowPrivate opens it
	name    string
}

// rules are looked through from the top, and the first that fits decides: services of cloud hosts, which hand out
// credentials to whoever asks, stay shut even where private ranges are open.
var rules = []rule{
	{netip.MustParsePrefix("100.100.100.200/32"), false, "a cloud metadata address"},
	{netip.MustParsePrefix("168.63.129.16/32"), false, "a cloud metadata address"},
	{netip.MustParsePrefix("fd00:ec2::/32"), false, "a cloud metadata address"},

	{netip.MustParsePrefix("0.0.0.0/8"), false, "an unspecified address"},
	{netip.MustParsePrefix("10.0.0.0/8"), true, "a private address"},
	{netip.MustParsePrefix("100.64.0.0/10"), true, "an address of a carrier's network"},
	{netip.MustParsePrefix("127.0.0.0/8"), true, "a loopback address"},
	{netip.MustParsePrefix("169.254.0.0/16"), false, "a link-local address"},
	{netip.MustParsePrefix("172.16.0.0/12"), true, "a private address"},
	{netip.MustParsePrefix("192.0.0.0/24"), false, "an address for protocols"},
	{netip.MustParsePrefix("192.0.2.0/24"), false, "an address for documentation"},
	{netip.MustParsePrefix("192.88.99.0/24"), false, "an address of a 6to4 relay"},
	{netip.MustParsePrefix("192.168.0.0/16"), true, "a private address"},
	{netip.MustParsePrefix("198.18.0.0/15"), false, "an address for benchmarks"},
	{netip.MustParsePrefix("198.51.100.0/24"), false, "an address for documentation"},
	{netip.MustParsePrefix("203.0.113.0/24"), false, "an address for documentation"},
	{netip.MustParsePrefix("224.0.0.0/4"), false, "a multicast address"},
	{netip.MustParsePrefix("240.0.0.0/4"), false, "a reserved address"}, // and broadcast

	{netip.MustParsePrefix("::/128"), false, "an unspecified address"},
	{netip.MustParsePrefix("::1/128"), true, "a loopback address"},
	{netip.MustParsePrefix("fc00::/7"), true, "a unique local address"},
	{netip.MustParsePrefix("fe80::/10"), false, "a link-local address"},
	{netip.MustParsePrefix("ff00::/8"), false, "a multicast address"},
	{netip.MustParsePrefix("2001::/23"), false, "an address for protocols"}, // Teredo and the range for benchmarks are in it
	{netip.MustParsePrefix("2001:db8::/32"), false, "an address for documentation"},
	{netip.MustParsePrefix("3fff::/20"), false, "an address for documentation"},
}

var (
	globalUnicast = netip.MustParsePrefix("2000::/3")
	nat64         = netip.MustParsePrefix("64:ff9b::/96")
	sixToFour     = netip.MustParsePrefix("2002::/16")
)

// refused says why the address must not be called, or nothing when it may be.
func (c *Config) refused(a netip.Addr) string {
	a = a.Unmap().WithZone("")
	for _, p := range c.Allow {
		if p.Contains(a) {
			return ""
		}
	}
	// The packet goes to the address inside. In networks without IPv4 all of the old Internet is seen through NAT64, so the
	// range as a whole cannot be refused.
	if b := a.As16(); nat64.Contains(a) {
		return embeds(c.refused(netip.AddrFrom4([4]byte(b[12:16]))))
	} else if sixToFour.Contains(a) {
		return embeds(c.refused(netip.AddrFrom4([4]byte(b[2:6]))))
	}
	for i := range rules {
		if r := &rules[i]; r.prefix.Contains(a) {
			if r.private && c.AllowPrivate {
				return ""
			}
			return r.name
		}
	}
	if a.Is6() && !globalUnicast.Contains(a) {
		return "an address that is not public"
	}
	return ""
}

func embeds(reason string) string {
	if reason == "" {
		return ""
	}
	return "an address that embeds " + reason
}

// addressError is a call that was not made. It names the range and not the address: who chose the URL need not learn what
// internal names resolve to.
type addressError struct{ reason string }

func (e *addressError) Error() string {
	return "expected a public address, but the host is " + e.reason
}

// control looks at every address right before it is connected to, after names have been resolved: what a name resolved to
// earlier, or will later, does not matter.
func (c *Config) control(network, address string, _ syscall.RawConn) error {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("expected to connect to an address and a port, but got %q: %w", address, err)
	}
	if network != "tcp4" && network != "tcp6" {
		return fmt.Errorf("expected to connect by TCP, but got %q", network)
	}
	if reason := c.refused(to.Addr()); reason != "" {
		return &addressError{reason}
	}
	return nil
}
