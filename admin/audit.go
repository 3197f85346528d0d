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
	"sync"
	"time"
)

// Sealer encrypts what rests on the disk; pki/seal's keyring is one.
type Sealer interface {
	Seal(domain string, plain []byte) []byte
	Open(domain string, sealed []byte) ([]byte, error)
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
	Decision  string    `json:"decision"` // allow or deny
	Status    int       `json:"status"`
	// Previous is the SHA-256 of the record before, in hexadecimal; empty in the first.
	Previous string `json:"prev"`
}

// Audit is the append-only record of changes that were asked for. Each record
// holds the hash of the one before, so that none can be changed, dropped from
// the middle or put elsewhere unseen; each is sealed. Records are with the
// kernel when Append returns: they survive the process, and all but the last
// seconds survive the machine.
type Audit struct {
	seal Sealer

	mu   sync.Mutex // guards what follows
	file *os.File
	size int64 // of the whole records in file
	next uint64
	last string // hash of the last record
}

// OpenAudit opens the audit at path, or begins one. A last record that a crash
// cut short is dropped; any other damage is an error.
func OpenAudit(path string, seal Sealer) (*Audit, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open audit: %w", err)
	}
	a := &Audit{seal: seal, file: f}
	if err := a.replay(func(Record) error { return nil }); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("open audit: %w", err)
	}
	if err := f.Truncate(a.size); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("open audit: %w", err)
	}
	return a, nil
}

// ReadAudit calls f with every record at path, in order, after it has been
// found to follow from the one before.
func ReadAudit(path string, seal Sealer, f func(Record) error) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	a := &Audit{seal: seal, file: file}
	return a.replay(f)
}

// replay reads the file from its start and leaves the audit at its end.
func (a *Audit) replay(f func(Record) error) error {
	r := bufio.NewReaderSize(a.file, maxRecord)
	for {
		line, err := r.ReadSlice('\n')
		if errors.Is(err, io.EOF) {
			return nil // with a line that was cut short, or none
		}
		if err != nil {
			return fmt.Errorf("record %d: %w", a.next+1, err)
		}
		rec, hash, err := a.decode(line)
		if err != nil {
			return fmt.Errorf("record %d: %w", a.next+1, err)
		}
		if rec.Sequence != a.next+1 || rec.Previous != a.last {
			return fmt.Errorf("record %d: does not follow the one before", a.next+1)
		}
		a.next, a.last, a.size = rec.Sequence, hash, a.size+int64(len(line))
		if err := f(rec); err != nil {
			return err
		}
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
	rec.Sequence, rec.Previous = a.next+1, a.last
	plain, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	line := append(base64.StdEncoding.AppendEncode(nil, a.seal.Seal(auditDomain, plain)), '\n')
	if len(line) > maxRecord {
		return fmt.Errorf("record of %d bytes", len(line))
	}
	// A write that failed half way is written over by the next.
	if _, err := a.file.WriteAt(line, a.size); err != nil {
		return err
	}
	a.next, a.last, a.size = rec.Sequence, digest(plain), a.size+int64(len(line))
	return nil
}

// Close makes the records durable and ends the audit.
func (a *Audit) Close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return errors.Join(a.file.Sync(), a.file.Close())
}
