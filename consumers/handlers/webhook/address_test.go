package webhook

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
)

func TestAddresses(t *testing.T) {
	const (
		public  = "public"  // always open
		private = "private" // open with AllowPrivate
		shut    = "shut"    // open only by name
	)
	for address, want := range map[string]string{
		"1.1.1.1": public, "93.184.216.34": public, "11.0.0.0": public, "9.255.255.255": public, "172.15.255.255": public,
		"172.32.0.0": public, "192.167.255.255": public, "192.169.0.0": public, "100.63.255.255": public, "100.128.0.0": public,
		"169.253.255.255": public, "169.255.0.0": public, "198.17.255.255": public, "198.20.0.0": public, "223.255.255.255": public,
		"2606:4700::1111": public, "2a00:1450:4001::200e": public, "2001:4860:4860::8888": public,
		"::ffff:1.1.1.1": public, "64:ff9b::1.1.1.1": public, "2002:101:101::1": public,

		"127.0.0.1": private, "127.255.255.255": private, "10.0.0.0": private, "10.255.255.255": private, "172.16.0.1": private,
		"172.31.255.255": private, "192.168.0.1": private, "100.64.0.1": private, "100.127.255.255": private, "::1": private,
		"fc00::1": private, "fdff:ffff::1": private, "::ffff:127.0.0.1": private, "::ffff:10.1.2.3": private,
		"64:ff9b::10.0.0.1": private, "64:ff9b::7f00:1": private, "2002:7f00:1::1": private, "2002:c0a8:101::": private,
		"fd00:ec3::254": private,

		"169.254.169.254": shut, "::ffff:169.254.169.254": shut, "64:ff9b::169.254.169.254": shut, "2002:a9fe:a9fe::1": shut,
		"100.100.100.200": shut, "168.63.129.16": shut, "fd00:ec2::254": shut, "192.0.0.192": shut,
		"0.0.0.0": shut, "0.1.2.3": shut, "::": shut, "::ffff:0.0.0.0": shut, "::127.0.0.1": shut, "::ffff:0:127.0.0.1": shut,
		"224.0.0.1": shut, "239.255.255.250": shut, "240.0.0.1": shut, "255.255.255.255": shut,
		"192.0.2.1": shut, "198.51.100.1": shut, "203.0.113.1": shut, "198.18.0.1": shut, "198.19.255.255": shut, "192.88.99.1": shut,
		"fe80::1": shut, "fe80::1%eth0": shut, "febf::1": shut, "fec0::1": shut, "ff02::1": shut, "2001:db8::1": shut,
		"3fff::1": shut, "2001::1": shut, "2001:2::1": shut, "2001:10::1": shut, "64:ff9b:1::1": shut, "100::1": shut,
		"4000::1": shut, "5f00::1": shut,
	} {
		a := netip.MustParseAddr(address)
		for _, cfg := range []struct {
			name string
			Config
			open bool
		}{
			{"default", Config{}, want == public},
			{"AllowPrivate", Config{AllowPrivate: true}, want != shut},
			{"Allow", Config{Allow: []netip.Prefix{netip.PrefixFrom(a.Unmap().WithZone(""), a.Unmap().BitLen())}}, true},
		} {
			if reason := cfg.refused(a); (reason == "") != cfg.open {
				t.Errorf("%s with %s: got %q, want open %v", address, cfg.name, reason, cfg.open)
			}
			network := "tcp4"
			if a.Is6() {
				network = "tcp6"
			}
			if err := cfg.control(network, netip.AddrPortFrom(a, 443).String(), nil); (err == nil) != cfg.open {
				t.Errorf("dialing %s with %s: got %v, want open %v", address, cfg.name, err, cfg.open)
			}
		}
	}
	for _, c := range [][2]string{{"tcp4", "not an address"}, {"tcp4", "example.com:80"}, {"udp4", "1.1.1.1:53"}, {"unix", "/run/docker.sock"}} {
		if err := (&Config{}).control(c[0], c[1], nil); err == nil {
			t.Errorf("expected no connection to %s %s", c[0], c[1])
		}
	}
}

// Whatever a URL writes for the loopback address, the server there must hear nothing.
func TestURLsThatLeadInside(t *testing.T) {
	var heard atomic.Int32
	s := serve(t, func(http.ResponseWriter, *http.Request) { heard.Add(1) })
	_, port, _ := net.SplitHostPort(s.Listener.Addr().String())
	inside := nameServer(t, func(string) netip.Addr { return netip.MustParseAddr("127.0.0.1") })
	h := newHandler(t, Config{AllowPlain: true, Resolver: inside})
	for _, host := range []string{
		"127.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[64:ff9b::7f00:1]", "0.0.0.0", "[::]", "127.1.2.3",
		"localhost", "LOCALHOST", "localhost.", "2130706433", "0x7f000001", "0177.0.0.1", "127.1", "hooks.example.com", "127.0.0.1.",
		"ⓛocalhost", "１２７.0.0.1",
	} {
		got := outcome(h.Handle(t.Context(), opOf(t, "url", "http://"+host+":"+port+"/")))
		// Some of the names are no names to a resolver, which is as good.
		if got != "fail webhook_address_refused" && got != "retry webhook_unreachable" && got != "fail invalid_data" {
			t.Errorf("%s: got %s", host, got)
		}
		if strings.Contains(host, "example") && got != "fail webhook_address_refused" {
			t.Errorf("%s: got %s", host, got)
		}
	}
	if n := heard.Load(); n != 0 {
		t.Errorf("expected the server inside to hear nothing, but it heard %d calls", n)
	}
}

// A name server that answers with an open address first and a shut one later gets the first call and no other.
func TestNameServerThatChangesItsMind(t *testing.T) {
	var good, bad atomic.Int32
	listener, err := net.Listen("tcp", "127.0.0.2:0")
	if err != nil {
		t.Fatalf("this test needs all of 127.0.0.0/8 to be the loopback network: %v", err)
	}
	front := &httptest.Server{Listener: listener, Config: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		good.Add(1)
		w.Header().Set("Connection", "close") // the next call has to ask again
	})}}
	front.Start()
	t.Cleanup(front.Close)
	_, port, _ := net.SplitHostPort(listener.Addr().String())
	inside, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", port))
	if err != nil {
		t.Fatal(err)
	}
	back := &httptest.Server{Listener: inside, Config: &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) { bad.Add(1) })}}
	back.Start()
	t.Cleanup(back.Close)

	var questions atomic.Int32
	turns := nameServer(t, func(string) netip.Addr {
		if questions.Add(1) == 1 {
			return netip.MustParseAddr("127.0.0.2")
		}
		return netip.MustParseAddr("127.0.0.1")
	})
	h := newHandler(t, Config{AllowPlain: true, Resolver: turns, Allow: []netip.Prefix{mustPrefix("127.0.0.2/32")}})
	op := opOf(t, "url", "http://rebind.example.com:"+port+"/")
	if got := outcome(h.Handle(t.Context(), op)); got != `{"status":200}` {
		t.Errorf("first call: %s", got)
	}
	_, err = h.Handle(t.Context(), op)
	if got := outcome(nil, err); got != "fail webhook_address_refused" {
		t.Errorf("second call: %s", got)
	}
	if strings.Contains(err.Error(), "127.0.0.1") {
		t.Errorf("expected the error to keep what the name resolves to for itself, but it says %q", err)
	}
	if good.Load() != 1 || bad.Load() != 0 {
		t.Errorf("expected one call outside and none inside, but there were %d and %d", good.Load(), bad.Load())
	}
}

func TestProxiesOfTheEnvironmentAreNotUsed(t *testing.T) {
	var heard atomic.Int32
	proxy := serve(t, func(http.ResponseWriter, *http.Request) { heard.Add(1) })
	for _, name := range []string{"HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY"} {
		t.Setenv(name, proxy.URL)
	}
	nowhere := nameServer(t, func(string) netip.Addr { return netip.MustParseAddr("169.254.169.254") })
	h := newHandler(t, Config{AllowPlain: true, AllowPrivate: true, Resolver: nowhere})
	if got := outcome(h.Handle(t.Context(), opOf(t, "url", "http://hooks.example.com/"))); got != "fail webhook_address_refused" {
		t.Errorf("got %s", got)
	}
	if heard.Load() != 0 {
		t.Error("expected the proxy of the environment to hear nothing")
	}

	// A proxy that the operator names is used, if its own address is open.
	through := func(*http.Request) (*url.URL, error) { return url.Parse(proxy.URL) }
	h = newHandler(t, Config{AllowPlain: true, AllowPrivate: true, Resolver: nowhere, Proxy: through})
	if got := outcome(h.Handle(t.Context(), opOf(t, "url", "http://hooks.example.com/"))); got != `{"status":200}` || heard.Load() != 1 {
		t.Errorf("through the proxy: got %s, and it heard %d calls", got, heard.Load())
	}
	// What can be seen to be shut without a look-up is not left to the proxy.
	if got := outcome(h.Handle(t.Context(), opOf(t, "url", "http://169.254.169.254/latest"))); got != "fail webhook_address_refused" || heard.Load() != 1 {
		t.Errorf("a shut address through the proxy: got %s, and it heard %d calls", got, heard.Load())
	}
}

// nameServer is a resolver that asks answer, in memory. Only IPv4 has answers; the zero address means that there is no such
// name.
func nameServer(t *testing.T, answer func(name string) netip.Addr) *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		client, server := net.Pipe()
		t.Cleanup(func() { _ = server.Close() })
		go func() {
			for {
				var size [2]byte // a stream, so every message has its length before it
				if _, err := io.ReadFull(server, size[:]); err != nil {
					return
				}
				q := make([]byte, binary.BigEndian.Uint16(size[:]))
				if _, err := io.ReadFull(server, q); err != nil {
					return
				}
				a := reply(q, answer)
				if _, err := server.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(a))), a...)); err != nil && !errors.Is(err, io.ErrClosedPipe) {
					t.Error(err)
				}
			}
		}()
		return client, nil
	}}
}

// reply answers a question of the domain name system (RFC 1035, section 4).
func reply(q []byte, answer func(string) netip.Addr) []byte {
	const headerLen = 12
	end, name := headerLen, ""
	for q[end] != 0 {
		name += string(q[end+1:end+1+int(q[end])]) + "."
		end += 1 + int(q[end])
	}
	kind := binary.BigEndian.Uint16(q[end+1:])
	end += 5
	out := append([]byte{q[0], q[1], 0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0}, q[headerLen:end]...)
	if kind != 1 { // the question for IPv6 comes beside each for IPv4
		return out
	}
	a := answer(name)
	if !a.IsValid() {
		out[3] |= 3 // no such name
		return out
	}
	out[7] = 1
	ip := a.As4()
	out = append(out, 0xC0, headerLen, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4)
	out = append(out, ip[:]...)
	return out
}
