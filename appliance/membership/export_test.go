package membership

import "skep/appliance/wire/control"

// Table is what the control port serves.
func (m *Membership) Table() []control.Row { return m.stay.Load().half.Load().port.Table() }

// Identity is the node's own.
func (m *Membership) Identity() *control.Identity { return m.stay.Load().current() }
