// SPDX-License-Identifier: Apache-2.0

// Package link makes network namespaces and the devices in them.
//
// It speaks netlink and runs no program. Every verb is idempotent: what is
// there already is adjusted, what is gone already is no error. It knows
// nothing of containers, addresses or ports.
package link

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// nsfsMagic is the type of the file system that namespaces live in.
const nsfsMagic = 0x6e736673

// Create makes a network namespace, runs setup inside it and then pins it at
// path. Until it is pinned the namespace lives on one thread only: if setup
// fails or the process dies it is gone, and every device in it.
func Create(path string, setup func() error) error {
	err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		if err := setup(); err != nil {
			return err
		}
		f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL, 0o444)
		if err != nil {
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
		if err := unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, ""); err != nil {
			return errors.Join(fmt.Errorf("pin: %w", err), os.Remove(path))
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("create network namespace %s: %w", path, err)
	}
	return nil
}

// Remove unpins the namespace at path. It ends when the last process in it does.
func Remove(path string) error {
	for {
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			break // nothing is mounted here (any more)
		}
		if err != nil {
			return fmt.Errorf("remove network namespace %s: %w", path, err)
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove network namespace: %w", err)
	}
	return nil
}

// Pinned reports whether a namespace is pinned at path.
func Pinned(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == nsfsMagic
}

// Within runs f on a thread that is in the namespace pinned at path. What f
// starts on other goroutines is not in it; sockets that f opens stay in it.
func Within(path string, f func() error) error {
	ns, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("enter network namespace: %w", err)
	}
	defer func() { _ = ns.Close() }()
	return onThread(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace %s: %w", path, err)
		}
		return f()
	})
}

// Apart runs f on a thread that is in a namespace of its own, which ends with it.
func Apart(f func() error) error {
	return onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make network namespace: %w", err)
		}
		return f()
	})
}

// onThread runs f on a thread of its own, which ends with it, so that nothing
// f does to its thread outlives it.
func onThread(f func() error) error {
	done := make(chan error, 1)
	// A goroutine that ends locked takes its thread with it.
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The runtime keeps the first thread for ever, and the whole process
			// is seen through it (/proc/self): leave it as it is. It is held here
			// while f runs on another.
			defer runtime.UnlockOSThread()
			done <- onThread(f)
			return
		}
		done <- f()
	}()
	return <-done
}
