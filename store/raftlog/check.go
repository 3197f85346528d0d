package raftlog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
)

// bbolt trusts its file: over a bad page it panics (in goroutines of its own,
// where nobody can recover), runs in circles, or passes over what it cannot
// see. So before it opens the file we walk the whole tree ourselves.
//
// The layout is that of bbolt's version 2 on a little-endian machine: pages
// with a header of id (8 bytes), flags (2), count (2) and overflow (4), then
// elements of 16 bytes that point to keys and values further on.
const (
	pageHeader = 16
	element    = 16

	branchPage  = 0x01
	leafPage    = 0x02
	bucketValue = 0x01
	bucketSize  = 16

	metaSize  = 64
	metaMagic = 0xED0CDAED
)

// tree is a bbolt file that is being checked.
type tree struct {
	file     *os.File
	pageSize int64
	pages    uint64 // in use or free; there are none behind
	seen     map[uint64]bool
}

// checkFile is an error unless a bbolt file is whole in form. What is in its
// values is not its business.
func checkFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // only read
	t := &tree{file: f, pageSize: int64(os.Getpagesize()), seen: map[uint64]bool{}}
	root, err := t.meta()
	if err != nil {
		return err
	}
	return t.walk(root, nil, nil)
}

// meta is the page of the root. bbolt keeps two copies of where its tree
// begins, writes them in turn, and takes the older one if the newer is bad:
// after damage that would be a log without the entries it acknowledged last. So
// both must be whole, and one the successor of the other. (A copy is smaller
// than a sector, so that no crash leaves half of one.)
func (t *tree) meta() (root uint64, err error) {
	var txid [2]uint64
	var newest []byte
	for i := range txid {
		b := make([]byte, pageHeader+metaSize)
		if err := t.read(b, int64(i)*t.pageSize); err != nil {
			return 0, err
		}
		m := b[pageHeader:]
		sum := fnv.New64a()
		sum.Write(m[:metaSize-8])
		if u32(m) != metaMagic || u64(m[metaSize-8:]) != sum.Sum64() || int64(u32(m[8:])) != t.pageSize {
			return 0, fmt.Errorf("%w: page %d", ErrDamaged, i)
		}
		if txid[i] = u64(m[48:]); newest == nil || txid[i] > txid[0] {
			newest = m
		}
	}
	if txid[0]+1 != txid[1] && txid[1]+1 != txid[0] {
		return 0, fmt.Errorf("%w: it holds transactions %d and %d", ErrDamaged, txid[0], txid[1])
	}
	t.pages = u64(newest[40:])
	return u64(newest[16:]), nil
}

func (t *tree) read(b []byte, at int64) error {
	if _, err := t.file.ReadAt(b, at); errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: it was cut off before %d", ErrDamaged, at+int64(len(b)))
	} else if err != nil {
		return err
	}
	return nil
}

// walk checks a page and all below it. Its keys must lie from low to before
// high, if there are such bounds.
func (t *tree) walk(id uint64, low, high []byte) error {
	if id < 2 || id >= t.pages || t.seen[id] {
		return fmt.Errorf("%w: page %d is not where it belongs", ErrDamaged, id)
	}
	t.seen[id] = true
	head := make([]byte, pageHeader)
	if err := t.read(head, int64(id)*t.pageSize); err != nil {
		return err
	}
	overflow := uint64(u32(head[12:]))
	if u64(head) != id || overflow >= t.pages-id {
		return fmt.Errorf("%w: page %d has a bad header", ErrDamaged, id)
	}
	b := make([]byte, (overflow+1)*uint64(t.pageSize))
	if err := t.read(b, int64(id)*t.pageSize); err != nil {
		return err
	}
	return t.page(b, low, high)
}

// page checks the elements of a page, which may be in a value.
func (t *tree) page(b, low, high []byte) error {
	id, flags, count := u64(b), binary.LittleEndian.Uint16(b[8:]), int(binary.LittleEndian.Uint16(b[10:]))
	bad := fmt.Errorf("%w: page %d has bad elements", ErrDamaged, id)
	if flags != branchPage && flags != leafPage || flags == branchPage && count == 0 || pageHeader+count*element > len(b) {
		return bad
	}
	keys := make([][]byte, count)
	for i := range count {
		e := b[pageHeader+i*element:]
		pos, ksize, vsize := uint64(u32(e)), uint64(u32(e[4:])), uint64(0)
		if flags == leafPage {
			pos, ksize, vsize = uint64(u32(e[4:])), uint64(u32(e[8:])), uint64(u32(e[12:]))
		}
		if pos < uint64((count-i)*element) || pos+ksize+vsize > uint64(len(e)) {
			return bad
		}
		keys[i] = e[pos : pos+ksize]
		if bytes.Compare(keys[i], low) < 0 || high != nil && bytes.Compare(keys[i], high) >= 0 || i > 0 && bytes.Compare(keys[i-1], keys[i]) >= 0 {
			return bad
		}
		if flags == leafPage {
			if err := t.value(u32(e), e[pos+ksize:pos+ksize+vsize], bad); err != nil {
				return err
			}
		}
	}
	for i := range count {
		if flags == leafPage {
			break
		}
		next := high
		if i+1 < count {
			next = keys[i+1]
		}
		if err := t.walk(u64(b[pageHeader+i*element+8:]), keys[i], next); err != nil {
			return err
		}
	}
	return nil
}

// value checks a value that is a bucket: a tree of its own, or a page in the value.
func (t *tree) value(flags uint32, v []byte, bad error) error {
	switch {
	case flags == 0:
		return nil
	case flags != bucketValue || len(v) < bucketSize:
		return bad
	case u64(v) != 0:
		return t.walk(u64(v), nil, nil)
	case len(v) < bucketSize+pageHeader:
		return bad
	default:
		return t.page(v[bucketSize:], nil, nil)
	}
}

func u32(b []byte) uint32 { return binary.LittleEndian.Uint32(b) }

func u64(b []byte) uint64 { return binary.LittleEndian.Uint64(b) }
