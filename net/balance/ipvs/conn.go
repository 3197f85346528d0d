// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/mdlayher/netlink"
	"github.com/mdlayher/netlink/nlenc"
	"golang.org/x/sys/unix"
)

// Conn speaks to IPVS of the network namespace of the thread that opened it. It
// is not safe for concurrent use.
type Conn struct {
	c      *netlink.Conn
	family uint16
}

// ErrNone is what a kernel without IPVS answers.
var ErrNone = errors.New("this kernel has no IPVS")

// buffer is the room for the answers to one batch, of which each takes some
// hundred bytes.
const buffer = 1 << 20

// batch is how many commands go to the kernel before the answers are read.
const batch = 128

// Open opens a connection. The error is ErrNone if the kernel has no IPVS, or
// if it is a module that is not loaded.
func Open() (*Conn, error) {
	nc, err := netlink.Dial(unix.NETLINK_GENERIC, nil)
	if err != nil {
		return nil, fmt.Errorf("open IPVS: %w", err)
	}
	c := &Conn{c: nc}
	if err := errors.Join(nc.SetReadBuffer(buffer), c.resolve()); err != nil {
		return nil, errors.Join(fmt.Errorf("open IPVS: %w", err), nc.Close())
	}
	return c, nil
}

// Close closes the connection.
func (c *Conn) Close() error { return c.c.Close() }

// resolve asks for the number of the family IPVS.
func (c *Conn) resolve() error {
	data, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: unix.CTRL_ATTR_FAMILY_NAME, Data: nlenc.Bytes("IPVS")},
	})
	if err != nil {
		return err
	}
	answers, err := c.c.Execute(message(unix.GENL_ID_CTRL, netlink.Request, unix.CTRL_CMD_GETFAMILY, data))
	if errors.Is(err, unix.ENOENT) {
		return ErrNone
	}
	if err != nil {
		return fmt.Errorf("find the family: %w", err)
	}
	for _, m := range answers {
		if err := attributes(m, func(ad *netlink.AttributeDecoder) {
			if ad.Type() == unix.CTRL_ATTR_FAMILY_ID {
				c.family = ad.Uint16()
			}
		}); err != nil {
			return err
		}
	}
	return nil
}

// genlHeader is the length of the header of generic netlink: the command, a
// version, and nothing.
const genlHeader = 4

func message(family uint16, flags netlink.HeaderFlags, command uint8, data []byte) netlink.Message {
	return netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(family), Flags: flags},
		Data:   append([]byte{command, 1, 0, 0}, data...),
	}
}

func attributes(m netlink.Message, each func(*netlink.AttributeDecoder)) error {
	ad, err := netlink.NewAttributeDecoder(m.Data[min(genlHeader, len(m.Data)):])
	if err != nil {
		return err
	}
	for ad.Next() {
		each(ad)
	}
	return ad.Err()
}

// Run gives the commands in order. One that fails does not keep the others from
// being given; the errors are joined.
func (c *Conn) Run(commands []Command) error {
	var errs []error
	for some := range slices.Chunk(commands, batch) {
		msgs := make([]netlink.Message, 0, len(some))
		for _, command := range some {
			data, err := command.marshal()
			if err != nil {
				return err
			}
			msgs = append(msgs, message(c.family, netlink.Request|netlink.Acknowledge, uint8(command.Verb), data))
		}
		if _, err := c.c.SendMessages(msgs); err != nil {
			return fmt.Errorf("tell IPVS: %w", err)
		}
		for _, command := range some {
			// Each command has an answer of its own, in the same order.
			if _, err := c.c.Receive(); err != nil {
				errs = append(errs, fmt.Errorf("ipvs %s: %w", command, err))
			}
		}
	}
	return errors.Join(errs...)
}

// Timeouts are how long connections that are idle are known.
type Timeouts struct{ TCP, FIN, UDP time.Duration }

// The numbers of the commands that are no verbs, and of their attributes.
const (
	cmdGetService = 4
	cmdGetDest    = 8
	cmdSetConfig  = 12
	cmdGetConfig  = 13

	attrService = 1
	attrDest    = 2
	attrTCP     = 4
	attrFIN     = 5
	attrUDP     = 6
)

// Timeouts are those of the namespace.
func (c *Conn) Timeouts() (Timeouts, error) {
	var t Timeouts
	answers, err := c.c.Execute(message(c.family, netlink.Request, cmdGetConfig, nil))
	if err != nil {
		return t, fmt.Errorf("read IPVS's timeouts: %w", err)
	}
	for _, m := range answers {
		err := attributes(m, func(ad *netlink.AttributeDecoder) {
			for attr, to := range map[uint16]*time.Duration{attrTCP: &t.TCP, attrFIN: &t.FIN, attrUDP: &t.UDP} {
				if ad.Type() == attr {
					*to = time.Duration(ad.Uint32()) * time.Second
				}
			}
		})
		if err != nil {
			return t, fmt.Errorf("read IPVS's timeouts: %w", err)
		}
	}
	return t, nil
}

// SetTimeouts changes those that are not zero.
func (c *Conn) SetTimeouts(t Timeouts) error {
	ae := netlink.NewAttributeEncoder()
	ae.Uint32(attrTCP, uint32(t.TCP/time.Second))
	ae.Uint32(attrFIN, uint32(t.FIN/time.Second))
	ae.Uint32(attrUDP, uint32(t.UDP/time.Second))
	data, err := ae.Encode()
	if err == nil {
		_, err = c.c.Execute(message(c.family, netlink.Request|netlink.Acknowledge, cmdSetConfig, data))
	}
	if err != nil {
		return fmt.Errorf("set IPVS's timeouts: %w", err)
	}
	return nil
}
