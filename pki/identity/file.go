package identity

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"skep/pki/seal"
)

// temporary is the end of the name of a file that is not whole yet.
const temporary = ".tmp"

// encrypt is the keystore's file.
func encrypt(kek seal.Secret, s State) ([]byte, error) {
	ring, err := seal.NewKeyring(kek.Derive("skep keystore"))
	if err != nil {
		return nil, err
	}
	plain, err := encode(s)
	if err != nil {
		return nil, err
	}
	return ring.Seal(seal.Domain("keystore"), plain), nil
}

func decrypt(kek seal.Secret, b []byte) (State, error) {
	ring, err := seal.NewKeyring(kek.Derive("skep keystore"))
	if err != nil {
		return State{}, err
	}
	plain, err := ring.Open(seal.Domain("keystore"), b)
	if err != nil {
		return State{}, err
	}
	return decode(plain)
}

func read(root *os.Root, name string) ([]byte, error) {
	f, err := root.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, maxKeystore+1))
	if err == nil && len(b) > maxKeystore {
		err = fmt.Errorf("%s is larger than %d bytes", name, maxKeystore)
	}
	return b, err
}

// replace puts b in the place of the file of that name, all or nothing, and
// for good: the new file is on the disk and reads back before it takes the
// name, and the name is on the disk before replace returns.
func (k *Keystore) replace(name string, b []byte) error {
	if err := k.write(name+temporary, b); err != nil {
		return err
	}
	back, err := read(k.root, name+temporary)
	if err != nil {
		return err
	}
	if !bytes.Equal(back, b) {
		return fmt.Errorf("%s does not read back as it was written", name+temporary)
	}
	if err := k.root.Rename(name+temporary, name); err != nil {
		return err
	}
	return k.dir.Sync()
}

func (k *Keystore) write(name string, b []byte) error {
	f, err := k.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Sync(), f.Close())
}

// remove takes a file away for good.
func (k *Keystore) remove(name string) error {
	if err := k.root.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return k.dir.Sync()
}
