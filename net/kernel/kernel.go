// SPDX-License-Identifier: Apache-2.0

// Package kernel knows which parts of the kernel a node's networks are made of,
// and has them ready.
//
// Most kernels have these parts in modules, which they load when one is first
// asked for: by a program, modprobe, that an image made for nodes may not have.
// So the modules are loaded before. What a kernel has is found out by trying
// it: one with everything built in has no modules, and needs none.
package kernel

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"skep/net/kmod"
)

// Lack is a part that the kernel has not.
type Lack struct {
	// Part is its name, and Without what is not possible without it.
	Part, Without string
	// Err is what the kernel said and, if so, why modules were not loaded.
	Err error
}

// String is what an operator is told, in a line.
func (l Lack) String() string {
	return fmt.Sprintf("this kernel has no %s: %s (%s)", l.Part, l.Without, strings.ReplaceAll(l.Err.Error(), "\n", "; "))
}

// Prepare loads what is not loaded, and tells what is not there all the same,
// the most important first. It is to be called before anything of a node's
// networks is made, and is no error: whoever needs what is not there fails.
func Prepare(ctx context.Context) []Lack {
	var lacks []Lack
	for _, p := range parts() {
		loading := kmod.Load(p.modules...)
		// These are not everywhere.
		_ = kmod.Load(p.optional...)
		if err := p.try(ctx); err != nil {
			lacks = append(lacks, Lack{Part: p.name, Without: p.without, Err: errors.Join(err, loading)})
		}
	}
	return lacks
}

// Modules are those that a kernel which has everything in modules needs.
func Modules() []string {
	var all []string
	for _, p := range parts() {
		all = append(all, p.modules...)
	}
	return all
}
