package logs

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// watcher tells of changes to a directory and the files in it.
type watcher struct {
	f    *os.File
	news chan struct{} // holds one: there is news or there is not
}

func watch(dir string) (*watcher, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watch %s: %w", dir, err)
	}
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_MODIFY|unix.IN_CREATE|unix.IN_MOVED_TO); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("watch %s: %w", dir, err)
	}
	w := &watcher{f: os.NewFile(uintptr(fd), "inotify"), news: make(chan struct{}, 1)}
	go w.read() // ends when the file is closed
	return w, nil
}

func (w *watcher) close() { w.f.Close() }

func (w *watcher) read() {
	buf := make([]byte, 16<<10)
	for {
		if _, err := w.f.Read(buf); err != nil {
			return
		}
		select {
		case w.news <- struct{}{}:
		default:
		}
	}
}
