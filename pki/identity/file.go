package identity

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
)

// temporary is the end of the name of a file that is not whole yet.
const temporary = ".tmp"

// folder is the data directory.
type folder struct {
	dir  *os.File
	root *os.Root
}

func openFolder(path string) (f folder, err error) {
	if f.dir, err = os.Open(path); err != nil {
		return f, err
	}
	if f.root, err = os.OpenRoot(path); err != nil {
		return f, errors.Join(err, f.dir.Close())
	}
	return f, nil
}

func (f folder) close() error { return errors.Join(f.root.Close(), f.dir.Close()) }

func (f folder) read(name string) ([]byte, error) {
	file, err := f.root.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	b, err := io.ReadAll(io.LimitReader(file, maxKeystore+1))
	if err == nil && len(b) > maxKeystore {
		err = fmt.Errorf("%s is larger than %d bytes", name, maxKeystore)
	}
	return b, err
}

// replace puts b in the place of the file of that name, all or nothing, and
// for good: the new file is on the disk and reads back before it takes the
// name, and the name is on the disk before replace returns.
func (f folder) replace(name string, b []byte) error {
	if err := f.write(name+temporary, b); err != nil {
		return err
	}
	back, err := f.read(name + temporary)
	if err != nil {
		return err
	}
	if !bytes.Equal(back, b) {
		return fmt.Errorf("%s does not read back as it was written", name+temporary)
	}
	if err := f.root.Rename(name+temporary, name); err != nil {
		return err
	}
	return f.dir.Sync()
}

func (f folder) write(name string, b []byte) error {
	file, err := f.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = file.Write(b)
	return errors.Join(err, file.Sync(), file.Close())
}

// remove takes a file away for good.
func (f folder) remove(name string) error {
	if err := f.root.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return f.dir.Sync()
}
