package tlsfiles_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opstream/opstream/internal/tlsfiles"
	"github.com/opstream/opstream/internal/tlsfiles/certtest"
)

// rig is a folder of certificates with a clock that a test moves.
type rig struct {
	t   *testing.T
	dir string
	log *bytes.Buffer
	mu  sync.Mutex
	now time.Time
}

func newRig(t *testing.T) *rig {
	return &rig{t: t, dir: t.TempDir(), log: &bytes.Buffer{}, now: time.Unix(1_900_000_000, 0)}
}

func (r *rig) pass(d time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.now = r.now.Add(d)
}

func (r *rig) open(ca, cert, key string) *tlsfiles.Files {
	r.t.Helper()
	f, err := tlsfiles.Open(tlsfiles.Config{CA: ca, Cert: cert, Key: key, Log: slog.New(slog.NewTextHandler(r.log, nil)), Now: func() time.Time {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.now
	}})
	if err != nil {
		r.t.Fatal(err)
	}
	return f
}

// shake lets a client and a server of these configurations meet, and returns the certificates that they saw of each other.
func shake(client, server *tls.Config) (ofServer, ofClient *x509.Certificate, err error) {
	// Not net.Pipe: it holds nothing, and two sides that both write, an alert and the rest of a handshake, would wait for each other.
	listener, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, nil, err
	}
	defer listener.Close()
	a, err := (&net.Dialer{}).Dial("tcp", listener.Addr().String())
	if err != nil {
		return nil, nil, err
	}
	defer a.Close()
	b, err := listener.Accept()
	if err != nil {
		return nil, nil, err
	}
	defer b.Close()
	served := make(chan error, 1)
	s := tls.Server(b, server)
	go func() {
		err := s.Handshake()
		if err == nil {
			_, err = s.Write([]byte("x"))
		}
		_ = b.Close() // the other side must not wait
		served <- err
	}()
	c := tls.Client(a, client)
	clientErr := c.Handshake()
	if clientErr == nil {
		// What the server says of the client's certificate comes after the client's part of the handshake.
		_, clientErr = io.ReadFull(c, make([]byte, 1))
	}
	_ = a.Close() // nor must this one
	if err := errors.Join(clientErr, <-served); err != nil {
		return nil, nil, err
	}
	ofServer = c.ConnectionState().PeerCertificates[0]
	if certs := s.ConnectionState().PeerCertificates; len(certs) > 0 {
		ofClient = certs[0]
	}
	return ofServer, ofClient, nil
}

func TestServerTakesTheNewPairAtTheNextHandshake(t *testing.T) {
	r := newRig(t)
	authority := certtest.New(t, "authority")
	client := &tls.Config{RootCAs: authority.Pool(), ServerName: "first", MinVersion: tls.VersionTLS12}
	cert, key := authority.Issue("first").Write(t, r.dir)
	server := r.open("", cert, key).Server("http/1.1")
	sees := func(want string) {
		t.Helper()
		client.ServerName = want
		got, _, err := shake(client, server)
		if err != nil || got.Subject.CommonName != want {
			t.Fatalf("expected the certificate of %s, but got %v, %v\n%s", want, got, err, r.log)
		}
	}
	sees("first")
	authority.Issue("second").Write(t, r.dir)
	sees("first") // it was looked at a moment ago
	r.pass(tlsfiles.Every)
	sees("second")

	// Half-written, and a key that is another certificate's: the pair in use stays, and each state is told of once.
	third := authority.Issue("third")
	for _, broken := range []certtest.Pair{
		{Cert: third.Cert[:len(third.Cert)/2], Key: third.Key},
		{Cert: third.Cert, Key: authority.Issue("other").Key},
		{},
	} {
		broken.Write(t, r.dir)
		before := strings.Count(r.log.String(), "level=ERROR")
		for range 3 {
			r.pass(tlsfiles.Every)
			sees("second")
		}
		if n := strings.Count(r.log.String(), "level=ERROR") - before; n != 1 {
			t.Errorf("expected the broken pair to be told of once, but it was %d times\n%s", n, r.log)
		}
	}
	if err := os.Remove(key); err != nil {
		t.Fatal(err)
	}
	r.pass(tlsfiles.Every)
	sees("second")
	third.Write(t, r.dir)
	r.pass(tlsfiles.Every)
	sees("third")
}

// TestSwappedLink: Kubernetes keeps the files in a folder of their own and swaps the link that leads there; the files' times may be those
// of any day.
func TestSwappedLink(t *testing.T) {
	r := newRig(t)
	authority := certtest.New(t, "authority")
	for _, name := range []string{"first", "second"} {
		dir := filepath.Join(r.dir, ".."+name)
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		cert, key := authority.Issue(name).Write(t, dir)
		for _, path := range []string{cert, key} {
			if err := os.Chtimes(path, time.Unix(1, 0), time.Unix(1, 0)); err != nil {
				t.Fatal(err)
			}
		}
	}
	link := filepath.Join(r.dir, "data")
	if err := os.Symlink("..first", link); err != nil {
		t.Fatal(err)
	}
	server := r.open("", filepath.Join(link, "tls.crt"), filepath.Join(link, "tls.key")).Server()
	for _, name := range []string{"first", "second"} {
		if name == "second" {
			next := filepath.Join(r.dir, "next")
			if err := errors.Join(os.Symlink("..second", next), os.Rename(next, link)); err != nil {
				t.Fatal(err)
			}
			r.pass(tlsfiles.Every)
		}
		got, _, err := shake(&tls.Config{RootCAs: authority.Pool(), ServerName: name, MinVersion: tls.VersionTLS12}, server)
		if err != nil || got.Subject.CommonName != name {
			t.Fatalf("expected the certificate of %s, but got %v, %v", name, got, err)
		}
	}
}

func TestClientTakesNewCertificatesAndAuthorities(t *testing.T) {
	r := newRig(t)
	old, renewed := certtest.New(t, "old"), certtest.New(t, "renewed")
	ca := certtest.File(t, r.dir, "ca.pem", old.PEM)
	cert, key := old.Issue("client-1").Write(t, r.dir)
	files := r.open(ca, cert, key)
	server := func(a *certtest.Authority) *tls.Config {
		return &tls.Config{
			Certificates: []tls.Certificate{a.Issue("broker").TLS(t)}, ClientCAs: a.Pool(), ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS12,
		}
	}
	if _, got, err := shake(files.Client("broker"), server(old)); err != nil || got.Subject.CommonName != "client-1" {
		t.Fatalf("expected client-1, but got %v, %v", got, err)
	}
	var unknown x509.UnknownAuthorityError
	if _, _, err := shake(files.Client("broker"), server(renewed)); !errors.As(err, &unknown) {
		t.Fatalf("expected the new authority not to be known yet, but got %v", err)
	}
	var name x509.HostnameError
	if _, _, err := shake(files.Client("another"), server(old)); !errors.As(err, &name) {
		t.Fatalf("expected another server's certificate to be refused, but got %v", err)
	}
	certtest.File(t, r.dir, "ca.pem", renewed.PEM)
	renewed.Issue("client-2").Write(t, r.dir)
	r.pass(tlsfiles.Every)
	if _, got, err := shake(files.Client("broker"), server(renewed)); err != nil || got.Subject.CommonName != "client-2" {
		t.Fatalf("expected client-2, but got %v, %v\n%s", got, err, r.log)
	}
	// An authority's file that cannot be read must not mean the system's authorities, nor none.
	certtest.File(t, r.dir, "ca.pem", []byte("no PEM"))
	r.pass(tlsfiles.Every)
	if _, _, err := shake(files.Client("broker"), server(old)); !errors.As(err, &unknown) {
		t.Fatalf("expected the authority that was read last to count alone, but got %v", err)
	}
	if _, _, err := shake(files.Client("broker"), server(renewed)); err != nil {
		t.Fatalf("expected the authority that was read last to count, but got %v", err)
	}
}

func TestOpenSaysEverythingThatIsWrong(t *testing.T) {
	r := newRig(t)
	pair := certtest.New(t, "authority").Issue("a")
	cert, key := pair.Write(t, r.dir)
	text := certtest.File(t, r.dir, "text", []byte("text"))
	none := filepath.Join(r.dir, "none")
	for _, c := range []struct {
		cfg  tlsfiles.Config
		want []string
	}{
		{tlsfiles.Config{Cert: cert}, []string{"its key"}},
		{tlsfiles.Config{Key: key}, []string{"only one of them"}},
		{tlsfiles.Config{CA: none, Cert: none + "1", Key: key}, []string{"none:", "none1"}},
		{tlsfiles.Config{CA: text, Cert: key, Key: cert}, []string{text, cert, key}},
		{tlsfiles.Config{CA: r.dir}, []string{r.dir}},
	} {
		_, err := tlsfiles.Open(c.cfg)
		for _, want := range c.want {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%+v: expected an error that names %q, but got %v", c.cfg, want, err)
			}
		}
	}
}

// TestManyHandshakes is for the race detector.
func TestManyHandshakes(t *testing.T) {
	r := newRig(t)
	authority := certtest.New(t, "authority")
	cert, key := authority.Issue("host").Write(t, r.dir)
	files := r.open(certtest.File(t, r.dir, "ca.pem", authority.PEM), cert, key)
	server := files.Server()
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 20 {
				r.pass(tlsfiles.Every / 2)
				if _, _, err := shake(files.Client("host"), server); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for range 20 {
		// In two steps, as most programs that renew do: in between the pair does not fit.
		authority.Issue("host").Write(t, r.dir)
	}
	all.Wait()
}
