package identity

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"skep/pki/seal"
)

// Names in the data directory.
const (
	keystoreName = "keystore"
	kekName      = "kek"
)

// maxKeystore is the size in bytes of a keystore that is read.
const maxKeystore = 1 << 20

// ErrLocked says that only the unlock key opens the keystore.
var ErrLocked = errors.New("keystore is locked")

// ErrWrongKey says that a key is not the one that opens the keystore.
var ErrWrongKey = errors.New("invalid key provided")

// ErrFormat says that a data directory has a form that this program does not
// know: a newer one wrote it.
var ErrFormat = errors.New("data directory was written by another version of skep")

// Keystore is the open keystore of a data directory. No other process has it
// open. It may be used by many goroutines.
type Keystore struct {
	folder               // its directory is locked while the keystore is open
	ring   *seal.Keyring // over state.DEKs

	mu    sync.Mutex // guards what follows, and the files
	kek   seal.Secret
	state State
}

// Open opens the keystore in dir, or makes one for a node that is in no swarm.
// dir must be there. If the keystore is locked the error is [ErrLocked], and
// [Unlock] opens it.
func Open(dir string) (*Keystore, error) {
	return open(dir, func(k *Keystore) error {
		kek, err := k.read(kekName)
		switch {
		case err == nil && len(kek) == seal.KeySize:
			k.kek = kek
		case err == nil || errors.Is(err, os.ErrNotExist):
			k.kek = nil // none, or one that a crash cut short before it was of use
		default:
			return err
		}
		sealed, err := k.read(keystoreName)
		if errors.Is(err, os.ErrNotExist) {
			return k.create()
		}
		if err != nil {
			return err
		}
		if k.kek == nil {
			return ErrLocked
		}
		if err := k.load(sealed); !errors.Is(err, seal.ErrNoKey) {
			return err
		}
		// The key that lies here is from before the lock, or from an unlocking
		// that was not finished.
		return ErrLocked
	})
}

// Exists tells whether there is a keystore in dir, open or locked.
func Exists(dir string) (bool, error) {
	_, err := os.Stat(filepath.Join(dir, keystoreName))
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// Unlock opens the locked keystore in dir. A key that does not fit is [ErrWrongKey].
func Unlock(dir string, key seal.Secret) (*Keystore, error) {
	return open(dir, func(k *Keystore) error {
		sealed, err := k.read(keystoreName)
		if err != nil {
			return err
		}
		k.kek = key
		if err := k.load(sealed); errors.Is(err, seal.ErrNoKey) {
			return ErrWrongKey
		} else if err != nil {
			return err
		}
		// A crash in Lock may have left the key from before.
		return k.remove(kekName)
	})
}

// Abandon makes a new keystore in the place of a locked one, for a node that
// has left its swarm. All that the old one's keys sealed is lost for good.
func Abandon(dir string) (*Keystore, error) {
	return open(dir, func(k *Keystore) error {
		return k.unlock(State{DEKs: []seal.Secret{seal.NewSecret()}, Left: true})
	})
}

func open(dir string, fill func(*Keystore) error) (*Keystore, error) {
	f, err := openFolder(dir)
	if err != nil {
		return nil, fmt.Errorf("open keystore: %w", err)
	}
	k := &Keystore{folder: f}
	if err = unix.Flock(int(f.dir.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = k.Close()
		return nil, fmt.Errorf("open keystore: another process uses %s: %w", dir, err)
	}
	if err = fill(k); err != nil {
		_ = k.Close()
		return nil, fmt.Errorf("open keystore: %w", err)
	}
	if k.ring, err = seal.NewKeyring(k.state.DEKs[0], k.state.DEKs[1:]...); err != nil {
		_ = k.Close()
		return nil, fmt.Errorf("open keystore: %w", err)
	}
	return k, nil
}

// create makes the keystore of a new node.
func (k *Keystore) create() error {
	if k.kek == nil {
		k.kek = seal.NewSecret()
		if err := k.replace(kekName, k.kek); err != nil {
			return err
		}
	}
	return k.save(k.kek, State{DEKs: []seal.Secret{seal.NewSecret()}})
}

// load opens what lies in the keystore's file with the key at hand.
func (k *Keystore) load(sealed []byte) error {
	ring, err := keystoreRing(k.kek)
	if err != nil {
		return err
	}
	var s State
	if err := decrypt(ring, "keystore", sealed, &s); err != nil {
		return err
	}
	if len(s.DEKs) == 0 {
		return errors.New("no keys in it")
	}
	k.state = s
	return nil
}

// Close lets other processes open the keystore.
func (k *Keystore) Close() error { return k.close() }

// State is a copy of what the keystore holds.
func (k *Keystore) State() State {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.state.clone()
}

// Keyring seals and opens with the node's keys. It follows their rotation.
func (k *Keystore) Keyring() *seal.Keyring { return k.ring }

// Update changes the keystore. When it returns nil, the change is on the disk.
// If change or writing fails, nothing has changed; after an error of the disk
// the caller must end, for what the disk holds is not known any more.
func (k *Keystore) Update(change func(*State) error) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	next := k.state.clone()
	if err := change(&next); err != nil {
		return err
	}
	next.DEKs, next.Locked, next.KEKVersion = k.state.clone().DEKs, k.state.Locked, k.state.KEKVersion
	next.StaleKey = k.state.StaleKey && bytes.Equal(next.Key, k.state.Key)
	return k.save(k.kek, next)
}

// AddDEK makes a new key for sealing. Old ones still open.
func (k *Keystore) AddDEK() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	next, fresh := k.state.clone(), seal.NewSecret()
	next.DEKs = append([]seal.Secret{fresh}, next.DEKs...)
	// First to the disk: nothing may be sealed with a key that could be lost.
	if err := k.save(k.kek, next); err != nil {
		return err
	}
	k.ring.Rotate(fresh)
	return nil
}

// RetireDEKs forgets all keys but the active one: what they sealed is gone.
func (k *Keystore) RetireDEKs() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	next := k.state.clone()
	next.DEKs = next.DEKs[:1]
	if err := k.save(k.kek, next); err != nil {
		return err
	}
	k.ring.Retire()
	return nil
}

// Lock makes key, an unlock key, the only one that opens the keystore from now
// on. The node goes on as it is until it starts again. The keys that an older
// keystore gave away, which may be found in free blocks of the disk, are to be
// replaced: there is a new DEK, and the node's TLS key is stale.
func (k *Keystore) Lock(key seal.Secret, version uint64) error {
	if len(key) != seal.KeySize {
		return fmt.Errorf("lock keystore: a key of %d bytes", len(key))
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	next := k.renewed()
	next.Locked, next.KEKVersion = true, version
	// A crash in between leaves a key that opens nothing.
	if err := k.save(key, next); err != nil {
		return err
	}
	k.ring.Rotate(next.DEKs[0])
	return k.remove(kekName)
}

// Unlocked undoes Lock: the keystore opens by itself from now on. Keys are to
// be replaced as they are by Lock. One that was not locked only takes the
// version.
func (k *Keystore) Unlocked(version uint64) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.state.Locked {
		next := k.state.clone()
		next.KEKVersion = version
		return k.save(k.kek, next)
	}
	next := k.renewed()
	next.Locked, next.KEKVersion = false, version
	if err := k.unlock(next); err != nil {
		return err
	}
	k.ring.Rotate(next.DEKs[0])
	return nil
}

// Forget makes the node a member of no swarm, for good. Its keystore opens by
// itself.
func (k *Keystore) Forget() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	next := State{DEKs: k.state.clone().DEKs, Left: true}
	if !k.state.Locked {
		return k.save(k.kek, next)
	}
	return k.unlock(next)
}

// renewed is a copy of the state in which the keys are on their way out.
func (k *Keystore) renewed() State {
	next := k.state.clone()
	next.DEKs = append([]seal.Secret{seal.NewSecret()}, next.DEKs...)
	next.StaleKey = len(next.Key) > 0
	return next
}

// unlock saves the state under a key that lies beside it. It is for a keystore
// that is locked: a crash in between leaves a key that opens nothing.
func (k *Keystore) unlock(next State) error {
	kek := seal.NewSecret()
	if err := k.replace(kekName, kek); err != nil {
		return fmt.Errorf("write keystore: %w", err)
	}
	return k.save(kek, next)
}

// save writes the state under a key and makes both current.
func (k *Keystore) save(kek seal.Secret, next State) error {
	ring, err := keystoreRing(kek)
	if err != nil {
		return fmt.Errorf("write keystore: %w", err)
	}
	b, err := encrypt(ring, "keystore", next)
	if err != nil {
		return fmt.Errorf("write keystore: %w", err)
	}
	if err := k.replace(keystoreName, b); err != nil {
		return fmt.Errorf("write keystore: %w", err)
	}
	k.kek, k.state = kek, next
	return nil
}
