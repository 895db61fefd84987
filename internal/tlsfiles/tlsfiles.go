// Package tlsfiles keeps certificates that are replaced in their files while the program runs.
//
// Whoever issues short-lived certificates writes new ones beside the old (Kubernetes swaps a symbolic link) and expects the next
// handshake to use them. So the files are looked at when a handshake needs them, at most once in [Every], and by their content:
// times and inodes tell nothing certain of a link that was swapped. What cannot be used (a half-written file, a key that is
// another certificate's) changes nothing: the pair that was read last stays in use, and the log says what is wrong.
//
// Established connections keep the certificate that they began with.
package tlsfiles

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"time"
)

// Every is how long what was read is used without a look at the files.
const Every = 10 * time.Second

// fileMax bounds what is read of one file, in bytes.
const fileMax = 4 << 20

// Config names the files, all PEM. At least one of them.
type Config struct {
	CA   string // certificates of the authorities that the other side may be signed by; "" for those of the system
	Cert string // own certificate and those that lead to its authority; "" for none
	Key  string // private key of Cert

	Now func() time.Time // Default time.Now
	Log *slog.Logger     // Default slog.Default()
}

// Files are certificates as they are on the disk. Its methods may be called from many goroutines.
type Files struct {
	cfg Config

	mu      sync.Mutex
	checked time.Time
	read    content // what was seen last, good or not
	pair    *tls.Certificate
	roots   *x509.CertPool
}

// content is what the files hold.
type content struct{ ca, cert, key []byte }

func (c content) equal(d content) bool {
	return bytes.Equal(c.ca, d.ca) && bytes.Equal(c.cert, d.cert) && bytes.Equal(c.key, d.key)
}

// Open reads the files. It reports all faults at once.
func Open(cfg Config) (*Files, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if (cfg.Cert == "") != (cfg.Key == "") {
		return nil, errors.New("expected a certificate and its key, but got only one of them; name both files")
	}
	f := &Files{cfg: cfg, checked: cfg.Now()}
	c, err := f.load()
	if err != nil {
		return nil, err
	}
	f.read = c
	if f.pair, f.roots, err = f.parse(c); err != nil {
		return nil, err
	}
	return f, nil
}

// load reads the files that are named.
func (f *Files) load() (c content, err error) {
	var faults []error
	get := func(path string) []byte {
		if path == "" {
			return nil
		}
		data, err := readFile(path)
		if err != nil {
			faults = append(faults, err)
		}
		return data
	}
	c = content{ca: get(f.cfg.CA), cert: get(f.cfg.Cert), key: get(f.cfg.Key)}
	return c, errors.Join(faults...)
}

func readFile(path string) (_ []byte, err error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("expected to read a certificate or key, but: %w", err)
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	data, err := io.ReadAll(io.LimitReader(file, fileMax+1))
	if err != nil {
		return nil, fmt.Errorf("expected to read %s, but: %w", path, err)
	}
	if len(data) > fileMax {
		return nil, fmt.Errorf("expected certificates of at most %d bytes in %s, but the file is larger; is it the right one?", fileMax, path)
	}
	return data, nil
}

func (f *Files) parse(c content) (pair *tls.Certificate, roots *x509.CertPool, err error) {
	var faults []error
	if f.cfg.Cert != "" {
		p, err := tls.X509KeyPair(c.cert, c.key)
		if err != nil {
			faults = append(faults, fmt.Errorf("expected a certificate in %s and its key in %s, both PEM, but: %w", f.cfg.Cert, f.cfg.Key, err))
		}
		pair = &p
	}
	if f.cfg.CA != "" {
		roots = x509.NewCertPool()
		if !roots.AppendCertsFromPEM(c.ca) {
			faults = append(faults, fmt.Errorf("expected certificates of authorities as PEM in %s, but found none that can be read", f.cfg.CA))
		}
	}
	return pair, roots, errors.Join(faults...)
}

// now returns what is to be used for a handshake.
func (f *Files) now() (*tls.Certificate, *x509.CertPool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if now := f.cfg.Now(); now.Sub(f.checked) >= Every || now.Before(f.checked) {
		f.checked = now
		f.look()
	}
	return f.pair, f.roots
}

// look takes over what has changed, if it is good. The caller holds mu. A pair that is caught between the replacement of its two
// files is looked at again.
func (f *Files) look() {
	c, err := f.load()
	if err != nil {
		f.cfg.Log.Error("certificates cannot be read; those that were read before stay in use", "err", err)
		return
	}
	if c.equal(f.read) {
		return
	}
	pair, roots, err := f.parse(c)
	f.read = c
	if err != nil {
		f.cfg.Log.Error("new certificates cannot be used; the old ones stay in use until the files change again", "err", err)
		return
	}
	f.pair, f.roots = pair, roots
	f.cfg.Log.Info("certificates were replaced", "cert", f.cfg.Cert, "ca", f.cfg.CA)
}

// Client is the configuration for one handshake as a client with a server of this name. It is not to be kept: the next handshake
// may need another one.
func (f *Files) Client(serverName string) *tls.Config {
	pair, roots := f.now()
	c := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: serverName, RootCAs: roots}
	if pair != nil {
		// Not Certificates: a certificate that does not match what the server asks for would be left out silently, and its refusal
		// would name no reason.
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return pair, nil }
	}
	return c
}

// Server is the configuration of a listener that speaks these protocols. It follows the files for as long as it is used.
func (f *Files) Server(protocols ...string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		NextProtos: protocols,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			pair, _ := f.now()
			if pair == nil {
				return nil, errors.New("expected a certificate for the server, but only authorities are configured")
			}
			return pair, nil
		},
	}
}
