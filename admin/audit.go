package admin

import (
	"bufio"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// Sealer encrypts what rests on the disk; pki/seal's keyring is one.
type Sealer interface {
	Seal(domain string, plain []byte) []byte
	Open(domain string, sealed []byte) ([]byte, error)
	// Current reports whether the active key sealed it.
	Current(sealed []byte) bool
}

// auditDomain is what audit records are sealed for.
const auditDomain = "admin/audit"

// maxRecord is the size in bytes of one record on the disk.
const maxRecord = 64 << 10

// Record is one line of the audit: somebody asked for a change.
type Record struct {
	Sequence  uint64    `json:"seq"`
	Time      time.Time `json:"time"`
	Request   string    `json:"request"`
	Principal string    `json:"principal"`
	Transport string    `json:"transport"`
	Detail    string    `json:"detail,omitempty"`
	Role      string    `json:"role"`
	Pattern   string    `json:"pattern"`
	Object    string    `json:"object,omitempty"`
	Query     string    `json:"query,omitempty"`
	// Body is the SHA-256, in hexadecimal, of as much of the body as was read
	// before the reply; empty if nothing was, or if the route streams.
	Body     string `json:"body,omitempty"`
	Decision string `json:"decision"` // allow or deny
	Status   int    `json:"status"`
	// Previous is the SHA-256 of the record before, in hexadecimal; empty in the first.
	Previous string `json:"prev"`
}

// Audit is the append-only record of changes that were asked for. Each record
// holds the hash of the one before, so that none can be changed, dropped from
// the middle or put elsewhere unseen; each is sealed. Records are with the
// kernel when Append returns: they survive the process, and all but the last
// seconds survive the machine.
//
// The directory holds segments, each named by the number of its first record.
// Old ones may be taken away, from the oldest on.
type Audit struct {
	dir     string
	seal    Sealer
	segment int64 // size in bytes at which the next one begins

	mu    sync.Mutex // guards what follows
	file  *os.File   // the last segment
	size  int64      // of the whole records in file
	chain chain
}

// chain is the place after the last record.
type chain struct {
	number uint64 // of the last record
	hash   string // of the last record
}

// follow moves on past a record, if it is the next one. The first record that
// is seen may be any.
func (c *chain) follow(rec Record, hash string) error {
	if *c != (chain{}) && (rec.Sequence != c.number+1 || rec.Previous != c.hash) {
		return fmt.Errorf("record %d: does not follow record %d", rec.Sequence, c.number)
	}
	c.number, c.hash = rec.Sequence, hash
	return nil
}

// OpenAudit opens the audit in dir, or begins one. A last record that a crash
// cut short is dropped; any other damage to the last segment is an error.
func OpenAudit(dir string, seal Sealer) (*Audit, error) {
	a := &Audit{dir: dir, seal: seal, segment: 16 << 20}
	if err := a.open(); err != nil {
		return nil, fmt.Errorf("open audit: %w", err)
	}
	return a, nil
}

func (a *Audit) open() error {
	if err := os.MkdirAll(a.dir, 0o700); err != nil {
		return err
	}
	names, err := segments(a.dir)
	if err != nil {
		return err
	}
	// The last may have been begun and hold nothing yet: then the place in the
	// chain is at the end of the one before.
	for _, name := range names[max(0, len(names)-2):] {
		if a.size, err = a.replay(name, func(Record) error { return nil }); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	if len(names) == 0 {
		return a.begin()
	}
	a.file, err = os.OpenFile(filepath.Join(a.dir, names[len(names)-1]), os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	return a.file.Truncate(a.size)
}

// begin makes the next segment.
func (a *Audit) begin() error {
	name := fmt.Sprintf("%020d", a.chain.number+1)
	f, err := os.OpenFile(filepath.Join(a.dir, name), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	if a.file != nil {
		err = errors.Join(a.file.Sync(), a.file.Close())
	}
	a.file, a.size = f, 0
	return err
}

// segments are the names of an audit's files, in order.
func segments(dir string) (names []string, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if len(e.Name()) == 20 && strings.Trim(e.Name(), "0123456789") == "" {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// ReadAudit calls f with every record in dir, in order, after it has been
// found to follow from the one before.
func ReadAudit(dir string, seal Sealer, f func(Record) error) error {
	a := &Audit{dir: dir, seal: seal}
	names, err := segments(dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if _, err := a.replay(name, f); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// replay follows the chain through a segment and returns the size in bytes of
// its whole records.
func (a *Audit) replay(name string, f func(Record) error) (size int64, err error) {
	file, err := os.Open(filepath.Join(a.dir, name))
	if err != nil {
		return 0, err
	}
	defer func() { _ = file.Close() }()
	r := bufio.NewReaderSize(file, maxRecord)
	for {
		line, err := r.ReadSlice('\n')
		if errors.Is(err, io.EOF) {
			return size, nil // with a line that was cut short, or none
		}
		if err != nil {
			return 0, fmt.Errorf("after record %d: %w", a.chain.number, err)
		}
		rec, hash, err := a.decode(line)
		if err != nil {
			return 0, fmt.Errorf("after record %d: %w", a.chain.number, err)
		}
		if size == 0 && name != fmt.Sprintf("%020d", rec.Sequence) {
			return 0, fmt.Errorf("begins with record %d", rec.Sequence)
		}
		if err := a.chain.follow(rec, hash); err != nil {
			return 0, err
		}
		if err := f(rec); err != nil {
			return 0, err
		}
		size += int64(len(line))
	}
}

func (a *Audit) decode(line []byte) (rec Record, hash string, err error) {
	sealed := make([]byte, base64.StdEncoding.DecodedLen(len(line)))
	n, err := base64.StdEncoding.Decode(sealed, line[:len(line)-1])
	if err != nil {
		return rec, "", err
	}
	plain, err := a.seal.Open(auditDomain, sealed[:n])
	if err != nil {
		return rec, "", err
	}
	return rec, digest(plain), json.Unmarshal(plain, &rec)
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// Append adds a record; its number and its place in the chain are filled in.
func (a *Audit) Append(rec Record) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	rec.Sequence, rec.Previous = a.chain.number+1, a.chain.hash
	plain, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	line := append(base64.StdEncoding.AppendEncode(nil, a.seal.Seal(auditDomain, plain)), '\n')
	if len(line) > maxRecord {
		return fmt.Errorf("record of %d bytes", len(line))
	}
	if a.size > 0 && a.size+int64(len(line)) > a.segment {
		if err := a.begin(); err != nil {
			return err
		}
	}
	// A write that failed half way is written over by the next.
	if _, err := a.file.WriteAt(line, a.size); err != nil {
		return err
	}
	a.size += int64(len(line))
	a.chain = chain{rec.Sequence, digest(plain)}
	return nil
}

// Close makes the records durable and ends the audit.
func (a *Audit) Close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return errors.Join(a.file.Sync(), a.file.Close())
}
